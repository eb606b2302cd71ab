"""Training runs that start from checkpoints: of the run itself, of other variants, of published layouts."""

import argparse
import random
from pathlib import Path

import pytest
import torch
from small_runs import (
    LIST,
    M2D,
    MAE,
    digest,
    log_lines,
    run,
    trained,
    trainer_of,
    write_data,
    write_list,
)

from m2d.models import registry as models_mae

pytestmark = pytest.mark.usefixtures("small_workplace")


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
