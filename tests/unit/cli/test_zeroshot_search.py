"""`m2d zeroshot`, `m2d search` and `m2d embed --clap`, with text vectors that are known sounds' own."""

import csv
import sys

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import semantic_tensors, write_checkpoint, write_clap
from matplotlib.colors import to_rgb
from recordings import melody

from m2d.cli.search import main as search
from m2d.cli.zeroshot import draw_scores
from m2d.cli.zeroshot import main as zeroshot
from m2d.evaluation.sound_index import SoundIndex
from m2d.evaluation.zero_shot import class_names, judge, prompts
from m2d.inference.embed import main as embed
from m2d.inference.runtime import RuntimeM2D
from m2d.utils.errors import FileError, UserError

D = 192
NAMES = ["low", "high_tone", "noise"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_clap(tmp_path_factory.mktemp("weights"), semantic_tensors(D))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A file of each class, all longer than the model's input."""
    folder = tmp_path_factory.mktemp("sounds")
    noise = 0.3 * np.random.default_rng(0).standard_normal(40_000)
    for name, wave in zip(NAMES, (melody(1.1, 16_000), melody(0.9, 16_000)[::-3], noise), strict=True):
        soundfile.write(folder / f"{name}.wav", wave, 16_000)
    return folder


def vector_of(weights, path):
    audio, rate = soundfile.read(path, dtype="float32")
    with torch.no_grad():
        return RuntimeM2D(weight_file=weights).encode_clap_audio(torch.from_numpy(audio)[None], sample_rate=rate)[0]


@pytest.fixture
def known_texts(weights, sounds, monkeypatch):
    """A text encoder that gives for a text with a class's name the vector of that class's sound."""
    vectors = {name.replace("_", " "): vector_of(weights, sounds / f"{name}.wav") for name in NAMES}
    asked = []

    def encode(texts, truncate=False):
        asked.extend(texts)
        return torch.stack([next(vector for name, vector in vectors.items() if name in text) for text in texts])

    def load(self):
        self.text_encoder = encode
        return encode

    monkeypatch.setattr(RuntimeM2D, "load_text_encoder", load)
    return asked


def read(path):
    return list(csv.reader(path.open(newline="")))


# ---------------------------------------------------------------- embed --clap


def test_an_index_holds_unit_vectors_in_half_precision(weights, sounds, tmp_path):
    out = tmp_path / "sounds.npz"
    assert embed([str(sounds), "--weights", str(weights), "--clap", "--out", str(out)]) == 0
    stored = np.load(out, allow_pickle=False)
    assert str(stored["clap"]) == str(weights) and stored["embeddings"].dtype == np.float16
    for file, row in zip(stored["files"], stored["embeddings"].astype(np.float32), strict=True):
        expected = vector_of(weights, file)
        np.testing.assert_allclose(row, (expected / expected.norm()).numpy(), atol=2e-3)
    assert read(tmp_path / "sounds.files.csv")[0] == ["file_name", "seconds", "row", "rows"]


def test_weights_without_projector_and_vectors_per_time_step_are_refused(sounds, tmp_path, caplog):
    weights = write_checkpoint(tmp_path, size=(80, 64))
    command = [str(sounds), "--weights", str(weights), "--clap", "--out", str(tmp_path / "a.npz")]
    assert embed(command) == 2 and "has no projector" in caplog.text
    assert embed([*command, "--level", "frame"]) == 2 and "leave --level frame out" in caplog.text
    assert not list(tmp_path.glob("a.*"))


# ---------------------------------------------------------------- search


@pytest.fixture
def index(weights, sounds, tmp_path):
    assert embed([str(sounds), "--weights", str(weights), "--clap", "--out", str(tmp_path / "sounds.npz")]) == 0
    return tmp_path / "sounds.npz"


@pytest.mark.usefixtures("known_texts")
def test_the_nearest_sounds_of_texts_and_sounds(index, sounds, tmp_path, capsys):
    queries = ["a noise", str(sounds / "low.wav"), "a high tone"]
    out = tmp_path / "found.csv"
    assert search([*queries, "--index", str(index), "--top", "2", "--out", str(out)]) == 0
    header, *rows = read(out)
    assert header == ["query", "rank", "cosine", "file_name"] and [row[0] for row in rows[::2]] == queries
    for best, name in zip(rows[::2], ("noise", "low", "high_tone"), strict=True):
        assert best[1] == "1" and best[3] == str(sounds / f"{name}.wav")
        assert float(best[2]) == pytest.approx(1, abs=2e-3)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "a noise" and printed[1].split() == ["1.000", str(sounds / "noise.wav")]
    assert search([*queries, "--index", str(index), "--out", str(out)]) == 0  # its own table may be replaced
    assert len(read(out)) == 10


@pytest.mark.parametrize("query", ["none.wav", "recordings/none.FLAC", "none.m4a"])
def test_a_sound_that_is_missing_is_not_taken_for_a_text(query, index, caplog):
    assert search([query, "--index", str(index)]) == 2
    assert f"there is no file {query}" in caplog.text


@pytest.mark.parametrize("count", [1, 5, 3000])
def test_the_index_finds_what_a_full_comparison_finds(index, count, tmp_path, monkeypatch):
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((5000, 24)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    np.savez(tmp_path / "i.npz", files=np.arange(5000).astype(str), clap=np.array("x"), embeddings=vectors)
    queries = torch.randn(3, 24)
    cosines, rows = SoundIndex(tmp_path / "i.npz").nearest(queries, count)
    unit = (queries / queries.norm(dim=1, keepdim=True)).double().numpy()
    expected = unit @ vectors.astype(np.float64).T
    best = -np.sort(-expected, axis=1)[:, :count]
    np.testing.assert_allclose(cosines.numpy(), best, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, rows.numpy(), axis=1), best, atol=1e-6)
    with pytest.raises(ValueError, match="width 7, vectors of width 24"):
        SoundIndex(tmp_path / "i.npz").nearest(torch.zeros(1, 7), 1)


def test_what_is_no_index(tmp_path, weights):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match="there is no index"):
        SoundIndex(path)
    good = dict(files=np.array(["a"]), clap=np.array("x"), embeddings=np.zeros((1, 3), np.float16))
    wrong = [
        ({name: value for name, value in good.items() if name != "clap"}, "embed --clap"),
        (good | {"embeddings": np.zeros((2, 3), np.float16)}, "not an index"),
        (good | {"embeddings": np.zeros((1, 3), np.float32)}, "not an index"),
        (good | {"files": np.array(["a"], dtype=object)}, "no index"),
    ]
    for arrays, message in wrong:
        np.savez(path, **arrays)
        with pytest.raises(FileError, match=message):
            SoundIndex(path)
    np.savez(path, **good)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="is no index of sounds"):
        SoundIndex(path)
    np.savez(path, **good)
    assert search(["rain", "--index", str(path), "--weights", str(weights), "--top", "0"]) == 2


