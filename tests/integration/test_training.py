"""Training runs: what is learned, what a run leaves, and from which checkpoints it starts."""

import argparse
import json
import math
import random
import re
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
    SPEECH,
    digest,
    flags_of,
    load,
    log_lines,
    program_of,
    run,
    settings_of,
    step_losses,
    write_data,
    write_list,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from m2d.data.batch import Batch
from m2d.models import registry as models_mae
from m2d.models.transformer.block import Attention
from m2d.train import setup as setup_run
from m2d.train.batch_transform import BatchTransform, MaskRule
from m2d.train.distributed.launch import Launch
from m2d.train.optim import learning_rate

pytestmark = pytest.mark.usefixtures("small_workplace")


def trained(flags="", program=M2D, out="out"):
    """A run's last checkpoint."""
    assert run(program, f"--output_dir {out} {flags}") == 0
    return load(Path(out) / "last.pth")


def trainer_of(flags, program=M2D):
    """A trainer as a run makes it, and its data."""
    settings = settings_of(program, flags_of(program, flags))
    launch = Launch(0, 1, 0, torch.device("cpu"))
    data = setup_run.open_data(program_of(program), settings, launch).train
    sampler = setup_run.make_sampler(settings, data, launch)
    return setup_run.make_trainer(settings, data, sampler, *setup_run.normalisation(settings, data, launch), launch), data


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


# ---------------------------------------------------------------- starting from checkpoints


def test_resume_from_another_variant_with_an_account(capsys):
    flags = write_data(M2D)
    source = trained(f"{flags} --epochs 1", MAE, out="mae")
    capsys.readouterr()
    saved = trained(f"{flags} --epochs 1 --batch_size 48 --resume mae/checkpoint-1.pth")
    said = capsys.readouterr().out
    assert "--resume mae/checkpoint-1.pth: loaded" in said and "blocks" in said
    assert "target encoder copied from the online one" in said and "kept from this run: norm_stats" in said
    assert "new, left as they start: decoder_pred" in said and "unused of the checkpoint: decoder_pred" in said
    assert torch.equal(saved["model"]["decoder_norm.bias"], source["model"]["decoder_norm.bias"])
    # One update at rate 0: the online encoder is still the source's.
    assert torch.equal(saved["model"]["blocks.1.mlp.fc2.weight"], source["model"]["blocks.1.mlp.fc2.weight"])
    for name in ("weight", "bias"):
        torch.testing.assert_close(saved["model"][f"target_norm.{name}"], saved["model"][f"norm.{name}"])
    assert saved["epoch"] == 1


def test_resume_from_an_encoder_copies_the_target(capsys):
    flags = write_data(M2D)
    source = trained(f"{flags} --epochs 2", out="source")
    encoder = {n: t for n, t in source["model"].items() if not n.startswith(("decoder_", "target_", "mask_token"))}
    torch.save(encoder, "encoder.pth")
    capsys.readouterr()
    saved = trained(f"{flags} --epochs 1 --batch_size 48 --resume encoder.pth")
    assert "target encoder copied" in capsys.readouterr().out
    for name in ("blocks.0.attn.qkv.weight", "norm.bias"):
        torch.testing.assert_close(saved["model"][f"target_{name}"], encoder[name])


def test_resume_of_an_encoder_without_a_block_is_refused_unless_asked_for(capsys):
    flags = write_data(M2D)
    source = trained(f"{flags} --epochs 1", out="source")
    torch.save({name: value for name, value in source["model"].items() if "blocks.1." not in name}, "shallow.pth")
    capsys.readouterr()
    assert run(M2D, f"{flags} --resume shallow.pth --output_dir out") == 2
    said = capsys.readouterr().out
    assert "not in the checkpoint: blocks.1." in said and "--resume_partial" in said and not Path("out").exists()
    saved = trained(f"{flags} --epochs 1 --batch_size 48 --resume shallow.pth --resume_partial")
    assert "new, left as they start: blocks (" in capsys.readouterr().out
    assert torch.equal(saved["model"]["blocks.0.mlp.fc2.weight"], source["model"]["blocks.0.mlp.fc2.weight"])


