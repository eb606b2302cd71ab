"""`m2d explore`: embeddings of clips or frames, files that are there or gone, names of any kind."""

import base64
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2d.cli import main as cli
from m2d.report.explore import read_embeddings

HOSTILE = "</script><img src=x onerror=alert(1)>.wav"


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """Twelve files in two folders, the vectors of a folder close to each other; one file is gone."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"sounds/{'ab'[i % 2]}/{i}.wav" for i in range(11)] + [f"sounds/a/{HOSTILE[:-5]}.gone"]
    for name in names[:-1]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(name, rng.normal(size=4000) / 9, 16000)
    vectors = np.array([[9 * (i % 2), *rng.normal(size=7)] for i in range(12)], dtype=np.float32)
    np.savez("e.npz", files=np.array(names), embeddings=vectors)
    return names, vectors


def page_data(path="e.html"):
    return json.loads(Path(path).read_text().partition('id="data">')[2].partition("</script>")[0])


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_page_holds_map_clusters_neighbours_and_sounds(embedded):
    names, vectors = embedded
    assert cli.main(["explore", "e.npz", "--clusters", "2"]) == 0
    data = page_data()
    assert data["names"] == [name.removeprefix("sounds/") for name in names]
    assert [each["kind"] for each in data["groupings"]] == ["clusters", "folders"]
    assert [cluster["size"] for cluster in data["clusters"]] == [6, 6] and data["clusters"][0]["share"] == 1
    near = unpacked(data["near"], "<i4").reshape(12, -1)
    assert near.shape[1] == data["neighbours"] == 10
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    assert near[0, 0] == np.argsort(-(centred @ centred[0]))[1]
    cosines = unpacked(data["cosines"], "<i2").reshape(12, -1) / 10_000
    np.testing.assert_allclose(cosines[0, 0], centred[near[0, 0]] @ centred[0], atol=1e-4)
    assert all(sound.startswith("data:audio/mpeg") for sound in data["sounds"][:-1])
    assert data["sounds"][-1] is None and data["missing"] == 1


def test_of_many_files_the_page_links_to_the_sounds(embedded):
    assert cli.main(["explore", "e.npz", "--sounds", "3", "--out", "pages/e.html"]) == 0
    assert page_data("pages/e.html")["sounds"][:2] == ["./../sounds/a/0.wav", "./../sounds/b/1.wav"]


def test_names_are_no_markup(embedded):
    assert cli.main(["explore", "e.npz"]) == 0
    assert "<img" not in Path("e.html").read_text()


def test_files_that_have_moved_are_found_below_a_folder(embedded, tmp_path):
    Path("moved").mkdir()
    Path("sounds").rename("moved/sounds")
    assert cli.main(["explore", "e.npz", "--audio", "moved"]) == 0
    assert page_data()["missing"] == 1


def test_frames_become_a_vector_per_file(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.savez(tmp_path / "f.npz", files=np.array(["a", "b"]), embeddings=rows, file_index=np.array([0, 1, 1, 0, 1, 1]))
    np.testing.assert_allclose(read_embeddings(tmp_path / "f.npz").vectors, [rows[[0, 3]].mean(0), rows[[1, 2, 4, 5]].mean(0)])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3)}, "not what m2d embed writes"),
        ({"files": np.array(["a", "b"]), "embeddings": np.zeros((3, 4))}, "expected a row for each"),
        ({"files": np.array(["a", "b"]), "embeddings": np.zeros((2, 4), int)}, "expected a row for each"),
        ({"files": np.array(["a"]), "embeddings": np.zeros((1, 4))}, "at least two files"),
        ({"files": np.array(["a", "b"]), "embeddings": np.full((2, 4), np.nan)}, "finite numbers"),
        ({"files": np.array(["a", "b"]), "embeddings": np.ones((2, 4)), "file_index": np.array([0, 0])}, "give every file a row"),
        ({"files": np.array([{}, {}]), "embeddings": np.ones((2, 4))}, "not what m2d embed writes"),
    ],
)
def test_other_files_are_refused_in_one_line(arrays, said, tmp_path, caplog):
    np.savez(tmp_path / "x.npz", **arrays)
    with caplog.at_level(logging.ERROR):
        assert cli.main(["explore", str(tmp_path / "x.npz")]) == 2
    assert said in caplog.text and not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.npz"], "there is no file none.npz"),
        (["e.npz", "--clusters", "1"], "--clusters is from 2 to 8"),
        (["e.npz", "--out", "x.txt"], "a name that ends in .html"),
        (["text.npz"], "not what m2d embed writes (not an .npz file)"),
        (["array.npy"], "not what m2d embed writes"),
        (["e.npz", "--out", "mine.html"], "is there already"),
    ],
)
def test_errors_are_one_line(words, said, embedded, caplog):
    Path("text.npz").write_text("no archive")
    np.save("array.npy", np.ones((2, 4)))
    Path("mine.html").write_text("mine")
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert cli.main(["explore", *words]) == 2
    (error,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert said in error and "\n" not in error
