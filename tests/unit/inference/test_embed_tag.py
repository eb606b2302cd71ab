"""`python -m m2d.embed` and `python -m m2d.tag` on real audio files of all sorts."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from checkpoint_files import published_name, write_checkpoint, write_fine_tuned

from m2d.audio.decode import load_audio
from m2d.inference import clips as audio_clips
from m2d.inference import embed, tag
from m2d.inference.runtime import RuntimeM2D

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


def melody(seconds, rate):
    """A tone that rises, with harmonics, in a little noise."""
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * (300 * t + 40 * t**2)
    noise = np.random.RandomState(0).standard_normal(len(t))
    return (0.2 * np.sin(phase) + 0.1 * np.sin(2 * phase) + 0.003 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Files of several rates, channels, formats and lengths, and one that is no audio."""
    folder = tmp_path_factory.mktemp("audio")
    (folder / "more").mkdir()
    for rate in (8000, 16000, 44100, 48000):
        soundfile.write(folder / f"{rate}.wav", melody(2.5, rate), rate)
        stereo = np.stack([melody(2.5, rate)] * 2, axis=1)
        soundfile.write(folder / "more" / f"{rate}-stereo.flac", stereo, rate)
    soundfile.write(folder / "short.wav", melody(0.3, 16000), 16000)
    soundfile.write(folder / "long.ogg", melody(20, 16000), 16000)
    (folder / "notes.txt").write_text("no audio")
    return folder


def run_module(name, *arguments):
    command = [sys.executable, "-m", f"m2d.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# ---------------------------------------------------------------- embed


@torch.no_grad()
def test_clips_of_all_sorts_have_the_runtimes_embeddings(weights, recordings, tmp_path):
    out = tmp_path / "new" / "embeddings.npz"
    arguments = [str(recordings), "--weights", str(weights), "--out", str(out), "--batch_size", "4", "--device", "cpu"]
    assert embed.main(arguments) == 0
    with np.load(out) as saved:
        files, embeddings = list(saved["files"]), saved["embeddings"]
    assert len(files) == 10 and embeddings.shape == (10, 960) and embeddings.dtype == np.float32
    runtime = RuntimeM2D(weight_file=weights)
    for path, row in zip(files, embeddings, strict=True):
        expected = runtime.get_scene_embeddings(torch.from_numpy(load_audio(path, 16000))[None])[0]
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-4)
    by_name = dict(zip((Path(path).name for path in files), embeddings, strict=True))
    for rate in (16000, 44100, 48000):
        assert cosine(by_name["16000.wav"], by_name[f"{rate}-stereo.flac"]) > 0.97
        assert cosine(by_name["16000.wav"], by_name[f"{rate}.wav"]) > 0.97
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file_name"] for row in rows] == files and [row["row"] for row in rows] == [str(i) for i in range(10)]
    assert {Path(row["file_name"]).name: row["seconds"] for row in rows}["short.wav"] == "0.3"


def test_embeddings_in_bfloat16_are_near_those_in_single_precision(weights, recordings, tmp_path):
    found = {}
    for name, flags in {"single": [], "half": ["--bf16"]}.items():
        out = tmp_path / f"{name}.npz"
        arguments = [str(recordings / "16000.wav"), "--weights", str(weights), "--out", str(out), "--device", "cpu"]
        assert embed.main(arguments + flags) == 0
        with np.load(out) as saved:
            found[name] = saved["embeddings"][0]
    assert found["half"].dtype == np.float32 and not np.array_equal(found["half"], found["single"])
    assert 0.999 < cosine(found["half"], found["single"])


