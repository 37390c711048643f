"""Shows how far downloads and loads are: bars on a terminal, a line per quarter elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import structlog
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger("p2pllm")

QUARTERS = 4


class ProgressDisplay:
    """Progress of several things at once; `async with` or `with` not needed before the first.

    Args:
        on_terminal: draw bars; None finds out by standard error.
    """

    def __init__(self, *, on_terminal: bool | None = None) -> None:
        self._bars: Progress | None = None
        if sys.stderr.isatty() if on_terminal is None else on_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
        self._tasks: dict[str, TaskID] = {}
        # How many quarters of each thing have been logged.
        self._logged: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Say how far `what` is; done when both are equal."""
        if self._bars is not None:
            self._draw(self._bars, what, done_bytes, total_bytes)
            return
        quarter = QUARTERS * done_bytes // max(1, total_bytes)
        if quarter > self._logged.get(what, 0):
            log.info("progress", what=what, percent=100 * quarter // QUARTERS, of_bytes=total_bytes)
        self._logged[what] = quarter
        if done_bytes >= total_bytes:
            self._logged.pop(what, None)

    def _draw(self, bars: Progress, what: str, done_bytes: int, total_bytes: int) -> None:
        if what not in self._tasks:
            if not self._tasks:
                bars.start()
            self._tasks[what] = bars.add_task(what, total=total_bytes)
        bars.update(self._tasks[what], completed=done_bytes, total=total_bytes)
        if done_bytes >= total_bytes:
            bars.remove_task(self._tasks.pop(what))
            if not self._tasks:
                bars.stop()