def test_a_damaged_state_of_the_run_itself_is_named(capsys):
    flags = write_data(M2D)
    trained(f"{flags} --epochs 1", out="out")
    saved = torch.load("out/last.pth")
    torch.save(saved | {"updates": [1]}, "out/last.pth")
    capsys.readouterr()
    assert run(M2D, f"{flags} --epochs 2 --output_dir out --auto_resume") == 2
    assert "last.pth: not a checkpoint that this run wrote: Expected `int`" in capsys.readouterr().out


def test_going_on_from_weights_alone_is_refused(capsys):
    flags = write_data(M2D)
    source = trained(f"{flags} --epochs 1", out="source")
    torch.save(source["model"], "weights.pth")
    assert run(M2D, f"{flags} --resume weights.pth --force_start_epoch -1 --output_dir out") == 2
    assert "no optimizer and epoch" in capsys.readouterr().out and not Path("out").exists()


def published(saved, epoch):
    """A checkpoint as the published code writes it: a Namespace, and parameters in another order."""
    names = list(saved["model"])
    random.Random(3).shuffle(names)
    trained_names = [n for n in saved["model"] if not n.startswith("target_") and n not in FROZEN]
    state = saved["optimizer"]["state"]

    def split(order):
        plain = [n for n in order if saved["model"][n].ndim <= 1 or n.endswith(".bias")]
        return plain, [n for n in order if n not in plain]

    own = [n for group in split(trained_names) for n in group]
    new_groups = split([n for n in names if n in trained_names])
    new = [n for group in new_groups for n in group]
    groups, begin = [], 0
    for old, group in zip(saved["optimizer"]["param_groups"], new_groups, strict=True):
        groups.append({**old, "params": list(range(begin, begin + len(group)))})
        begin += len(group)
    optimizer = {"state": {i: state[own.index(n)] for i, n in enumerate(new)}, "param_groups": groups}
    model = {n: saved["model"][n] for n in names}
    args = argparse.Namespace(**saved["args"], output_dir_path=Path("x"))
    return {"model": model, "optimizer": optimizer, "epoch": epoch, "scaler": saved["scaler"], "args": args}


FROZEN = ("pos_embed", "decoder_pos_embed", "norm_stats")


def test_a_published_checkpoint_of_another_parameter_order_goes_on_with_its_optimizer():
    flags = write_data(M2D)
    trained(f"{flags} --epochs 4", out="whole")
    source = trained(f"{flags} --epochs 4 --stop_at 2", out="half")
    torch.save(published(source, 2), "published.pth")
    saved = trained(f"{flags} --epochs 4 --resume published.pth --force_start_epoch -1 --norm_stats resume")
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))
    assert saved["epoch"] == 4 and [line["epoch"] for line in log_lines(Path("out"))] == [3, 4]


def test_another_models_optimizer_is_refused(capsys):
    flags = write_data(M2D)
    trained(f"{flags} --epochs 1", MAE, out="mae")
    more = "--resume mae/checkpoint-1.pth --force_start_epoch -1 --output_dir out"
    assert run(M2D, f"{flags} {more}") == 2
    assert "optimizer" in capsys.readouterr().out
    trained(f"{flags} --epochs 1 --optim sgd", out="sgd")
    assert run(M2D, f"{flags} {more.replace('mae/', 'sgd/')}") == 2
    assert "optimizer" in capsys.readouterr().out
    assert not Path("out").exists()


def test_resume_with_another_input_size(capsys):
    write_list(frames=60)
    source = trained(f"{LIST} --epochs 1", out="source")
    capsys.readouterr()
    saved = trained(f"{LIST} --epochs 1 --batch_size 48 --input_size 80x48 --resume source/checkpoint-1.pth")
    assert "positions regenerated for this input size: pos_embed, decoder_pos_embed" in capsys.readouterr().out
    assert saved["model"]["pos_embed"].shape == (1, 16, 48)
    fresh = models_mae.build("m2d_vit_tiny", img_size=(80, 48), patch_size=16, decoder_depth=1)
    assert torch.equal(saved["model"]["pos_embed"], fresh.pos_embed.data)
    assert torch.equal(saved["model"]["blocks.0.attn.qkv.weight"], source["model"]["blocks.0.attn.qkv.weight"])


def test_another_patch_size_is_refused(capsys):
    write_list()
    trained(f"{LIST} --epochs 1", out="source")
    assert run(M2D, f"{LIST} --patch_size 16x8 --resume source/checkpoint-1.pth --output_dir out") == 2
    assert "patch" in capsys.readouterr().out and not Path("out").exists()


