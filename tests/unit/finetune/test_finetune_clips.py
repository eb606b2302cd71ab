"""What is fine-tuned on: splits, sampling weights, crops, events in time."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from m2d.audio.logmel import SILENCE
from m2d.data.sampler import SampleKey
from m2d.evaluation.labelled_clips import LabelledClips, read_labelled, read_table
from m2d.finetune.clips import Events, FineTuneSet, class_weights, clip_seconds, read_events, split_clips, warn_of_unjudged
from m2d.utils.errors import ReadError, UserError


def labelled(targets, groups=None, splits=None):
    targets = np.asarray(targets)
    classes = [str(i) for i in range(targets.shape[1] if targets.ndim == 2 else targets.max() + 1)]
    groups = np.arange(len(targets)) if groups is None else np.asarray(groups)
    return LabelledClips([Path(f"{i}.npy") for i in range(len(targets))], classes, targets, groups, splits)


def test_whole_groups_are_held_out():
    groups = np.repeat(np.arange(20), 3)
    train, validation = split_clips(labelled(np.tile([0, 1, 1], 20), groups), seed=0)
    assert not set(groups[train]) & set(groups[validation]) and len(validation) == 12
    assert sorted([*train, *validation]) == list(range(60))


@pytest.mark.parametrize(("clips_of_a_class", "held_out"), [(2, 1), (4, 1), (10, 2), (50, 10)])
def test_of_clips_without_groups_the_same_share_of_every_class_is_held_out(clips_of_a_class, held_out):
    for seed in range(5):
        clips = labelled(np.repeat(np.arange(10), clips_of_a_class))
        train, validation = split_clips(clips, seed)
        assert np.bincount(clips.targets[validation]).tolist() == [held_out] * 10
        assert sorted([*train, *validation]) == list(range(len(clips)))


def test_a_class_of_fewer_clips_than_parts_is_split_without_a_librarys_warning(recwarn):
    train, validation = split_clips(labelled([0, 0, *[1] * 18]), seed=0)
    assert len(validation) == 4 and not recwarn.list


def test_a_lists_split_counts_and_test_clips_stay_unseen():
    splits = np.array(["train", "train", "val", "test"])
    train, validation = split_clips(labelled([0, 1, 1, 0], splits=splits), seed=0)
    assert train.tolist() == [0, 1] and validation.tolist() == [2]


def test_a_class_without_a_clip_to_train_on_is_refused():
    splits = np.array(["train", "train", "val"])
    with pytest.raises(UserError, match="class '2' has no clip to train on"):
        split_clips(labelled([0, 1, 2], splits=splits), seed=0)


def test_balanced_sampling_draws_every_class_equally_often():
    clips = labelled([0] * 90 + [1] * 10)
    weights = class_weights(clips, np.arange(100))
    assert weights[:90].sum() == pytest.approx(weights[90:].sum())


@pytest.fixture
def clips(tmp_path):
    """Clips whose frames hold their number: 30, 64 and 150 frames."""
    paths = []
    for i, frames in enumerate((30, 64, 150)):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], np.broadcast_to(np.arange(frames, dtype=np.float32), (1, 80, frames)))
    return FineTuneSet(paths, np.eye(3, dtype=bool), 3, "16k", 64, 16)


def test_random_crops_reach_every_start_and_short_clips_are_padded_with_silence(clips):
    keys = [[SampleKey(0, position, 2) for position in range(400)], [SampleKey(0, 400, 0), SampleKey(0, 401, 1)]]
    long, short = clips.training_batches(keys, seed=0, workers=2)
    starts = long.lms[:, 0, 0, 0].numpy()
    assert starts.min() == 0 and starts.max() == 150 - 64
    assert (np.diff(long.lms[:, 0, 0].numpy(), axis=1) == 1).all()
    assert short.frames.tolist() == [30, 64] and (short.lms[0, 0, :, 30:] == SILENCE).all()
    assert short.targets.tolist() == [[1, 0, 0], [0, 1, 0]]
    again = next(clips.training_batches(keys, seed=0, workers=1))
    assert (again.lms == long.lms).all()


def test_validation_covers_every_frame_once(clips):
    batches = list(clips.validation_batches(2, workers=1))
    rows = [row for batch in batches for row in batch.rows]
    assert rows == [0, 1, 2, 2, 2]
    frames = np.concatenate([batch.frames for batch in batches])
    assert frames.tolist() == [30, 64, 64, 64, 22]
    assert batches[1].lms[2, 0, 0, :22].tolist() == list(range(128, 150))


def test_events_mark_the_time_steps_they_touch():
    events = Events(np.array([[0.15, 0.33, 1], [0.32, 0.33, 0]]))
    starts = np.arange(5) * 0.16
    np.testing.assert_array_equal(events.targets(starts, 0.16, 2), [[0, 1], [0, 1], [1, 1], [0, 0], [0, 0]])


def test_events_move_with_the_crop(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 80, 128), np.float32))
    clips = FineTuneSet([tmp_path / "a.npy"], [Events(np.array([[0.96, 1.0, 0]]))], 1, "16k", 64, 16)
    first, second = next(clips.validation_batches(1, workers=1)).targets[:, :, 0].tolist()
    assert first == [0, 0, 0, 0] and second == [0, 0, 1, 0]


def test_a_list_of_events(tmp_path):
    rows = [("b.wav", "0.5", "1", "dog"), ("a.wav", "0", "2.5", "cat"), ("b.wav", "0.1", "0.2", "cat"), ("c.wav", "", "", "")]
    table = pd.DataFrame(rows, columns=["file_name", "onset", "offset", "label"])
    paths, events, classes, firsts = read_events(table, tmp_path, "list.csv")
    assert [p.name for p in paths] == ["a.wav", "b.wav", "c.wav"] == list(firsts["file_name"])
    assert classes == ["cat", "dog"]
    assert [e.spans.tolist() for e in events] == [[[0, 2.5, 0]], [[0.5, 1, 1], [0.1, 0.2, 0]], []]


@pytest.mark.parametrize("times", ["1,1", "2,1", "-1,1", "x,1", ",1"])
def test_times_that_make_no_sense_are_named_by_line(tmp_path, times):
    (tmp_path / "list.csv").write_text(f"file_name,onset,offset,label\n\na.wav,0,1,dog\nb.wav,{times},dog\n")
    with pytest.raises(UserError, match="list.csv, line 4: onset"):
        read_events(read_table(tmp_path / "list.csv"), Path(), "list.csv")


@pytest.mark.parametrize("values", [np.zeros((80, 50)), np.zeros((1, 64, 50)), np.full((1, 80, 50), np.nan)])
def test_unfit_log_mels_are_named(tmp_path, values):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ReadError, match=r"x\.npy: expected a finite log-mel \[1, 80, frames\]"):
        FineTuneSet([tmp_path / "x.npy"], np.eye(1), 1, "16k", 64, 16).read(0)


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_a_list_with_clips_to_train_on_and_to_validate_by_is_enough(tmp_path, held_out):
    for name in "abcd":
        (tmp_path / f"{name}.wav").touch()
    rows = f"a.wav,dog,train\nb.wav,cat,train\nc.wav,dog,{held_out}\nd.wav,cat,{held_out}\n"
    (tmp_path / "list.csv").write_text(f"file_name,label,split\n{rows}")
    train, validation = split_clips(read_labelled(tmp_path / "list.csv"), seed=0)
    assert train.tolist() == [0, 1] and validation.tolist() == [2, 3]


@pytest.mark.parametrize(("splits", "message"), [(["train", "train"], "the split val"), (["val", "test"], "the split train")])
def test_splits_without_clips_to_train_on_or_to_validate_by_are_refused(splits, message):
    with pytest.raises(UserError, match=message):
        split_clips(labelled([0, 1], splits=np.array(splits)), seed=0)


def test_clips_of_one_group_cannot_be_split():
    clips = LabelledClips([Path("a"), Path("b")], ["x", "y"], np.array([0, 1]), np.array([0, 0]))
    with pytest.raises(UserError, match="all clips are of one group"):
        split_clips(clips, 0)


def test_classes_without_a_clip_to_validate_on_are_named(caplog):
    clips = LabelledClips([Path("a"), Path("b"), Path("c")], ["x", "y"], np.array([0, 0, 1]), np.arange(3))
    warn_of_unjudged(clips, np.array([0]))
    assert caplog.messages == ["1 class without a clip to validate on: y"]


def test_silent_clips_are_counted(tmp_path, caplog):
    for name, level in (("silent", 0.0), ("loud", 0.1)):
        soundfile.write(tmp_path / f"{name}.wav", level * np.sin(np.arange(4000) / 5), 16000)
    clip_seconds([tmp_path / "silent.wav", tmp_path / "loud.wav"], 1)
    assert caplog.messages == ["1 clip of 2 without any sound"]
