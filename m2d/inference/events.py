"""Sound events: from probabilities per time step to onsets and offsets, as label files and tables."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import median_filter

from ..utils.atomic_file import write_csv, write_text
from ..utils.program import did_you_mean
from .clips import name_in_list
from .stream import Sink
from .tagger import Tagger

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Event:
    """A class that sounds from `onset` to `offset`, in s; `probability` is its highest within."""

    onset: float
    offset: float
    label: str
    probability: float


@dataclass(frozen=True)
class EventRule:
    """How probabilities become events.

    Attributes:
        thresholds: a class sounds where its probability reaches its threshold, `[C]`.
        median: length in s of the median filter over the probabilities before that; below two time steps: none.
        min_length: shorter events are dropped, in s.
    """

    thresholds: np.ndarray
    median: float = 0.0
    min_length: float = 0.0

    def events(
        self, probabilities: np.ndarray, starts: np.ndarray, step: float, duration: float, names: Sequence[str]
    ) -> list[Event]:
        """The events of a recording, in the order of their onsets.

        Args:
            probabilities: `[T, C]`.
            starts: when the time steps start, in s, `[T]`.
            step: how long a time step is, in s.
            duration: of the recording, in s: no event is longer.
            names: of the classes.
        """
        within = max(1, int((starts < duration - 1e-6).sum()))  # the last frame of a spectrogram can begin at the end
        probabilities, starts = probabilities[:within], starts[:within]
        width = 2 * int(self.median / step / 2 - 0.5 + 1e-6) + 1  # the odd number of steps that fits
        smooth = median_filter(probabilities, size=(width, 1), mode="nearest")
        active = np.pad((smooth >= self.thresholds).astype(np.int8), ((1, 1), (0, 0)))
        changes = np.diff(active, axis=0)
        events = []
        for label in np.flatnonzero(changes.any(axis=0)).tolist():
            firsts, ends = (np.flatnonzero(changes[:, label] == sign).tolist() for sign in (1, -1))
            for first, end in zip(firsts, ends, strict=True):
                onset, offset = float(starts[first]), min(float(starts[end - 1]) + step, duration)
                if offset - onset >= self.min_length - 1e-6:
                    events.append(Event(onset, offset, names[label], float(smooth[first:end, label].max())))
        return sorted(events, key=lambda event: (event.onset, event.offset))


def class_thresholds(given: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Thresholds `[C]` from what `--threshold` was given: a number for all classes, or NAME=NUMBER for one.

    Raises:
        ValueError: no number above 0 and at most 1, or no such class.
    """
    thresholds = np.full(len(names), DEFAULT_THRESHOLD)
    for text in sorted(given, key=lambda text: "=" in text):
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0 < value <= 1:
            raise ValueError(f"--threshold {text}: a number above 0 and at most 1 is expected, or CLASS=NUMBER")
        if equals and name not in names:
            raise ValueError(f"--threshold {text}: the checkpoint has no class {name!r}{did_you_mean(name, names)}")
        thresholds[names.index(name) if equals else slice(None)] = value
    return thresholds


class EventSink(Sink):
    """Finds the events of recordings, and writes them into a folder.

    NAME.wav.txt is a label file of Audacity for each recording, under its path from the folder that all have in common;
    events.csv is a list as `m2d finetune` reads it, and events.json has all with durations and settings.

    Args:
        paths: recordings.
        tagger: the classifier.
        rule: how probabilities become events.
        folder: where to write; it is made at the first recording.
    """

    def __init__(self, paths: Sequence[Path], tagger: Tagger, rule: EventRule, folder: Path):
        super().__init__(paths)
        self._tagger, self._rule, self._folder = tagger, rule, folder
        self._outputs = self.outputs(paths, folder)
        self._steps: dict[int, dict[int, np.ndarray]] = {}
        self._found: dict[int, tuple[float, list[Event]]] = {}

    @staticmethod
    def outputs(paths: Sequence[Path], folder: Path) -> list[Path]:
        """The files that are written: the label file of each recording, then events.csv and events.json."""
        absolute = [os.path.abspath(path) for path in paths]
        common = os.path.commonpath([os.path.dirname(path) for path in absolute])
        labels = [folder / f"{os.path.relpath(path, common)}.txt" for path in absolute]
        return [*labels, folder / "events.csv", folder / "events.json"]

    def put(self, clip: int, step: int, embeddings: torch.Tensor) -> None:
        probabilities = self._tagger.probabilities(embeddings)
        self._steps.setdefault(clip, {})[step] = probabilities.astype(np.float16)  # hours of hundreds of classes are kept

    def complete(self, clip: int, samples: int, frames: int) -> None:
        parts = self._steps.pop(clip)
        probabilities = np.concatenate([parts[step] for step in sorted(parts)]).astype(np.float32)
        runtime = self._tagger.runtime
        starts = runtime.patch_times(samples).numpy() / 1000
        step = runtime.cutting.patch * runtime.front_end.hop_size / runtime.sample_rate
        duration = samples / runtime.sample_rate
        events = self._rule.events(probabilities, starts, step, duration, self._tagger.names)
        self._found[clip] = duration, events
        path = self._outputs[clip]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{event.onset:.6f}\t{event.offset:.6f}\t{_one_line(event.label)}\n" for event in events))

    def discard(self, clip: int, reason: str) -> None:
        self._steps.pop(clip, None)
        super().discard(clip, reason)

    def write_tables(self) -> int:
        """Write events.csv and events.json; returns the number of events."""
        rows, recordings = [], []
        for clip in sorted(self._found):
            duration, events = self._found[clip]
            name = name_in_list(self.paths[clip], self._folder)
            values = [(round(e.onset, 3), round(e.offset, 3), e.label, round(e.probability, 4)) for e in events]
            rows += [(name, *value) for value in values] or [(name, "", "", "", "")]
            keys = ("onset", "offset", "label", "probability")
            found = [dict(zip(keys, value, strict=True)) for value in values]
            recordings.append({"file_name": name, "seconds": round(duration, 3), "events": found})
        write_csv(self._folder / "events.csv", ("file_name", "onset", "offset", "label", "probability"), rows)
        settings = {"median": self._rule.median, "min_length": self._rule.min_length}
        thresholds = dict(zip(self._tagger.names, self._rule.thresholds.tolist(), strict=True))
        written = {**settings, "thresholds": thresholds, "recordings": recordings}
        write_text(self._folder / "events.json", json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        return sum(len(events) for _, events in self._found.values())


def _one_line(label: str) -> str:
    """A label file has a line per event, with tabs between its columns."""
    return " ".join(label.split())
