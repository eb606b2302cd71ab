"""Memory that this process takes, read from /proc; where that is not possible, nothing is measured."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS, _PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_mib(field: str = "VmRSS") -> float:
    """Memory in use now, or its peak (VmHWM)."""
    if not _STATUS.exists():
        return 0.0
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(field)) / 1024


@contextmanager
def peak_growth() -> Iterator[list[float]]:
    """Append to the list how far memory rises in the block above what was in use before, in MiB.

    Each block has a peak of its own: neither other tests nor a busy machine change it.
    """
    found: list[float] = []
    is_measured = os.access(_PEAK, os.W_OK)
    if is_measured:
        _PEAK.write_text("5")
    before = resident_mib()
    yield found
    found.append(resident_mib("VmHWM") - before if is_measured else 0.0)