# ---------------------------------------------------------------- zero-shot classification


def test_each_sound_gets_its_class(weights, sounds, known_texts, tmp_path, capsys):
    out, picture = tmp_path / "scores.csv", tmp_path / "scores.png"
    command = [str(sounds), "--weights", str(weights), "--classes", "low, high_tone, noise", "--top", "1"]
    assert zeroshot([*command, "--out", str(out), "--plot", str(picture)]) == 0
    assert known_texts == ["low can be heard", "high tone can be heard", "noise can be heard"]
    header, *rows = read(out)
    assert header == ["file_name", *NAMES]
    for row in rows:
        values = list(map(float, row[1:]))
        assert row[0] == str(sounds / f"{NAMES[int(np.argmax(values))]}.wav") and max(values) == pytest.approx(1, abs=1e-3)
    assert len(capsys.readouterr().out.splitlines()) == 6 and picture.read_bytes().startswith(b"\x89PNG")
    assert zeroshot([*command, "--out", str(out)]) == 2  # a table of one's own is not replaced


@pytest.mark.usefixtures("known_texts")
def test_a_list_with_labels_is_judged(weights, sounds, tmp_path, capsys):
    listed = tmp_path / "list.csv"
    listed.write_text("".join(f"{line}\n" for line in ["file_name,label", *(f"{sounds}/{name}.wav,{name}" for name in NAMES)]))
    assert zeroshot([str(listed), "--weights", str(weights)]) == 0
    assert "accuracy 1.0000 of 3 clips, 3 classes" in capsys.readouterr().out
    rows = [f"{sounds}/low.wav,low;noise", f"{sounds}/noise.wav,noise", f"{sounds}/high_tone.wav,high_tone"]
    listed.write_text("\n".join(["file_name,label", *rows]))
    assert zeroshot([str(listed), "--weights", str(weights), "--classes", "noise,low,high_tone"]) == 0
    assert "mAP " in capsys.readouterr().out


