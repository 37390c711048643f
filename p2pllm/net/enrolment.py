"""Joining a swarm, and renewing a membership: the side that asks.

A joiner has no certificate to show. It does not verify TLS either, since it has nothing to verify
it with but the swarm's hash in the invite: the exchange checks that, and signs what it answers
together with the certificate TLS showed, before any secret is sent (`p2pllm.security`). A member
that renews comes with its own TLS context, which shows its certificate and insists on another
member's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from p2pllm.domain.enrolment import EnrolmentMessage
from p2pllm.domain.errors import ConfigurationError, RemoteProtocolError
from p2pllm.domain.records import Address
from p2pllm.wire.frames import GREETING_LIMITS, FrameDecoder, frame_parts

CONNECT_TIMEOUT_S: Final = 5.0
EXCHANGE_TIMEOUT_S: Final = 10.0
"""As long as the other side grants."""

Result = TypeVar("Result", covariant=True)


class JoinExchange(Protocol[Result]):
    """A join, seen from the joiner's side, without I/O; see `p2pllm.domain.enrolment`."""

    @property
    def result(self) -> Result | None:
        """What the joiner got, once it is done."""
        ...

    def start(self) -> EnrolmentMessage:
        """What to say first."""
        ...

    def receive(self, message: EnrolmentMessage) -> list[EnrolmentMessage]:
        """What to answer.

        Raises:
            InviteError: refused, or the other side is not of the invited swarm.
            RemoteProtocolError: the other side broke the protocol.
        """
        ...


async def enrol(
    address: Address,
    make_exchange: Callable[[bytes], JoinExchange[Result]],
    *,
    context: ssl.SSLContext | None = None,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    exchange_timeout_s: float = EXCHANGE_TIMEOUT_S,
) -> Result:
    """Join, or renew, through the member at `address`.

    Args:
        address: where a member listens.
        make_exchange: makes the joiner's machine, given the member's TLS certificate (DER).
        context: TLS as a client with this node's certificate, to renew; None to join.
        connect_timeout_s: for TCP and TLS.
        exchange_timeout_s: for the rest.

    Raises:
        ConfigurationError: nobody usable listens there; try another address.
        AuthenticationError: the exchange refused or was refused; InviteError where it is the
            invite's fault.
    """
    reader, writer = await _connect(address, context or _stranger_context(), connect_timeout_s)
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        exchange = make_exchange(tls.getpeercert(binary_form=True) or b"")
        async with asyncio.timeout(exchange_timeout_s):
            return await _pump(reader, writer, exchange)
    except TimeoutError:
        raise ConfigurationError(
            f"{address} did not finish the join within {exchange_timeout_s:g} s. Try again, or "
            "through another member."
        ) from None
    except RemoteProtocolError as error:
        raise ConfigurationError(
            f"{address} does not speak as a p2pllm node should ({error}). Check the address and "
            "that both run the same version."
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{address} broke the join off ({error.strerror or error}). Try again, or through "
            "another member."
        ) from error
    finally:
        writer.transport.abort()


async def _connect(
    address: Address, context: ssl.SSLContext, timeout_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname=""
            )
    except TimeoutError:
        problem = f"did not answer within {timeout_s:g} s"
        advice = "Check the address, and that no firewall is in between"
    except ConnectionRefusedError:
        problem = "refused the connection"
        advice = "Check the port, and that a node runs there"
    except ssl.SSLCertVerificationError:
        problem = "is no member of this swarm, or its membership has expired"
        advice = "Check the address, and the clocks"
    except ssl.SSLError:
        problem = "does not speak TLS 1.3"
        advice = "Check that this is a p2pllm node's address, not its HTTP API"
    except OSError as error:
        problem = f"cannot be reached ({error.strerror or error})"
        advice = "Check the address and the network"
    raise ConfigurationError(f"{address} {problem}. {advice}.")


def _stranger_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: JoinExchange[Result]
) -> Result:
    decoder = FrameDecoder(EnrolmentMessage, GREETING_LIMITS)
    answers = [exchange.start()]
    while True:
        for answer in answers:
            writer.writelines(frame_parts(answer, GREETING_LIMITS))
        result = exchange.result
        if result is not None:
            return result
        answers = []
        data = await reader.read(GREETING_LIMITS.header_bytes_max)
        if not data:
            raise ConnectionResetError("it closed the connection without an answer")
        for message in decoder.feed(data):
            answers += exchange.receive(message)
