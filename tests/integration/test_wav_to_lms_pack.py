"""wav_to_lms.py --pack: what converting and then packing gives, whatever stops it and whatever fails."""

import csv
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2d.audio import convert
from m2d.cli.pack import main as pack_lms
from m2d.data.open import open_store
from m2d.data.pack.format import chunk_path, missing_chunks, read_info
from m2d.data.pack.index import read_index, text_column
from wav_to_lms import convert_wav

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, samples: int, seed: int, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.RandomState(seed).uniform(-0.3, 0.3, samples), rate)
    return path


@pytest.fixture
def src(tmp_path) -> Path:
    """Eleven sounds of several lengths and rates, in folders."""
    for i in range(11):
        write(tmp_path / "src" / f"{i * 5 % 3}/{i}.wav", 900 + 700 * i, i, rate=(16000, 44100)[i % 2])
    return tmp_path / "src"


def program(*args: object) -> list[str]:
    return [sys.executable, str(ROOT / "wav_to_lms.py"), *map(str, args)]


def files_of(pack: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pack.iterdir()}


def names_of(pack: Path) -> list[str]:
    info = read_info(pack)
    return [name for k in range(info.chunks) for name in text_column(read_index(pack, info, k), "file_name")]


def failed_rows(pack: Path) -> list[list[str]]:
    with (pack / "failed.csv").open(newline="") as table:
        return list(csv.reader(table))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("min_length", [None, 0.3])
def test_a_pack_from_audio_is_that_of_converting_and_packing(src, tmp_path, workers, dtype, min_length):
    out, lms = tmp_path / "direct.pack", tmp_path / "lms"
    report = convert_wav(src, pack=out, dtype=dtype, chunk_clips=4, workers=workers, min_length=min_length)
    assert (report.found, len(report.converted), report.failed) == (11, 11, {})
    convert_wav(src, lms, csv=lms / "list.csv", workers=1, min_length=min_length)
    settings = ["--data_path", str(lms), "--dtype", dtype, "--chunk_clips", "4"]
    assert pack_lms([str(lms / "list.csv"), "--out", str(tmp_path / "two.pack"), *settings]) == 0
    direct, two = files_of(out), files_of(tmp_path / "two.pack")
    assert direct.keys() == two.keys()
    for name in direct.keys() - {"pack.json"}:
        if name.endswith(".npy"):
            assert direct[name] == two[name]
    info = read_info(out)
    for chunk in range(3):
        mine, theirs = read_index(out, info, chunk), read_index(tmp_path / "two.pack", info, chunk)
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
    assert pack_lms(["--verify", str(out)]) == 0


def test_training_reads_it(src, tmp_path):
    convert_wav(src, pack=tmp_path / "x.pack", workers=1, min_length=None)
    assert read_info(tmp_path / "x.pack").dtype == "float16"
    store = open_store(tmp_path / "x.pack", "nowhere")
    assert [store.name(i) for i in range(3)] == ["0/0.npy", "0/3.npy", "0/6.npy"]
    assert store.read_crops(np.arange(11), np.full(11, 0.5), 12).shape == (11, 80, 12)


def test_spectrograms_of_a_device_come_in_the_same_order(src, tmp_path, monkeypatch):
    convert_wav(src, pack=tmp_path / "cpu.pack", dtype="float32", workers=1, min_length=None)
    monkeypatch.setattr(
        convert.DeviceMel, "__init__", lambda self, c, device, make=convert.DeviceMel.__init__: make(self, c, "cpu")
    )
    convert_wav(src, pack=tmp_path / "device.pack", dtype="float32", workers=2, min_length=None, device="mps", chunk_clips=6)
    a, b = (open_store(tmp_path / name, ".", sort=False) for name in ("cpu.pack", "device.pack"))
    assert [a.name(i) for i in range(11)] == [b.name(i) for i in range(11)]
    crops = [store.read_crops(np.arange(11), np.zeros(11), 60) for store in (a, b)]
    np.testing.assert_allclose(*crops, atol=1e-3)


# ---------------------------------------------------------------- bad files


@pytest.fixture
def bad(src) -> list[str]:
    for name in ("0/3.wav", "1/8.wav"):
        (src / name).write_bytes(b"not audio " * 50)
    return ["0/3.wav", "1/8.wav"]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_files_are_left_out_and_listed(src, bad, tmp_path, workers):
    out = tmp_path / "x.pack"
    report = convert_wav(src, pack=out, workers=workers, chunk_clips=4)
    assert sorted(report.failed) == bad and len(report.converted) == 9
    rows = failed_rows(out)
    assert rows[0] == ["file_name", "chunk", "reason"]
    assert [row[0] for row in rows[1:]] == bad
    assert all("cannot be read as audio" in row[2] for row in rows[1:])
    assert len(names_of(out)) == 9 and not {"0/3.npy", "1/8.npy"} & set(names_of(out))
    assert pack_lms(["--verify", str(out)]) == 0
    assert len(open_store(out, ".")) == 9


