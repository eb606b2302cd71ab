"""Clips that a report looks at: of lists with bad files, and the sounds that belong to them."""

import logging

import numpy as np
import pytest
import soundfile

from m2d.audio.logmel import SILENCE
from m2d.data.open import open_store
from m2d.report.clips import AudioClips, SoundIndex, StoredClips, evenly, read_beginning
from m2d.report.media import sound_uri, spectrogram_uri, thumbnail
from m2d.utils.errors import UserError


@pytest.fixture
def listed(tmp_path):
    for name, frames in (("a", 5), ("b", 40)):
        np.save(tmp_path / f"{name}.npy", np.full((1, 80, frames), -3, np.float32))
    (tmp_path / "c.npy").write_bytes(b"no array")
    (tmp_path / "list.csv").write_text("file_name\na.npy\nb.npy\nc.npy\n")
    return StoredClips(open_store(tmp_path / "list.csv", tmp_path))


def test_short_clips_are_completed_and_bad_ones_left_out(listed, caplog):
    with caplog.at_level(logging.WARNING):
        crops, kept = listed.beginnings(np.arange(3), 20)
    assert kept.tolist() == [0, 1] and "c.npy" in caplog.text
    assert (crops[0, :, 5:] == np.float32(SILENCE)).all() and (crops[1] == -3).all()
    assert listed.lengths().tolist() == [5, 40]


def test_all_lists_of_a_mixture_are_named(listed, tmp_path):
    np.save(tmp_path / "d.npy", np.full((1, 80, 9), -3, np.float32))
    (tmp_path / "other.csv").write_text("file_name\nd.npy\n")
    names = [str(tmp_path / name) for name in ("list.csv", "other.csv")]
    clips = StoredClips(open_store(f"{names[0]}:2,{names[1]}", tmp_path, check=False))
    assert clips.source == ", ".join(names) and len(clips) == 4
    assert clips.lengths().tolist() == [5, 40, 9]


def test_clips_none_of_which_can_be_read(listed):
    with pytest.raises(UserError, match="none of the 1 clips"):
        listed.beginnings(np.array([2]), 20)


def test_the_sound_of_a_clip_is_the_file_of_the_longest_common_end(tmp_path):
    for path in ("x/a.wav", "a.wav"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / path, np.zeros(100), 16000)
    index = SoundIndex(tmp_path)
    assert index.find("lms/x/a.npy") == tmp_path / "x/a.wav"
    assert index.find("lms/y/a.npy") == tmp_path / "a.wav"
    assert index.find("b.npy") is None


def test_of_a_long_file_only_the_beginning_is_read(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.sin(np.arange(16000 * 20) / 9), 16000)
    start = read_beginning(tmp_path / "long.wav", 16000, 1600)
    np.testing.assert_allclose(start, np.sin(np.arange(1600) / 9), atol=1e-4)
    clips = AudioClips("x", [tmp_path / "long.wav"], ["long.wav"], "16k")
    crops, _ = clips.beginnings(np.array([0]), 50)
    assert crops.shape == (1, 80, 50) and clips.sound(0) == tmp_path / "long.wav"
    assert len(sound_uri(tmp_path / "long.wav")) < 40_000


def test_no_sound_of_a_file_that_is_none(tmp_path):
    (tmp_path / "a.wav").write_text("no sound")
    assert sound_uri(tmp_path / "a.wav") is None


def test_pictures_of_any_values():
    for values in (np.full((80, 7), SILENCE), np.full((80, 7), np.nan), np.random.default_rng(0).normal(size=(80, 700))):
        assert spectrogram_uri(values.astype(np.float32)).startswith("data:image/png;base64,")
    assert thumbnail(np.zeros((80, 700))).shape == (40, 160) and thumbnail(np.zeros((80, 3))).shape == (40, 3)


def test_rows_are_spread_evenly():
    assert evenly(10, 3).tolist() == [0, 4, 9] and evenly(2, 9).tolist() == [0, 1]
