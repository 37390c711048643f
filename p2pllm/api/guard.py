"""Who may ask, as far as HTTP can tell.

The owner's browser may show pages of strangers, and those can send requests to this machine:
directly (their `Origin` tells), or under a name of their own that they let point to 127.0.0.1 (DNS
rebinding; the `Host` tells). Both are refused on every route. What changes the node, or mints
invites, needs the control token besides.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

from p2pllm.api.errors import AUTHENTICATION, PERMISSION, RequestError

_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def host_name(authority: str) -> str | None:
    """The host of `host`, `host:port` or `[v6]:port`, in lower case; None where it is malformed."""
    try:
        return urlsplit(f"//{authority}").hostname
    except ValueError:
        return None


def is_public(name: str) -> bool:
    """Whether anybody on the internet could let `name` point here: it is no address, nor local."""
    try:
        ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return "." in name and not name.endswith(".local")
    return False


class Guard:
    """Checks requests.

    Args:
        host: what the server is bound to.
        control_token: opens the control routes.
        hosts_allowed: names, beside those of loopback, under which web pages, and all who ask a
            node bound to loopback, may ask.
    """

    def __init__(self, host: str, control_token: str, hosts_allowed: Iterable[str] = ()) -> None:
        if not control_token:
            raise ValueError("an empty control token would let everybody in")
        self._token = control_token.encode()
        self._hosts = {host.lower(), *(name.lower() for name in hosts_allowed)}
        self._is_loopback_bound = is_loopback(host)

    def check_source(self, request: web.Request) -> None:
        """Refuse what a stranger's web page sent.

        Raises:
            RequestError: `Host` or `Origin` is foreign.
        """
        authority = request.headers.get("Host")
        name = None if authority is None else host_name(authority)
        if authority is not None and self._is_loopback_bound and not self._is_own(name):
            raise RequestError(
                "this node answers to localhost only; allow other host names in its configuration",
                status=403,
                type=PERMISSION,
                code="foreign_host",
            )
        origin = request.headers.get("Origin")
        if origin is None:
            return
        origin_name = host_name(origin.partition("://")[2])
        is_same = origin_name == name and name is not None and not is_public(name)
        if not (self._is_own(origin_name) or is_same):
            raise RequestError(
                "web pages of other sites may not ask this node",
                status=403,
                type=PERMISSION,
                code="foreign_origin",
            )

    def check_token(self, request: web.Request) -> None:
        """Let in who knows the control token.

        Raises:
            RequestError: the token is missing or wrong.
        """
        if not self._has_token(request):
            raise RequestError(
                "send 'Authorization: Bearer ' and the node's control token",
                status=401,
                type=AUTHENTICATION,
                code="unauthenticated",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def check_token_or_local(self, request: web.Request) -> None:
        """Let in who knows the control token, or sits at this machine.

        Raises:
            RequestError: neither.
        """
        if not self._is_local(request):
            self.check_token(request)

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape")
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._token)

    def _is_own(self, name: str | None) -> bool:
        return name is not None and (is_loopback(name) or name in self._hosts)

    def _is_local(self, request: web.Request) -> bool:
        """Whether the client is on this machine and asks for itself, not for another."""
        peer = request.transport.get_extra_info("peername") if request.transport else None
        authority = request.headers.get("Host")
        name = None if authority is None else host_name(authority)
        return (
            isinstance(peer, tuple)
            and is_loopback(str(peer[0]))
            and name is not None
            and self._is_own(name)
            and not any(header in request.headers for header in _FORWARDED)
        )


GUARD: web.AppKey[Guard] = web.AppKey("guard", Guard)
