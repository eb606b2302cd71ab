"""Training runs: what is learned, and what a run leaves."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import (
    AS,
    LIST,
    M2D,
    MAE,
    SPEECH,
    digest,
    load,
    log_lines,
    run,
    step_losses,
    trained,
    trainer_of,
    write_data,
    write_list,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from m2d.models import registry as models_mae
from m2d.models.transformer.block import Attention
from m2d.train.optim import learning_rate

pytestmark = pytest.mark.usefixtures("small_workplace")


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize(
    ("program", "flags"),
    [(M2D, ""), (M2D, "--model m2d_d2v_vit_tiny"), (M2D, "--loss_fn mse --no_norm_pix_loss"), (MAE, ""), (AS, ""), (SPEECH, "")],
)
def test_the_loss_falls(program, flags):
    offline = " --loss_off 1." if program in (AS, SPEECH) else ""
    trained(f"{write_data(program)} --epochs 6 {flags}{offline}", program)
    lines = log_lines(Path("out"))
    assert lines[-1]["train_loss"] < 0.85 * lines[0]["train_loss"]
    if offline:
        assert lines[-1]["train_loss_off"] < lines[0]["train_loss_off"]
        total = lines[-1]["train_loss_m2d"] + lines[-1]["train_loss_off"]
        assert lines[-1]["train_loss"] == pytest.approx(total, rel=1e-6)


def test_the_first_rate_is_zero():
    write_list(clips=16)
    saved = trained(f"{LIST} --epochs 1 --batch_size 16")
    trainer, _ = trainer_of(f"{LIST} --batch_size 16")
    assert saved["updates"] == 1
    for name, tensor in trainer.model.state_dict().items():
        if not name.startswith("target_"):
            assert torch.equal(saved["model"][name], tensor), name


def test_the_target_moves_by_the_decay_of_each_update():
    write_list(clips=16)
    saved = trained(f"{LIST} --epochs 1 --batch_size 16 --ema_decay_init 0.9")["model"]
    start = trainer_of(f"{LIST} --batch_size 16")[0].model.state_dict()
    for part in ("norm.weight", "blocks.0.attn.qkv.weight"):
        expected = 0.9 * start[f"target_{part}"] + 0.1 * start[part]
        torch.testing.assert_close(saved[f"target_{part}"], expected)


def test_sgd():
    write_list(clips=16)
    saved = trained(f"{LIST} --optim sgd --epochs 2 --batch_size 16 --lr 0.1 --clip_grad 0")
    groups, states = saved["optimizer"]["param_groups"], saved["optimizer"]["state"]
    assert {(group["momentum"], group["weight_decay"]) for group in groups} == {(0.9, 0)}
    assert all("momentum_buffer" in state for state in states.values())
    # The only update with a rate above zero is the second: weight = start - lr · momentum buffer.
    start = trainer_of(f"{LIST} --batch_size 16")[0].model.state_dict()["cls_token"]
    trained_names = [name for name, p in trainer_of(LIST)[0].model.named_parameters() if p.requires_grad]
    plain = sum(1 for name in trained_names if saved["model"][name].ndim <= 1 or name.endswith(".bias"))
    first_matrix = states[plain]["momentum_buffer"]
    assert first_matrix.shape == start.shape
    rate = learning_rate(1, 0.1, 0, 1, 2)
    torch.testing.assert_close(saved["model"]["cls_token"], start - rate * first_matrix)


def test_updates_are_those_of_the_adamw_paper():
    """Three updates of clipped gradients against the algorithm (Loshchilov and Hutter, 2019) written out in float64."""
    write_list(clips=16)
    trainer, data = trainer_of(
        f"{LIST} --lr 0.01 --weight_decay 0.3 --clip_grad 0.05 --batch_size 4 --accum_iter 2 --warmup_epochs 0"
    )
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    weights = [p.detach().double().clone() for p in trainer.trained]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    batches = [data.__getitems__(keys) for keys in [*trainer.sampler.batches(0), *trainer.sampler.batches(1)]]
    for update in range(3):
        trainer.set_learning_rate(update / 2)
        for batch in batches[2 * update : 2 * update + 2]:
            trainer.forward_backward(batch, synchronize=True)
        gradients = [p.grad.double().clone() for p in trainer.trained]
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        assert trainer.update(update).item() == pytest.approx(norm.item(), rel=1e-5) and norm > 0.05
        rate = 0.01 * 0.5 * (1 + math.cos(math.pi * update / 4))
        for i, (gradient, parameter) in enumerate(zip(gradients, trainer.trained, strict=True)):
            gradient = gradient * (0.05 / (norm + 1e-6))
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.95 * second[i] + 0.05 * gradient**2
            weights[i] *= 1 - rate * (0.3 if parameter.ndim > 1 else 0)
            step = first[i] / (1 - 0.9 ** (update + 1)) / ((second[i] / (1 - 0.95 ** (update + 1))).sqrt() + 1e-8)
            weights[i] -= rate * step
            torch.testing.assert_close(parameter.detach().double(), weights[i], atol=2e-6, rtol=1e-4, msg=names[id(parameter)])


def test_the_logged_loss_is_the_mean_over_the_epochs_steps():
    """With a rate of 0 and a target that stays, each step's loss can be computed by itself."""
    write_list(clips=24)
    flags = f"{LIST} --epochs 1 --batch_size 4 --accum_iter 2 --lr 0 --ema_decay_init 1 --ema_decay 1"
    trained(flags)
    trainer, data = trainer_of(flags)
    trainer.model.train()
    with torch.no_grad():
        losses = [trainer.losses(trainer.model, data.__getitems__(keys))["loss"].item() for keys in trainer.sampler.batches(0)]
    assert len(losses) == 6 and len(set(losses)) == 6
    assert log_lines(Path("out"))[0]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_weight_decay_is_for_matrices():
    write_list(clips=16)
    trainer, _ = trainer_of(f"{LIST} --weight_decay 0.3")
    plain, decayed = trainer.optimizer.param_groups
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.3)
    assert plain["betas"] == decayed["betas"] == (0.9, 0.95)
    assert all(p.ndim == 1 for p in plain["params"]) and all(p.ndim > 1 for p in decayed["params"])
    assert len(plain["params"]) + len(decayed["params"]) == sum(p.requires_grad for p in trainer.model.parameters())


