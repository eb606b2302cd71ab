"""Training runs of M2D-X, M2D-AS and MAE: teachers, noise, labels, weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import (
    AS,
    LIST,
    M2D,
    MAE,
    log_lines,
    run,
    trained,
    trainer_of,
    write_data,
    write_list,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from m2d.data.batch import Batch
from m2d.train.batch_transform import BatchTransform, MaskRule

pytestmark = pytest.mark.usefixtures("small_workplace")


@pytest.fixture
def teacher():
    """A checkpoint of M2D on the list of the test."""
    write_list()
    trained(f"{LIST} --epochs 1", out="teacher")
    return "teacher/checkpoint-1.pth"


X = f"{LIST} --model m2d_x_vit_tiny --loss_off 1."


def test_m2d_x_learns_from_its_teacher(teacher, capsys):
    write_list("noise", clips=30, seed=5)
    capsys.readouterr()
    flags = f"{X} --teacher {teacher} --resume {teacher} --csv_bg_noise data/files_noise.csv --noise_ratio 0.3"
    saved = trained(f"{flags} --epochs 6 --csv_val data/files_main.csv")
    said = capsys.readouterr().out
    assert "new, left as they start: offline_predictor (2)" in said
    assert saved["model"]["offline_predictor.weight"].shape == (5 * 48, 5 * 48)
    lines = log_lines(Path("out"))
    assert lines[-1]["train_loss_off"] < 0.8 * lines[0]["train_loss_off"]
    assert lines[-1]["val_loss"] == pytest.approx(lines[-1]["val_loss_m2d"] + lines[-1]["val_loss_off"], rel=1e-6)
    events = EventAccumulator("out")
    events.Reload()
    assert {"train_loss_m2d", "train_loss_off", "val_loss_m2d", "val_loss_off"} <= set(events.Tags()["scalars"])
    assert events.Scalars("train_loss_off")[-1].value == pytest.approx(lines[-1]["train_loss_off"])
    assert "teacher" not in " ".join(saved["model"])


def test_a_teacher_without_weight_in_the_loss_is_said(teacher, capsys):
    trained(f"{X} --loss_off 0 --teacher {teacher} --epochs 1")
    assert "--loss_off 0" in capsys.readouterr().out


def test_a_teacher_of_other_time_steps(teacher, capsys):
    trained(f"{LIST} --epochs 1 --patch_size 16x8", out="finer")
    assert run(M2D, f"{X} --teacher finer/checkpoint-1.pth --output_dir out") == 2
    said = capsys.readouterr().out
    assert "4 time steps" in said and "student 2" in said and "--patch_size 16x16" in said
    assert not Path("out").exists()


def test_a_teacher_of_another_sampling_rate(teacher, capsys):
    trained(f"{LIST} --epochs 1 --sr 32k", out="fast")
    assert run(M2D, f"{X} --teacher fast/checkpoint-1.pth --output_dir out") == 2
    said = capsys.readouterr().out
    assert "32k" in said and "--sr 16k" in said and not Path("out").exists()


def test_a_teacher_that_is_not_there(teacher, capsys):
    assert run(M2D, f"{X} --teacher teacher/checkpoint-9.pth --output_dir out") == 2
    assert "checkpoint-9.pth" in capsys.readouterr().out and not Path("out").exists()


class Spy(torch.nn.Module):
    """A teacher that remembers what it saw."""

    def encode_lms(self, lms):
        self.seen = lms
        return torch.ones(len(lms), 2, 7)


@pytest.mark.parametrize("swapped", [False, True])
def test_noise_is_for_the_student_and_the_clean_clip_for_the_teacher(swapped):
    clean_clips, noise_clips = torch.randn(3, 1, 80, 32) - 7, torch.randn(3, 1, 80, 32) - 5
    batch = Batch(clean_clips, torch.arange(3), torch.arange(3), epoch=2, noise=noise_clips)
    mask = MaskRule((5, 2), 0.5, seed=0)
    spy = Spy()
    inputs = BatchTransform(torch.device("cpu"), mask, (-7.0, 2.0), (-5.0, 3.0), 0.3, swapped, spy)
    student, target, plan = inputs(batch)
    clean = (batch.clean + 7) / 2
    mixed = torch.log((0.3 * (batch.noise + 5).exp() + 0.7 * (batch.clean + 7).exp()).clamp(min=1e-7)) / 2
    expected = (clean, mixed) if swapped else (mixed, clean)
    torch.testing.assert_close(student, expected[0])
    torch.testing.assert_close(spy.seen, expected[1])
    assert target.shape == (3, 2, 7) and plan.keep == 5
    torch.testing.assert_close(inputs.clean(batch), clean)
    # Plain M2D sees the noise too.
    student, _ = replace(inputs, teacher=None, swap_inputs=False)(batch)
    torch.testing.assert_close(student, mixed)


def test_swap_inputs_reaches_the_training(teacher):
    write_list("noise", clips=30, seed=5)
    noise = "--csv_bg_noise data/files_noise.csv --noise_ratio 0.3"
    trainer, data = trainer_of(f"{X} --teacher {teacher} {noise} --swap_inputs")
    assert trainer.transform.swap_inputs and trainer.transform.noise_ratio == 0.3 and data.noise is not None
    assert not trainer_of(f"{X} --teacher {teacher} {noise}")[0].transform.swap_inputs


def test_labels_and_classes():
    path = write_list(label=["/m/b,/m/a", "/m/c"], weight=["3", "1"])
    saved = trained(f"--csv_main {path} --epochs 1 --weighted --csv_val {path}", AS)
    assert saved["classes"] == ["/m/a", "/m/b", "/m/c"]
    assert saved["model"]["offline_predictor.weight"].shape == (3, 5 * 48)
    assert log_lines(Path("out"))[0]["val_loss_off"] < 1


def test_weighted_sampling_draws_by_weight():
    path = write_list(clips=40, label=["/m/a"], weight=["0", "1"])
    trainer, _ = trainer_of(f"--csv_main {path} --weighted", AS)
    assert set(trainer.sampler.order(0) % 2) == {1}
    trainer, _ = trainer_of(f"--csv_main {path}", AS)
    assert set(trainer.sampler.order(0) % 2) == {0, 1}


def test_validation_labels_that_training_does_not_have(capsys):
    path = write_list(clips=16, label=["/m/a"])
    other = write_list("val", clips=16, label=["/m/b"])
    assert run(AS, f"--csv_main {path} --csv_val {other} --output_dir out") == 2
    assert "data/files_val.csv row 2" in capsys.readouterr().out and not Path("out").exists()


def test_mae_draws_the_clips_of_vis_samples(capsys):
    flags = write_data(MAE)
    samples = Path("data/vis_samples")
    samples.mkdir()
    np.save(samples / "long.npy", np.load("data/main_lms/000.npy"))
    np.save(samples / "short.npy", np.load("data/main_lms/001.npy")[..., :20])
    np.save(samples / "wrong.npy", np.zeros((3, 4)))
    trained(f"{flags} --epochs 2 --save_freq 1", MAE)
    for epoch in (1, 2):
        assert sorted(path.name for path in Path(f"out/vis-{epoch}").iterdir()) == ["long.png", "short.png"]
    assert Path("out/vis-2/long.png").read_bytes()[:4] == b"\x89PNG"
    assert "wrong.npy is not drawn" in capsys.readouterr().out