@torch.no_grad()
def test_time_steps_of_all_clips_one_after_the_other(weights, recordings, tmp_path):
    out = tmp_path / "frames.npz"
    files = [recordings / name for name in ("long.ogg", "short.wav", "44100.wav")]
    arguments = [*map(str, files), "--weights", str(weights), "--out", str(out), "--level", "frame", "--batch_size", "3"]
    assert embed.main([*arguments, "--device", "cpu"]) == 0
    runtime = RuntimeM2D(weight_file=weights)
    with np.load(out) as saved, out.with_suffix(".csv").open() as names:
        assert list(saved["files"]) == [str(path) for path in files]
        for i, (path, row) in enumerate(zip(files, csv.DictReader(names), strict=True)):
            features, ms = runtime.get_timestamp_embeddings(torch.from_numpy(load_audio(path, 16000))[None])
            belongs = saved["file_index"] == i
            np.testing.assert_allclose(saved["embeddings"][belongs], features[0], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(saved["times_ms"][belongs], ms[0], rtol=1e-5)
            assert np.flatnonzero(belongs)[0] == int(row["row"]) and belongs.sum() == int(row["rows"])


def test_pieces_of_different_clips_share_batches(weights, recordings, monkeypatch):
    runtime, sizes = RuntimeM2D(weight_file=weights), []
    encode = runtime.encode_lms

    def spy(lms, **options):
        sizes.append(tuple(lms.shape[::3]))
        return encode(lms, **options)

    monkeypatch.setattr(runtime, "encode_lms", spy)
    encoder = embed.ClipEncoder(runtime, 4, embed.ClipMeans().put)
    for seconds in (2.5, 2.5, 5, 2.5, 2.6, 0.3):
        encoder.add(Path("x"), melody(seconds, 16000))
    encoder.finish()
    assert sorted(sizes) == [(1, 32), (1, 64), (1, 96), (2, 208), (3, 48), (4, 208)]


def test_few_pieces_wait_whatever_their_lengths(weights, monkeypatch):
    monkeypatch.setattr(embed, "_WAITING_BATCHES", 1)
    encoder = embed.ClipEncoder(RuntimeM2D(weight_file=weights), 3, embed.ClipMeans().put)
    for i in range(13):
        encoder.add(Path("x"), np.zeros(2560 * (i + 1), np.float32))
        assert sum(map(len, encoder._waiting.values())) <= 3


def test_flat_models_and_lists_of_names(weights, recordings, tmp_path):
    listed = recordings / "list.csv"
    listed.write_text("file_name,label\nshort.wav,a\nmore/8000-stereo.flac,b\n")
    assert audio_clips.list_clips([listed]) == [recordings / "short.wav", recordings / "more" / "8000-stereo.flac"]
    runtime = RuntimeM2D(weight_file=weights, flat_features=True)
    embed.embed(audio_clips.list_clips([listed]), runtime, tmp_path / "e.npz", per_frame=True)
    with np.load(tmp_path / "e.npz") as saved:
        assert saved["embeddings"].shape == (2 + 16, 192)
    listed.unlink()


def test_a_file_that_cannot_be_read_is_left_out(weights, recordings, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"junk")
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan, np.float32), 16000, subtype="FLOAT")
    files = [tmp_path / "bad.wav", recordings / "short.wav", tmp_path / "nan.wav"]
    done = run_module("embed", *files, "--weights", weights, "--out", tmp_path / "e.npz", "--device", "cpu")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "left out: " in done.stderr and "bad.wav" in done.stderr and "nan.wav holds NaN" in done.stderr
    with np.load(tmp_path / "e.npz") as saved:
        assert list(saved["files"]) == [str(recordings / "short.wav")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.wav", "--out", "{tmp}/e.npz"], "there is no file or folder none.wav"),
        (["{tmp}", "--out", "{tmp}/e.npz"], "no audio files there"),
        (["{tmp}/bad.wav", "--out", "{tmp}/e.npz"], "none of the 1 files could be read: nothing is written"),
        (["{audio}/short.wav", "--out", "{tmp}/e.npy"], "a name that ends in .npz is expected"),
        (["{audio}/short.wav", "--out", "{tmp}/e.npz", "--batch_size", "0"], "at least 1"),
        (["{tmp}/list.csv", "--out", "{tmp}/e.npz"], "no column 'file_name' (the columns are name)"),
    ],
)
def test_mistakes_end_in_a_line(weights, recordings, tmp_path, arguments, words, caplog):
    (tmp_path / "bad.wav").write_bytes(b"junk")
    if arguments[0] == "{tmp}":
        (tmp_path / "bad.wav").unlink()
    (tmp_path / "list.csv").write_text("name\na.wav\n")
    filled = [argument.format(tmp=tmp_path, audio=recordings) for argument in arguments]
    assert embed.main([*filled, "--weights", str(weights), "--device", "cpu"]) == 2
    assert words in caplog.text and not (tmp_path / "e.npz").exists()


# ---------------------------------------------------------------- tag


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
        (10, 1.0, 0.3, [(0, 3), (3, 6), (6, 9), (9, 10)]),
        (10, 1.0, 5.0, [(0, 10)]),
        (2, 1.0, 0.1, [(0, 1), (1, 2)]),
        (1, 0.1, 0.01, [(0, 1)]),
    ],
)
def test_windows_cover_every_step_once(steps, duration, window, expected):
    assert tag.windows(steps, duration, window) == expected


def test_probabilities_exclude_each_other_or_not(tagger_weights):
    runtime = tag.load_tagger(tagger_weights)
    features = torch.randn(6, 960)
    single = tag.probabilities(runtime, features, [(0, 6), (2, 4)], single=True)
    np.testing.assert_allclose(single.sum(axis=1), 1, rtol=1e-5)
    logits = runtime.classify(features[2:4].mean(dim=0)[None]).detach()
    np.testing.assert_allclose(tag.probabilities(runtime, features, [(2, 4)], single=False), logits.sigmoid(), rtol=1e-5)


def test_names_of_classes(tmp_path):
    audioset = tmp_path / "class_labels_indices.csv"
    audioset.write_text('index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/05zppz,"Male speech, man speaking"\n')
    assert tag.read_classes(audioset) == ["Male speech, man speaking", "Speech"]
    assert tag.read_classes(audioset, "index") == ["Speech", "Male speech, man speaking"]
    other = tmp_path / "other.csv"
    other.write_text("label\nb\na\n")
    assert tag.read_classes(other) == ["b", "a"]
    with pytest.raises(ValueError, match="no column mid"):
        tag.read_classes(other, "mid")
    other.write_text("id\n1\n")
    with pytest.raises(ValueError, match=r"none of the columns display_name.*\(there are id\)"):
        tag.read_classes(other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--classes", "{classes}", "--weights", "{plain}"], "has no classifier"),
        (["--classes", "{five}"], "names 5 classes; the classifier has 3"),
        (["--plot", "{tmp}/x.png", "{audio}/short.wav"], "--plot draws one file: 2 are given"),
        (["--plot", "{tmp}/x.jpeg"], "ends in .png"),
        (["--window", "0"], "greater than 0"),
        (["--classes", "{tmp}/none.csv"], "No such file"),
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
