"""AudioSet's labels and weights for a list: the formula, AudioSet's file format, downloads, and what users get wrong."""

import functools
import http.server
import logging
import string
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from util import make_as_weighted_list as mal

CLASSES = {"/m/09x0r": "Speech", "/m/04rlf": "Music", "/t/dd00002": "Baby cry, infant cry"}
SEGMENTS = {
    "eval_segments.csv": [("--4gqARaEJE", "/m/09x0r,/m/04rlf")],
    "balanced_train_segments.csv": [("-0-AnyName_", "/t/dd00002"), ("NAN-nan-NA_", "/m/04rlf")],
    "unbalanced_train_segments.csv": [("0123456789a", "/m/09x0r")],
}


def write_segments(folder: Path, segments=SEGMENTS, classes=CLASSES) -> Path:
    """AudioSet's four files, in AudioSet's format."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in segments.items():
        lines = [
            "# Segments csv created Sun Mar  5 10:54:25 2017",
            f"# num_ytids={len(rows)}, num_segs={len(rows)}, num_unique_labels=3, num_positive_labels=9",
            "# YTID, start_seconds, end_seconds, positive_labels",
            *(f'{clip}, 30.000, 40.000, "{label}"' for clip, label in rows),
        ]
        (folder / name).write_text("\n".join(lines) + "\n")
    others = {f"/x/{i}": f"Other {i}" for i in range(len(classes), 527)}
    rows = [f'{index},{mid},"{name}"' for index, (mid, name) in enumerate((classes | others).items())]
    (folder / mal.CLASS_FILE).write_text("\n".join(["index,mid,display_name", *rows]) + "\n")
    return folder


def write_files(path: Path, names) -> Path:
    pd.DataFrame({"file_name": names}).to_csv(path, index=False)
    return path


def run(tmp_path: Path, names, *flags: str) -> tuple[int, Path]:
    to_list = tmp_path / "out" / "files_as_weighted.csv"
    org = write_files(tmp_path / "files_audioset.csv", names)
    segments = () if "--segments" in flags else ("--segments", str(write_segments(tmp_path / "csv")))
    return mal.main(["--org_list", str(org), "--to_list", str(to_list), *segments, *flags]), to_list


def test_labels_and_weights_worked_by_hand(tmp_path):
    names = ["balanced/-0-AnyName_.npy", "eval/--4gqARaEJE_30.000.npy", "un/part 1/0123456789a.npy", "NAN-nan-NA_.npy"]
    status, to_list = run(tmp_path, names)
    assert status == 0
    table = pd.read_csv(to_list)
    assert list(table.columns) == ["file_name", "label", "weight"]
    assert list(table["file_name"]) == names
    assert list(table["label"]) == ["/t/dd00002", "/m/09x0r,/m/04rlf", "/m/09x0r", "/m/04rlf"]
    one, two = 1000 / 101, 1000 / 102  # in this list the cry stands once, speech and music twice each
    expected = np.array([one, two + two, two, two]) ** (1 / 1.5)
    np.testing.assert_allclose(table["weight"], expected, rtol=1e-12)


@given(st.lists(st.lists(st.sampled_from(string.ascii_lowercase), min_size=1, max_size=5, unique=True), min_size=1, max_size=40))
def test_weights_against_the_formula_clip_by_clip(clips):
    counts = Counter(label for clip in clips for label in clip)
    expected = [sum(1000 / (counts[label] + 100) for label in clip) ** (1 / 1.5) for clip in clips]
    got = mal.weights(pd.Series([",".join(clip) for clip in clips]))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_unknown_ids_and_labels_are_counted_named_and_left_out(tmp_path, caplog):
    segments = {**SEGMENTS, "eval_segments.csv": [("--4gqARaEJE", "/m/09x0r,/m/zzz"), ("only-unkno_", "/m/zzz")]}
    folder = write_segments(tmp_path / "csv", segments)
    names = ["--4gqARaEJE.npy", "not-a-clip.npy", "unknown-clip.npy", "only-unkno_.npy"]
    with caplog.at_level(logging.WARNING, "m2d"):
        status, to_list = run(tmp_path, names, "--segments", str(folder))
    assert status == 0
    assert pd.read_csv(to_list)[["file_name", "label"]].values.tolist() == [["--4gqARaEJE.npy", "/m/09x0r"]]
    text = caplog.text
    assert "2 of 4 clips" in text and "unknown-clip.npy" in text
    assert "1 labels" in text and "/m/zzz" in text
    assert "1 clips have no known label" in text and "only-unkno_.npy" in text


def test_an_id_that_comes_twice_keeps_its_first_row_and_a_label_that_comes_twice_counts_once(tmp_path):
    segments = {
        **SEGMENTS,
        "eval_segments.csv": [("--4gqARaEJE", "/m/09x0r,/m/09x0r")],
        "unbalanced_train_segments.csv": [("--4gqARaEJE", "/m/04rlf")],
    }
    status, to_list = run(tmp_path, ["--4gqARaEJE.npy"], "--segments", str(write_segments(tmp_path / "csv", segments)))
    assert status == 0
    assert pd.read_csv(to_list)["label"].tolist() == ["/m/09x0r"]


def test_a_list_without_any_known_clip_is_an_error_and_leaves_the_old_output(tmp_path, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "files_as_weighted.csv").write_text("old")
    status, to_list = run(tmp_path, ["a.npy", "b.npy"], "--overwrite")
    assert status == 2
    assert to_list.read_text() == "old"
    assert "a.npy, b.npy" in caplog.text and "first 11 characters" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [("path,label\na,b\n", "no column 'file_name'"), ("file_name\n", "the list is empty"), (None, "--org_list")],
)
def test_a_wrong_list_is_named(tmp_path, caplog, content, message):
    org = tmp_path / "org.csv"
    if content is not None:
        org.write_text(content)
    assert mal.main(["--org_list", str(org), "--segments", str(write_segments(tmp_path / "csv"))]) == 2
    assert str(org) in caplog.text and message in caplog.text


def test_a_folder_that_lacks_a_file_says_which(tmp_path, caplog):
    folder = write_segments(tmp_path / "csv")
    (folder / "eval_segments.csv").unlink()
    status, _ = run(tmp_path, ["--4gqARaEJE.npy"], "--segments", str(folder))
    assert status == 2
    assert "eval_segments.csv" in caplog.text and "balanced" not in caplog.text


def test_a_torn_segment_list_is_an_error(tmp_path, caplog):
    folder = write_segments(tmp_path / "csv")
    path = folder / "balanced_train_segments.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    status, _ = run(tmp_path, ["--4gqARaEJE.npy"], "--segments", str(folder))
    assert status == 2
    assert "holds 1 segments, its second line says 2" in caplog.text


def test_a_page_in_place_of_a_list_is_an_error(tmp_path):
    path = tmp_path / "eval_segments.csv"
    path.write_text("<html>\nno such\npage\n</html>\n")
    with pytest.raises(ValueError, match="<html>"):
        mal.check_file(path)
    path = tmp_path / mal.CLASS_FILE
    path.write_text("<html>")
    with pytest.raises(ValueError, match="index,mid,display_name"):
        mal.check_file(path)


@pytest.fixture
def server(tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(write_segments(tmp_path / "served")))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_the_lists_are_downloaded_once(tmp_path, server):
    cache = tmp_path / "cache"
    flags = ("--segments", server, "--cache", str(cache))
    assert run(tmp_path, ["--4gqARaEJE.npy"], *flags)[0] == 0
    names = {*SEGMENTS, mal.CLASS_FILE}
    assert {path.name for path in cache.iterdir() if path.is_file()} == names | {f"{name}.sha256" for name in names}
    for path in (tmp_path / "served").iterdir():
        path.unlink()
    assert run(tmp_path, ["--4gqARaEJE.npy"], *flags, "--overwrite")[0] == 0


def test_a_download_that_fails_leaves_nothing_that_counts_as_whole(tmp_path, server, caplog):
    (tmp_path / "served" / "balanced_train_segments.csv").unlink()
    (tmp_path / "served" / "eval_segments.csv").write_text("<html>")
    cache = tmp_path / "cache"
    assert run(tmp_path, ["--4gqARaEJE.npy"], "--segments", server, "--cache", str(cache))[0] == 2
    assert not any(path.is_file() for path in cache.rglob("*"))
    write_segments(tmp_path / "served")
    (tmp_path / "served" / "balanced_train_segments.csv").unlink()
    assert run(tmp_path, ["--4gqARaEJE.npy"], "--segments", server, "--cache", str(cache))[0] == 2
    assert {path.name for path in cache.rglob("*") if path.is_file()} == {"eval_segments.csv", "eval_segments.csv.sha256"}
    assert "balanced_train_segments.csv" in caplog.text and "--segments" in caplog.text


@pytest.mark.parametrize("local", [True, False])
def test_a_class_list_cut_short_is_refused_and_not_kept(tmp_path, server, caplog, local):
    classes = tmp_path / "served" / mal.CLASS_FILE
    whole = classes.read_bytes()
    classes.write_bytes(b"".join(whole.splitlines(keepends=True)[:400]))
    source = str(tmp_path / "served") if local else server
    flags = ("--segments", source, "--cache", str(tmp_path / "cache"))
    assert run(tmp_path, ["--4gqARaEJE.npy"], *flags)[0] == 2
    assert "holds 399 classes, AudioSet has 527" in caplog.text and not (tmp_path / "cache" / mal.CLASS_FILE).exists()
    classes.write_bytes(whole)
    assert run(tmp_path, ["--4gqARaEJE.npy"], *flags)[0] == 0


def test_the_lists_come_by_https():
    assert mal.AUDIOSET_URL.startswith("https://")


def test_as_a_script_from_another_folder(tmp_path):
    org = write_files(tmp_path / "org.csv", ["x/--4gqARaEJE.npy"])
    segments = write_segments(tmp_path / "my csv")
    command = [sys.executable, mal.__file__, "--org_list", org, "--to_list", "out.csv", "--segments", segments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 clips, 2 classes" in done.stderr
    assert len(pd.read_csv(tmp_path / "out.csv")) == 1
