"""Checking a list: each kind of problem, the cleaned list, and a check that was stopped."""

import csv
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from limits import file_size_limit
from small_runs import environment, write_list, write_pairs

from m2d.audio.logmel import PRESETS, NumpyLogMel
from m2d.cli import check as check_program
from m2d.cli.check import main
from m2d.data import clip_check
from m2d.data.clip_check import LOUDEST
from m2d.data.store import SILENCE

CSV = "data/files_main.csv"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a list of 30 sound clips of 40 frames."""
    monkeypatch.chdir(tmp_path)
    write_list(clips=30)
    return tmp_path


def check(*more, path=CSV, frames=40):
    return main([str(path), "--input_frames", str(frames), "--workers", "2", *more])


def problems(path=CSV):
    with open(f"{path}.problems.csv") as file:
        return [(int(line["row"]), line["problem"], line["detail"]) for line in csv.DictReader(file)]


def clip(number):
    return Path(f"data/main_lms/{number:03d}.npy")


def break_them():
    """One clip of each kind."""
    clip(1).unlink()
    clip(2).write_bytes(clip(2).read_bytes()[:-1])
    clip(3).write_bytes(b"")
    clip(4).write_bytes(b"RIFF" + bytes(200))
    np.save(clip(5), np.zeros((1, 64, 40), np.float32))
    np.save(clip(6), np.zeros((80, 40), np.float32))
    np.save(clip(7), np.zeros((1, 80, 40), np.int16))
    values = np.load(clip(8))
    values[0, 3, 5] = np.nan
    np.save(clip(8), values)
    values = np.load(clip(9))
    values[0, 0, 0], values[0, 0, 1] = np.inf, -np.inf
    np.save(clip(9), values)
    np.save(clip(10), np.full((1, 80, 40), SILENCE, np.float32))
    np.save(clip(11), np.load(clip(11))[..., :39])
    clip(12).write_bytes(clip(20).read_bytes())


def test_a_sound_list(capsys):
    assert check() == 0
    said = capsys.readouterr().out
    assert "30 clips listed, 30 looked at" in said and "no problems" in said and "40 to 40 frames" in said
    values = np.concatenate([np.load(path).ravel() for path in Path("data/main_lms").iterdir()]).astype(np.float64)
    assert f"mean {values.mean():.4f}, standard deviation {values.std():.4f}" in said
    assert f"from {values.min():.2f} to {values.max():.2f}" in said and "0.00 hours" in said
    assert problems() == [] and Path(f"{CSV}.durations.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(Path("data").glob("*.check.*"))


def test_each_problem_is_named_with_its_row(capsys):
    break_them()
    lines = Path(CSV).read_text().splitlines()
    Path(CSV).write_text("\n".join([*lines, lines[6], lines[16]]) + "\n")
    assert check() == 1
    assert problems() == [
        (3, "missing", "no such file"),
        (4, "cut short", "truncated: 12927 bytes, but shape (1, 80, 40) of float32 takes 12928"),
        (5, "cannot be read", "an empty file"),
        (6, "cannot be read", "not a .npy file"),
        (7, "wrong shape or mel bands", "shape (1, 64, 40), expected (1, 80, frames): 64 mel bands where the model takes 80"),
        (8, "wrong shape or mel bands", "shape (80, 40), expected (1, 80, frames)"),
        (9, "wrong shape or mel bands", "values of type int16, expected float32 (or float16)"),
        (10, "NaN or infinite values", "1 of 3200 values are NaN or infinite"),
        (11, "NaN or infinite values", "2 of 3200 values are NaN or infinite"),
        (12, "silent", "no value above -15.94"),
        (13, "shorter than the input", "39 frames, an input has 40"),
        (22, "same content as another", "as data/files_main.csv row 14: main_lms/012.npy"),
        (32, "wrong shape or mel bands", "shape (1, 64, 40), expected (1, 80, frames): 64 mel bands where the model takes 80"),
        (32, "listed before", "as data/files_main.csv row 7: main_lms/005.npy"),
        (33, "listed before", "as data/files_main.csv row 17: main_lms/015.npy"),
    ]
    said = capsys.readouterr().out
    assert "listed before                     2  drops   data/files_main.csv row 32" in said
    assert "shorter than the input            1  keeps" in said


def test_short_clips_alone_are_a_note(capsys):
    np.save(clip(11), np.load(clip(11))[..., :39])
    assert check() == 0
    said = capsys.readouterr().out
    assert "shorter than the input            1  keeps" in said
    assert f"written: {CSV}.problems.csv, {CSV}.durations.png" in said


@pytest.mark.parametrize("kind", ["noise", "speech in 16-bit numbers"])
def test_audio_in_another_scale_is_beyond_full_scale(kind, capsys):
    scale = {"noise": 9000, "speech in 16-bit numbers": 1000}[kind]
    waveform = scale * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    np.save(clip(4), NumpyLogMel(PRESETS["16k"])(waveform)[None, :, :40])
    assert check() == 1
    assert [(row, problem) for row, problem, _ in problems()] == [(6, "beyond full scale")]
    assert "beyond full scale                 1  drops" in capsys.readouterr().out


@pytest.mark.parametrize("preset", PRESETS)
def test_no_sound_within_full_scale_is_called_beyond_it(preset):
    log_mel, rate = NumpyLogMel(PRESETS[preset]), PRESETS[preset].sample_rate
    t = np.arange(rate // 4) / rate
    sines = [np.sin(2 * np.pi * hertz * t + phase) for hertz in np.geomspace(40, rate / 2, 120) for phase in (0, 1)]
    sounds = [*sines, *map(np.sign, sines), np.ones_like(t), np.random.default_rng(0).choice([-1, 1], len(t))]
    assert max(log_mel(sound).max() for sound in sounds) < LOUDEST - 1


def test_fix_keeps_the_other_rows_as_they_are(capsys):
    path = write_list(clips=30, label=["/m/a", "/m/b,/m/c"])
    break_them()
    text = path.read_text().splitlines(keepends=True)
    text.insert(20, "\n")  # a blank line is a row
    text[25] = text[25].replace("\n", "\r\n")
    path.write_bytes("".join(text).encode())
    assert check("--fix", "data/clean.csv") == 1
    bad = {*range(2, 12), 22}  # rows 3 to 12, and 22 + 1 for the blank line
    assert Path("data/clean.csv").read_bytes().decode() == "".join(line for i, line in enumerate(text) if i not in bad)
    assert "data/clean.csv: 19 clips, 11 dropped" in capsys.readouterr().out
    assert check("--fix", "data/cleaner.csv", path="data/clean.csv") == 0
    assert {problem for _, problem, _ in problems("data/clean.csv")} == {"shorter than the input"}
    assert Path("data/cleaner.csv").read_text() == Path("data/clean.csv").read_text()


def test_quoted_line_ends_do_not_shift_rows():
    lines = Path(CSV).read_text().splitlines()
    rows = [f'{line},"said\nin two lines"' for line in lines[1:]]
    Path(CSV).write_text("\n".join([lines[0] + ",note", *rows]) + "\n")
    clip(4).unlink()
    assert check("--fix", "data/clean.csv") == 1
    assert Path("data/clean.csv").read_text() == "\n".join([lines[0] + ",note", *rows[:4], *rows[5:]]) + "\n"


@pytest.mark.parametrize("name", ['a"b', 'ab"', '"ab"c', "a b"])
def test_fix_drops_the_bad_rows_whatever_quotes_the_others_have(name):
    """A quote in the middle of a name, that is not doubled: a count of quotes took the rest of the list for one row."""
    lines = Path(CSV).read_text().splitlines()
    clip(3).rename(clip(3).with_name(f"{name}.npy"))
    clip(6).unlink()
    lines[4] = f"main_lms/{name}.npy"
    Path(CSV).write_text("\n".join(lines) + "\n")
    assert check("--fix", "data/clean.csv") == 1
    assert [row for row, _, _ in problems()] == [8]
    assert Path("data/clean.csv").read_text().splitlines() == [line for i, line in enumerate(lines) if i != 7]


def test_a_list_that_reads_in_two_ways_is_not_fixed(monkeypatch, caplog):
    clip(6).unlink()
    monkeypatch.setattr(check_program, "_records", lambda file: iter([("file_name\n", ["file_name"]), ("x\n", ["x"])]))
    assert check("--fix", "data/clean.csv") == 2
    assert "row 2 can be read in two ways" in caplog.text and not Path("data/clean.csv").exists()


def test_fix_keeps_a_byte_order_mark():
    Path(CSV).write_bytes(b"\xef\xbb\xbf" + Path(CSV).read_bytes())
    assert check("--fix", "data/clean.csv") == 0
    assert Path("data/clean.csv").read_bytes() == Path(CSV).read_bytes()


@pytest.mark.parametrize("name", ["data/clean.csv", f"{CSV}.problems.csv", f"{CSV}.durations.png", f"{CSV}.check.npz"])
def test_what_a_check_did_not_write_is_not_replaced(name, caplog):
    Path(name).write_text("file_name,label\nmine,1\n")
    assert check("--fix", "data/clean.csv") == 2
    assert Path(name).read_text() == "file_name,label\nmine,1\n" and name in caplog.text
    assert len(list(Path("data").glob("*"))) == 3
    if not name.endswith("npz"):
        assert check("--fix", "data/clean.csv", "--overwrite") == 0


def test_its_own_reports_are_replaced():
    assert check() == 0 and check() == 0


def test_a_full_disk_is_an_error_before_the_work(monkeypatch, caplog):
    with file_size_limit(500):
        assert check() == 2
    assert "File too large" in caplog.text
    assert sorted(path.name for path in Path("data").iterdir()) == ["files_main.csv", "main_lms"]


def test_a_sample_is_spread_over_the_list(capsys):
    clip(0).unlink()
    clip(1).unlink()
    clip(15).unlink()
    assert check("--sample", "10") == 1
    assert [row for row, _, _ in problems()] == [2, 17]
    assert "30 clips listed, 10 looked at" in capsys.readouterr().out


def test_a_stopped_check_goes_on(monkeypatch, capsys, caplog):
    break_them()
    assert check() == 1
    whole, table = problems(), capsys.readouterr().out
    monkeypatch.setattr(clip_check, "_CLIPS_AT_ONCE", 4)
    look, seen, lock = clip_check.examine, [], threading.Lock()

    def counted(store, i, frames):
        with lock:
            seen.append(i)
            if len(seen) == 14:
                raise KeyboardInterrupt
        return look(store, i, frames)

    with monkeypatch.context() as patched:
        patched.setattr(clip_check, "examine", counted)
        assert main([CSV, "--input_frames", "40", "--workers", "1"]) == 130
    first, seen[:] = set(seen), [-1] * 100
    with monkeypatch.context() as patched:
        patched.setattr(clip_check, "examine", counted)
        assert check() == 1
    again = set(seen) - {-1}
    assert again | first == set(range(30)) and len(again) <= 22
    assert problems() == whole and capsys.readouterr().out == table


def test_what_was_found_of_another_list_is_not_taken():
    clip(5).unlink()
    state = clip_check.CheckState(Path(f"{CSV}.check.npz"), "another list", 30)
    state.records["looked_at"] = 1
    state.save()
    assert check() == 1 and [row for row, _, _ in problems()] == [7]


def test_speech_pairs():
    path = write_pairs(clips=12)
    with np.load("data/speech/003.npz") as saved:
        arrays = [saved[name] for name in saved.files]
    np.savez("data/speech/004.npz", arrays[0])
    np.savez("data/speech/005.npz", arrays[0][:, :64], *arrays[1:])
    arrays[1][0, 2, 3] = np.nan
    np.savez("data/speech/003.npz", *arrays)
    Path("data/speech/006.npz").write_bytes(Path("data/speech/006.npz").read_bytes()[:-50])
    Path("data/speech/007.npz").unlink()
    assert check(path=path) == 1
    assert [(row, problem) for row, problem, _ in problems(path)] == [
        (5, "NaN or infinite values"),
        (6, "cannot be read"),
        (7, "wrong shape or mel bands"),
        (8, "cannot be read"),
        (9, "missing"),
    ]


def test_what_cannot_be_checked(capsys, caplog):
    assert main(["data/none.csv"]) == 2
    assert main([CSV, "--data_path", "elsewhere"]) == 2
    assert "none of its files is under elsewhere" in caplog.text
    assert main([CSV, "--fix", CSV, "--overwrite"]) == 2
    assert "is an input" in caplog.text
    for flags in (["--workers", "0"], ["--sample", "-1"], ["--fix", "clean.txt"]):
        with pytest.raises(SystemExit) as stopped:
            main([CSV, *flags])
        assert stopped.value.code == 2


def test_as_a_program():
    clip(5).unlink()
    called = subprocess.run(
        [sys.executable, "-m", "util.check_data", CSV, "--input_frames", "40"],
        env=environment(), capture_output=True, text=True, cwd=os.getcwd(),
    )  # fmt: skip
    assert called.returncode == 1 and "missing" in called.stdout, called.stderr


def test_an_open_quote_that_swallows_rows_is_reported(capsys, caplog):
    lines = Path(CSV).read_text().splitlines()
    Path(CSV).write_text("\n".join([*lines[:5], '"' + lines[5], *lines[6:]]) + "\n")
    assert check() == 1
    assert "1 names hold line breaks: an open quote" in caplog.text + capsys.readouterr().err
