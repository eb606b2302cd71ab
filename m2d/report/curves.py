"""The curves of runs, as charts of series: what belongs together, in which order, and what it is called."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .runs import Run

MOST_POINTS = 600
#: Chart by the names of figures: (pattern, title, unit, what it says). The group names the chart's line.
_CHARTS = (
    (r"(train|val)_loss", "Loss", "", "What training minimises. It says little about what the features are worth."),
    (r"(train|val)_loss_m2d", "M2D loss", "", "Predicting the target encoder's features of hidden patches."),
    (r"(train|val)_loss_off", "Offline loss", "", "Predicting the teacher's features, or the labels."),
    (
        r"probe_(linear|knn)",
        "Probe",
        "share",
        "Classes told from the encoder's features, on clips that the probe was not fitted on.",
    ),
    (r"(accuracy|macro_f1|map)", "Validation", "share", "The classifier on validation clips."),
    (r"(train|val)_rankme", "Directions used (RankMe)", "", "How many directions the patch features use: a fall is a collapse."),
    (r"(train|val)_auc", "Explained variance (AUC)", "", "0.5: spread evenly over all directions; 1: a single direction."),
    (r"(?:train_)?lr()", "Learning rate", "", ""),
    (r"train_ema_decay()", "EMA decay of the target", "", ""),
    (r"seconds()", "Seconds of an epoch", "s", ""),
)
_SPEEDS = (
    ("Speed", "clips/s", "", "rate"),
    ("Waiting for data", "share", "Share of the time. Above a few percent, raise num_workers.", "waiting"),
)
_PARTS = {"train": "training", "val": "validation", "knn": "kNN", "macro_f1": "macro F1", "map": "mAP"}


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Charts with a series for each run and part: places in epochs, values, and the run's number."""
    names = list(dict.fromkeys(name for run in runs for row in run.epochs for name in row if name != "epoch"))
    found = []
    for pattern, title, unit, note in _CHARTS:
        parts = {name: match[1] for name in names if (match := re.fullmatch(pattern, name))}
        series = [_series(i, run, name, _PARTS.get(part, part)) for i, run in enumerate(runs) for name, part in parts.items()]
        _add(found, title, unit, note, series)
        names = [name for name in names if name not in parts]
    for title in dict.fromkeys(re.sub("^(train|val)_", "", name) for name in names):
        parts = {name: _PARTS.get(part, part) for part in ("train", "val") if (name := f"{part}_{title}") in names} or {title: ""}
        _add(found, title, "", "", [_series(i, run, name, part) for i, run in enumerate(runs) for name, part in parts.items()])
    for title, unit, note, name in _SPEEDS:
        _add(found, title, unit, note, [_speed(i, run, name) for i, run in enumerate(runs)], zero=True)
    return found


def _add(found: list, title: str, unit: str, note: str, series: Iterable[dict], zero: bool = False) -> None:
    series = [each for each in series if each["x"]]
    if series:
        found.append({"title": title, "unit": unit, "note": note, "series": series, "zero": zero})


def _series(number: int, run: Run, name: str, part: str) -> dict[str, Any]:
    rows = [(row["epoch"], row[name]) for row in run.epochs if name in row]
    return _thinned(number, part, np.array(rows, dtype=float).reshape(-1, 2))


def _speed(number: int, run: Run, name: str) -> dict[str, Any]:
    rows = [(speed.position, getattr(speed, name)) for speed in run.speeds]
    return _thinned(number, "", np.array(rows, dtype=float).reshape(-1, 2))


def _thinned(number: int, part: str, points: np.ndarray) -> dict[str, Any]:
    """At most MOST_POINTS points: means of stretches, each at its last place."""
    if len(points) > MOST_POINTS:
        stretches = np.array_split(points, MOST_POINTS)
        points = np.array([[stretch[-1, 0], stretch[:, 1].mean()] for stretch in stretches])
    x, y = ([float(f"{value:.8g}") for value in column] for column in points.T)
    return {"run": number, "part": part, "x": x, "y": y}