def test_bad_files_stay_listed_until_their_chunk_is_made_again(src, bad, tmp_path):
    out = tmp_path / "x.pack"
    convert_wav(src, pack=out, workers=1, chunk_clips=4)
    before = files_of(out)
    again = convert_wav(src, pack=out, workers=1, chunk_clips=4)
    assert (len(again.converted), again.existing, sorted(again.failed)) == (0, 9, bad)
    assert files_of(out) == before
    (out / "failed.csv").unlink()
    assert set(convert_wav(src, pack=out, workers=1, chunk_clips=4).failed.values()) == {"left out by an earlier run"}
    write(src / bad[0], 5000, 99)
    (row,) = [row for row in failed_rows(out) if row[0] == bad[0]]
    for path in out.glob(f"{row[1]}.*"):
        path.unlink()
    repaired = convert_wav(src, pack=out, workers=1, chunk_clips=4)
    assert list(repaired.failed) == bad[1:] and "0/3.npy" in names_of(out)
    write(src / bad[1], 5000, 98)
    for path in out.glob(f"{failed_rows(out)[1][1]}.*"):
        path.unlink()
    assert not convert_wav(src, pack=out, workers=1, chunk_clips=4).failed
    assert not (out / "failed.csv").exists()
    assert names_of(out) == sorted(path.relative_to(src).with_suffix(".npy").as_posix() for path in src.rglob("*.wav"))


def test_a_chunk_of_bad_files_alone_is_an_empty_one(src, tmp_path):
    for path in (src / "0").iterdir():
        path.write_bytes(b"")
    out = tmp_path / "x.pack"
    convert_wav(src, pack=out, workers=1, chunk_clips=2)
    store = open_store(out, ".")
    assert len(store) == 7
    assert np.isfinite(store.read_crops(np.arange(7), np.zeros(7), 20)).all()
    assert pack_lms(["--verify", str(out)]) == 0


