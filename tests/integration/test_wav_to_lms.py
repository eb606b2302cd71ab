"""The converter: names, values, bad files."""

import logging
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from audio_files import bad_file, sound, targets, temporary_files, write

from m2d.audio import convert
from m2d.audio.decode import DecodedAudio, load_audio, read_audio
from m2d.audio.logmel_torch import EPS, PRESETS, SILENCE, nnaudio_mel
from wav_to_lms import FFT_parameters, ToLogMelSpec, convert_wav

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- the contract's names


def test_to_log_mel_spec_returns_nnaudios_values_as_a_tensor():
    waveform = sound(32000)
    lms = ToLogMelSpec(FFT_parameters())(waveform)
    expected = torch.log(nnaudio_mel(PRESETS["16k"])(torch.from_numpy(waveform)) + EPS)
    assert lms.dtype == torch.float32
    assert lms.shape == (1, 80, 201)
    torch.testing.assert_close(lms, expected, atol=1e-3, rtol=0)


def test_fft_parameters_can_be_changed():
    cfg = FFT_parameters()
    cfg.n_mels, cfg.hop_size = 64, 200
    assert ToLogMelSpec(cfg)(sound(16000)).shape == (1, 64, 81)
    assert FFT_parameters().n_mels == 80


def test_to_log_mel_spec_refuses_a_batch():
    with pytest.raises(ValueError, match=r"shape \[2, 1600\]: expected \[samples\]"):
        ToLogMelSpec(FFT_parameters())(np.zeros((2, 1600)))


# ---------------------------------------------------------------- what is written where


def test_files_are_float32_of_the_published_shape_and_name(src, tmp_path):
    write(src / "ten.wav", 160000)
    report = convert_wav(src, tmp_path / "data/lms", workers=1)
    assert (report.found, len(report.converted), report.existing, report.failed) == (4, 4, 0, {})
    assert targets(tmp_path / "data/lms") == {"a.npy", "b.npy", "sub/c.npy", "ten.npy"}
    lms = np.load(tmp_path / "data/lms/ten.npy")
    assert lms.dtype == np.float32
    assert lms.shape == (1, 80, 1001)
    expected = torch.log(nnaudio_mel(PRESETS["16k"])(torch.from_numpy(load_audio(src / "ten.wav", 16000))) + EPS)
    np.testing.assert_allclose(lms, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("min_length", "frames"), [(6.1, 611), (1, 101), (0.05, 11), (None, 11), (0, 11)])
def test_short_clips_are_padded_with_silence_to_min_length(src, tmp_path, min_length, frames):
    convert_wav(src, tmp_path / "out", min_length=min_length, workers=1)
    lms = np.load(tmp_path / "out/a.npy")
    assert lms.shape == (1, 80, frames)
    np.testing.assert_allclose(lms[..., 13:], SILENCE, rtol=1e-6)
    assert (lms[..., 5] > SILENCE + 1).all()


def test_32k_preset(src, tmp_path):
    write(src / "ten.wav", 441000, 44100, 2)
    convert_wav(src, tmp_path / "out", sr="32k", workers=1)
    assert np.load(tmp_path / "out/ten.npy").shape == (1, 80, 1001)
    assert np.load(tmp_path / "out/a.npy").shape == (1, 80, 611)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(tmp_path, workers):
    for number in range(20):
        write(tmp_path / f"src/{number}.wav", 400 + 100 * number, seed=number)
    report = convert_wav(tmp_path / "src", tmp_path / "out", workers=workers, min_length=None)
    assert len(report.converted) == 20
    for number in range(20):
        expected = ToLogMelSpec(FFT_parameters())(load_audio(tmp_path / f"src/{number}.wav", 16000)).numpy()
        assert (np.load(tmp_path / f"out/{number}.npy") == expected).all()


def test_the_device_path_gives_the_same_values_and_batches_by_length(tmp_path, monkeypatch):
    monkeypatch.setattr(convert.DeviceMel, "_spectrograms", count_calls(convert.DeviceMel._spectrograms, calls := []))
    for number in range(12):
        write(tmp_path / f"src/{number:02}.wav", 1600 if number < 9 else 2000 + number, seed=number)
    (tmp_path / "src/bad.wav").touch()
    converter = convert.Converter(PRESETS["16k"], 0, convert.npy_sink, decode_only=True)
    names = [f"{number:02}" for number in range(12)] + ["bad"]
    jobs = [convert.Job(name, str(tmp_path / f"src/{name}.wav"), str(tmp_path / f"gpu/{name}.npy")) for name in names]
    outcomes = convert.DeviceMel(converter, "cpu")([converter(job) for job in jobs])
    assert sorted(outcome.job.name for outcome in outcomes) == sorted(names)
    assert [outcome.job.name for outcome in outcomes if outcome.error] == ["bad"]
    assert len(calls) == 4  # nine clips of one length, three of their own
    convert_wav(tmp_path / "src", tmp_path / "out", min_length=None, workers=1)
    for number in range(12):
        by_device, by_cpu = (np.load(tmp_path / f"{folder}/{number:02}.npy") for folder in ("gpu", "out"))
        np.testing.assert_allclose(by_device, by_cpu, atol=5e-4, rtol=0)


