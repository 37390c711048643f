"""The machine a benchmark runs on, and whether it has anything else to do."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import psutil

BUSY_PERCENT_MAX = 10.0
"""Above it, others take a noticeable part of the machine."""

SAMPLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What figures of different runs must share to be compared.

    Attributes:
        system: kernel and architecture.
        processor: as the kernel names it.
        cores: that this process may use.
        load_1m: load average over a minute.
        busy_percent: of all cores, taken by others just before the first measurement.
        python: version.
        torch: version.
        transformers: version.
    """

    system: str
    processor: str
    cores: int
    load_1m: float
    busy_percent: float
    python: str
    torch: str
    transformers: str

    @property
    def warning(self) -> str | None:
        """What to say where the figures cannot be trusted; None on an idle machine."""
        if self.busy_percent <= BUSY_PERCENT_MAX:
            return None
        return (
            f"The machine is not idle: {self.busy_percent:.0f} % of its {self.cores} cores are "
            f"busy, load {self.load_1m:.1f}. Trust ratios more than absolute figures, and repeat."
        )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"idle": self.warning is None}


def look_at_machine() -> Machine:
    """Describe this machine; takes `SAMPLE_S`."""
    from importlib.metadata import version

    busy_percent = psutil.cpu_percent(interval=SAMPLE_S)
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        load_1m=os.getloadavg()[0],
        busy_percent=busy_percent,
        python=platform.python_version(),
        torch=version("torch"),
        transformers=version("transformers"),
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
