"""Errors people see. Each says what happened and what to do next, in one line.

Blame is told apart: `ClientError` is the caller's to mend, `SwarmError` the swarm's (a retry may
succeed), `RemoteProtocolError` a peer's that spoke nonsense (its stream is closed, the node stays
up). Anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class P2PLLMError(Exception):
    """Base of every error that is meant to be read by a person.

    Attributes:
        code: stable, machine-readable, lower_snake_case; shows in API errors and `--json`.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ClientError(P2PLLMError):
    """The request cannot be served as it is asked."""

    code = "invalid_request"


class ModelNotFoundError(ClientError):
    """No such model in the swarm, in the folder or on the hub."""

    code = "model_not_found"


class ModelRefusedError(ClientError):
    """The model is there but cannot be run; the message names the reason."""

    code = "model_refused"


class ContextLengthError(ClientError):
    """The prompt, or prompt and answer together, exceed the model's context."""

    code = "context_length_exceeded"


class SwarmError(P2PLLMError):
    """The swarm cannot serve this now."""

    code = "swarm_unavailable"


class NoPathError(SwarmError):
    """Some layers have no holder; the message names them."""

    code = "layers_missing"


class OverloadedError(SwarmError):
    """No room now; try again later.

    Attributes:
        retry_after_s: when to try again.
    """

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(SwarmError):
    """The request's deadline passed."""

    code = "deadline_exceeded"


class RemoteProtocolError(P2PLLMError):
    """A peer sent what the protocol does not allow."""

    code = "remote_protocol"


class AuthenticationError(P2PLLMError):
    """Who speaks could not prove who they are, or is not let in."""

    code = "unauthenticated"


class InviteError(AuthenticationError):
    """An invite is malformed, expired, used up, or of another swarm."""

    code = "invite_refused"


class ConfigurationError(P2PLLMError):
    """This node cannot start as configured."""

    code = "configuration"
