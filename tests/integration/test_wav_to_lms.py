"""The converter: names, values, bad files, exit statuses."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from audio_files import bad_file, sound, targets, temporary_files, write

import wav_to_lms
from m2d.audio import convert, listing
from m2d.audio.decode import DecodedAudio, load_audio, read_audio
from m2d.audio.logmel_torch import EPS, PRESETS, SILENCE, nnaudio_mel
from m2d.data.clip_list import read_list
from wav_to_lms import FFT_parameters, ToLogMelSpec, convert_wav

ROOT = Path(__file__).resolve().parents[2]


def program(*args: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "wav_to_lms.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def src(tmp_path) -> Path:
    for name in ("b.wav", "a.wav", "sub/c.wav"):
        write(tmp_path / "src" / name)
    return tmp_path / "src"


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


# ---------------------------------------------------------------- the command line


def test_command_line_converts_and_says_what_it_did(src, tmp_path):
    run = program("src", "data/lms", "--suffix", "wav,flac", "--csv", "data/files_x.csv", "--workers", 2, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "3 files: 3 converted, 0 were there already, 0 failed" in run.stderr
    assert run.stdout == ""
    assert "%|" not in run.stderr  # no progress bar where there is no terminal
    assert (tmp_path / "data/files_x.csv").read_text() == "file_name\nlms/a.npy\nlms/b.npy\nlms/sub/c.npy\n"


def test_exit_status_1_when_some_failed(src, tmp_path):
    bad_file(src, "text")
    run = program(src, tmp_path / "out")
    assert run.returncode == 1
    assert "1 failed" in run.stderr and str(tmp_path / "out/failed.csv") in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("args", [[], ["src"], ["src", "out", "--sufix", "flac"], ["src", "out", "--suffix", "flac"]])
def test_exit_status_2_when_nothing_was_started(src, tmp_path, args):
    run = program(*args, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [[], ["--pack"]])
@pytest.mark.parametrize("below", ["{src}/a.wav/out", "/proc/out"])
def test_a_destination_that_takes_no_files_is_one_line_before_any_work(src, caplog, below, flags):
    assert wav_to_lms.main([str(src / "nothing"), *flags, below.format(src=src)]) == 2
    (line,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "cannot be written" in line


@pytest.mark.parametrize("name", ["snd#2", "a,b", "[x]", "None", "True", "202001", "(1)", "x=1", "{}", "a b", "'q'"])
def test_paths_are_text_whatever_they_look_like(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name / "x.wav")
    write(tmp_path / "snd" / "other.wav")
    assert wav_to_lms.main([name, f"out/{name}", "--csv", f"out/{name}.csv", "--workers", "1"]) == 0
    assert targets(tmp_path) == {f"out/{name}/x.npy"}
    assert pd.read_csv(f"out/{name}.csv").file_name.tolist() == [f"{name}/x.npy"]
    assert wav_to_lms.main([name, "--pack", f"p{name}", "--workers", "1"]) == 0
    assert (tmp_path / f"p{name}" / "pack.json").exists()


def test_the_published_flags(src, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    flags = ["--suffix", ".wav", "--skip", "1", "--min_length", "None", "--verbose", "--workers", "1"]
    assert wav_to_lms.main([str(src), str(tmp_path / "out"), *flags]) == 0
    assert targets(tmp_path / "out") == {"b.npy", "sub/c.npy"}
    assert "sub/c.npy: 11 frames" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--verbose", "extra"], "extra"),
        (["--sufix", "wav"], "did you mean --suffix"),
        (["--min_length", "long"], "--min_length: invalid seconds value: 'long'"),
        (["--workers", "two"], "--workers: invalid int value"),
        (["--sr", "44k"], "--sr"),
    ],
)
def test_a_word_that_is_not_understood_is_one_line_and_starts_nothing(src, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        wav_to_lms.main([str(src), str(tmp_path / "out"), *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what is said of files that are not taken, or not sound


def test_audio_of_other_suffixes_is_counted_in_one_line(src, tmp_path, monkeypatch, caplog):
    for number in range(21):
        (src / f"{number}.FLAC").touch()
    for name in ("a.sph", "notes.txt", "b.m4a", "c.M4A"):
        (src / name).touch()
    monkeypatch.setattr(listing, "has_ffmpeg", lambda: False)
    assert wav_to_lms.main([str(src), str(tmp_path / "out"), "--workers", "1"]) == 0
    told = [record.getMessage() for record in caplog.records if "not taken" in record.getMessage()]
    assert told == ["21 .flac, 1 .sph not taken (--suffix); 2 .m4a not taken (PyAV reads these: pip install 'm2d-audio[av]')"]
    caplog.clear()
    monkeypatch.setattr(listing, "has_ffmpeg", lambda: True)
    assert wav_to_lms.main([str(src), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "21 .flac, 2 .m4a, 1 .sph not taken (--suffix)" in caplog.text
    assert wav_to_lms.main([str(src), str(tmp_path / "2"), "--suffix", "ogg"]) == 2
    assert "no file with the suffix .ogg" in caplog.text and "3 .wav not taken" in caplog.text


def test_suffix_all_takes_every_format(tmp_path):
    names = ["a.wav", "b.flac", "c.mp3", "d.ogg", "e.aiff", "f.au", "g.caf", "h.w64"]
    for name in names:
        write(tmp_path / "src" / name, 16000)
    (tmp_path / "src/notes.txt").touch()
    report = convert_wav(tmp_path / "src", tmp_path / "out", suffix="all", workers=1)
    assert report.converted == set(names)


@pytest.mark.parametrize("to", [["out"], ["--pack", "out"]])
def test_files_that_something_is_wrong_with_are_counted_in_the_closing_line(src, tmp_path, caplog, monkeypatch, to):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    (src / "b.wav").write_bytes((src / "b.wav").read_bytes()[:-1000])
    soundfile.write(src / "loud.wav", np.full(800, 9000, np.float32), 16000, subtype="FLOAT")
    content = bytearray((src / "a.wav").read_bytes())
    content[40:44] = (1000).to_bytes(4, "little")
    (src / "a.wav").write_bytes(content)
    assert wav_to_lms.main([str(src), *to, "--workers", "2"]) == 0
    assert "4 files: 4 converted, 0 were there already, 0 failed, 3 with warnings, 0.1 s of sound left out" in caplog.text
    for words in (
        "b.wav is cut short",
        "loud.wav is beyond full scale: its peak is 9000",
        "a.wav has 0.1 s more than its header",
    ):
        assert caplog.text.count(words) == 1


def test_a_list_that_the_converter_did_not_write_is_kept(src, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    labels = "file_name,label\nout/a.npy,dog\n"
    (tmp_path / "labels.csv").write_text(labels)
    command = ["src", "out", "--csv", "labels.csv", "--workers", "1"]
    assert wav_to_lms.main(command) == 2
    assert (tmp_path / "labels.csv").read_text() == labels and not (tmp_path / "out").exists()
    assert "labels.csv is there already: give another name, or --overwrite" in caplog.text
    assert wav_to_lms.main([*command, "--overwrite"]) == 0
    assert wav_to_lms.main(command) == 0
    assert (tmp_path / "labels.csv").read_text() == "file_name\nout/a.npy\nout/b.npy\nout/sub/c.npy\n"


def test_names_with_line_ends_are_one_row_of_a_list_and_shown_on_one_line(tmp_path, caplog):
    names = ["a\rb.wav", "c\nd.wav", "e\x1b[31mf.wav"]
    for name in names:
        write(tmp_path / "src" / name)
    (tmp_path / "src" / "bad\r\x1b[2J.wav").touch()
    csv = tmp_path / "list.csv"
    assert wav_to_lms.main([str(tmp_path / "src"), str(tmp_path / "out"), "--csv", str(csv), "--verbose"]) == 1
    clips = read_list(csv)
    assert sorted(clips.names) == sorted(f"out/{name[:-4]}.npy" for name in names)
    assert all((tmp_path / name).exists() for name in clips.names)
    assert not {"\r", "\x1b"} & set(caplog.text)
    assert r"bad\r\x1b[2J.wav is empty" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_the_files_is_named_and_not_waited_for(src, tmp_path):
    os.mkfifo(src / "pipe.wav")
    report = convert_wav(src, tmp_path / "out", workers=2)
    assert list(report.failed) == ["pipe.wav"] and len(report.converted) == 3
    assert "is not a regular file" in report.failed["pipe.wav"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's size")
def test_an_hour_in_a_small_file_under_a_memory_limit_costs_that_file_alone(src, tmp_path):
    with soundfile.SoundFile(src / "hour.flac", "w", 16000, 1) as file:
        for _ in range(60):
            file.write(np.zeros(16000 * 60, np.int16))
    assert (src / "hour.flac").stat().st_size < 1_000_000
    limited = f"""
import resource, sys
import wav_to_lms
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (size, size))
sys.exit(wav_to_lms.main([{str(src)!r}, {str(tmp_path / "out")!r}, "--suffix", "all", "--workers", "1"]))
"""
    run = subprocess.run([sys.executable, "-c", limited], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1, run.stderr
    assert targets(tmp_path / "out") == {"a.npy", "b.npy", "sub/c.npy"}
    assert re.search(r"hour\.flac: .*(MemoryError|allocate)", run.stderr)