@pytest.mark.parametrize("flag, on", [("", False), ("--short_attention", True), ("--no_short_attention", False)])
def test_short_attention_is_for_a_gpu_unless_asked_for(flag, on):
    write_list(clips=16)
    trainer, _ = trainer_of(f"{LIST} {flag}")
    assert {module.short for module in trainer.model.modules() if isinstance(module, Attention)} == {on}


def test_accumulation_is_the_larger_batch():
    write_list(clips=48)
    runs = {}
    for name, flags in {"whole": "--batch_size 16", "halves": "--batch_size 8 --accum_iter 2"}.items():
        trained(f"{LIST} --epochs 4 {flags}", out=name)
        runs[name] = [line["train_loss"] for line in log_lines(Path(name))]
    assert runs["halves"] == pytest.approx(runs["whole"], rel=2e-5)
    whole, halves = (load(Path(name) / "last.pth")["model"]["blocks.0.mlp.fc1.weight"] for name in runs)
    torch.testing.assert_close(whole, halves, atol=2e-4, rtol=0)


@pytest.mark.parametrize("program", [M2D, SPEECH])
def test_any_number_of_workers_gives_the_same_bits(program):
    flags = write_data(program)
    for workers in (0, 1, 3):
        trained(f"{flags} --num_workers {workers}", program, out=f"w{workers}")
    assert digest(Path("w0/last.pth")) == digest(Path("w1/last.pth")) == digest(Path("w3/last.pth"))


def test_the_seed_changes_the_run_and_the_order():
    write_list()
    trained(f"{LIST} --epochs 1", out="a")
    trained(f"{LIST} --epochs 1 --seed 1", out="b")
    assert digest(Path("a/last.pth")) != digest(Path("b/last.pth"))


def test_rest_of_the_list_is_dropped_in_whole_groups(capsys):
    write_list(clips=23)
    saved = trained(f"{LIST} --epochs 1 --batch_size 3 --accum_iter 3")
    assert saved["updates"] == saved["updates_per_epoch"] == 2
    assert "6 steps of 3 clips, 2 updates of 9" in capsys.readouterr().out


# ---------------------------------------------------------------- what a run leaves


