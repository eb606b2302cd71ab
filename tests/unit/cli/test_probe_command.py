"""`m2d probe` on sounds in folders of classes."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import write_checkpoint

from m2d.cli import probe
from m2d.cli.probe import main
from m2d.evaluation import features as features_module


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    return [write_checkpoint(root / name, size=(80, 64)) for name in "ab"]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Low and high tones, which any encoder tells apart, in groups of two."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for name, pitch in (("low", 200), ("high", 3000)):
        for i in range(8):
            path = folder / name / f"player {i // 2}" / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            t = np.arange(8000 + 400 * i) / 16000
            soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * (1 + 0.02 * i) * t) + 0.01 * rng.normal(size=len(t)), 16000)
    return folder


def test_two_checkpoints_beside_untrained_ones_and_statistics(sounds, weights, tmp_path, capsys, caplog):
    arguments = [str(sounds), "--weights", *map(str, weights), "--out", str(tmp_path / "out"), "--folds", "2", "--device", "cpu"]
    assert main([*arguments, "--cache", str(tmp_path / "cache")]) == 0
    table = capsys.readouterr().out
    names = [f"{path.parent.parent.name}/{path.parent.name}/{path.name}" for path in weights]
    report = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert list(report["figures"]) == [names[0], f"untrained, as {names[0]}", "log-mel statistics at 16k", names[1]]
    assert all(name in table for name in report["figures"]) and "linear/accuracy" in table and "knn/macro_f1" in table
    assert report["figures"]["log-mel statistics at 16k"]["linear/accuracy"][0] == 1
    assert report["classes"] == {"high": 8, "low": 8} and report["groups"] == 4
    for what, difference in report["differences"].items():
        one, other = what.split(" - ")
        value, low, high = difference["linear/accuracy"]
        assert low <= value <= high
        expected = report["figures"][one]["linear/accuracy"][0] - report["figures"][other]["linear/accuracy"][0]
        assert value == pytest.approx(expected, abs=1e-6)
    for picture in ("confusion-1.png", "per_class-1.png", "confusion-2.png", "per_class-2.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 5000


def test_results_of_another_probe_stay(sounds, weights, tmp_path, caplog):
    (tmp_path / "probe.json").write_text("mine")
    arguments = [str(sounds), "--weights", str(weights[0]), "--no_cache", "--out", str(tmp_path), "--device", "cpu"]
    assert main(arguments) == 2 and "--overwrite" in caplog.messages[-1]
    assert (tmp_path / "probe.json").read_text() == "mine"


def test_features_are_kept_by_content(sounds, weights, tmp_path, monkeypatch, capsys):
    """The same clips elsewhere, one of them changed: that one alone is encoded."""
    arguments = ["--weights", str(weights[0]), "--folds", "2", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    assert main([str(sounds), *arguments]) == 0
    first = capsys.readouterr().out
    loads, load = [], features_module.load_audio
    monkeypatch.setattr(features_module, "load_audio", lambda path, rate: loads.append(path) or load(path, rate))
    moved = tmp_path / "moved"
    shutil.copytree(sounds, moved)
    assert main([str(moved), *arguments]) == 0
    assert loads == [] and capsys.readouterr().out == first
    changed = moved / "low" / "player 0" / "0.wav"
    soundfile.write(changed, np.random.default_rng(1).normal(size=8000) * 0.1, 16000)
    assert main([str(moved), *arguments]) == 0
    assert set(loads) == {changed}


def test_lists_of_log_mels_and_of_several_labels(sounds, weights, tmp_path, capsys):
    lines = ["file_name,label"]
    for i in range(12):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).normal(-7 + i % 2, 1, (1, 80, 50 + i)).astype(np.float32))
        lines.append(f"{i}.npy,{'odd' if i % 2 else 'even'}{';small' if i < 6 else ''}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert main([str(tmp_path / "list.csv"), "--weights", str(weights[0]), "--no_cache", "--folds", "3", "--device", "cpu"]) == 0
    assert "linear/map" in capsys.readouterr().out


def test_unreadable_clips_are_named_and_the_others_judged(sounds, weights, tmp_path, caplog):
    folder = tmp_path / "sounds"
    shutil.copytree(sounds, folder)
    (folder / "low" / "broken.wav").write_bytes(b"RIFF nothing")
    arguments = [str(folder), "--weights", str(weights[0]), "--no_cache", "--folds", "2", "--device", "cpu"]
    assert main(arguments) == 1
    assert "broken.wav" in caplog.text and "1 of 17 clips are left out" in caplog.text
    assert caplog.text.count("ERROR") == 1  # though three sources were to read it


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds", "1"], "--folds must be at least 2"),
        (["--weights", "none.pth"], "none.pth"),
        (["--weights", "x/random", "x/random"], "one checkpoint twice"),
    ],
)
def test_mistakes_are_one_line(sounds, weights, more, message, caplog):
    arguments = [str(sounds), "--weights", str(weights[0]), "--no_cache", "--device", "cpu", *more]
    assert main(arguments) == 2
    assert message in caplog.messages[-1] and "\n" not in caplog.messages[-1]


def test_a_damaged_checkpoint_stops_at_the_first_clip(sounds, weights, tmp_path, caplog):
    broken = torch.load(weights[0], weights_only=False)
    broken["model"]["norm.weight"][:] = float("nan")
    path = tmp_path / weights[0].parent.name / "checkpoint-1.pth"
    path.parent.mkdir()
    torch.save(broken, path)
    assert main([str(sounds), "--weights", str(path), "--no_cache", "--device", "cpu"]) == 2
    assert "not finite" in caplog.messages[-1] or "NaN" in caplog.messages[-1]


def test_silent_clips_are_counted(sounds, weights, tmp_path, caplog):
    shutil.copytree(sounds, tmp_path / "sounds")
    for i in range(2):
        soundfile.write(tmp_path / "sounds/low/player 0" / f"silent{i}.wav", np.zeros(9000 + i), 16000)
    assert main([str(tmp_path / "sounds"), "--weights", str(weights[0]), "--folds", "2", "--no_cache", "--device", "cpu"]) == 0
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == ["2 clips of 18 without any sound"]


def test_a_file_in_many_rows_is_encoded_once(sounds, weights, tmp_path, monkeypatch):
    files = [path.relative_to(sounds) for path in sorted(sounds.rglob("*.wav"))]
    rows = [f"{path},{path.parts[0]},{path.parts[1]}" for path in files * 3]
    (tmp_path / "list.csv").write_text("\n".join(["file_name,label,group", *rows]))
    loaded = []
    load = features_module._load
    monkeypatch.setattr(features_module, "_load", lambda row, *rest: loaded.append(row) or load(row, *rest))
    command = [str(tmp_path / "list.csv"), "--data_path", str(sounds), "--weights", str(weights[0]), "--no_cache"]
    assert main([*command, "--folds", "2", "--device", "cpu"]) == 0
    assert len(loaded) == 3 * len(files)  # for the encoder, the untrained one and the log-mel


def test_encoders_are_compared_with_their_own_baselines_and_each_other():
    names = ["a.pth", "untrained, as a.pth", "log-mel statistics at 16k", "b.pth", "untrained, as b.pth"]
    assert probe.comparisons(dict.fromkeys(names)) == [
        ("a.pth", "untrained, as a.pth"),
        ("a.pth", "log-mel statistics at 16k"),
        ("a.pth", "b.pth"),
        ("b.pth", "log-mel statistics at 16k"),
        ("b.pth", "untrained, as b.pth"),
    ]
    shared = ["a.pth", "untrained, as a.pth", "b.pth"]  # b's untrained encoder is a's
    assert ("b.pth", "untrained, as a.pth") in probe.comparisons(dict.fromkeys(shared))
