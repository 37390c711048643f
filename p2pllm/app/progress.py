"""Shows how far long downloads and loads are: bars on a terminal, lines elsewhere."""

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
SHOWN_BYTES_MIN = 64 * 2**20
"""What is smaller is done before anybody could read about it."""


class ProgressDisplay:
    """Progress of several things at once; `with` makes sure that no bar is left behind.

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

    @property
    def shown(self) -> list[str]:
        """What has a bar now."""
        return list(self._tasks)

    def show(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """Say how far `what` is. The total may be a guess; `finish` ends it."""
        if total_bytes < SHOWN_BYTES_MIN:
            return
        if self._bars is not None:
            self._draw(self._bars, what, done_bytes, total_bytes)
            return
        quarter = QUARTERS * done_bytes // total_bytes
        if quarter > self._logged.get(what, 0):
            log.info("progress", what=what, percent=100 * quarter // QUARTERS, of_bytes=total_bytes)
        self._logged[what] = quarter

    def finish(self, what: str) -> None:
        """`what` has ended, well or not."""
        self._logged.pop(what, None)
        task = self._tasks.pop(what, None)
        if self._bars is not None and task is not None:
            self._bars.remove_task(task)
            if not self._tasks:
                self._bars.stop()

    def _draw(self, bars: Progress, what: str, done_bytes: int, total_bytes: int) -> None:
        if what not in self._tasks:
            if not self._tasks:
                bars.start()
            self._tasks[what] = bars.add_task(what, total=total_bytes)
        bars.update(self._tasks[what], completed=done_bytes, total=total_bytes)
