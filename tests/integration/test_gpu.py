"""What only a CUDA device can show: run with `pytest -m gpu`."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import inputs, small_model
from small_runs import digest, log_lines, run, small_builders, step_losses, write_list

from m2d.data.loader import on_device
from m2d.data.sampler import EpochSampler
from m2d.models import registry as models_mae
from m2d.train.batch_transform import BatchInputs, MaskRule
from m2d.train.distributed import Launch
from m2d.train.trainer import LossMeter, Trainer

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a list of clips, and the small models in the place of the tiny ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models_mae, "BUILDERS", {**models_mae.BUILDERS, **small_builders()})
    return f"--csv_main {write_list()} --device cuda"


@pytest.mark.parametrize("precision", ["", "--bf16"])
def test_mixed_precision_learns(workplace, precision):
    assert run("train_audio", f"{workplace} {precision} --no_compile --epochs 8 --output_dir run") == 0
    losses = [line["train_loss"] for line in log_lines(Path("run"))]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_a_stopped_run_goes_on_to_the_same_weights(workplace, tmp_path):
    flags = f"{workplace} --bf16 --no_compile --epochs 4"
    assert run("train_audio", f"{flags} --output_dir whole") == 0
    assert run("train_audio", f"{flags} --stop_at 2 --output_dir parts") == 0
    assert run("train_audio", f"{flags} --auto_resume --output_dir parts") == 0
    assert digest(tmp_path / "parts/checkpoint-4.pth") == digest(tmp_path / "whole/checkpoint-4.pth")


@pytest.mark.slow
def test_the_compiled_run_gives_near_losses(workplace, capsys):
    assert run("train_audio", f"{workplace} --bf16 --no_compile --output_dir eager") == 0
    eager = [float(loss) for loss in step_losses(capsys.readouterr().out)]
    assert run("train_audio", f"{workplace} --bf16 --compile --output_dir compiled") == 0
    assert [float(loss) for loss in step_losses(capsys.readouterr().out)] == pytest.approx(eager, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train_audio", "mae_train_audio"])
def test_cuda_graphs_give_the_compiled_runs_losses(workplace, capsys, program):
    found = []
    for flag in ("", "--cuda_graphs"):
        assert run(program, f"{workplace} --bf16 --compile {flag} --epochs 3 --output_dir run{flag}") == 0
        printed = capsys.readouterr().out
        assert "not compiled" not in printed
        found.append([float(loss) for loss in step_losses(printed)])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize("family", ["m2d", "m2d_x", "m2d_as", "m2d_d2v", "mae"])
def test_cuda_and_cpu_give_the_same_loss(family):
    model = small_model(family)
    arguments = inputs(model, family)
    rule = MaskRule(model.grid_size(), 0.7, seed=0)
    mask = rule(0, torch.arange(2))
    on_cpu = model(*arguments, mask)[0]
    on_cuda = model.to(CUDA)(*(x.to(CUDA) for x in arguments), rule(0, torch.arange(2, device=CUDA)))[0]
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, rtol=2e-3, atol=2e-3)


def test_masks_are_the_same_on_every_device():
    rule = MaskRule((5, 38), 0.7, seed=3)
    position = torch.arange(64)
    assert torch.equal(rule(2, position).ids_restore, rule(2, position.to(CUDA)).ids_restore.cpu())


def test_the_hot_loop_never_waits_for_the_device():
    """With CUDA's synchronisation check set to raise, steps run through: forward, backward, update and target."""
    model = small_model("m2d").to(CUDA).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    args = Namespace(
        mask_ratio=0.6, bf16=True, accum_iter=1, clip_grad=3.0, epochs=2, stop_at=-1, ema_decay_init=0.99, ema_decay=0.999
    )
    trainer = Trainer(
        args,
        Launch(0, 1, 0, CUDA),
        model,
        model,
        optimizer,
        torch.amp.GradScaler("cuda", enabled=False),
        BatchInputs(CUDA, MaskRule(model.grid_size(), 0.6, 0), (-7.0, 4.0)),
        EpochSampler(8, 4),
        1e-3,
    )
    batch = {"clean": torch.randn(4, 1, 80, 115).pin_memory(), "epoch": torch.tensor(0), "position": torch.arange(4).pin_memory()}
    meter = LossMeter()
    for checked in (False, True):
        torch.cuda.set_sync_debug_mode("error" if checked else "default")
        try:
            for moved in on_device([batch, batch], CUDA):
                meter.add(trainer.forward_backward(moved, synchronise=True), moved["position"])
                trainer.update(0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert meter.report().isfinite().all()


def test_batches_copied_ahead_arrive_whole_and_in_order():
    batches = [{"clean": torch.full((64, 1, 80, 608), float(i)).pin_memory(), "epoch": torch.tensor(i)} for i in range(6)]
    for i, batch in enumerate(on_device(batches, CUDA)):
        assert batch["clean"].is_cuda and not batch["epoch"].is_cuda
        assert (batch["clean"] == i).all()