def test_statistics_of_the_resumed_checkpoint():
    write_list()
    trained(f"{LIST} --epochs 1 --norm_stats [-3,1.5]", out="source")
    more = f"{LIST} --epochs 1 --resume source/checkpoint-1.pth"
    assert trained(f"{more} --norm_stats resume", out="a")["model"]["norm_stats"].tolist() == [-3.0, 1.5]
    assert trained(more, out="b")["model"]["norm_stats"].tolist() != [-3.0, 1.5]
    trainer, _ = trainer_of(f"{more} --norm_stats resume")
    assert trainer.transform.stats == (-3.0, 1.5)


def test_norm_stats_resume_of_a_checkpoint_without_statistics(capsys):
    write_list()
    model = trained(f"{LIST} --epochs 1", out="source")["model"]
    del model["norm_stats"]
    torch.save({"model": model}, "old.pth")
    assert run(M2D, f"{LIST} --resume old.pth --norm_stats resume") == 2
    assert "no statistics" in capsys.readouterr().out


def test_force_start_epoch_counts_from_there():
    write_list(clips=16)
    trained(f"{LIST} --epochs 1", out="source")
    trained(f"{LIST} --epochs 4 --resume source/checkpoint-1.pth --force_start_epoch 3")
    assert [line["epoch"] for line in log_lines(Path("out"))] == [4]


# ---------------------------------------------------------------- M2D-X, M2D-AS, MAE


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


def test_validation_labels_that_training_lacks(capsys):
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


# ---------------------------------------------------------------- files that cannot be read


def break_clip(number, how="torn"):
    path = Path(f"data/main_lms/{number:03d}.npy")
    if how == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "gone":
        path.unlink()
    else:
        np.save(path, np.full((1, 80, 40), np.nan, np.float32))


def test_an_unreadable_clip_stops_the_run_naming_it_and_the_position_is_kept(capsys):
    write_list(clips=32)
    trained(f"{LIST} --epochs 3", out="whole")
    trained(f"{LIST} --epochs 3 --stop_at 1", out="out")
    content = Path("data/main_lms/005.npy").read_bytes()
    break_clip(5)
    more = f"{LIST} --epochs 3 --auto_resume --output_dir out --num_workers 2"
    assert run(M2D, more) == 2
    assert "data/files_main.csv row 7: main_lms/005.npy: truncated" in capsys.readouterr().out
    assert 4 <= load(Path("out/last.pth"))["updates"] < 8
    assert "Traceback" in Path("out/console.txt").read_text()
    Path("data/main_lms/005.npy").write_bytes(content)
    assert run(M2D, more) == 0
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))


@pytest.mark.parametrize("how", ["torn", "gone", "nan"])
def test_skip_bad_files_takes_the_next_clip_and_counts(how, capsys):
    write_list(clips=24)
    reference = Path("data/main_lms/006.npy").read_bytes()
    break_clip(5, how)
    trained(f"{LIST} --epochs 2 --skip_bad_files", out="skipped")
    said = capsys.readouterr().out
    assert "skipped (--skip_bad_files): data/files_main.csv row 7: main_lms/005.npy" in said
    assert [line["skipped_files"] for line in log_lines(Path("skipped"))] == [1, 1]
    # The same run as with the next clip's content under that name.
    Path("data/main_lms/005.npy").write_bytes(reference)
    trained(f"{LIST} --epochs 2 --skip_bad_files", out="copied")
    assert digest(Path("skipped/last.pth")) == digest(Path("copied/last.pth"))
    assert "skipped_files" not in log_lines(Path("copied"))[0]


def test_skipping_takes_the_next_clips_label():
    path = write_list(clips=16, label=[f"/m/{i:02d}" for i in range(16)])
    break_clip(15)
    trainer, data = trainer_of(f"--csv_main {path} --skip_bad_files", AS)
    keys = next(keys for keys in trainer.sampler.batches(0) if any(key.index == 15 for key in keys))
    batch = data.__getitems__(keys)
    row = [key.index for key in keys].index(15)
    assert batch.target[row].argmax() == 0 and batch.skipped == 1


def test_a_list_without_any_readable_clip_is_refused_even_so(capsys):
    write_list(clips=16)
    for number in range(16):
        break_clip(number)
    assert run(M2D, f"{LIST} --skip_bad_files --output_dir out") == 2
    assert "100 clips in a row" in capsys.readouterr().out and not Path("out").exists()
