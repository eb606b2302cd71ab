"""benchmarks/judge.py: a table of a checkpoint, its untrained self and the log-mel, on made-up tasks."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import write_checkpoint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import judge

    return judge


def test_every_way_of_reading_features_is_judged_on_the_same_clips(judge, tmp_path, monkeypatch):
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "lms").mkdir()
    for n in range(32):
        loud = n % 2
        np.save(tmp_path / "lms" / f"{n}.npy", (rng.normal(size=(1, 80, 40 + n // 8)) + 2 * loud - 8).astype(np.float32))
        rows.append((f"{n}.wav", ("quiet", "loud")[loud], f"speaker {n // 4}"))
    with (tmp_path / "words.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label", "group"), *rows])
    weights = str(write_checkpoint(tmp_path / "a", size=(80, 64)))
    out = tmp_path / "judged.jsonl"
    monkeypatch.setattr(sys, "argv", ["judge.py", str(tmp_path), weights, "--out", str(out), "--tasks", "words"])
    judge.main()
    judged = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["features"] for row in judged] == [
        "last, mean",
        "last, mean and deviation",
        "middle and last, mean and deviation",
    ]
    for row in judged:
        assert (row["weights"], row["task"], row["logmel"]) == (weights, "words", 1.0)
        value, low, high = row["minus_untrained"]
        assert value == pytest.approx(row["accuracy"][0] - row["untrained"]) and low <= value <= high


def test_curves_are_drawn_through_their_points(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from draw_learning import draw

    point = {"curve": "labels", "untrained": 0.5, "logmel": 0.4}
    rows = [
        point | {"task": task, "seen": seen, "accuracy": [value, value - 0.1, value + 0.1]}
        for task in ("words", "drums")
        for seen, value in ((90, 0.7), (30, 0.6))
    ]
    axes = draw(rows).axes
    assert [axis.get_title() for axis in axes] == ["words", "drums"]
    line = next(line for line in axes[1].lines if line.get_label() == "labels")
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([30, 90], [0.6, 0.7])
