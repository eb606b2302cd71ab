"""The log-mel front end: NumPy and torch against nnAudio, librosa and hand-worked values."""

import subprocess
import sys
from pathlib import Path

import librosa
import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.audio import logmel
from m2d.audio.logmel import NumpyLogMel, hann_window, mel_filters
from m2d.audio.logmel_torch import EPS, PRESETS, SILENCE, FrontEnd, LogMel, log_mel_of_frames, nnaudio_mel, pad_short, to_frames


def signals(sample_rate: int) -> dict[str, np.ndarray]:
    """Two seconds each of what is hard for a front end, within full scale."""
    samples = 2 * sample_rate
    t = np.arange(samples) / sample_rate
    noise = np.random.RandomState(0).standard_normal(samples)
    return {
        "silence": np.zeros(samples),
        "full-scale DC": np.ones(samples),
        "half-scale DC": np.full(samples, 0.5),
        "impulse": np.eye(1, samples, samples // 2)[0],
        "impulse at the start": np.eye(1, samples, 0)[0],
        "impulse at the end": np.eye(1, samples, samples - 1)[0],
        "full-scale square": np.sign(np.sin(2 * np.pi * 440.3 * t)),
        "full-scale sine at 20 Hz": np.sin(2 * np.pi * 20 * t),
        "full-scale sine at 3777 Hz": np.sin(2 * np.pi * 3777 * t),
        "full-scale sine by Nyquist": np.sin(np.pi * (sample_rate - 2) * t),
        "Nyquist": np.cos(np.pi * np.arange(samples)),
        "full-scale noise": np.clip(noise, -1, 1),
        "one bit of 16": np.sign(noise) / 32768,
        "far below one bit": 1e-8 * noise,
        "speech-like": 0.3 * noise * np.maximum(0, np.sin(2 * np.pi * 4 * t)) ** 2,
    }


CASES = [(preset, name) for preset in PRESETS for name in signals(16000)]


def by_double_precision(waveform: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """The definition, written out with scipy and librosa in float64: [mels, frames]."""
    _, _, spectrum = scipy.signal.stft(
        np.pad(waveform.astype(np.float64), front_end.n_fft // 2, mode="reflect"),
        window=scipy.signal.get_window("hann", front_end.n_fft),
        nperseg=front_end.n_fft,
        noverlap=front_end.n_fft - front_end.hop_size,
        boundary=None,
        padded=False,
        scaling="spectrum",
    )
    power = np.abs(spectrum * front_end.n_fft / 2) ** 2  # scipy divides by the sum of the window
    filters = librosa.filters.mel(
        sr=front_end.sample_rate,
        n_fft=front_end.n_fft,
        n_mels=front_end.n_mels,
        fmin=front_end.f_min,
        fmax=front_end.f_max,
        dtype=np.float64,
    )
    return np.log(filters @ power + EPS)


@pytest.fixture(scope="module")
def nnaudio():
    return {name: nnaudio_mel(front_end) for name, front_end in PRESETS.items()}


def test_presets_are_the_published_ones():
    assert PRESETS["16k"] == FrontEnd(16000, 400, 400, 160, 80, 50, 8000)
    assert PRESETS["32k"] == FrontEnd(32000, 800, 800, 320, 80, 50, 16000)
    assert EPS == torch.finfo(torch.float32).eps
    assert pytest.approx(np.log(EPS)) == SILENCE


@pytest.mark.parametrize("preset", PRESETS)
def test_window_and_filters_are_those_of_nnaudio(preset, nnaudio):
    front_end, theirs = PRESETS[preset], nnaudio[preset]
    np.testing.assert_allclose(hann_window(front_end), theirs.stft.window_mask.numpy().ravel(), atol=1e-7)
    np.testing.assert_allclose(mel_filters(front_end), theirs.mel_basis.numpy(), atol=1e-8)


def test_filters_of_other_sizes_are_those_of_librosa():
    front_end = FrontEnd(22050, 1024, 1024, 256, 40, 500, 2000)
    expected = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=40, fmin=500, fmax=2000)
    np.testing.assert_allclose(mel_filters(front_end), expected, atol=1e-8)


def test_short_window_sits_in_the_middle_of_the_frame():
    front_end = FrontEnd(window_size=300)
    theirs = nnaudio_mel(front_end)
    np.testing.assert_allclose(hann_window(front_end), theirs.stft.window_mask.numpy().ravel(), atol=1e-7)
    waveform = np.random.RandomState(0).uniform(-1, 1, 8000).astype(np.float32)
    expected = torch.log(theirs(torch.from_numpy(waveform)) + EPS)[0].numpy()
    np.testing.assert_allclose(NumpyLogMel(front_end)(waveform), expected, atol=1e-3)


@pytest.mark.parametrize(("preset", "name"), CASES)
def test_values_are_those_of_nnaudio(preset, name, nnaudio):
    front_end = PRESETS[preset]
    waveform = signals(front_end.sample_rate)[name].astype(np.float32)
    expected = torch.log(nnaudio[preset](torch.from_numpy(waveform)) + EPS)[0].numpy()
    by_numpy = NumpyLogMel(front_end)(waveform)
    by_torch = LogMel(front_end)(torch.from_numpy(waveform)[None])[0].numpy()
    assert by_numpy.dtype == by_torch.dtype == np.float32
    np.testing.assert_allclose(by_numpy, expected, atol=1e-3, rtol=0)
    np.testing.assert_allclose(by_torch, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("preset", "name"), CASES)
def test_values_are_those_of_double_precision(preset, name):
    front_end = PRESETS[preset]
    waveform = signals(front_end.sample_rate)[name].astype(np.float32)
    expected = by_double_precision(waveform, front_end)
    np.testing.assert_allclose(NumpyLogMel(front_end)(waveform), expected, atol=5e-4, rtol=0)
    np.testing.assert_allclose(LogMel(front_end)(torch.from_numpy(waveform)[None])[0], expected, atol=3e-4, rtol=0)


@pytest.mark.parametrize(("preset", "name"), CASES)
def test_products_in_single_precision_are_as_near_as_nnaudios_convolutions(preset, name, nnaudio):
    """Those are up to 6.9e-4 from the values of double precision, in bands of silence beside a loud tone."""
    front_end = PRESETS[preset]
    waveform = signals(front_end.sample_rate)[name].astype(np.float32)
    lms = log_mel_of_frames(nnaudio[preset], to_frames(torch.from_numpy(waveform)[None], front_end))[0]
    assert lms.dtype == torch.float32
    np.testing.assert_allclose(lms, by_double_precision(waveform, front_end), atol=1e-3, rtol=0)


@pytest.mark.parametrize("amplitude", [10.0, 32768.0])
def test_beyond_full_scale_numpy_stays_exact_where_nnaudio_drowns_in_rounding(amplitude):
    waveform = (amplitude * signals(16000)["full-scale sine at 3777 Hz"]).astype(np.float32)
    expected = by_double_precision(waveform, PRESETS["16k"])
    np.testing.assert_allclose(NumpyLogMel(PRESETS["16k"])(waveform), expected, atol=5e-4, rtol=0)


def test_loud_tones_beside_silence_take_double_precision_frame_by_frame(monkeypatch):
    front_end = PRESETS["16k"]
    tone, noise = signals(16000)["full-scale sine at 3777 Hz"], 0.1 * signals(16000)["full-scale noise"]
    waveform = np.concatenate([tone, noise, tone]).astype(np.float32)
    expected = by_double_precision(waveform, front_end)
    np.testing.assert_allclose(NumpyLogMel(front_end)(waveform), expected, atol=2e-4, rtol=0)
    monkeypatch.setattr(logmel, "_MASKED_BELOW", 0)
    assert np.abs(NumpyLogMel(front_end)(waveform) - expected).max() > 2e-4


def test_an_impulse_has_a_flat_spectrum():
    waveform = np.zeros(1600, np.float32)
    waveform[800] = 1.0  # the centre of frame 5, where the window is 1
    expected = np.log(mel_filters(PRESETS["16k"]).sum(axis=1) + EPS)
    np.testing.assert_allclose(NumpyLogMel(PRESETS["16k"])(waveform)[:, 5], expected, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_ten_seconds_give_1001_frames_and_silence_is_log_eps(preset):
    front_end = PRESETS[preset]
    lms = NumpyLogMel(front_end)(np.zeros(10 * front_end.sample_rate, np.float32))
    assert lms.shape == (80, 1001)
    assert lms.flags.c_contiguous
    np.testing.assert_allclose(lms, SILENCE, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(samples=st.integers(0, 30000), preset=st.sampled_from(sorted(PRESETS)), scale=st.floats(-8, 0), seed=st.integers(0, 99))
def test_any_length_has_the_right_frames_and_equal_values(samples, preset, scale, seed):
    front_end = PRESETS[preset]
    waveform = (10**scale * np.random.RandomState(seed).uniform(-1, 1, samples)).astype(np.float32)
    by_numpy = NumpyLogMel(front_end)(waveform)
    by_torch = LogMel(front_end)(torch.from_numpy(waveform)[None])[0].numpy()
    assert by_numpy.shape == by_torch.shape == (80, 1 + max(samples, front_end.min_samples) // front_end.hop_size)
    np.testing.assert_allclose(by_numpy, by_torch, atol=5e-4, rtol=0)
    assert (by_numpy >= np.float32(SILENCE)).all()


@pytest.mark.parametrize("samples", [0, 1, 160, 200])
def test_waveforms_too_short_to_reflect_are_padded_with_zeros(samples, nnaudio):
    front_end = PRESETS["16k"]
    waveform = np.random.RandomState(0).uniform(-1, 1, samples).astype(np.float32)
    padded = pad_short(torch.from_numpy(waveform)[None], front_end)
    assert padded.shape == (1, 201)
    assert (padded[0, :samples].numpy() == waveform).all()
    assert (padded[0, samples:] == 0).all()
    expected = torch.log(nnaudio["16k"](padded) + EPS)[0].numpy()
    np.testing.assert_allclose(NumpyLogMel(front_end)(waveform), expected, atol=1e-3)
    np.testing.assert_allclose(LogMel(front_end)(torch.from_numpy(waveform)[None])[0].numpy(), expected, atol=1e-3)


def test_long_enough_waveforms_are_not_padded():
    waveform = torch.rand(3, 201)
    assert pad_short(waveform, PRESETS["16k"]).equal(waveform)


def test_a_batch_gives_what_its_clips_give():
    log_mel = LogMel(PRESETS["16k"])
    batch = torch.rand(3, 4000) - 0.5
    torch.testing.assert_close(log_mel(batch), torch.cat([log_mel(clip[None]) for clip in batch]))


@pytest.mark.parametrize("shape", [(4000,), (1, 1, 4000)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[batch, samples\]"):
        LogMel(PRESETS["16k"])(torch.zeros(shape))


def test_autocast_and_half_precision_input_do_not_cost_precision():
    log_mel = LogMel(PRESETS["16k"])
    waveform = (torch.rand(1, 8000) - 0.5).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lms = log_mel(waveform)
    assert lms.dtype == torch.float32
    torch.testing.assert_close(lms, log_mel(waveform.float()))


def test_autocast_does_not_reach_the_products_of_a_log_mel(nnaudio):
    frames = to_frames(torch.rand(2, 8000) - 0.5, PRESETS["16k"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lms = log_mel_of_frames(nnaudio["16k"], frames)
    assert lms.dtype == torch.float32 and lms.shape == (2, 80, 51)
    assert torch.equal(lms, log_mel_of_frames(nnaudio["16k"], frames))


def test_gradients_reach_the_waveform():
    waveform = (torch.rand(1, 4000) - 0.5).requires_grad_()
    LogMel(PRESETS["16k"])(waveform).sum().backward()
    assert waveform.grad.abs().sum() > 0
    assert waveform.grad.isfinite().all()


def test_state_dicts_hold_nnaudios_buffers_and_none_of_log_mel(nnaudio, capsys):
    assert not LogMel(PRESETS["16k"]).state_dict()
    assert {name: tuple(value.shape) for name, value in nnaudio_mel(PRESETS["16k"]).state_dict().items()} == {
        "mel_basis": (80, 201),
        "stft.wsin": (201, 1, 400),
        "stft.wcos": (201, 1, 400),
        "stft.window_mask": (1, 400, 1),
    }
    assert capsys.readouterr() == ("", "")


def test_the_converter_starts_without_torch():
    code = "import sys, wav_to_lms; print({'torch', 'pandas', 'librosa', 'nnAudio'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout == "set()\n"
