"""A disk that fails, data that vanishes, numbers that are not finite."""

import errno
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import small_disk
from small_runs import LIST, M2D, Forked, digest, load, log_lines, run, write_list
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from m2d.checkpoint import file as checkpoint_file
from m2d.run.log import RunLog, start_console
from m2d.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("small_workplace")
#: 24 updates an epoch, the first 20 of which end with a report, where last.pth is written if its time has come.
STEPS = "--batch_size 2 --epochs 3 --save_minutes 0 --save_freq 2"


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
    def failing(path, durable=True):
        raise OSError(number, os.strerror(number))
        yield

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_file, "open_atomic", failing)
        assert run(M2D, f"{flags} --auto_resume") == 74
    said = capsys.readouterr().out
    for epoch in (2, 3, 4):
        assert f"out/checkpoint-{epoch}.pth could not be written, training continues" in said and os.strerror(number) in said
    assert "epoch 4/4" in said and "all_eval.sh" not in said
    assert {path.name: path.read_bytes() for path in Path("out").glob("*.pth")} == before
    assert run(M2D, f"{flags} --auto_resume") == 0
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))


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
        assert said.count("could not be written, training continues: [Errno 28]") >= 4 and "epoch 6/6" in said
        assert load(Path("disk/out/last.pth"))["epoch"] == 2 and load(Path("disk/out/last-previous.pth"))["epoch"] == 1
        assert not list(disk.glob("out/.*.m2d-tmp"))
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
        assert "could not be written, training continues" in capsys.readouterr().out
        assert len(list(folder.glob("events*"))) >= 2
        events = EventAccumulator(str(folder))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == [1, 5000]
        epochs = [line["epoch"] for line in log_lines(folder)]
        assert epochs[0] == 1 and epochs[-1] == 5000 and len(epochs) < 6


@pytest.mark.parametrize("place", ["--output_dir file/out", "--log_dir file/out"])
def test_a_folder_that_cannot_be_made_ends_the_run_before_its_work(capsys, place):
    csv = write_list(clips=16)
    Path("file").touch()
    assert run(M2D, f"{LIST} {place}") == 2
    assert re.search(r"file/out/\S+ cannot be written: \S+/file is not a folder", capsys.readouterr().out)
    assert not list(csv.parent.glob("*.stats.json")), "statistics were computed first"


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
    monkeypatch.setattr(Trainer, "forward_backward", lambda self, batch, synchronize: {"loss": torch.tensor(float("inf"))})
    monkeypatch.setattr(Trainer, "update", lambda self, number: torch.tensor(1.0))
    monkeypatch.setattr("m2d.train.metrics.torch.save", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert run(M2D, f"{LIST} --output_dir out") == 3
    said = capsys.readouterr().out
    assert "out/nan_report.pt could not be written" in said and "not a finite number" in said
