"""A run that cannot be lost: killed, stopped, torn, changed, full and read-only."""

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import Forked, digest, free_port, launch, load, log_lines, run, small_builders, write_data, write_list
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from m2d import checkpoint_file, distributed, models_mae
from m2d.run_folder import RunFolder, existing_run
from m2d.run_log import RunLog, start_console
from m2d.trainer import Trainer

M2D, MAE, AS, SPEECH = "train_audio", "mae_train_audio", "audioset.train_as", "speech.train_speech"
LIST = "--csv_main data/files_main.csv"
#: 24 updates an epoch, the first 20 of which end with a report, where last.pth is written if its time has come.
STEPS = "--batch_size 2 --epochs 3 --save_minutes 0 --save_freq 2"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder, and the small models."""
    monkeypatch.chdir(tmp_path)
    for name, builder in small_builders().items():
        monkeypatch.setitem(models_mae.BUILDERS, name, builder)
    return tmp_path


def same_log(first, second):
    """Whether two runs logged the same, to the last digits of sums that were taken in other groups."""
    lines = [log_lines(Path(folder)) for folder in (first, second)]
    assert len(lines[0]) == len(lines[1])
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, rel=1e-12)


# ---------------------------------------------------------------- killed


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing a checkpoint takes about a quarter of a second, so that kills fall into it."""
    write = checkpoint_file._Recorder.write

    def slow_write(self, data):
        time.sleep(0.0005)
        return write(self, data)

    monkeypatch.setattr(checkpoint_file._Recorder, "write", slow_write)


def being_written(folder):
    return list(Path(folder).glob(".*.tmp"))


def survive_kills(program, flags, rng, kills, processes=1, whole="whole"):
    """SIGKILLs at random moments and every other time during a save; each run that gets to its end is compared with `whole`.

    Returns how many kills hit a save.
    """
    in_saves, out = 0, "killed"
    for number in range(kills):
        forked = Forked(program, f"{flags} --auto_resume --output_dir {out}", processes)
        forked.wait_until(lambda forked=forked: "output folder" in forked.said() or not forked.alive())
        if number % 2:
            forked.wait_until(lambda forked=forked: being_written(out) or not forked.alive())
        else:
            time.sleep(rng.uniform(0, 0.6))
        victims = forked.ranks if rng.random() < 0.5 else [rng.choice(forked.ranks)]
        for victim in victims:
            if victim.is_alive():
                os.kill(victim.pid, signal.SIGKILL)
        in_saves += bool(being_written(out))
        if forked.wait() == [0] * processes:
            compare_and_remove(out, whole)
    assert Forked(program, f"{flags} --auto_resume --output_dir {out}", processes).wait() == [0] * processes
    compare_and_remove(out, whole)
    return in_saves


def compare_and_remove(out, whole):
    """The final weights' hash, the checkpoint before, and the log are those of the undisturbed run."""
    for name in ("last.pth", "checkpoint-2.pth"):
        assert digest(Path(out, name)) == digest(Path(whole, name))
    same_log(out, whole)
    assert not being_written(out) and not Path(out, "last.new.pth").exists()
    shutil.rmtree(out)


def test_killed_at_random_moments_and_in_saves(slow_disk):
    write_list()
    flags = f"{LIST} {STEPS} --num_workers 2"
    assert run(M2D, f"{flags} --output_dir whole") == 0
    assert survive_kills(M2D, flags, random.Random(1), kills=6)


