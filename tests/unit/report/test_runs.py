"""What is read of a run's folder, whatever state it is in."""

import json

import pytest
import torch
from checkpoint_files import write_checkpoint

from m2d.report.runs import Speed, newest_checkpoint, read_epochs, read_run, read_speeds
from m2d.run.folder import RunFolder
from m2d.utils.errors import UserError


def write_log(folder, *rows):
    (folder / "log.txt").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_torn_and_foreign_lines_of_a_log_are_left_out(tmp_path):
    write_log(tmp_path, {"epoch": 2, "train_loss": 0.5}, {"epoch": 1, "train_loss": float("nan"), "lr": 0.1, "note": "x"})
    with (tmp_path / "log.txt").open("a") as log:
        log.write('[1]\n\n{"train_loss": 3}\n{"epoch": 3, "train')
    assert read_epochs(tmp_path / "log.txt") == [{"epoch": 1, "lr": 0.1}, {"epoch": 2, "train_loss": 0.5}]


def test_of_an_epoch_that_was_trained_again_the_last_line_counts(tmp_path):
    write_log(tmp_path, {"epoch": 1, "train_loss": 3}, {"epoch": 1, "train_loss": 2})
    assert read_epochs(tmp_path / "log.txt") == [{"epoch": 1, "train_loss": 2}]


def test_speeds_are_read_from_the_console(tmp_path):
    time = "2026-11-27 00:20:23,123 INFO "
    (tmp_path / "console.txt").write_text(
        f"{time}output folder: x\n"
        f"{time}epoch 1/5  step 6/12  loss 1.8891  lr 1.30e-03  70 clips/s  data-wait 1%  to go 0:00:03\n"
        f"{time}epoch 2/5  step 12/12  loss nan  lr 1.40e-03  90 clips/s  mfu 3%  memory 2.0 GiB  data-wait 20%  to go 0:00:01\n"
        f"{time}epoch 1/5  step 6/12  loss 1.8891  lr 1.30e-03  80 clips/s  data-wait 2%  to go 0:00:03\n"
    )
    assert list(read_speeds(tmp_path / "console.txt")) == [Speed(0.5, 80, 0.02), Speed(2.0, 90, 0.2)]
    assert list(read_speeds(tmp_path / "none.txt")) == []


def begin(folder, **settings):
    run = RunFolder(folder)
    run.begin({"model": "m2d_vit_tiny", "epochs": 2, **settings})
    return run


def test_states_of_a_run(tmp_path):
    begin(tmp_path)._lock.close()
    run = read_run(tmp_path)
    assert run.state == "stopped" and run.checkpoint is None and run.epochs == []
    assert run.starts[0]["folder"] and run.settings["epochs"] == 2
    write_log(tmp_path, {"epoch": 1, "train_loss": 3})
    assert read_run(tmp_path).state == "stopped"
    write_log(tmp_path, {"epoch": 2, "train_loss": 3})
    assert read_run(tmp_path).state == "finished"


def test_stop_at_is_an_end_too(tmp_path):
    begin(tmp_path, stop_at=1)._lock.close()
    write_log(tmp_path, {"epoch": 1, "train_loss": 3})
    assert read_run(tmp_path).state == "finished"


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    begin(tmp_path)._lock.close()
    torch.save({"epoch": 1}, tmp_path / "last-previous.pth")
    (tmp_path / "last.pth").write_bytes((tmp_path / "last-previous.pth").read_bytes()[:-50])
    assert newest_checkpoint(tmp_path).name == "last-previous.pth"
    torch.save({"epoch": 2}, tmp_path / "last.pth")
    assert newest_checkpoint(tmp_path).name == "last.pth"


def test_a_checkpoint_alone_tells_its_settings(tmp_path):
    torch.save({"model": {}, "args": {"model": "m2d_vit_tiny", "lr": 0.1}, "epoch": 3}, tmp_path / "checkpoint-3.pth")
    run = read_run(tmp_path / "checkpoint-3.pth")
    assert run.state == "checkpoint" and run.settings == {"model": "m2d_vit_tiny", "lr": 0.1} and "model" not in run.saved
    assert not run.is_finetuning


def test_released_weights_are_found_in_their_folder(tmp_path):
    weights = write_checkpoint(tmp_path)
    assert read_run(weights.parent).checkpoint == weights


def test_what_is_no_run_is_named_in_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no run or checkpoint"):
        read_run(tmp_path / "none")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json: not what a training run writes"):
        read_run(tmp_path)
