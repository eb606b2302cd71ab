"""Mean features of consecutive windows of a clip, from features that come in any order."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Window:
    """Mean features `[feature_d]` of the time steps that begin from `start` to `end`, in seconds."""

    start: float
    end: float
    features: torch.Tensor
    steps: int


@dataclass
class _Sum:
    start: float
    total: torch.Tensor
    steps: int = 1


class WindowMeans:
    """Features of time steps averaged over windows; a window has the steps whose patches begin in it.

    Args:
        seconds: length of a window; None: one of all.
        most: the most windows to keep: beyond that, windows are joined in pairs and become twice as long.
    """

    def __init__(self, seconds: float | None, most: int | None = None):
        self._seconds, self._most = seconds, most
        self._sums: dict[int, _Sum] = {}

    def add(self, start: float, features: torch.Tensor) -> None:
        """Take the features `[feature_d]` of the time step that begins at `start` seconds."""
        # An edge that equals a step's start up to rounding belongs to that step.
        place = 0 if self._seconds is None else int(start / self._seconds + 1e-6)
        self._insert(place, _Sum(start, features.double()))
        if self._most is not None and self._seconds is not None and len(self._sums) > self._most:
            self._seconds *= 2
            sums, self._sums = self._sums, {}
            for place, values in sums.items():
                self._insert(place // 2, values)

    def _insert(self, place: int, values: _Sum) -> None:
        there = self._sums.get(place)
        if there is not None:
            values = _Sum(min(there.start, values.start), there.total + values.total, there.steps + values.steps)
        self._sums[place] = values

    def windows(self, duration: float) -> list[Window]:
        """The windows of a clip of `duration` seconds, in order. A last one of less than half the length joins the one before."""
        sums = [self._sums[place] for place in sorted(self._sums)]
        if self._seconds is not None and len(sums) > 1 and duration - sums[-1].start < self._seconds / 2 - 1e-6:
            last = sums.pop()
            sums[-1] = _Sum(sums[-1].start, sums[-1].total + last.total, sums[-1].steps + last.steps)
        ends = [*(following.start for following in sums[1:]), duration]
        return [
            Window(each.start, end, (each.total / each.steps).float(), each.steps) for each, end in zip(sums, ends, strict=True)
        ]


def joined(windows: list[Window]) -> Window:
    """All windows as one."""
    steps = sum(window.steps for window in windows)
    total = torch.stack([window.features.double() * window.steps for window in windows]).sum(dim=0)
    return Window(windows[0].start, windows[-1].end, (total / steps).float(), steps)
