"""`python -m m2d.tag` on real audio files: tags, windows, pictures, names of classes."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from checkpoint_files import published_name, write_fine_tuned
from recordings import ROOT, run_module

from m2d.inference import tag
from m2d.inference.classes import read_classes
from m2d.inference.runtime import RuntimeM2D
from m2d.inference.windows import WindowMeans, joined

NAMES = ["low tone", "high tone", "noise"]


def sound(kind, seconds=4.0, rate=16000):
    t = np.arange(int(seconds * rate)) / rate
    if kind == "noise":
        return (0.1 * np.random.RandomState(1).standard_normal(len(t))).astype(np.float32)
    return (0.3 * np.sin(2 * np.pi * (250 if kind == "low tone" else 3000) * t)).astype(np.float32)


@pytest.fixture(scope="module")
def tagger_weights(weights, tmp_path_factory):
    """A checkpoint whose classifier tells three sounds apart: class means over a random encoder's features."""
    runtime = RuntimeM2D(weight_file=weights)
    with torch.no_grad():
        features = torch.cat([runtime.get_scene_embeddings(torch.from_numpy(sound(name))[None]) for name in NAMES])
    mean = features.mean(dim=0)
    weight = torch.linalg.pinv(features - mean).T * 20
    state = {f"module.ar.runtime.backbone.{name}": value for name, value in runtime.backbone.state_dict().items()}
    state["module.head.norm.running_mean"], state["module.head.norm.running_var"] = mean, torch.ones(960)
    state["module.head.mlp.mlp.0.weight"], state["module.head.mlp.mlp.0.bias"] = weight, torch.zeros(3)
    path = tmp_path_factory.mktemp("tagger") / published_name() / "weights_ep1.pth"
    path.parent.mkdir()
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("classes") / "names.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


@pytest.mark.parametrize("rate", [8000, 44100])
def test_the_most_probable_tag_comes_first(tagger_weights, classes, tmp_path, rate, capsys):
    kinds = NAMES[:2] if rate == 8000 else NAMES
    for name in kinds:
        stereo = soxr.resample(np.stack([sound(name)] * 2, axis=1), 16000, rate)
        soundfile.write(tmp_path / f"{name}.wav", stereo, rate)
    arguments = [str(tmp_path), "--weights", str(tagger_weights), "--classes", str(classes), "--top", "2", "--device", "cpu"]
    assert tag.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * len(kinds)
    for path, best, second in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        assert best.split(maxsplit=1)[1] == Path(path).stem
        assert 0.5 < float(best.split()[0]) <= 1 and float(best.split()[0]) >= float(second.split()[0])


