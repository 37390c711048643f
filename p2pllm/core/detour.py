"""Where one generation may go, given who has failed it.

Two degrees of distrust. A node that is known to have failed is *excluded* for a while, however few
paths that leaves. Where it is not known who of several failed, they are *suspects*: the next path
shares as few nodes with them as there are paths for, and takes them again where there is no other
(trying once more is better than giving up, and it may have been a passing fault).
"""

from __future__ import annotations

from collections.abc import Callable

from p2pllm.domain.errors import OverloadedError, P2PLLMError, SwarmError
from p2pllm.domain.generation import Path
from p2pllm.domain.ids import NodeId
from p2pllm.domain.messages import FailureReason

OVERLOAD = (FailureReason.NO_KV_ROOM, FailureReason.QUEUE_FULL)

AskPath = Callable[[frozenset[NodeId]], Path]
"""Nodes to leave out -> path; raises P2PLLMError where there is none."""


class Detour:
    """The way of one generation.

    Args:
        ask: routing, for the generation's model and length.
        exclusion_s: how long a node that failed is left out.
    """

    def __init__(self, ask: AskPath, *, exclusion_s: float) -> None:
        self._ask = ask
        self._exclusion_s = exclusion_s
        # Whom to leave out, until when, and why.
        self._excluded: dict[NodeId, tuple[float, FailureReason]] = {}

    def exclude(self, node: NodeId, reason: FailureReason, now: float) -> None:
        """Leave `node` out from now on, for a while."""
        self._excluded[node] = (now + self._exclusion_s, reason)

    def choose(
        self,
        now: float,
        suspects: tuple[NodeId, ...] = (),
        instead: tuple[NodeId, NodeId] | None = None,
    ) -> Path | None:
        """A path without the excluded and with as few suspects as can be; None where there is none.

        Args:
            now: exclusions that have run out by then are forgotten.
            suspects: distinct nodes, one of which may have failed.
            instead: `(lost, reporter)`: where leaving out the lost leaves no path, leaving out
                the one that could not reach it will do as well.
        """
        self._excluded = {
            node: (until_s, reason)
            for node, (until_s, reason) in self._excluded.items()
            if until_s > now
        }
        excluded = frozenset(self._excluded)
        path = self._route(excluded.union(suspects))
        if path is not None or not (suspects or instead):
            return path
        # Greedily: asking for every subset would take too long.
        for node in suspects:
            found = self._route(excluded | {node})
            if found is not None:
                path, excluded = found, excluded | {node}
        if path is None and suspects:
            path = self._route(excluded)
        if path is None and instead is not None:
            lost, reporter = instead
            path = self._route((excluded - {lost}) | {reporter})
        return path

    def why_none(self, failure: str, *, retry_after_s: float) -> tuple[P2PLLMError, bool]:
        """What to tell the client if it must end here, and whether it is no fault of the request's.

        Args:
            failure: how the last attempt ended, for people.
            retry_after_s: what to ask of clients where the swarm is overloaded.
        """
        outcome = self._outcome(frozenset())
        if isinstance(outcome, P2PLLMError):
            return outcome, not isinstance(outcome, OverloadedError)
        if self._would_help(OVERLOAD):
            error = OverloadedError(
                f"no room for this request now ({failure}); try again later",
                retry_after_s=retry_after_s,
            )
            return error, False
        error = SwarmError(
            f"no other path is left after this: {failure}; try again, or see the log"
        )
        return error, not self._would_help((FailureReason.ENGINE,))

    def _would_help(self, reasons: tuple[FailureReason, ...]) -> bool:
        """Whether those excluded for `reasons` would make a path."""
        others = frozenset(
            node for node, (_, reason) in self._excluded.items() if reason not in reasons
        )
        return len(others) < len(self._excluded) and self._route(others) is not None

    def _route(self, excluded: frozenset[NodeId]) -> Path | None:
        outcome = self._outcome(excluded)
        return None if isinstance(outcome, P2PLLMError) else outcome

    def _outcome(self, excluded: frozenset[NodeId]) -> Path | P2PLLMError:
        try:
            return self._ask(excluded)
        except P2PLLMError as error:
            return error