def test_files_that_cannot_be_read_are_left_out(weights, sounds, known_texts, tmp_path, capsys):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    command = ["--weights", str(weights), "--classes", "low,noise"]
    assert zeroshot([str(broken), str(sounds / "low.wav"), *command]) == 1
    assert capsys.readouterr().out.splitlines()[0] == str(sounds / "low.wav")
    assert zeroshot([str(broken), *command]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", " , "], "names no class"),
        (["--classes", "a,b,a"], "names a more than once"),
        (["--classes", "missing.txt"], "there is no such file"),
        ([], "--classes is missing"),
        (["--classes", "a", "--prompt", "no place"], "no {} in it"),
        (["--classes", "a", "--top", "0"], "--top must be at least 1"),
    ],
)
def test_what_cannot_be_classified(flags, message, weights, sounds, caplog):
    assert zeroshot([str(sounds), "--weights", str(weights), *flags]) == 2
    assert message in caplog.text


def test_labels_that_are_no_classes(weights, sounds, tmp_path, caplog):
    listed = tmp_path / "list.csv"
    listed.write_text(f"file_name,label\n{sounds}/low.wav,low\n{sounds}/noise.wav,noise\n")
    assert zeroshot([str(listed), "--weights", str(weights), "--classes", "low,rain"]) == 2
    assert "--classes does not name noise" in caplog.text
    assert zeroshot([str(listed), str(sounds), "--weights", str(weights)]) == 2
    assert "judged alone" in caplog.text


def test_without_transformers_one_line_says_what_to_install(weights, sounds, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    assert zeroshot([str(sounds), "--weights", str(weights), "--classes", "a,b"]) == 2
    assert "pip install 'm2d-audio[clap]'" in caplog.text and len(caplog.records[-1].getMessage().splitlines()) == 1


def test_class_names_of_files_and_texts(tmp_path):
    assert class_names("dog, rain,speech") == ["dog", "rain", "speech"]
    (tmp_path / "names.txt").write_text("dog\nrain on a roof\n")
    assert class_names(str(tmp_path / "names.txt")) == ["dog", "rain on a roof"]
    assert prompts(["rock_music"], "{} music") == ["rock music music"]
    with pytest.raises(UserError):
        prompts(["a"], "x")


def test_figures_of_scores():
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.7]])
    assert judge(scores, np.array([0, 1, 1])) == ("accuracy", pytest.approx(2 / 3))
    name, value = judge(scores, np.array([[1, 0], [0, 1], [0, 1]], dtype=bool))
    assert name == "mAP" and value == pytest.approx(1.0)


@pytest.mark.filterwarnings("error")
def test_long_names_leave_room_for_the_picture(tmp_path):
    files = [f"recordings/{'a rather long name ' * 5}{n}.wav" for n in range(3)]
    draw_scores(tmp_path / "scores.png", np.eye(3), files, ["dog", "rain on a roof for hours and hours", "a voice"])
    assert (tmp_path / "scores.png").stat().st_size > 0


def test_the_mark_of_the_nearest_class_is_seen_in_the_legend(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("m2d.cli.zeroshot.write_figure", lambda path, figure, program: drawn.append(figure))
    draw_scores(tmp_path / "scores.png", np.eye(3), ["a.wav", "b.wav", "c.wav"], ["dog", "rain", "voice"])
    (mark,) = drawn[0].axes[0].get_legend().get_lines()
    assert to_rgb(mark.get_markeredgecolor()) != to_rgb(drawn[0].get_facecolor())
