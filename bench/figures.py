"""What a benchmark finds: samples, their summary, and how they compare with a reference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Summary:
    """A few samples: the median is what counts, the extremes say how much to trust it."""

    median: float
    minimum: float
    maximum: float
    count: int


def summarise(samples: Sequence[float]) -> Summary:
    """Median and extremes.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("nothing was measured")
    return Summary(statistics.median(samples), min(samples), max(samples), len(samples))


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that is not below `percent` of all of them (nearest rank).

    Raises:
        ValueError: there are no samples, or `percent` is not within (0, 100].
    """
    if not samples or not 0 < percent <= 100:
        raise ValueError("a percentile needs samples, and a percentage within (0, 100]")
    return sorted(samples)[math.ceil(len(samples) * percent / 100) - 1]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity.

    Attributes:
        name: what, unique within its finding.
        unit: of the samples.
        samples: one per run.
        against: the name of the figure it is compared with; None for a reference itself.
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    against: str | None = None

    @property
    def summary(self) -> Summary:
        """Of the samples."""
        return summarise(self.samples)


@dataclass(slots=True)
class Finding:
    """The answer to one question.

    Attributes:
        question: its name on the command line.
        subject: what was measured, such as the model.
        settings: what the figures depend on.
        figures: in the order of the table.
    """

    question: str
    subject: str
    settings: dict[str, str | int | float]
    figures: list[Figure] = field(default_factory=list[Figure])

    def add(
        self, name: str, unit: str, samples: Sequence[float], against: str | None = None
    ) -> None:
        """Add a figure; what it is compared with must stand in the table already.

        Raises:
            ValueError: the name is taken, the reference is unknown, or there are no samples.
        """
        names = {figure.name for figure in self.figures}
        if name in names:
            raise ValueError(f"{name!r} was measured already")
        if against is not None and against not in names:
            raise ValueError(f"{name!r} is compared with {against!r}, which was not measured")
        if not samples:
            raise ValueError(f"{name!r} has no samples")
        self.figures.append(Figure(name, unit, tuple(samples), against))

    def median(self, name: str) -> float:
        """Of one figure."""
        return next(figure.summary.median for figure in self.figures if figure.name == name)

    def ratio(self, figure: Figure) -> float | None:
        """Its median over its reference's; None for a reference, or where that is zero."""
        if figure.against is None:
            return None
        reference = self.median(figure.against)
        return figure.summary.median / reference if reference else None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "question": self.question,
            "subject": self.subject,
            "settings": self.settings,
            "figures": [
                {
                    "name": figure.name,
                    "unit": figure.unit,
                    "median": figure.summary.median,
                    "min": figure.summary.minimum,
                    "max": figure.summary.maximum,
                    "runs": figure.summary.count,
                    "against": figure.against,
                    "ratio": self.ratio(figure),
                }
                for figure in self.figures
            ],
        }