def test_a_pack_of_bad_files_alone_is_refused_in_training(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.wav").write_bytes(b"")
    assert convert_wav(tmp_path / "src", pack=tmp_path / "x.pack", workers=1).failed
    with pytest.raises(ValueError, match=r"x\.pack: there is no clip in it"):
        open_store(tmp_path / "x.pack", ".")


def test_a_name_that_is_no_utf8_is_left_out(src, tmp_path):
    try:
        shutil.copy(src / "0/0.wav", f"{src}/\udcff.wav")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    report = convert_wav(src, pack=tmp_path / "x.pack", workers=1)
    assert len(report.converted) == 11 and "not UTF-8" in "".join(report.failed.values())
    assert convert_wav(src, pack=tmp_path / "x.pack", workers=1).existing == 11


# ---------------------------------------------------------------- interruptions


def test_a_killed_run_goes_on_with_the_chunks_that_lack(tmp_path):
    src, out = tmp_path / "src", tmp_path / "x.pack"
    first = write(src / "000.wav", 16000 * 10, 0)
    for i in range(1, 200):
        (src / f"{i:03d}.wav").hardlink_to(first)
    convert_wav(src, pack=tmp_path / "whole.pack", chunk_clips=30, workers=1)
    running = subprocess.Popen(program(src, "--pack", out, "--chunk_clips", 30, "--workers", 2), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (chunk_path(out, 1, "index.npz").exists() and list(out.glob(".chunk-*.m2d-tmp"))) and time.monotonic() < deadline:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    missing = missing_chunks(out, read_info(out))
    assert 0 < len(missing) < 7
    leftovers = list(out.glob(".chunk-*.m2d-tmp"))
    assert leftovers
    for path in leftovers:
        os.utime(path, (0, time.time() - 100_000))
    kept = {k: chunk_path(out, k, "frames.npy").stat().st_mtime_ns for k in range(7) if k not in missing}
    with pytest.raises(ValueError, match="chunks are not there"):
        open_store(out, ".")
    report = convert_wav(src, pack=out, chunk_clips=30, workers=2)
    assert len(report.converted) == sum(min(30, 200 - 30 * k) for k in missing)
    assert report.existing == 200 - len(report.converted)
    assert {k: chunk_path(out, k, "frames.npy").stat().st_mtime_ns for k in kept} == kept
    assert files_of(out) == files_of(tmp_path / "whole.pack")


def test_a_full_disk_stops_the_run_with_whole_chunks(src, tmp_path, monkeypatch):
    import m2d.data.pack.from_audio as tool

    out, real = tmp_path / "x.pack", tool.write_chunk

    def full(pack, info, chunk):
        if chunk == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(pack, info, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(tool, "write_chunk", full)
        with pytest.raises(OSError, match=r"x\.pack cannot be written: No space left on device\. Stopped: its chunks are whole"):
            convert_wav(src, pack=out, workers=2, chunk_clips=4)
    assert missing_chunks(out, read_info(out)) == [1, 2]
    assert len(convert_wav(src, pack=out, workers=2, chunk_clips=4).converted) == 7


# ---------------------------------------------------------------- the command line


def test_the_program_writes_a_pack(src, bad, tmp_path):
    done = subprocess.run(program(src, "--pack", tmp_path / "x.pack"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "11 files: 9 converted, 0 were there already, 2 failed" in done.stderr
    assert f"see {tmp_path / 'x.pack' / 'failed.csv'}" in done.stderr
    assert len(open_store(tmp_path / "x.pack", ".")) == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give a folder, DEST, .* or --pack OUT.pack .* one of both"),
        ({"to_dir": "lms", "pack": "x.pack"}, "one of both"),
        ({"to_dir": "lms", "dtype": "float16"}, "--dtype and --chunk_clips are for --pack"),
        ({"to_dir": "lms", "chunk_clips": 5}, "are for --pack"),
        ({"pack": "x.pack", "csv": "list.csv"}, "--csv lists .npy files; a pack holds its list itself"),
        ({"pack": "x.pack", "dtype": "int8"}, "--dtype int8: expected float16 or float32"),
        ({"pack": "x.pack", "chunk_clips": 0}, "--chunk_clips 0: expected a number of clips"),
        ({"pack": "x.pack", "skip": 11}, "--skip 11 leaves none of the 11 files"),
    ],
)
def test_settings_that_make_no_sense_are_refused(src, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        convert_wav("src", **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float32"}, "dtype float16, now float32"),
        ({"sr": "32k"}, "made_from audio at 16000 Hz, padded to 97600 samples or more, now audio at 32000 Hz"),
        ({"min_length": 3}, "padded to 97600 samples or more, now .* padded to 48000"),
        ({"skip": 1}, "clips 11, now 10"),
    ],
)
def test_a_pack_of_other_settings_is_not_gone_on_with(src, tmp_path, settings, message):
    convert_wav(src, pack=tmp_path / "x.pack", workers=1)
    before = files_of(tmp_path / "x.pack")
    with pytest.raises(ValueError, match=f"{message}.*give another name"):
        convert_wav(src, **{"pack": tmp_path / "x.pack", "workers": 1, **settings})
    assert files_of(tmp_path / "x.pack") == before


def test_a_folder_of_something_else_is_refused(src, tmp_path):
    with pytest.raises(ValueError, match="is there and is no pack: give another name"):
        convert_wav(src, pack=src, workers=1)


def test_each_file_is_named_where_asked(src, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    convert_wav(src, pack=tmp_path / "x.pack", workers=1, min_length=None, verbose=True)
    assert f"{src / '0' / '0.wav'} -> 0/0.npy: 6 frames" in caplog.text


def make_older(pack: Path) -> None:
    """As if the pack had been written an hour ago, and its sources before that."""
    for path in [*pack.iterdir(), *pack.parent.rglob("*.wav"), *pack.parent.glob("lms/**/*.npy")]:
        written = time.time() - (3600 if path.parent == pack else 7200)
        os.utime(path, (written, written))


def test_chunks_whose_audio_has_changed_are_made_again(src, tmp_path):
    out = tmp_path / "x.pack"
    convert_wav(src, pack=out, chunk_clips=4, workers=1, min_length=None)
    make_older(out)
    before = files_of(out)
    changed = sorted(src.rglob("*.wav"))[5]
    write(changed, 5000, seed=99)
    report = convert_wav(src, pack=out, chunk_clips=4, workers=1, min_length=None)
    assert len(report.converted) == 4 and report.existing == 7
    convert_wav(src, pack=tmp_path / "new.pack", chunk_clips=4, workers=1, min_length=None)
    after, new = files_of(out), files_of(tmp_path / "new.pack")
    assert after.keys() == new.keys()
    assert {name for name in after if name.endswith(".npy") and after[name] != before[name]} == {"chunk-00001.frames.npy"}
    assert all(after[name] == new[name] for name in after if name.endswith(".npy"))
    assert pack_lms(["--verify", str(out)]) == 0


def test_a_packed_list_whose_files_have_changed_is_packed_again(src, tmp_path):
    lms, out = tmp_path / "lms", tmp_path / "x.pack"
    convert_wav(src, lms, csv=lms / "list.csv", workers=1, min_length=None)
    command = [str(lms / "list.csv"), "--data_path", str(lms), "--out", str(out), "--chunk_clips", "4"]
    assert pack_lms(command) == 0
    make_older(out)
    before = files_of(out)
    changed = lms / names_of(out)[9]
    np.save(changed, np.load(changed)[:, :, ::-1])
    assert pack_lms(command) == 0
    after = files_of(out)
    assert {name for name in after if name.endswith(".npy") and after[name] != before[name]} == {"chunk-00002.frames.npy"}
