"""wav_to_lms.py's command line: exit statuses, mistakes, and what it says of files that it does not take."""

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
from audio_files import ROOT, bad_file, program, targets, write

import wav_to_lms
from m2d.audio import listing
from m2d.data.clip_list import read_list
from wav_to_lms import convert_wav

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


# ---------------------------------------------------------------- messages about files that are not taken, or damaged


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
