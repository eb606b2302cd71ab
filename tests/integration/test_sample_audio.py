"""The synthesised sample set: deterministic, valid, and of classes that their average spectrum does not give away."""

import time
import wave

import numpy as np
import pytest

from util.make_sample_audio import CLASSES, SAMPLE_RATE, make_clip, write_sample_audio


def read(path):
    with wave.open(str(path)) as f:
        assert (f.getnchannels(), f.getsampwidth(), f.getframerate()) == (1, 2, SAMPLE_RATE)
        return np.frombuffer(f.readframes(f.getnframes()), "<i2") / 32767


def test_ten_classes_of_wav_files(tmp_path):
    write_sample_audio(tmp_path, clips=2)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert len(CLASSES) == 10
    assert files == [f"{name}/{name}_0{i}.wav" for name in sorted(CLASSES) for i in range(2)]


@pytest.mark.parametrize("name", CLASSES)
def test_clips_are_sound_of_two_to_three_seconds(tmp_path, name):
    write_sample_audio(tmp_path, clips=1)
    x = read(tmp_path / name / f"{name}_00.wav")
    assert 2 <= len(x) / SAMPLE_RATE <= 3
    assert 0.01 < np.abs(x).max() < 1
    assert abs(x.mean()) < 0.05


def test_a_clip_depends_on_seed_class_and_number_alone(tmp_path):
    write_sample_audio(tmp_path / "one", clips=1)
    write_sample_audio(tmp_path / "three", clips=3)
    for path in (tmp_path / "one").rglob("*.wav"):
        assert path.read_bytes() == (tmp_path / "three" / path.relative_to(tmp_path / "one")).read_bytes()
    assert not np.array_equal(make_clip("rain", 0)[:1000], make_clip("rain", 1)[:1000])
    assert not np.array_equal(make_clip("rain", 0)[:1000], make_clip("rain", 0, seed=1)[:1000])
    assert not np.array_equal(make_clip("rising", 0)[:1000], make_clip("falling", 0)[:1000])


def ridge_direction(x: np.ndarray) -> float:
    """Mean slope of the strongest frequency from frame to frame, where it moves smoothly."""
    frames = np.lib.stride_tricks.sliding_window_view(x, 1024)[::160] * np.hanning(1024)
    ridge = np.abs(np.fft.rfft(frames)).argmax(axis=1).astype(float)
    steps = np.diff(ridge) / ridge[:-1].clip(min=1)
    return np.sign(steps[np.abs(steps) < 0.1]).sum()


def test_rising_rises_and_falling_falls():
    up = sum(ridge_direction(make_clip("rising", i)) > 0 for i in range(10))
    down = sum(ridge_direction(make_clip("falling", i)) < 0 for i in range(10))
    assert up >= 8 and down >= 8


def test_sixty_clips_of_a_class_take_seconds():
    slowest = max(CLASSES, key=lambda name: _cpu_seconds(name, 2))
    assert _cpu_seconds(slowest, 4) / 4 < 0.2


def _cpu_seconds(name: str, clips: int) -> float:
    began = time.process_time()
    for i in range(clips):
        make_clip(name, i)
    return time.process_time() - began