VARIANTS = {
    "m2d": (M2D, ""),
    "m2d_noise_sgd": (M2D, "--csv_bg_noise data/files_noise.csv --noise_ratio 0.3 --optim sgd"),
    "m2d_x": (M2D, "--model m2d_x_vit_tiny --teacher teacher/checkpoint-1.pth --loss_off 1."),
    "m2d_as": (AS, "--loss_off 1. --weighted"),
    "m2d_s": (SPEECH, "--loss_off 1."),
    "mae": (MAE, ""),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_thirty_kills(variant, slow_disk):
    """Each variant by 1 and 2 processes, with 0 and 2 workers."""
    program, more = VARIANTS[variant]
    flags = f"{write_data(program)} {STEPS} {more}"
    if variant == "m2d_x":
        assert run(M2D, f"{LIST} --epochs 1 --output_dir teacher") == 0
    write_list("noise", clips=9, seed=7)
    for processes in (1, 2):
        whole = f"whole{processes}"
        assert Forked(program, f"{flags} --output_dir {whole}", processes).wait() == [0] * processes
        for workers in (0, 2):
            rng = random.Random(f"{variant} {processes} {workers}")
            assert survive_kills(program, f"{flags} --num_workers {workers}", rng, 30, processes, whole)


@pytest.mark.parametrize(("processes", "more"), [(2, ""), (2, "--fsdp"), (3, "--accum_iter 2")])
def test_several_processes_continue_to_the_bit(processes, more):
    """With three, sums depend on how gradients are laid out in buckets."""
    write_list(clips=48)
    flags = f"{LIST} --batch_size 2 --epochs 3 {more}"
    assert Forked(M2D, f"{flags} --output_dir whole", processes).wait() == [0] * processes
    forked = Forked(M2D, f"{flags} --output_dir parts", processes)
    forked.wait_until(lambda: "epoch 1/" in forked.said())
    os.kill(forked.ranks[-1].pid, signal.SIGTERM)
    assert forked.wait() == [75] * processes
    assert 0 < load(Path("parts/last.pth"))["updates"] < load(Path("whole/last.pth"))["updates"]
    assert Forked(M2D, f"{flags} --output_dir parts --auto_resume", processes).wait() == [0] * processes
    assert digest(Path("parts/last.pth")) == digest(Path("whole/last.pth"))


# ---------------------------------------------------------------- asked to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_goes_on_exactly(number):
    write_list()
    flags = f"{LIST} --batch_size 2 --accum_iter 2 --epochs 4"
    assert run(M2D, f"{flags} --output_dir whole") == 0
    forked = Forked(M2D, f"{flags} --output_dir parts --num_workers 2")
    forked.wait_until(lambda: "epoch 1/" in forked.said())
    time.sleep(random.Random(int(number)).uniform(0, 0.1))
    forked.signal(number)
    assert forked.wait() == [75]
    assert "--auto_resume goes on from there" in forked.said()
    saved = load(Path("parts/last.pth"))
    assert 12 <= saved["updates"] < 48
    assert run(M2D, f"{flags} --output_dir parts --auto_resume") == 0
    assert digest(Path("parts/last.pth")) == digest(Path("whole/last.pth"))
    same_log("parts", "whole")


def test_a_signal_at_the_end_of_an_epoch_loses_nothing_of_it(monkeypatch):
    """The epoch's line and checkpoint come first, then the stop."""
    write_list(clips=16)
    flags = f"{LIST} --epochs 3 --save_freq 1"
    assert run(M2D, f"{flags} --output_dir whole") == 0
    update = Trainer.update

    def update_and_stop(self, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", update_and_stop)
        assert run(M2D, f"{flags} --output_dir parts") == 75
    assert load(Path("parts/last.pth"))["updates"] == 4
    assert [line["epoch"] for line in log_lines(Path("parts"))] == [1, 2] and Path("parts/checkpoint-2.pth").exists()
    assert run(M2D, f"{flags} --output_dir parts --auto_resume") == 0
    assert digest(Path("parts/last.pth")) == digest(Path("whole/last.pth"))
    assert log_lines(Path("parts")) == log_lines(Path("whole"))


def test_a_signal_at_the_last_update_is_too_late(monkeypatch):
    write_list(clips=16)
    update = Trainer.update

    def update_and_stop(self, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, number)

    monkeypatch.setattr(Trainer, "update", update_and_stop)
    assert run(M2D, f"{LIST} --epochs 2 --output_dir out") == 0
    assert load(Path("out/checkpoint-2.pth"))["epoch"] == 2 and len(log_lines(Path("out"))) == 2


def test_a_second_interrupt_ends_at_once(monkeypatch, capsys):
    write_list(clips=16)

    def interrupt_twice(self, number):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "update", interrupt_twice)
    assert run(M2D, f"{LIST} --output_dir out") == 130
    assert "interrupted" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ---------------------------------------------------------------- another world size


def test_another_number_of_processes_with_the_same_effective_batch():
    write_list(clips=32)
    flags = f"{LIST} --epochs 6 --optim sgd --lr 0.01"
    assert run(M2D, f"{flags} --batch_size 16 --output_dir whole") == 0
    assert run(M2D, f"{flags} --batch_size 16 --stop_at 3 --output_dir parts") == 0
    assert Forked(M2D, f"{flags} --batch_size 4 --accum_iter 2 --output_dir parts --auto_resume", 2).wait() == [0, 0]
    whole, parts = (log_lines(Path(folder)) for folder in ("whole", "parts"))
    assert [line["train_loss"] for line in parts] == pytest.approx([line["train_loss"] for line in whole], rel=1e-5)
    for name, tensor in load(Path("whole/last.pth"))["model"].items():
        torch.testing.assert_close(load(Path("parts/last.pth"))["model"][name], tensor, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- torn files


@pytest.fixture
def two_saves():
    """A folder `run` whose last.pth is of epoch 2 and last-previous.pth of epoch 1; 3 epochs to go are in `whole`."""
    write_list(clips=16)
    assert run(M2D, f"{LIST} --epochs 3 --output_dir whole") == 0
    assert run(M2D, f"{LIST} --epochs 3 --stop_at 2 --output_dir stopped") == 0
    Path("stopped/checkpoint-2.pth").unlink()
    assert load(Path("stopped/last.pth"))["epoch"] == 2 and load(Path("stopped/last-previous.pth"))["epoch"] == 1
    return f"{LIST} --epochs 3 --auto_resume --output_dir"


def torn_copy(change):
    """A fresh copy of the folder with last.pth's bytes changed."""
    shutil.rmtree("torn", ignore_errors=True)
    shutil.copytree("stopped", "torn")
    path = Path("torn/last.pth")
    path.write_bytes(change(bytearray(path.read_bytes())))


def newest(folder):
    return RunFolder(Path(folder)).find_run(auto_resume=True)


@pytest.mark.parametrize("tenths", range(10))
def test_a_file_cut_at_every_tenth_is_recognised(two_saves, tenths, capsys):
    torn_copy(lambda content: content[: len(content) * tenths // 10])
    if tenths % 4:
        assert newest("torn") == Path("torn/last-previous.pth")
        return
    capsys.readouterr()
    assert run(M2D, f"{two_saves} torn") == 0
    said = capsys.readouterr().out
    assert "torn/last.pth is not whole: going back" in said and "going on from torn/last-previous.pth" in said
    assert digest(Path("torn/last.pth")) == digest(Path("whole/last.pth"))
    # What was torn has not been kept as the one to go back to.
    assert load(Path("torn/last-previous.pth"))["epoch"] == 2
    assert log_lines(Path("torn")) == log_lines(Path("whole"))


def test_flipped_bytes_are_recognised(two_saves):
    size, rng = Path("stopped/last.pth").stat().st_size, random.Random(0)
    good, found = digest(Path("stopped/last.pth")), 0
    for _ in range(40):
        place = rng.randrange(size)

        def flip(content, place=place):
            content[place] ^= 1 << rng.randrange(8)
            return content

        torn_copy(flip)
        path = newest("torn")
        if path == Path("torn/last.pth"):  # padding between the tensors means nothing
            assert digest(path) == good
        else:
            assert path == Path("torn/last-previous.pth")
            found += 1
    assert found > 30


def test_numbered_checkpoints_are_the_last_resort(two_saves):
    shutil.copytree("stopped", "torn")
    for name in ("last.pth", "last-previous.pth"):
        Path("torn", name).rename(Path("torn", name.replace("last", "checkpoint-1" if "previous" in name else "checkpoint-2")))
    Path("torn/checkpoint-1-previous.pth").rename("torn/checkpoint-1.pth")
    assert newest("torn") == Path("torn/checkpoint-2.pth")
    Path("torn/checkpoint-2.pth").write_bytes(b"PK")
    assert newest("torn") == Path("torn/checkpoint-1.pth")
    assert run(M2D, f"{two_saves} torn") == 0
    assert digest(Path("torn/last.pth")) == digest(Path("whole/last.pth"))


def test_a_run_whose_checkpoints_are_all_torn_does_not_begin_anew(two_saves, capsys):
    torn_copy(lambda content: content[:-1000])
    Path("torn/last-previous.pth").write_bytes(b"")
    assert run(M2D, f"{two_saves} torn") == 2
    assert "none of its 2 checkpoints is whole" in capsys.readouterr().out
    assert len(log_lines(Path("torn"))) == 2


def test_killed_before_the_first_save_begins_again():
    write_list(clips=16)
    assert run(M2D, f"{LIST} --output_dir whole") == 0
    shutil.copytree("whole", "early")
    for path in Path("early").glob("*.pth"):
        path.unlink()
    assert run(M2D, f"{LIST} --output_dir early --auto_resume") == 0
    assert digest(Path("early/last.pth")) == digest(Path("whole/last.pth"))
    assert log_lines(Path("early")) == log_lines(Path("whole"))


def test_a_torn_line_of_the_log_and_what_a_killed_save_left(two_saves):
    with Path("stopped/log.txt").open("a") as file:
        file.write('{"train_loss": 1.2, "ep')
    for name in (".last.new.pth.77-8.tmp", "last.new.pth"):
        Path("stopped", name).write_bytes(b"half")
    Path("stopped/run.json").write_text(Path("stopped/run.json").read_text())
    assert run(M2D, f"{two_saves} stopped") == 0
    assert log_lines(Path("stopped")) == log_lines(Path("whole"))
    assert not list(Path("stopped").glob(".*.tmp")) and not Path("stopped/last.new.pth").exists()


# ---------------------------------------------------------------- the same run, and no other


def test_changed_flags_are_refused_with_both_values_and_some_may_change(two_saves, capsys):
    before = {path: path.stat().st_mtime_ns for path in Path("stopped").glob("*.pth")}
    assert run(M2D, f"{two_saves} stopped --seed 3 --mask_ratio 0.6 --batch_size 4 --norm_stats [-8,2]") == 2
    said = capsys.readouterr().out
    for words in ("--seed was 0, is 3", "--mask_ratio was 0.7, is 0.6", "--norm_stats was None, is [-8.0, 2.0]", "was 8, is 4"):
        assert words in said
    assert {path: path.stat().st_mtime_ns for path in Path("stopped").glob("*.pth")} == before
    assert run(M2D, f"{two_saves} stopped --epochs 4 --save_freq 7 --batch_size 4 --accum_iter 2 --num_workers 1") == 0
    said = capsys.readouterr().out
    assert "going on with --epochs 4, which was 3" in said and "save_freq" not in said
    assert load(Path("stopped/last.pth"))["epoch"] == 4
    starts = json.loads(Path("stopped/run.json").read_text())["starts"]
    assert len(starts) == 2


def test_a_changed_list_is_refused(two_saves, capsys):
    path = Path("data/files_main.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    assert run(M2D, f"{two_saves} stopped") == 2
    assert "--csv_main data/files_main.csv has changed" in capsys.readouterr().out


def test_a_finished_run_is_finished_and_the_same_command_is_refused(capsys):
    write_list(clips=16)
    flags = f"{LIST} --epochs 1 --output_dir out"
    assert run(M2D, flags) == 0
    before = digest(Path("out/last.pth"))
    capsys.readouterr()
    assert run(M2D, f"{flags} --auto_resume") == 0
    assert "out is finished: 1 of 1 epochs" in capsys.readouterr().out
    assert run(M2D, flags) == 2
    assert "holds a run already: --auto_resume" in capsys.readouterr().out
    assert digest(Path("out/last.pth")) == before and len(log_lines(Path("out"))) == 1


def test_a_run_goes_on_where_its_name_has_yesterdays_date(capsys):
    write_list(clips=16)
    flags = f"{LIST} --epochs 2"
    assert run(M2D, f"{flags} --stop_at 1") == 0
    (today,) = (path.parent for path in Path().glob("*/run.json"))
    yesterday = Path(re.sub(r"-\d{6}-", "-231231-", today.name))
    today.rename(yesterday)
    assert run(M2D, f"{flags} --auto_resume") == 0
    assert f"going on from {yesterday}/last.pth" in capsys.readouterr().out and not today.exists()
    assert load(yesterday / "last.pth")["epoch"] == 2


def test_the_newest_of_several_dates_is_taken(tmp_path):
    for day in ("231230", "240101", "231231"):
        (tmp_path / f"m-{day}-x").mkdir()
        (tmp_path / f"m-{day}-x" / "run.json").touch()
    (tmp_path / "m-250101-x").mkdir()
    (tmp_path / "m-250101-xy").mkdir()
    assert existing_run(tmp_path / "m-260101-x").name == "m-240101-x"
    assert existing_run(tmp_path / "m-260101-y").name == "m-260101-y"
    assert existing_run(tmp_path / "plain").name == "plain"


def test_two_runs_in_one_folder(capsys):
    write_list(clips=16)
    flags = f"{LIST} --epochs 100000 --output_dir out"
    forked = Forked(M2D, flags)
    forked.wait_until(lambda: "epoch 2/" in forked.said())
    holder = f"out is in use by process {forked.ranks[0].pid} on "
    for more in ("", "--auto_resume"):
        assert run(M2D, f"{flags} {more}") == 2
        assert holder in capsys.readouterr().out
    forked.signal(signal.SIGKILL)
    forked.wait()
    assert str(forked.ranks[0].pid) in Path("out/run.lock").read_text()
    epoch = load(Path("out/last.pth"))["epoch"]
    assert run(M2D, f"{flags} --auto_resume --stop_at {epoch + 1}") == 0


def test_a_run_that_began_meanwhile_is_not_overwritten(tmp_path):
    first, second = RunFolder(tmp_path / "x"), RunFolder(tmp_path / "x")
    assert first.find_run(False) is None and second.find_run(False) is None
    first.begin({"seed": 1})
    with pytest.raises(ValueError, match="began there in the meantime"):
        second.begin({"seed": 2})


def test_the_checkpoint_of_resume_is_not_needed_any_more():
    write_list(clips=16)
    assert run(M2D, f"{LIST} --epochs 1 --output_dir source") == 0
    flags = f"{LIST} --epochs 2 --resume source/checkpoint-1.pth --output_dir out"
    assert run(M2D, f"{flags} --stop_at 1") == 0
    shutil.rmtree("source")
    assert run(M2D, f"{flags} --auto_resume") == 0


# ---------------------------------------------------------------- disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written(number, monkeypatch, capsys):
    write_list(clips=16)
    flags = f"{LIST} --epochs 4 --save_freq 1 --keep_last 1 --output_dir out"
    assert run(M2D, f"{LIST} --epochs 4 --output_dir whole") == 0
    assert run(M2D, f"{flags} --stop_at 1") == 0
    before = {path.name: path.read_bytes() for path in Path("out").glob("*.pth")}
    capsys.readouterr()

    @contextmanager
    def failing(path):
        raise OSError(number, os.strerror(number))
        yield

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_file, "whole_file", failing)
        assert run(M2D, f"{flags} --auto_resume") == 74
    said = capsys.readouterr().out
    for epoch in (2, 3, 4):
        assert f"out/checkpoint-{epoch}.pth could not be written, training goes on" in said and os.strerror(number) in said
    assert "epoch 4/4" in said and "all_eval.sh" not in said
    assert {path.name: path.read_bytes() for path in Path("out").glob("*.pth")} == before
    assert run(M2D, f"{flags} --auto_resume") == 0
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))


@contextmanager
def small_disk(folder, size):
    """A tmpfs of so many bytes mounted on a folder."""
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(capsys):
    write_list(clips=16)
    flags = f"{LIST} --epochs 6"
    assert run(M2D, f"{flags} --output_dir whole") == 0
    size = Path("whole/last.pth").stat().st_size
    disk = Path("disk")
    with small_disk(disk, int(2.6 * size)):
        assert run(M2D, f"{flags} --output_dir disk/out --stop_at 2") == 0
        Path("disk/out/checkpoint-2.pth").unlink()
        free = shutil.disk_usage(disk).free
        Path("disk/other").write_bytes(b"x" * max(free - size // 3, 0))
        capsys.readouterr()
        assert run(M2D, f"{flags} --output_dir disk/out --auto_resume") == 74
        said = capsys.readouterr().out
        assert said.count("could not be written, training goes on: [Errno 28]") >= 4 and "epoch 6/6" in said
        assert load(Path("disk/out/last.pth"))["epoch"] == 2 and load(Path("disk/out/last-previous.pth"))["epoch"] == 1
        assert not list(disk.glob("out/.*.tmp"))
        subprocess.run(["mount", "-o", f"remount,size={20 * size}", str(disk)], check=True)
        assert run(M2D, f"{flags} --output_dir disk/out --auto_resume") == 0
        assert digest(Path("disk/out/last.pth")) == digest(Path("whole/last.pth"))
        assert log_lines(Path("disk/out")) == log_lines(Path("whole"))


def test_logs_on_a_full_disk_end_no_run(tmp_path, capsys):
    start_console()
    with small_disk(tmp_path / "disk", 65536):
        folder = tmp_path / "disk"
        log = RunLog(folder)
        log.scalars(1, loss=1.0)
        log.epoch(loss=1.0, epoch=1)
        (folder / "other").write_bytes(b"x" * shutil.disk_usage(folder).free)
        for x in range(2, 6):
            log.scalars(x, **{f"figure{i}": 1.0 for i in range(100)})
            log.epoch(loss=2.0, text="x" * 5000, epoch=x)
        (folder / "other").unlink()
        log.scalars(5000, loss=3.0)
        log.epoch(loss=3.0, epoch=5000)
        log.close()
        assert "could not be written, training goes on" in capsys.readouterr().out
        assert len(list(folder.glob("events*"))) >= 2
        events = EventAccumulator(str(folder))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == [1, 5000]
        epochs = [line["epoch"] for line in log_lines(folder)]
        assert epochs[0] == 1 and epochs[-1] == 5000 and len(epochs) < 6


def test_a_folder_that_cannot_be_made(capsys):
    write_list(clips=16)
    Path("file").touch()
    assert run(M2D, f"{LIST} --output_dir file/out") == 2
    assert "file/out: the run's folder cannot be written: Not a directory" in capsys.readouterr().out


def test_vanished_data_folder(capsys):
    write_list(clips=16)
    assert run(M2D, f"{LIST} --epochs 3 --output_dir whole") == 0
    forked = Forked(M2D, f"{LIST} --epochs 100000 --output_dir out")
    forked.wait_until(lambda: "epoch 2/" in forked.said())
    Path("data/main_lms").rename("data/elsewhere")
    assert forked.wait() == [2]
    assert "no such file under data (--data_path)" in forked.said() and "Traceback" not in forked.said()


# ---------------------------------------------------------------- bad numbers


def finite(path):
    return all(tensor.isfinite().all() for tensor in load(path)["model"].values())


def test_nan_in_a_clip_stops_the_run_before_anything_is_saved(capsys):
    write_list(clips=48)
    assert run(M2D, f"{LIST} {STEPS} --stop_at 1 --norm_stats [-8,2] --output_dir out") == 0
    before = digest(Path("out/last.pth"))
    content = Path("data/main_lms/017.npy").read_bytes()
    np.save("data/main_lms/017.npy", np.full((1, 80, 40), np.nan, np.float32))
    capsys.readouterr()
    assert run(M2D, f"{LIST} {STEPS} --auto_resume --norm_stats [-8,2] --output_dir out") == 3
    said = capsys.readouterr().out
    for words in ("nan_report.pt", "--bf16", "--blr", "--auto_resume", "--resume out/last.pth"):
        assert words in said
    report = load(Path("out/nan_report.pt"))
    assert len(report["files"]) == 2 and "data/files_main.csv row 19: main_lms/017.npy" in report["files"]
    assert 24 <= report["update"] < 48
    assert 1 <= len(report["losses"]) <= 20 and len(report["losses"]) == len(report["gradient_norms"])
    assert not np.isfinite(report["losses"][-1]).all()
    saved = load(Path("out/last.pth"))
    assert finite(Path("out/last.pth")) and saved["updates"] in (24, 44)
    assert saved["updates"] == 44 or digest(Path("out/last.pth")) == before
    Path("data/main_lms/017.npy").write_bytes(content)
    assert run(M2D, f"{LIST} {STEPS} --auto_resume --norm_stats [-8,2] --output_dir out") == 0


@pytest.mark.parametrize("bad_update", [19, 20, 23, 5])
def test_a_gradient_that_is_not_finite_is_not_saved_though_the_losses_are(bad_update, monkeypatch, capsys):
    """The weights are bad after such an update, and only the next loss would tell."""
    write_list(clips=48)
    update = Trainer.update

    def spoiled(self, number):
        if number == bad_update:
            self.trained[3].grad[0] = float("nan")
        return update(self, number)

    monkeypatch.setattr(Trainer, "update", spoiled)
    assert run(M2D, f"{LIST} {STEPS} --output_dir out") == 3
    report = load(Path("out/nan_report.pt"))
    assert np.isnan(report["gradient_norms"]).any() and len(report["files"]) == 2
    assert all(finite(path) for path in Path("out").glob("*.pth"))


def test_a_report_that_cannot_be_written_does_not_hide_the_cause(monkeypatch, capsys):
    write_list(clips=16)
    monkeypatch.setattr(Trainer, "forward_backward", lambda self, batch, synchronise: torch.tensor([float("inf")]))
    monkeypatch.setattr(Trainer, "update", lambda self, number: torch.tensor(1.0))
    monkeypatch.setattr("m2d.nan_report.torch.save", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert run(M2D, f"{LIST} --output_dir out") == 3
    said = capsys.readouterr().out
    assert "out/nan_report.pt could not be written" in said and "no finite number" in said


# ---------------------------------------------------------------- torchrun


def joins(rank, port):
    """Start as one of two of torchrun's workers, and talk to the other."""
    launched = dict(RANK=rank, WORLD_SIZE=2, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in launched.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    distributed.start("cpu")
    os._exit(int(distributed.sum_over_ranks(torch.tensor(rank)) != 1))


def test_a_restart_is_not_misled_by_what_lost_processes_left_in_the_store_of_torchrun():
    """A start that succeeded, two of whose ranks 0 was killed waiting, and one more; rank 1 comes first and looks."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    process = partial(multiprocessing.get_context("fork").Process, target=joins)
    for killed in (False, True, True, False):
        ranks = [process(args=(rank, store.port), daemon=True) for rank in (1, 0)]
        if killed:
            ranks = ranks[1:]
        for rank in ranks:
            rank.start()
            time.sleep(0.5)
        if killed:
            ranks[0].kill()
        for rank in ranks:
            rank.join(30)
        assert [rank.exitcode for rank in ranks] == ([-signal.SIGKILL] if killed else [0, 0])


def reference_and_flags(epochs):
    write_list()
    flags = f"{LIST} --batch_size 2 --epochs {epochs} --save_minutes 0 --output_dir"
    assert Forked(M2D, f"{flags} whole", 2).wait() == [0, 0]
    return flags


def children(agent):
    """Process ids of torchrun's workers."""
    listed = subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in listed]


@contextmanager
def torchruns(*agents):
    """Whatever happens, none of them is left running."""
    try:
        yield
    finally:
        for agent in agents:
            if agent.poll() is None:
                agent.terminate()
                agent.communicate(timeout=60)


def wait_until_logged(lines, *agents):
    """Wait until the run in `out` has finished so many epochs."""
    end = time.monotonic() + 300
    while not Path("out/log.txt").exists() or len(log_lines(Path("out"))) < lines:
        for agent in agents:
            assert agent.poll() is None, agent.communicate()
        assert time.monotonic() < end, "the run stands still"
        time.sleep(0.02)


@pytest.mark.slow
def test_torchrun_restarts_after_a_killed_worker_and_continues_exactly():
    flags = reference_and_flags(40)
    agent = launch(M2D, f"{flags} out --auto_resume", processes=2, agent="--standalone --max-restarts 3")
    with torchruns(agent):
        for lines, victim in ((4, 1), (12, 0), (20, 1)):
            wait_until_logged(lines, agent)
            os.kill(children(agent)[victim], signal.SIGKILL)
        said, _ = agent.communicate(timeout=300)
    assert agent.returncode == 0, said
    assert said.count("going on from out/last") == 3
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))
    same_log("out", "whole")


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_run_continues_exactly():
    flags = reference_and_flags(40)
    agent = launch(M2D, f"{flags} out --auto_resume", processes=2)
    with torchruns(agent):
        wait_until_logged(4, agent)
        agent.send_signal(signal.SIGTERM)
        said, _ = agent.communicate(timeout=300)
    assert agent.returncode == 1 and "--auto_resume goes on from there" in said, said
    stopped_at = int(re.search(r"stopped at update (\d+)", said)[1])
    assert 4 * 12 <= load(Path("out/last.pth"))["updates"] == stopped_at < 40 * 12
    assert Forked(M2D, f"{flags} out --auto_resume", 2).wait() == [0, 0]
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))


@pytest.mark.slow
def test_two_nodes_by_rendezvous_restart_after_a_killed_worker_and_continue_exactly():
    """Two torchrun agents that find each other by c10d, one process each."""
    flags = reference_and_flags(40)
    agent = f"--nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:{free_port()} --rdzv_id=run --max-restarts 3"
    nodes = [launch(M2D, f"{flags} out --auto_resume", agent=agent) for _ in range(2)]
    with torchruns(*nodes):
        for lines, node in ((4, nodes[0]), (15, nodes[1])):
            wait_until_logged(lines, *nodes)
            os.kill(children(node)[-1], signal.SIGKILL)
        said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "".join(said).count("going on from out/last") == 2
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))
    same_log("out", "whole")
