"""Labelled clips: folders, lists, and what is wrong with them."""

from pathlib import Path

import numpy as np
import pytest

from m2d.evaluation.labelled_clips import class_counts, judgeable, read_labelled
from m2d.utils.errors import UserError


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def listed(folder: Path, text: str) -> Path:
    (folder / "list.csv").write_text(text)
    return folder / "list.csv"


def test_a_folder_of_class_folders(tmp_path):
    write(
        tmp_path, "dog/1.wav", "dog/2.FLAC", "cat/kit a/1.wav", "cat/kit a/2.wav", "cat/kit b/1.wav", "loose.wav", "dog/notes.txt"
    )
    clips = read_labelled(tmp_path)
    assert clips.classes == ["cat", "dog"] and class_counts(clips) == {"cat": 3, "dog": 2}
    groups = {p.relative_to(tmp_path).as_posix(): g for p, g in zip(clips.paths, clips.groups, strict=True)}
    assert groups["cat/kit a/1.wav"] == groups["cat/kit a/2.wav"]
    assert len(set(groups.values())) == 4


def test_a_list_with_groups_splits_and_several_labels(tmp_path):
    write(tmp_path, "a.wav", "b.wav", "c.wav")
    path = listed(tmp_path, "file_name,label,split,group\na.wav,dog;bark,train,1\nb.wav,cat,Validation,1\nc.wav,dog,test,2\n")
    clips = read_labelled(path)
    assert clips.classes == ["bark", "cat", "dog"] and clips.multi_label
    assert clips.targets.tolist() == [[True, False, True], [False, True, False], [False, False, True]]
    assert clips.groups.tolist() == [0, 0, 1] and clips.splits.tolist() == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,file\ndog,a.wav\n", r"no column file_name .its columns: label, file"),
        ("file_name\na.wav\n", r"no column label .*file_name,label\[,split\]\[,group\]"),
        ("file_name;label\na.wav;dog\n", "separated by ';': save it as a CSV with commas"),
        ("file_name\tlabel\na.wav\tdog\n", "separated by tabs"),
        ("file_name, label\na.wav, dog\n", "no column label .*rename ' label'"),
        ("a.wav,dog\nb.wav,cat\n", "its first line is a clip already; put the line file_name,label above it"),
        ("file_name,label\na.wav,dog,\nb.wav,cat,\n", "Row #2: Expected 2 columns, got 3"),
        ("file_name,label\na.wav,dog,extra\nb.wav,cat\n", "Row #2: Expected 2 columns, got 3"),
        ("file_name,label\na.wav\nb.wav,cat\n", "Row #2: Expected 2 columns, got 1"),
        ("file_name,label\n\na.wav,dog\n\nb.wav, \n", "line 5: no label"),
        ("file_name,label\na.wav,dog\nb.wav,c\0t\n", "zero bytes in it"),
        ("file_name,label\ndog,a.wav\ncat,b.wav\n", r"none of its 2 files is there \(the first: .*dog\); --data_path"),
        ("file_name,label\na.wav,dog\nb.wav,\n", "line 3: no label"),
        ("file_name,label\na.wav,dog\nb.wav,dog\n", "at least two classes are needed; there is dog"),
        ("file_name,label\n", "no clip below its header"),
        ("file_name,label,split\na.wav,dog,train\nb.wav,cat,holdout\n", "holds holdout; expected train, val or test"),
        ("file_name,label,split\na.wav,dog,train\nb.wav,cat,\n", "line 3: no split; expected train, val or test"),
        ('file_name,label\n"a.wav,dog\n', "cannot be read as a CSV"),
    ],
)
def test_unfit_lists_are_refused_in_one_line(tmp_path, text, message):
    write(tmp_path, "a.wav", "b.wav")
    with pytest.raises(UserError, match=message) as error:
        read_labelled(listed(tmp_path, text))
    assert "\n" not in str(error.value)


def test_every_text_is_a_label_as_it_is_written(tmp_path):
    names = ["01", "1", "1.0", "NA", "None", "True", "nan", "null"]
    write(tmp_path, *(f"{name}.wav" for name in names))
    clips = read_labelled(listed(tmp_path, "file_name,label\n" + "".join(f"{name}.wav, {name} \n" for name in names)))
    assert clips.classes == names and clips.targets.tolist() == list(range(len(names)))


def test_a_clip_without_a_group_is_a_group_of_its_own(tmp_path):
    write(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav")
    rows = "a.wav,dog,k\nb.wav,cat,\nc.wav,dog,k\nd.wav,cat,\n"
    assert read_labelled(listed(tmp_path, f"file_name,label,group\n{rows}")).groups.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_probe_needs_clips_to_learn_from_and_to_judge_by(tmp_path, missing):
    write(tmp_path, "a.wav", "b.wav")
    other = {"train": "test", "test": "train"}[missing]
    clips = read_labelled(listed(tmp_path, f"file_name,label,split\na.wav,dog,val\nb.wav,cat,{other}\n"))
    with pytest.raises(UserError, match=f"no clip has the split {missing}"):
        judgeable(clips)


def test_a_class_that_cannot_be_held_out_is_left_out_and_named(tmp_path, caplog):
    write(tmp_path, "dog/1.wav", "dog/2.wav", "cat/1.wav", "cat/2.wav", "emu/kit/1.wav", "emu/kit/2.wav")
    clips = judgeable(read_labelled(tmp_path))
    assert clips.classes == ["cat", "dog"] and len(clips) == 4 and clips.targets.max() == 1
    assert "1 class left out, in one group alone" in caplog.text and "emu" in caplog.text


def test_groups_in_two_splits_and_files_of_two_rows_are_reported(tmp_path, caplog):
    write(tmp_path, "a.wav", "b.wav", "c.wav")
    rows = "a.wav,dog,train,1\nb.wav,cat,train,2\nc.wav,dog,test,1\nc.wav,cat,test,3\n"
    read_labelled(listed(tmp_path, f"file_name,label,split,group\n{rows}"))
    assert "1 group with clips in the split train and in another" in caplog.text
    assert "1 row with a file that an earlier row names" in caplog.text


def test_labels_in_one_split_alone_cannot_be_judged(tmp_path):
    write(tmp_path, "a.wav", "b.wav", "c.wav")
    path = listed(tmp_path, "file_name,label,split\na.wav,dog,train\nb.wav,cat,train\nc.wav,emu,test\n")
    with pytest.raises(UserError, match="fewer than two classes.*only one of the splits"):
        judgeable(read_labelled(path))


def test_labels_of_several_classes_lose_those_that_cannot_be_judged(tmp_path):
    write(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav")
    path = listed(tmp_path, "file_name,label\na.wav,dog;emu\nb.wav,cat\nc.wav,dog\nd.wav,cat;dog\n")
    clips = judgeable(read_labelled(path))
    assert clips.classes == ["cat", "dog"]
    np.testing.assert_array_equal(clips.targets, [[False, True], [True, False], [False, True], [True, True]])
