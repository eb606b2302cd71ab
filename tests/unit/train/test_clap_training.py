"""M2D-CLAP's training: what is learned, and the one gradient of any number of processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CLAP, LIST, digest, load, log_lines, run, run_ranks, same_log, write_captions, write_data, write_list

pytestmark = pytest.mark.usefixtures("small_workplace")


def weights_of(folder):
    return load(Path(folder) / "last.pth")["model"]


def test_both_losses_fall_and_captions_find_their_clips():
    flags = write_data(CLAP)
    assert run(CLAP, f"{flags} --csv_val data/files_main.csv --epochs 12 --loss_off 0.3 --output_dir out") == 0
    first, last = log_lines(Path("out"))[0], log_lines(Path("out"))[-1]
    assert last["train_loss_m2d"] < first["train_loss_m2d"] and last["train_loss_off"] < first["train_loss_off"] - 0.3
    assert 0 < last["train_logit_scale"] <= 4.6052 and last["train_logit_scale"] != first["train_logit_scale"]
    assert last["train_loss"] == pytest.approx(last["train_loss_m2d"] + 0.3 * last["train_loss_off"], rel=1e-6)
    names = {f"val_{way}_{figure}" for way in ("t2a", "a2t") for figure in ("r1", "r10", "map10")}
    assert names | {"val_loss", "val_loss_m2d", "val_loss_off"} <= last.keys()
    assert last["val_t2a_r10"] > 0.4 and last["val_a2t_r10"] > 0.3  # by chance 0.2
    saved = load(Path("out/last.pth"))
    assert {"logit_scale", "audio_proj.0.weight", "text_proj.weight"} <= saved["model"].keys()
    assert saved["args"]["text_encoder"] == "made_up" and saved["step_batch"] == 8


@pytest.mark.parametrize("flags", ["", "--sem_mode 1"])
def test_two_processes_learn_what_one_does(flags):
    write_data(CLAP)
    common = f"{LIST} --csv_val data/files_main.csv --loss_off 1. --optim sgd --lr 0.1 --epochs 2 --seed 3 {flags}"
    assert run(CLAP, f"{common} --batch_size 8 --output_dir one") == 0
    statuses, said = run_ranks(CLAP, f"{common} --batch_size 4 --output_dir two")
    assert statuses == [0, 0], said
    for one, two in zip(log_lines(Path("one")), log_lines(Path("two")), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    one, two = weights_of("one"), weights_of("two")
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


def gradients(flags, processes):
    """The gradient of one update, by the change that SGD without momentum's past makes of each weight."""
    base = (
        f"{LIST} --loss_off 1. --loss_m2d 0. --optim sgd --lr 1. --warmup_epochs 0 --epochs 1 --stop_at 1 --clip_grad 0 --seed 3"
    )
    out = f"g{processes}{flags.replace(' ', '')}"
    where = f"{base} --batch_size {48 // processes} --output_dir {out} {flags}"
    statuses = [run(CLAP, where)] if processes == 1 else run_ranks(CLAP, where, processes)[0]
    assert set(statuses) == {0}
    return weights_of(out)


def test_the_published_gradient_is_that_of_one_process_divided_by_the_processes():
    write_data(CLAP)
    torch.manual_seed(0)
    one, ours, published = gradients("", 1), gradients("", 2), gradients("--published_gradient", 2)
    start = start_weights()
    for name in ("audio_proj.2.weight", "blocks.1.mlp.fc1.weight", "text_proj.weight", "logit_scale"):
        full = one[name] - start[name]
        assert full.abs().max() > 1e-5
        torch.testing.assert_close(ours[name] - start[name], full, rtol=2e-3, atol=1e-6)
        share = 1.0 if name == "logit_scale" else 0.5
        torch.testing.assert_close(published[name] - start[name], share * full, rtol=2e-3, atol=1e-6)


def start_weights():
    """The weights that the runs of `gradients` begin with: an update with a learning rate of 0."""
    flags = f"{LIST} --optim sgd --lr 0. --warmup_epochs 0 --epochs 1 --batch_size 48 --seed 3 --output_dir start"
    assert run(CLAP, flags) == 0
    return weights_of("start")


def test_a_stopped_run_is_continued_exactly():
    flags = f"{write_data(CLAP)} --epochs 4 --seed 5"
    assert run(CLAP, f"{flags} --output_dir whole") == 0
    assert run(CLAP, f"{flags} --output_dir parts --stop_at 2") == 0
    assert run(CLAP, f"{flags} --output_dir parts --auto_resume") == 0
    assert digest(Path("whole/last.pth")) == digest(Path("parts/last.pth"))
    same_log("whole", "parts")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("--batch_size 4 --accum_iter 2", "the clips that a loss compares was 8, is 4"),
        ("--sem_mode 1", "--sem_mode was 0, is 1"),
        ("", "--file_caption data/captions.npz has changed"),
    ],
)
def test_a_run_is_not_continued_as_another(change, told, capsys):
    flags = write_data(CLAP)
    assert run(CLAP, f"{flags} --epochs 2 --stop_at 1 --output_dir out") == 0
    if not change:
        write_captions(seed=1)
    assert run(CLAP, f"{flags} --epochs 2 --output_dir out --auto_resume {change}") == 2
    assert told in capsys.readouterr().out


def test_a_pack_gives_the_same_run():
    from m2d.cli.pack import main as pack

    flags = write_data(CLAP)
    assert pack(["data/files_main.csv", "--data_path", "data", "--out", "data/main.pack", "--dtype", "float32"]) == 0
    assert run(CLAP, f"{flags} --norm_stats [-7,4] --output_dir files") == 0
    assert run(CLAP, "--csv_main data/main.pack --norm_stats [-7,4] --output_dir pack") == 0
    assert digest(Path("files/last.pth")) == digest(Path("pack/last.pth"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--file_caption=", "--file_caption names the captions' embeddings"),
        ("--file_caption data/none.npz", "data/none.npz: no such file"),
        ("--text_encoder A", "12 wide, --text_encoder A (thenlper/gte-base) makes them 768 wide"),
        ("--file_caption data/texts.csv", "m2d captions makes embeddings"),
        ("--batch_size 1", "give 2 or more"),
        ("--csv_main data/files_more.csv", "1 of the 49 clips of data/files_more.csv have no caption"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(flags, told, capsys):
    write_data(CLAP)
    write_list("more", clips=49)
    Path("data/texts.csv").write_text("file_name,caption\n000.wav,a dog\n")
    assert run(CLAP, f"{LIST} --output_dir out {flags}") == 2
    assert told in capsys.readouterr().out and not Path("out").exists()


def test_clips_without_captions_are_left_out_when_asked():
    write_list("more", clips=52)
    write_list()
    write_captions()
    flags = "--csv_main data/files_more.csv --missing_captions skip --epochs 1 --output_dir out --no_random_crop"
    assert run(CLAP, flags) == 0
    assert json.loads(Path("out/run.json").read_text())
    assert np.isfinite(log_lines(Path("out"))[0]["train_loss"])