def test_what_a_run_leaves(capsys):
    write_list()
    assert run(M2D, f"{LIST} --epochs 4 --save_freq 2 --output_dir out --csv_val data/files_main.csv --feature_eval_freq 2") == 0
    said = capsys.readouterr().out
    files = {path.name for path in Path("out").iterdir()}
    assert {"checkpoint-2.pth", "checkpoint-4.pth", "last.pth", "log.txt", "console.txt", "run.json"} <= files
    assert "checkpoint-1.pth" not in files and "checkpoint-3.pth" not in files

    lines = log_lines(Path("out"))
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert {"train_loss", "train_lr", "train_ema_decay", "val_loss"} <= set(lines[0])
    assert lines[-1]["train_ema_decay"] == pytest.approx(0.99999, abs=1e-12)
    last_step = learning_rate(3 + 5 / 6, 0.05 * 8 / 256, 0.0, 1, 4)
    assert lines[-1]["train_lr"] == pytest.approx(last_step)
    quality = {"train_rankme", "train_auc", "val_rankme", "val_auc"}
    assert [quality <= set(line) for line in lines] == [False, True, False, True]
    assert not quality & set(lines[0]) and not {"val_loss_m2d", "train_loss_off"} & set(lines[0])
    assert 1 <= lines[1]["train_rankme"] <= 48 and 0.5 <= lines[1]["train_auc"] <= 1
    assert lines[1]["train_rankme"] == lines[1]["val_rankme"]

    events = EventAccumulator("out")
    events.Reload()
    tags = events.Tags()["scalars"]
    other_names = {"train_lr": "lr", "train_ema_decay": "ema_decay"}
    assert {other_names.get(name, name) for line in lines for name in line if name != "epoch"} == set(tags)
    assert "1000 x epochs" in said
    assert [event.step for event in events.Scalars("train_loss")] == [1000, 2000, 3000, 4000]
    assert [event.step for event in events.Scalars("train_rankme")] == [2000, 4000]
    assert events.Scalars("val_loss")[0].value == pytest.approx(lines[0]["val_loss"])

    console = Path("out/console.txt").read_text()
    for line in said.splitlines():
        assert line in console
    assert "log-mel values: mean" in console and len(step_losses(console)) == 4

    record = json.loads(Path("out/run.json").read_text())
    assert record["settings"]["epochs"] == 4 and record["settings"]["csv_main"] == "data/files_main.csv"
    assert record["starts"][0]["torch"] == torch.__version__ and record["starts"][0]["command"]


def test_what_a_checkpoint_holds():
    write_list()
    saved = trained(f"{LIST} --epochs 1 --norm_stats [-7.5,2]")
    assert {"model", "optimizer", "epoch", "scaler", "args"} <= set(saved)
    assert type(saved["args"]) is dict and saved["args"]["norm_stats"] == [-7.5, 2.0]
    assert saved["epoch"] == 1 and saved["model"]["norm_stats"].tolist() == [-7.5, 2.0]
    built = models_mae.build("m2d_vit_tiny", img_size=(80, 32), patch_size=16, decoder_depth=1)
    built.load_state_dict(saved["model"])
    assert digest(Path("out/checkpoint-1.pth")) == digest(Path("out/last.pth"))


@pytest.mark.parametrize("program", [M2D, MAE, AS, SPEECH])
def test_checkpoints_carry_the_statistics_that_were_measured(program):
    flags = write_data(program)
    saved = trained(f"{flags} --epochs 1", program)
    (cache,) = Path("data").glob("*.stats.json")
    (measured,) = json.loads(cache.read_text()).values()
    assert saved["model"]["norm_stats"].tolist() == pytest.approx([measured["mean"], measured["std"]], rel=1e-6)


def test_validation_is_normalised_by_the_training_statistics():
    write_list()
    write_list("val", clips=40, seed=9)
    for path in Path("data/val_lms").glob("*.npy"):
        np.save(path, np.load(path) + 3)
    trainer, _ = trainer_of(f"{LIST} --csv_val data/files_val.csv")
    trained(f"{LIST} --epochs 1 --csv_val data/files_val.csv")
    assert not Path("data/files_val.csv.stats.json").exists()
    assert trainer.transform.stats[0] == pytest.approx(load(Path("out/last.pth"))["model"]["norm_stats"][0].item(), rel=1e-6)


def test_label_free_figures_are_left_out_of_few_clips(capsys):
    write_list(clips=20)
    trained(f"{LIST} --epochs 1 --feature_eval_freq 1")
    assert "20 clips are fewer than" in capsys.readouterr().out
    assert not [key for key in log_lines(Path("out"))[0] if "rankme" in key or "auc" in key]


def test_a_repeated_list_is_announced(capsys):
    write_list(clips=16)
    trained(f"{LIST} --epochs 1 --min_ds_size 40")
    assert "an epoch has 16 clips, repeated to 40 (--min_ds_size 0: not): 5 steps of 8 clips" in capsys.readouterr().out


