"""Labels of parquet files, as the data sets of Hugging Face have them, come into the list of the conversion."""

import csv

import pyarrow.parquet as pq
import pytest
from archives import files_in, write_labelled_parquet
from audio_files import write
from checkpoint_files import write_checkpoint

from m2d.cli.convert import main as convert
from m2d.cli.probe import main as probe
from m2d.evaluation.labelled_clips import read_labelled

NAMES = ["dog", "cat, wild", "rain"]
CLASS = {"_type": "ClassLabel", "names": NAMES}
TEXT = {"_type": "Value", "dtype": "string"}
NUMBERS = [0, 2, 1, 0, 2]


@pytest.fixture
def sounds(tmp_path):
    for i in range(5):
        write(tmp_path / f"sounds/{i}.wav", seed=i)
    return files_in(tmp_path / "sounds")


def listed(tmp_path, source="x.parquet", *flags):
    """The list's rows; the conversion's exit status is 0."""
    command = [str(tmp_path / source), str(tmp_path / "lms"), "--csv", str(tmp_path / "list.csv"), *flags]
    assert convert(command) == 0
    with (tmp_path / "list.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("name", "values", "feature", "expected"),
    [
        ("label", NUMBERS, CLASS, ["dog", "rain", "cat, wild", "dog", "rain"]),
        ("label", [0, -1, None, 1, 2], CLASS, ["dog", "", "", "cat, wild", "rain"]),
        ("label", list("abcab"), TEXT, list("abcab")),
        ("label", NUMBERS, {"_type": "Value", "dtype": "int64"}, list("02102")),
        (
            "labels",
            [[0, 1], [2], [], [1], [0]],
            {"_type": "List", "feature": CLASS},
            ["dog;cat, wild", "rain", "", "cat, wild", "dog"],
        ),
        (
            "labels",
            [[0], [2], [1], [1], [0]],
            {"_type": "Sequence", "feature": CLASS},
            ["dog", "rain", *["cat, wild"] * 2, "dog"],
        ),
        ("labels", [[0], [2], [1], [1], [0]], [CLASS], ["dog", "rain", *["cat, wild"] * 2, "dog"]),
        ("labels", [["/m/1", "/m/2"], ["/m/3"], ["a"], ["b"], ["c"]], {}, ["/m/1;/m/2", "/m/3", "a", "b", "c"]),
    ],
)
def test_labels_are_listed_by_their_names(tmp_path, sounds, name, values, feature, expected):
    write_labelled_parquet(tmp_path / "x.parquet", sounds, **{name: (values, feature)})
    rows = listed(tmp_path)
    assert rows == [["file_name", "label"], *([f"lms/{i}.npy", label] for i, label in enumerate(expected))]
    assert listed(tmp_path) == rows  # its own list is replaced


def test_a_probe_takes_the_list(tmp_path, sounds):
    for i in range(20):
        write(tmp_path / f"sounds/{i:02d}.wav", 8000, seed=i)
    files = {name: content for name, content in files_in(tmp_path / "sounds").items() if len(name) == 6}
    labels, folds = [i % 2 for i in range(20)], [i // 4 for i in range(20)]
    write_labelled_parquet(tmp_path / "x.parquet", files, target=(labels, CLASS), fold=(folds, {"_type": "Value"}))
    rows = listed(tmp_path, "x.parquet", "--columns", "label=target,group=fold", "--min_length", "1")
    assert rows[0] == ["file_name", "label", "group"] and rows[6] == ["lms/05.npy", "cat, wild", "1"]
    clips = read_labelled(tmp_path / "list.csv")
    assert clips.classes == ["cat, wild", "dog"] and len(set(clips.groups)) == 5
    assert probe([str(tmp_path / "list.csv"), "--weights", str(write_checkpoint(tmp_path)), "--device", "cpu"]) == 0


def test_several_files_and_another_separator(tmp_path, sounds):
    (tmp_path / "data").mkdir()
    for k in range(2):
        columns = dict(labels=([["a", "b"]] * 5, {}), split=([f"part{k}"] * 5, TEXT))
        write_labelled_parquet(tmp_path / f"data/train-{k}.parquet", sounds, **columns)
    rows = listed(tmp_path, "data/*.parquet", "--separator", ",", "--columns", "label=labels,split")
    assert rows[:2] == [["file_name", "label", "split"], ["lms/train-0/0.npy", "a,b", "part0"]] and len(rows) == 11
    assert rows[-1] == ["lms/train-1/4.npy", "a,b", "part1"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--columns", "label=none"], "x.parquet: no column none (its columns: audio, label)"),
        (["--columns", "label,label"], "each once"),
        (["--columns", "sound=audio"], "a column of records or bytes cannot be written into a list"),
        (["--columns", "label", "--separator", "t"], "'cat, wild' is one of several labels and holds 't'"),
    ],
)
def test_what_cannot_be_listed_is_refused_before_the_work(tmp_path, sounds, caplog, flags, words):
    write_labelled_parquet(tmp_path / "x.parquet", sounds, label=([[1]] * 5, [CLASS]))
    assert convert([str(tmp_path / "x.parquet"), str(tmp_path / "lms"), "--csv", str(tmp_path / "list.csv"), *flags]) == 2
    assert words in caplog.text and not list(tmp_path.glob("lms/*.npy"))


def test_classes_beyond_the_names_are_refused(tmp_path, sounds, caplog):
    write_labelled_parquet(tmp_path / "x.parquet", sounds, label=([0, 1, 2, 3, 0], CLASS))
    assert convert([str(tmp_path / "x.parquet"), str(tmp_path / "lms"), "--csv", str(tmp_path / "list.csv")]) == 2
    assert "x.parquet: class 3 of 3" in caplog.text


def test_columns_are_of_parquet_files_and_of_lists(tmp_path, sounds, caplog):
    folder, out = str(tmp_path / "sounds"), str(tmp_path / "lms")
    assert convert([folder, out, "--columns", "label"]) == 2
    assert "--columns label needs --csv" in caplog.text
    assert convert([folder, out, "--csv", str(tmp_path / "list.csv"), "--columns", "label"]) == 2
    assert "is in no parquet file" in caplog.text


def test_a_list_with_other_labels_is_not_replaced(tmp_path, sounds, caplog):
    write_labelled_parquet(tmp_path / "x.parquet", sounds, label=(NUMBERS, CLASS))
    (tmp_path / "list.csv").write_text("file_name,label\nlms/0.npy,my own label\n")
    command = [str(tmp_path / "x.parquet"), str(tmp_path / "lms"), "--csv", str(tmp_path / "list.csv")]
    assert convert(command) == 2 and "my own label" in (tmp_path / "list.csv").read_text()
    assert convert([*command, "--overwrite"]) == 0 and "my own label" not in (tmp_path / "list.csv").read_text()


def test_damaged_metadata_tell_no_names(tmp_path, sounds):
    path = write_labelled_parquet(tmp_path / "x.parquet", sounds, label=(NUMBERS, CLASS))
    for features in (b"{", b"[]", b'{"info": {"features": []}}', b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}'):
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": features}), path)
        assert [row[1] for row in listed(tmp_path, "x.parquet", "--overwrite")[1:]] == list("02102")
