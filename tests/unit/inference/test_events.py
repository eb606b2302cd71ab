"""Sound events of `m2d tag --events`: onsets and offsets from probabilities, and the files they are written to."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import write_fine_tuned
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from m2d.checkpoint.weights import read_weights
from m2d.finetune.clips import read_events
from m2d.inference import tag
from m2d.inference.events import EventRule, class_thresholds

STEP = 0.16


def plain_events(probabilities, threshold, width, min_length, duration):
    """The definition, step by step: (class, onset, offset)."""
    steps, classes = probabilities.shape
    found = []
    for label in range(classes):
        values = probabilities[:, label]
        padded = np.concatenate([[values[0]] * (width // 2), values, [values[-1]] * (width // 2)])
        active = [sorted(padded[i : i + width])[width // 2] >= threshold for i in range(steps)]
        onset = None
        for i, sounds in enumerate([*active, False]):
            if sounds and onset is None:
                onset = i
            if not sounds and onset is not None:
                start, end = onset * STEP, min(i * STEP, duration)
                if end - start >= min_length - 1e-6:
                    found.append((label, round(start, 6), round(end, 6)))
                onset = None
    return sorted(found)


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.floats(0, 1, width=16)),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([0.0, 0.2, 0.32, 1.0]),
)
def test_events_are_the_runs_above_the_threshold(probabilities, threshold, width, min_length):
    steps, classes = probabilities.shape
    rule = EventRule(np.full(classes, threshold, np.float32), median=width * STEP, min_length=min_length)
    duration = steps * STEP - 0.05
    threshold = np.float32(threshold)
    events = rule.events(probabilities, np.arange(steps) * STEP, STEP, duration, [str(i) for i in range(classes)])
    found = sorted((int(event.label), round(event.onset, 6), round(event.offset, 6)) for event in events)
    assert found == plain_events(probabilities, threshold, width, min_length, duration)
    assert all(event.probability >= threshold and event.offset <= duration for event in events)


@pytest.mark.parametrize(("median", "kept"), [(0, 2), (0.47, 2), (0.48, 1), (0.6, 1)])
def test_a_median_filter_drops_a_single_step(median, kept):
    probabilities = np.array([[0, 0.9, 0, 0, 0.9, 0.9, 0.9, 0]], np.float32).T
    events = EventRule(np.array([0.5]), median).events(probabilities, np.arange(8) * STEP, STEP, 9.0, ["x"])
    assert len(events) == kept and events[-1].onset == pytest.approx(4 * STEP)


def test_thresholds_of_all_classes_and_of_one():
    names = ["dog", "car", "a=b"]
    assert class_thresholds([], names).tolist() == [0.5, 0.5, 0.5]
    assert class_thresholds(["dog=0.3", "0.4", "a=b=0.6"], names).tolist() == [0.3, 0.4, 0.6]
    for wrong, message in (("dgo=0.3", "did you mean dog"), ("0", "above 0"), ("car=high", "a number"), ("nan", "a number")):
        with pytest.raises(ValueError, match=message):
            class_thresholds([wrong], names)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A checkpoint of time steps whose one class is sure where there is sound: a direction between noise and silence."""
    path = write_fine_tuned(tmp_path_factory.mktemp("detector"), classes=2, width=960)
    saved = torch.load(path, weights_only=True)
    names = [name for name in saved if ".head." in name]
    from m2d.inference.runtime import RuntimeM2D

    runtime = RuntimeM2D(weight_file=path)
    noise = torch.from_numpy(burst(4.0, 0, 4.0))[None]
    with torch.no_grad():
        loud, quiet = (runtime.encode(x, average_per_time_frame=True)[0, 2:-2].mean(dim=0) for x in (noise, noise * 0))
    middle, direction = (loud + quiet) / 2, (loud - quiet) / (loud - quiet).square().sum() * 20
    head = dict.fromkeys(names)
    head["module.head.norm.running_mean"], head["module.head.norm.running_var"] = middle, torch.ones(960)
    head["module.head.norm.num_batches_tracked"] = torch.tensor(1)
    head["module.head.mlp.mlp.0.weight"] = torch.stack([direction, -direction])
    head["module.head.mlp.mlp.0.bias"] = torch.tensor([0.0, -40.0])  # the second class never sounds
    path = path.with_name("checkpoint-best.pth")
    torch.save({"model": {**saved, **head}, "classes": ["noise\there", "never"], "single_label": False, "events": True}, path)
    return path


def burst(seconds, onset, offset):
    """Noise from onset to offset in silence, 16 kHz."""
    waveform = np.zeros(int(seconds * 16000), np.float32)
    start, end = int(onset * 16000), int(offset * 16000)
    waveform[start:end] = 0.2 * np.random.RandomState(0).standard_normal(end - start)
    return waveform