def test_the_first_figure_comes_after_one_update_and_counts_nothing(capsys):
    write_list()
    trained(f"{LIST} --epochs 1")
    said = capsys.readouterr().out
    (loss,) = re.findall(r"^first update after \d+\.\d s: loss (\S+); the run takes 0:00:\d\d at this speed$", said, re.M)
    assert 0 < float(loss) < 4
    assert re.search(r"^estimate: \d+\.\d GiB of memory a process \(free: \d+\.\d\), \d:\d\d:\d\d for the run$", said, re.M)


def test_a_run_that_does_not_fit_and_takes_days_is_warned_of(monkeypatch, capsys):
    monkeypatch.setattr("m2d.train.output.total_memory", lambda device: 1000)
    monkeypatch.setattr("m2d.train.output.run_seconds", lambda *_: 3 * 86400)
    write_list(clips=16)
    trained(f"{LIST} --epochs 1")
    said = capsys.readouterr().out
    assert "--batch_size 8 does not fit cpu: lower it" in said
    assert "the run would take 3.0 days on this CPU" in said and "--model m2d_vit_tiny" in said


def test_a_progress_bar_on_a_terminal_alone(monkeypatch, capsys):
    write_list(clips=16)
    trained(f"{LIST} --epochs 1", out="piped")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    trained(f"{LIST} --epochs 1", out="terminal")
    said = capsys.readouterr()
    assert "epoch 1:" in said.err and "done in" in said.out


def test_stop_at_saves_with_the_schedule_of_the_full_run_and_goes_on_to_the_same_end():
    write_list()
    trained(f"{LIST} --epochs 4", out="whole")
    stopped = trained(f"{LIST} --epochs 4 --stop_at 2", out="parts")
    assert stopped["epoch"] == 2 and Path("parts/checkpoint-2.pth").exists()
    assert log_lines(Path("parts")) == log_lines(Path("whole"))[:2]
    trained(f"{LIST} --epochs 4 --auto_resume", out="parts")
    assert digest(Path("parts/last.pth")) == digest(Path("whole/last.pth"))
    assert log_lines(Path("parts")) == log_lines(Path("whole"))


def test_start_epoch_enters_the_schedule_there():
    write_list(clips=16)
    trained(f"{LIST} --epochs 4 --start_epoch 3")
    (line,) = log_lines(Path("out"))
    assert line["epoch"] == 4 and line["train_lr"] == pytest.approx(learning_rate(3.5, 0.05 * 8 / 256, 0, 1, 4))


def test_keep_last():
    write_list(clips=16)
    trained(f"{LIST} --epochs 5 --save_freq 1 --keep_last 2")
    assert sorted(path.name for path in Path("out").glob("checkpoint-*.pth")) == ["checkpoint-4.pth", "checkpoint-5.pth"]


@pytest.mark.parametrize("status", [0, 3])
def test_evaluation_scripts_are_called_and_never_fail_a_run(status, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr("m2d.run.evar.PROJECT", Path.cwd() / "project")
    Path("project/evar").mkdir(parents=True)
    for name in ("quick_eval.sh", "all_eval.sh"):
        Path(name).write_text("touch somebody_elses")
        Path("project", name).write_text(f'echo "{name} $1 ${{RANK:-alone}}" >> calls.txt; sleep 0.1; echo said; exit {status}')
    write_list(clips=16)
    trained(f"{LIST} --epochs 4 --save_freq 1 --eval_after 3")
    here = Path.cwd()
    calls = Path("calls.txt").read_text().splitlines()
    assert calls == [
        f"quick_eval.sh {here}/out/checkpoint-3.pth alone",
        f"all_eval.sh {here}/out/checkpoint-4.pth alone",
    ]
    assert "said" in Path("out/checkpoint-4.eval.txt").read_text() and not Path("somebody_elses").exists()


def test_a_run_without_evaluation_scripts(monkeypatch, capsys):
    monkeypatch.setattr("m2d.run.evar.PROJECT", Path("/nowhere"))
    write_list(clips=16)
    trained(f"{LIST} --epochs 1")
    said = capsys.readouterr().out
    assert "eval" not in said and re.search(r"^done in 0:00:\d\d: out/checkpoint-1.pth$", said, re.M)
    assert "m2d embed RECORDINGS --weights out/checkpoint-1.pth" in said


def test_default_folder_names_the_run():
    write_list()
    assert run(M2D, f"{LIST} --epochs 1 --blr 1e-3") == 0
    (made,) = (path.parent.name for path in Path(".").glob("*/run.json"))
    assert made.startswith("m2d_vit_tiny-80x32p16x16p16k-") and made.endswith("-Mdfmdd1wu1blr001bs8dn0-e1")