def test_windows_follow_the_sound_and_a_picture_shows_them(tagger_weights, classes, tmp_path):
    """With a window as long as the model's input, pieces do not see their neighbours."""
    piece = 208 * 160 / 16000
    soundfile.write(tmp_path / "x.wav", np.concatenate([sound(name, piece) for name in NAMES]), 16000)
    plot = tmp_path / "x.png"
    shared = ["--weights", tagger_weights, "--classes", classes, "--window", piece, "--top", 1, "--plot", plot]
    done = run_module("tag", tmp_path / "x.wav", *shared, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [next(name for name in NAMES if name in line) for line in lines[1:4]] == NAMES
    assert float(lines[2].split()[0]) == pytest.approx(piece, abs=0.1)
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 10_000
    assert len(list(tmp_path.iterdir())) == 2


def test_a_picture_of_a_short_clip_without_windows(tagger_weights, tmp_path):
    soundfile.write(tmp_path / "x.wav", sound("noise", 0.3), 16000)
    arguments = [str(tmp_path / "x.wav"), "--weights", str(tagger_weights), "--plot", str(tmp_path / "x.svg"), "--single"]
    assert tag.main(arguments) == 0
    assert "class 2" in (tmp_path / "x.svg").read_text() or (tmp_path / "x.svg").stat().st_size > 5000


@pytest.mark.parametrize(
    ("steps", "duration", "window", "expected"),
    [
        (10, 1.0, None, [(0, 10)]),
        (10, 1.0, 0.5, [(0, 5), (5, 10)]),
        (10, 1.0, 0.3, [(0, 3), (3, 6), (6, 10)]),  # the last 0.1 s join the window before
        (10, 1.0, 0.4, [(0, 4), (4, 8), (8, 10)]),  # half a window is one
        (10, 1.0, 5.0, [(0, 10)]),
        (2, 1.0, 0.1, [(0, 1), (1, 2)]),
        (1, 0.1, 0.01, [(0, 1)]),
    ],
)
def test_windows_cover_every_step_once(steps, duration, window, expected):
    means, features = WindowMeans(window), torch.randn(steps, 3)
    for step in torch.randperm(steps).tolist():
        means.add(step * duration / steps, features[step])
    windows = means.windows(duration)
    assert len(windows) == len(expected)
    for found, (start, stop) in zip(windows, expected, strict=True):
        assert found.steps == stop - start
        assert (found.start, found.end) == pytest.approx((start * duration / steps, stop * duration / steps))
        torch.testing.assert_close(found.features, features[start:stop].mean(dim=0))
    torch.testing.assert_close(joined(windows).features, features.mean(dim=0))


def test_windows_are_joined_in_pairs_where_there_are_too_many():
    means, features = WindowMeans(1.0, most=10), torch.randn(100, 3)
    for step in range(100):
        means.add(step * 0.5, features[step])
    windows = means.windows(50.0)
    assert [window.start for window in windows] == [8.0 * i for i in range(6)] and windows[-1].end == 50
    torch.testing.assert_close(windows[1].features, features[16:32].mean(dim=0))
    torch.testing.assert_close(joined(windows).features, features.mean(dim=0))


def test_probabilities_exclude_each_other_or_not(tagger_weights):
    tagger = tag.Tagger(tagger_weights)
    features = torch.randn(6, 960)
    logits = tagger.runtime.classify(features).detach()
    np.testing.assert_allclose(tagger.probabilities(features), logits.sigmoid(), rtol=1e-5)
    single = tag.Tagger(tagger_weights, single=True).probabilities(features)
    np.testing.assert_allclose(single, logits.softmax(dim=1), rtol=1e-5)


def test_names_of_classes(tmp_path):
    audioset = tmp_path / "class_labels_indices.csv"
    audioset.write_text('index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/05zppz,"Male speech, man speaking"\n')
    assert read_classes(audioset) == ["Male speech, man speaking", "Speech"]
    assert read_classes(audioset, "index") == ["Speech", "Male speech, man speaking"]
    other = tmp_path / "other.csv"
    other.write_text("label\nb\na\n")
    assert read_classes(other) == ["b", "a"]
    other.write_text("index,display_name\n2,c\n0,a\n1,b\n")
    assert read_classes(other) == ["a", "b", "c"] == read_classes(other, "index")
    other.write_text("index;display_name\n1;b\n0;a, or so\n")
    assert read_classes(other) == ["a, or so", "b"]
    other.write_text("index,display_name\n1,a\n2,b\n")
    with pytest.raises(ValueError, match="does not number the 2 classes from 0: there is no 0"):
        read_classes(other)
    other.write_bytes("display_name\na\n".encode("utf-16"))
    with pytest.raises(ValueError, match="other.csv: class names in UTF-8 are expected"):
        read_classes(other)
    other.write_text("label\nb\na\n")
    with pytest.raises(ValueError, match="no column mid"):
        read_classes(other, "mid")
    other.write_text("id\n1\n")
    with pytest.raises(ValueError, match=r"none of the columns display_name.*\(there are id\)"):
        read_classes(other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--classes", "{classes}", "--weights", "{plain}"], "has no classifier"),
        (["--classes", "{five}"], "names 5 classes; the classifier has 3"),
        (["--plot", "{tmp}/x.png", "{audio}/short.wav"], "--plot draws one file: 2 are given"),
        (["--plot", "{tmp}/x.jpeg"], "ends in .png"),
        (["--window", "0"], "greater than 0"),
        (["--classes", "{tmp}/none.csv"], "there is no file or folder"),
    ],
)
def test_tagging_mistakes_end_in_a_line(tagger_weights, weights, classes, recordings, tmp_path, options, words, caplog, capsys):
    (tmp_path / "five.txt").write_text("a\nb\nc\nd\ne")
    places = dict(classes=classes, plain=weights, five=tmp_path / "five.txt", tmp=tmp_path, audio=recordings)
    filled = [option.format(**places) for option in options]
    assert tag.main([str(recordings / "short.wav"), "--weights", str(tagger_weights), *filled]) == 2
    assert words in caplog.text and not capsys.readouterr().out


