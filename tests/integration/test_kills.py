"""A run that is killed or asked to stop continues to the bit, on another number of processes too."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from small_runs import AS, LIST, M2D, MAE, SPEECH, Forked, digest, load, log_lines, run, same_log, write_data, write_list

from m2d.checkpoint import file as checkpoint_file
from m2d.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("small_workplace")
#: 24 updates an epoch, the first 20 of which end with a report, where last.pth is written if its time has come.
STEPS = "--batch_size 2 --epochs 3 --save_minutes 0 --save_freq 2"


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
    return list(Path(folder).glob(".*.m2d-tmp"))


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
    forked.wait_until(lambda: "epoch 2/" in forked.said())
    time.sleep(random.Random(int(number)).uniform(0, 0.1))
    forked.signal(number)
    assert forked.wait() == [75]
    assert "--auto_resume resumes from there" in forked.said()
    saved = load(Path("parts/last.pth"))
    assert 22 <= saved["updates"] < 48
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