def test_a_clip_too_long_for_memory_is_left_out_of_the_device_path_too(tmp_path, monkeypatch):
    jobs = [convert.Job(f"{n}", str(write(tmp_path / f"{n}.wav", 1600 + n)), str(tmp_path / f"{n}.npy")) for n in range(3)]
    converter = convert.Converter(PRESETS["16k"], 0, convert.npy_sink, decode_only=True)
    mel = convert.DeviceMel(converter, "cpu")
    spectrograms = mel._spectrograms

    def limited(waveforms):
        if len(waveforms[0]) == 1601:
            raise MemoryError("30 GB")
        return spectrograms(waveforms)

    monkeypatch.setattr(mel, "_spectrograms", limited)
    outcomes = mel([converter(job) for job in jobs])
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, False]
    assert "1.wav: MemoryError: 30 GB" in outcomes[1].error
    assert targets(tmp_path) == {"0.npy", "2.npy"}


def count_calls(function, calls: list):
    def counted(*args):
        calls.append(args)
        return function(*args)

    return counted


@pytest.mark.parametrize("suffix", ["wav", ".wav", ".WAV", ["wav"], "wav,flac", ".wav,.flac", ("flac", ".Wav"), "[wav, flac]"])
def test_suffixes_in_every_spelling(tmp_path, suffix):
    write(tmp_path / "src/wav.wav")
    write(tmp_path / "src/a.b.wav")
    write(tmp_path / "src/LOUD.WAV")
    write(tmp_path / "src/c.flac")
    convert_wav(tmp_path / "src", tmp_path / "out", suffix=suffix, workers=1)
    assert targets(tmp_path / "out") - {"c.npy"} == {"wav.npy", "a.b.npy", "LOUD.npy"}
    assert ("c.npy" in targets(tmp_path / "out")) == ("flac" in str(suffix))


def test_flac_ogg_and_mp3(tmp_path):
    for suffix in ("flac", "ogg", "mp3"):
        write(tmp_path / f"src/{suffix}.{suffix}", 44100, 44100, 2)
    convert_wav(tmp_path / "src", tmp_path / "out", suffix="flac,ogg,mp3", min_length=None, workers=1)
    assert {np.load(path).shape for path in (tmp_path / "out").glob("*.npy")} == {(1, 80, 101)}


def test_folder_names_inside_file_names_unicode_and_relative_paths(tmp_path, monkeypatch):
    names = ["wav/wav src out.wav", "src/src.wav", 'ünïcode ✓/名前, "x".wav', "a'b/c#d%.wav"]
    for name in names:
        write(tmp_path / "src" / name)
    monkeypatch.chdir(tmp_path)
    convert_wav("src", "out", workers=1, csv="list.csv")
    assert targets(tmp_path / "out") == {name.replace(".wav", ".npy") for name in names}
    listed = pd.read_csv("list.csv").file_name
    assert set(listed) == {"out/" + name.replace(".wav", ".npy") for name in names}
    assert all(Path(name).exists() for name in listed)


def test_destination_may_be_the_source_or_the_current_folder(src, monkeypatch):
    monkeypatch.chdir(src)
    assert len(convert_wav(".", ".", workers=1).converted) == 3
    assert targets(src) == {"a.npy", "b.npy", "sub/c.npy"}
    assert convert_wav(".", "../src", workers=1).existing == 3


def test_skip_leaves_out_the_first_of_the_sorted_files(src, tmp_path):
    convert_wav(src, tmp_path / "out", ".wav", 1, workers=1)
    assert targets(tmp_path / "out") == {"b.npy", "sub/c.npy"}