def test_a_file_that_cannot_be_tagged_is_said(tagger_weights, recordings, tmp_path, caplog, capsys):
    (tmp_path / "bad.wav").write_bytes(b"junk")
    assert tag.main([str(tmp_path / "bad.wav"), str(recordings / "short.wav"), "--weights", str(tagger_weights)]) == 1
    assert "left out" in caplog.text and capsys.readouterr().out.startswith(str(recordings / "short.wav"))


def test_other_head_widths_are_tagged_too(tmp_path, recordings, capsys):
    path = write_fine_tuned(tmp_path, classes=4, width=192)
    assert tag.main([str(recordings / "8000.wav"), "--weights", str(path), "--top", "9"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_names_that_a_picture_or_a_pipe_has_no_letters_for(tagger_weights, tmp_path, monkeypatch):
    """Dollars are mathematics to matplotlib; an ASCII pipe takes no é."""
    (tmp_path / "names.txt").write_text("chien é\n$b_$x^\nnoise\n")
    sound_file = tmp_path / "a$b_$x^é.wav"
    soundfile.write(sound_file, sound("noise", 0.3), 16000)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    arguments = [sound_file, "--weights", tagger_weights, "--classes", tmp_path / "names.txt", "--plot", tmp_path / "x.png"]
    assert tag.main([str(argument) for argument in arguments]) == 0
    printed = out.buffer.getvalue().decode("ascii")
    assert "a$b_$x^\\xe9.wav" in printed and "chien \\xe9" in printed and (tmp_path / "x.png").stat().st_size > 10_000


def test_a_reader_that_closes_the_pipe_ends_the_program_quietly(tagger_weights, recordings):
    read = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=-1); p.stdout.close(); sys.exit(p.wait())"
    command = [sys.executable, "-m", "m2d.tag", recordings / "short.wav", "--weights", tagger_weights, "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", read, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 141 and "rror" not in done.stderr


def test_a_picture_is_not_drawn_over_another_file(tagger_weights, recordings, tmp_path, caplog):
    (tmp_path / "x.png").write_text("mine")
    arguments = [recordings / "short.wav", "--weights", tagger_weights, "--plot", tmp_path / "x.png"]
    assert tag.main([str(argument) for argument in arguments]) == 2
    assert "x.png is there already" in caplog.text and (tmp_path / "x.png").read_text() == "mine"
    assert tag.main([*[str(argument) for argument in arguments], "--overwrite"]) == 0
    assert tag.main([str(argument) for argument in arguments]) == 0  # its own picture


def test_tags_are_printed_in_the_order_of_the_files(tagger_weights, tmp_path, capsys):
    """A short clip after long ones is encoded first: its pieces wait for no batch."""
    for i, seconds in enumerate((3, 0.3, 5, 0.3, 2)):
        soundfile.write(tmp_path / f"{i}.wav", sound("noise", seconds), 16000)
    assert tag.main([str(tmp_path), "--weights", str(tagger_weights), "--top", "1", "--batch_size", "2"]) == 0
    files = [Path(line).stem for line in capsys.readouterr().out.splitlines()[::2]]
    assert files == [str(i) for i in range(5)]
