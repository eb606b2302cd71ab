"""--probe: labelled clips judge the encoder during training, and the best epoch is kept."""

import json
import logging

import numpy as np
import pytest
import torch
from small_runs import AS, LIST, M2D, MAE, SPEECH, Forked, load, run, write_data, write_list

from m2d.cli.probe import main as probe
from m2d.train import pretrain

PROBED = f"{LIST} --probe data/probe.csv --probe_freq 2 --epochs 5 --keep_best --output_dir out"


@pytest.fixture
def labelled(small_workplace):
    """Training data, and clips of two classes: energy in the low or in the high bands."""
    write_list()
    lines = ["file_name,label,group"]
    for i in range(24):
        lms = np.random.default_rng(i).normal(-7, 2, (1, 80, 40 + i)).astype(np.float32)
        lms[0, :40] += 3 * (i % 2)
        np.save(f"data/probe{i}.npy", lms)
        lines.append(f"probe{i}.npy,{'low' if i % 2 else 'high'},{i // 2}")
    (small_workplace / "data/probe.csv").write_text("\n".join(lines))
    return small_workplace


def entries(folder="out"):
    return [json.loads(line) for line in open(f"{folder}/log.txt")]


def test_figures_are_logged_when_due_and_the_best_epoch_is_kept(labelled, capsys):
    assert run(M2D, PROBED) == 0
    log = entries()
    assert [entry["epoch"] for entry in log if "probe_linear" in entry] == [2, 4, 5]
    assert all(0.5 <= entry[name] <= 1 for entry in log for name in ("probe_linear", "probe_knn") if name in entry)
    values = {entry["epoch"]: entry["probe_linear"] for entry in log if "probe_linear" in entry}
    best = load("out/checkpoint-best.pth")
    assert best["epoch"] == min(epoch for epoch, value in values.items() if value == max(values.values()))
    assert best["best_probe"] == max(values.values())


def test_the_figures_are_those_of_the_probe_command(labelled, capsys):
    assert run(M2D, f"{PROBED} --model m2d_vit_tiny") == 0
    capsys.readouterr()
    arguments = ["data/probe.csv", "--weights", "out/checkpoint-5.pth", "--no_cache", "--device", "cpu", "--out", "probe"]
    assert probe([*arguments, "--data_path", "data"]) == 0
    figures = json.loads(open("probe/probe.json").read())["figures"]["out/checkpoint-5.pth"]
    assert entries()[-1]["probe_linear"] == pytest.approx(figures["linear/accuracy"][0], abs=0.09)  # 24 clips: two of them
    assert entries()[-1]["probe_knn"] == pytest.approx(figures["knn/accuracy"][0], abs=0.09)


def test_weights_and_continuation_do_not_depend_on_it(labelled, monkeypatch):
    """A run that is stopped between two probes ends as an undisturbed one, and as one that never probes."""
    assert run(M2D, PROBED) == 0
    assert run(M2D, f"{LIST} --epochs 5 --output_dir plain") == 0
    stopped = PROBED.replace("--output_dir out", "--output_dir stopped")
    assert run(M2D, f"{stopped} --stop_at 3") == 0
    assert run(M2D, f"{stopped} --auto_resume") == 0
    whole, plain, resumed = (load(f"{folder}/checkpoint-5.pth") for folder in ("out", "plain", "stopped"))
    for name, tensor in whole["model"].items():
        torch.testing.assert_close(plain["model"][name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(resumed["model"][name], tensor, rtol=0, atol=0)
    assert load("out/checkpoint-best.pth")["epoch"] in (2, 4, 5)


@pytest.mark.parametrize("program", [MAE, AS, SPEECH])
def test_every_program_probes(labelled, program):
    assert run(program, f"{write_data(program)} --probe data/probe.csv --output_dir out --epochs 1") == 0
    assert "probe_linear" in entries()[-1]


def test_two_processes(labelled):
    assert Forked(M2D, f"{PROBED} --batch_size 4", processes=2).wait() == [0, 0]
    assert "probe_knn" in entries()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--keep_best", "--keep_best needs --probe"),
        ("--probe data/none.csv", "none.csv"),
        ("--probe data/files_main.csv", "no column label"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_training(labelled, flags, message, caplog):
    caplog.set_level(logging.INFO)
    assert run(M2D, f"{LIST} {flags} --output_dir out") == pretrain.EXIT_USAGE
    assert not (labelled / "out").exists()