def test_events_of_a_folder(detector, tmp_path, caplog):
    sounds, out = tmp_path / "sounds", tmp_path / "events"
    (sounds / "more").mkdir(parents=True)
    soundfile.write(sounds / "a.wav", burst(6.0, 1.6, 3.2), 16000)
    soundfile.write(sounds / "more" / "long.wav", burst(5.0, 2.08, 5.0), 16000)
    soundfile.write(sounds / "quiet.wav", burst(2.0, 0, 0), 16000)
    (sounds / "broken.wav").write_text("no audio")
    command = [str(sounds), "--weights", str(detector), "--events", str(out), "--device", "cpu"]
    assert tag.main([*command, "--threshold", "0.6", "--min_length", "0.2"]) == 1  # one was left out
    label = (out / "a.wav.txt").read_text().split("\t")
    assert float(label[0]) == pytest.approx(1.6, abs=0.17) and float(label[1]) == pytest.approx(3.2, abs=0.17)
    assert label[2] == "noise here\n"
    assert (out / "more" / "long.wav.txt").exists() and (out / "quiet.wav.txt").read_text() == ""
    found = json.loads((out / "events.json").read_text())
    assert found["thresholds"] == {"noise\there": 0.6, "never": 0.6} and found["min_length"] == 0.2
    assert [len(entry["events"]) for entry in found["recordings"]] == [1, 1, 0]
    assert found["recordings"][1]["events"][0]["offset"] <= found["recordings"][1]["seconds"] == 5.0
    assert tag.main(command) == 2 and "--overwrite" in caplog.messages[-1]


def test_found_events_can_be_trained_on(detector, tmp_path):
    soundfile.write(tmp_path / "a.wav", burst(4.0, 1.6, 3.2), 16000)
    soundfile.write(tmp_path / "b.wav", burst(4.0, 0, 0), 16000)
    assert tag.main([str(tmp_path), "--weights", str(detector), "--events", str(tmp_path / "out"), "--device", "cpu"]) == 0
    import pandas as pd

    table = pd.read_csv(tmp_path / "out" / "events.csv", dtype=str, keep_default_na=False)
    paths, events, classes, _ = read_events(table, tmp_path / "out", "events.csv")
    assert [path.name for path in paths] == ["a.wav", "b.wav"] and all(path.exists() for path in paths)
    assert classes == ["noise\there"] and [len(event.spans) for event in events] == [1, 0]


def test_a_table_of_tags(detector, tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a, b.wav", burst(4.0, 0, 2.08), 16000)
    out = tmp_path / "tags.csv"
    command = [str(tmp_path / "in"), "--weights", str(detector), "--out", str(out), "--device", "cpu", "--top", "1"]
    assert tag.main([*command, "--window", "2.08"]) == 0
    rows = list(csv.DictReader(out.open(newline="")))
    assert [(row["file_name"], row["label"]) for row in rows] == [("in/a, b.wav", "noise\there")] * 2
    assert [float(row["start"]) for row in rows] == [0, 2.08] and float(rows[1]["end"]) == 4.0
    assert float(rows[0]["probability"]) > 0.9 > 0.1 > float(rows[1]["probability"])
    before = out.read_bytes()
    assert tag.main(command) == 2 and out.read_bytes() == before
    assert tag.main([*command, "--overwrite"]) == 0
    assert len(out.read_text().splitlines()) == 2


def test_nothing_is_written_where_no_file_can_be_read(detector, tmp_path, caplog):
    (tmp_path / "x.wav").write_text("no audio")
    for name, flag in (("tags.csv", "--out"), ("events", "--events")):
        command = [str(tmp_path / "x.wav"), "--weights", str(detector), flag, str(tmp_path / name), "--device", "cpu"]
        assert tag.main(command) == 2 and "nothing is written" in caplog.messages[-1]
    assert not (tmp_path / "tags.csv").exists() and not list((tmp_path / "events").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threshold", "0.4"], "--events"),
        (["--events", "e", "--window", "1"], "--window"),
        (["--events", "e", "--median", "-1"], "0 or more"),
        (["--events", "e", "--threshold", "dog=0.4"], "no class 'dog'"),
        (["--out", "tags.txt"], ".csv"),
    ],
)
def test_flags_that_make_no_sense(detector, tmp_path, monkeypatch, caplog, flags, message):
    monkeypatch.chdir(tmp_path)
    soundfile.write("x.wav", burst(1.0, 0, 1.0), 16000)
    assert tag.main(["x.wav", "--weights", str(detector), "--device", "cpu", *flags]) == 2
    assert message in caplog.messages[-1]


def test_a_checkpoint_tells_that_it_detects_events(detector):
    assert read_weights(detector).events and tag.Tagger(detector).detects_events