def test_verbose_names_each_file(src, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    convert_wav(src, tmp_path / "out", ".wav", 0, 6.1, True, workers=1)
    assert "sub/c.npy: 611 frames" in caplog.text


# ---------------------------------------------------------------- bad files, and runs that go on


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_files_are_listed_and_the_run_goes_on(src, tmp_path, workers, caplog):
    caplog.set_level(logging.INFO)
    for kind in ("empty", "text", "torn flac", "no samples"):
        bad_file(src, kind)
    for name, value in (("nan", np.nan), ("inf", np.inf), ("huge", 1e30)):
        soundfile.write(src / f"{name}.wav", np.array([0.1, value, 0.1] * 800, np.float32), 16000, subtype="FLOAT")
    report = convert_wav(src, tmp_path / "out", workers=workers)
    assert targets(tmp_path / "out") == {"a.npy", "b.npy", "sub/c.npy"}
    failed = pd.read_csv(tmp_path / "out/failed.csv", index_col="file_name").reason
    expected = {"empty.wav", "text.wav", "torn flac.wav", "no samples.wav", "nan.wav", "inf.wav", "huge.wav"}
    assert set(failed.index) == set(report.failed) == expected
    assert "empty" in failed["empty.wav"]
    assert "NaN" in failed["nan.wav"]
    assert "10 files: 3 converted, 0 were there already, 7 failed" in caplog.text
    assert not temporary_files(tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are always UTF-8 there")
def test_a_name_that_is_not_utf8_is_a_failure_of_that_file(src, tmp_path):
    os.rename(src / "a.wav", os.fsencode(src) + b"/caf\xe9.wav")
    report = convert_wav(src, tmp_path / "out", workers=2, csv=tmp_path / "l.csv")
    assert len(report.converted) == len(pd.read_csv(tmp_path / "l.csv")) == 2
    assert "not UTF-8" in pd.read_csv(tmp_path / "out/failed.csv").reason[0]


def test_a_decoders_odd_error_fails_its_file_only(src, tmp_path, monkeypatch):
    def read(path: str, rate: int) -> DecodedAudio:
        if path.endswith("a.wav"):
            raise MemoryError("30 GB")
        return read_audio(path, rate)

    monkeypatch.setattr(convert, "read_audio", read)
    report = convert_wav(src, tmp_path / "out", workers=2)
    assert list(report.failed) == ["a.wav"]
    assert "MemoryError: 30 GB" in report.failed["a.wav"]


def test_existing_files_stay_as_they_are_and_the_failures_list_is_of_the_last_run(src, tmp_path):
    bad = bad_file(src, "empty")
    out = tmp_path / "out"
    convert_wav(src, out, workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    bad.unlink()
    write(src / "new.wav")
    report = convert_wav(src, out, workers=1, csv=tmp_path / "list.csv")
    assert (report.existing, report.converted) == (3, {"new.wav"})
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (out / "failed.csv").exists()
    assert pd.read_csv(tmp_path / "list.csv").file_name.tolist() == [f"out/{n}.npy" for n in ("a", "b", "new", "sub/c")]


def test_an_empty_file_does_not_count_as_done(src, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.npy").touch()
    report = convert_wav(src, tmp_path / "out", workers=1)
    assert (report.existing, len(report.converted)) == (0, 3)
    assert np.load(tmp_path / "out/a.npy").shape == (1, 80, 611)


def test_a_target_that_is_a_folder_fails_that_file_only(src, tmp_path):
    (tmp_path / "out/a.npy").mkdir(parents=True)
    report = convert_wav(src, tmp_path / "out", workers=1)
    assert list(report.failed) == ["a.wav"]
    assert "cannot be written" in report.failed["a.wav"]
    assert not temporary_files(tmp_path)


# ---------------------------------------------------------------- what is refused before anything starts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suffix": "flac"}, "no file with the suffix .flac"),
        ({"suffix": ","}, "--suffix"),
        ({"skip": 3}, "--skip 3 leaves none of the 3 files"),
        ({"skip": -1}, "--skip -1"),
        ({"workers": 0}, "--workers 0"),
        ({"min_length": -1}, "--min_length -1"),
        ({"min_length": float("nan")}, "--min_length nan"),
        ({"sr": "44k"}, "--sr 44k: expected one of 16k, 32k"),
        ({"device": "gpu"}, "--device gpu cannot be used here"),
        ({"csv": "elsewhere/l.csv"}, "not below that folder"),
        ({"csv": "list.txt"}, "ends in .csv"),
        ({"from_dir": "nowhere"}, "no folder nowhere"),
        ({"from_dir": "src/a.wav"}, "src/a.wav is not a folder"),
        ({"to_dir": "src/a.wav"}, "src/a.wav is not a folder"),
    ],
)
def test_mistakes_are_refused_before_anything_is_created(src, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError, NotADirectoryError), match=re.escape(message)):
        convert_wav(**{"from_dir": "src", "to_dir": "out", **options})
    assert not (tmp_path / "out").exists()


def test_two_files_with_one_target_are_refused_by_name(src, tmp_path):
    write(src / "sub/c.flac")
    with pytest.raises(ValueError, match=r"sub/c\.flac and .*sub/c\.wav would both become .*sub/c\.npy"):
        convert_wav(src, tmp_path / "out", suffix="wav,flac")
    assert convert_wav(src, tmp_path / "out", suffix="flac").converted == {"sub/c.flac"}
