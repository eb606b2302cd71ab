"""Several processes: the same run as one, and errors that end them all."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import (
    AS,
    LIST,
    M2D,
    ROOT,
    Forked,
    command,
    environment,
    flags_of,
    free_port,
    launch,
    load,
    log_lines,
    program_of,
    run,
    run_ranks,
    settings_of,
    write_data,
    write_list,
)

from m2d.train.checks import check
from m2d.train.distributed import agreement
from m2d.train.distributed import launch as processes
from m2d.train.distributed.collectives import from_rank0, lockstep, run_on_all_ranks
from m2d.train.distributed.launch import Launch
from m2d.train.distributed.watchdog import RankLostError
from m2d.utils.errors import ReadError, UserError

pytestmark = pytest.mark.usefixtures("small_workplace")


def losses(folder):
    return [line["train_loss"] for line in log_lines(Path(folder))]


def without_key_bias(name, tensor):
    """Key biases have no true gradient (they shift a softmax's inputs alike): Adam moves them by the sign of rounding noise."""
    if not name.endswith("attn.qkv.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def assert_same_weights(first, second, atol):
    models = [load(Path(folder) / "last.pth")["model"] for folder in (first, second)]
    for name, tensor in models[0].items():
        pair = [without_key_bias(name, each) for each in (models[1][name], tensor)]
        torch.testing.assert_close(*pair, atol=atol, rtol=0, msg=name)


# ---------------------------------------------------------------- the same run


@pytest.mark.parametrize("program", [M2D, AS])
def test_two_processes_are_one_with_twice_the_batch(program):
    """20 updates, an epoch each, so that log.txt holds the loss of every step."""
    flags = f"{write_data(program)} --epochs 20 --save_freq 20"
    if program == M2D:
        write_list(clips=16)
        write_list("noise", clips=7, seed=3)
        flags += " --csv_bg_noise data/files_noise.csv --noise_ratio 0.3 --csv_val data/files_noise.csv"
    else:
        write_list(clips=16, label=["/m/a", "/m/b"])
    assert run(program, f"{flags} --batch_size 16 --output_dir one") == 0
    for out, more in {"two": "--batch_size 8 --num_workers 2", "four": "--batch_size 4 --accum_iter 2"}.items():
        status, said = run_ranks(program, f"{flags} {more} --output_dir {out}")
        assert status == [0, 0], said
        assert said[1] == ""
        assert losses(out) == pytest.approx(losses("one"), rel=2e-5)
        assert_same_weights("one", out, 5e-4)
        if program == M2D:
            assert [line["val_loss"] for line in log_lines(Path(out))] == pytest.approx(
                [line["val_loss"] for line in log_lines(Path("one"))], rel=2e-5
            )
    assert len(losses("one")) == 20 and losses("one")[-1] < 0.9 * losses("one")[0]


def test_statistics_are_measured_once_for_all():
    write_list(clips=16)
    status, said = run_ranks(M2D, f"{LIST} --epochs 1 --output_dir out")
    assert status == [0, 0] and said[0].count("log-mel values") == 1
    (path,) = Path("data").glob("*.stats.json")
    assert path.read_text().count('"mean"') == 1


def test_label_free_figures_and_validation_with_fewer_clips_than_ranks():
    write_list(clips=40)
    write_list("val", clips=1, seed=4)
    flags = f"{LIST} --epochs 1 --feature_eval_freq 1 --csv_val data/files_val.csv"
    status, said = run_ranks(M2D, f"{flags} --output_dir two")
    assert status == [0, 0], said
    (line,) = log_lines(Path("two"))
    assert run(M2D, f"{flags} --batch_size 16 --output_dir one") == 0
    (single,) = log_lines(Path("one"))
    assert line["val_loss"] == pytest.approx(single["val_loss"], rel=1e-5)
    assert line["train_rankme"] == pytest.approx(single["train_rankme"], rel=1e-4)
    assert "val_rankme" not in line


# ---------------------------------------------------------------- errors


def ended_alike(status, said, code, *words):
    """All ranks ended with this exit status; rank 0 said these words, once and without a traceback; the others nothing."""
    assert status == [code] * len(status), said
    for word in words:
        assert word in said[0]
    assert "Traceback" not in "".join(said) and said[1:] == [""] * (len(said) - 1)


def test_an_unreadable_clip_of_one_rank_ends_all_with_its_name():
    write_list(clips=32)
    flags = f"{LIST} --epochs 2 --norm_stats [-8,2] --output_dir out"
    path = Path("data/main_lms/005.npy")
    path.write_bytes(path.read_bytes()[:-9])
    ended_alike(*run_ranks(M2D, flags), 2, "data/files_main.csv row 7: main_lms/005.npy: truncated")


def test_nan_of_one_rank_ends_all_and_names_the_files():
    write_list(clips=32)
    np.save("data/main_lms/005.npy", np.full((1, 80, 40), np.nan, np.float32))
    status, said = run_ranks(M2D, f"{LIST} --epochs 2 --norm_stats [-8,2] --output_dir out")
    ended_alike(status, said, 3, "nan_report.pt", "--bf16", "--blr")
    report = load(Path("out/nan_report.pt"))
    assert len(report["files"]) == 8 and any("main_lms/005.npy" in name for name in report["files"])


def test_refusals_end_all():
    write_list(clips=16)
    ended_alike(*run_ranks(M2D, f"{LIST} --batch_size 9"), 2, "16 samples", "18", "2 processes")
    ended_alike(*run_ranks(M2D, f"{LIST} --model m2d_vit_tny"), 2, "m2d_vit_tiny")
    ended_alike(*run_ranks(M2D, f"{LIST} --resume none.pth"), 2, "none.pth")
    assert run(M2D, f"{LIST} --epochs 1 --output_dir out --batch_size 16") == 0
    ended_alike(*run_ranks(M2D, f"{LIST} --epochs 1 --output_dir out"), 2, "holds a run already", "--auto_resume")
    ended_alike(*run_ranks(M2D, f"{LIST} --epochs 1 --output_dir out --auto_resume --seed 3"), 2, "--seed was 0, is 3")
    Path("file").touch()
    ended_alike(*run_ranks(M2D, f"{LIST} --epochs 1 --output_dir file/x"), 2, "file/x", "cannot be written")


def test_a_dead_process_ends_the_others():
    write_list(clips=16)
    forked = Forked(M2D, f"{LIST} --epochs 100000 --output_dir out", 2)
    forked.wait_until(lambda: "epoch 3/" in forked.said())
    os.kill(forked.ranks[1].pid, signal.SIGKILL)
    status = forked.wait()
    assert status == [75, -signal.SIGKILL]
    assert "rank 1 ended" in forked.said() and "Traceback" not in forked.said()


# ---------------------------------------------------------------- ranks that differ, stop or never come


def test_ranks_with_different_data_settings_or_code_end_before_training(monkeypatch):
    write_list(clips=16)
    other = write_list("other", clips=16, seed=5)
    shorter = Path("data/files_shorter.csv")
    shorter.write_text("\n".join(Path("data/files_main.csv").read_text().splitlines()[:-1]) + "\n")
    same = f"{LIST} --epochs 1 --output_dir out"
    needs = "the ranks of a run need the same data, settings and code"
    for csv in (other, shorter):
        ended_alike(*run_ranks(M2D, [same, f"{same} --csv_main {csv}"]), 2, needs, "--csv_main", "on rank 1")
    ended_alike(*run_ranks(M2D, [same, f"{same} --blr 0.01"]), 2, needs, "--blr is 0.05 on rank 0, 0.01 on rank 1")
    monkeypatch.setattr(agreement, "code_digest", lambda: f"version {os.environ['RANK']}")
    ended_alike(*run_ranks(M2D, same), 2, "the code of m2d is 'version 0' on rank 0, 'version 1' on rank 1")
    assert not Path("out").exists()


def test_ranks_may_have_their_own_paths_and_workers():
    write_list(clips=16)
    paths = ("data", "elsewhere")
    Path(paths[1]).symlink_to(paths[0])
    same = "--epochs 1 --norm_stats [-8,2] --output_dir out"
    own = [
        f"--csv_main {path}/files_main.csv --data_path {path} --num_workers {n}" for n, path in enumerate(("data", "elsewhere"))
    ]
    status, said = run_ranks(M2D, [f"{same} {more}" for more in own])
    assert status == [0, 0], said


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_ends_the_run_and_is_named(stopped):
    """Rank 0 hosts the ranks' store, so that rank 1 hears of nothing any more when it is stopped."""
    write_list(clips=16)
    forked = Forked(M2D, f"{LIST} --epochs 100000 --rank_timeout 0.1 --output_dir out", 2)
    forked.wait_until(lambda: "epoch 3/" in forked.said())
    begin = time.monotonic()
    os.kill(forked.ranks[stopped].pid, signal.SIGSTOP)
    other = forked.ranks[1 - stopped]
    other.join(60)
    os.kill(forked.ranks[stopped].pid, signal.SIGKILL)
    forked.wait()
    assert other.exitcode == 75 and time.monotonic() - begin > 5
    assert f"rank {stopped} did not answer for 0:00:06 (--rank_timeout)" in forked.said(1 - stopped)


def test_a_rank_that_never_comes_is_named():
    store = torch.distributed.HashStore()
    with pytest.raises(RankLostError, match="^ranks 1, 2 did not join within 0:00:00.1"):
        processes._agree_on_prefix(store, 0, 3, timedelta(seconds=0.1))


def test_a_rank_0_that_is_not_reached_is_named(monkeypatch):
    launched = dict(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(RankLostError, match="^rank 0 cannot be reached at 127.0.0.1:"):
        processes.start("cpu", rank_timeout=0.02)


# ---------------------------------------------------------------- programs


def test_torchrun_by_module_and_by_file():
    """The real programs and models, both ways of naming the program at once: by the file two processes, by the module one."""
    write_list(clips=8)
    flags = f"{LIST} --model m2d_vit_tiny --input_size 80x32 --decoder_depth 1 --epochs 1 --device cpu"
    flags += " --min_ds_size 0 --feature_eval_freq 0"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    two, one = ["--nproc_per_node=2", ROOT / "train_audio.py"], ["--nproc_per_node=1", "-m", "train_audio"]
    running = [
        subprocess.Popen([*torchrun, *form, *flags.split(), "--output_dir", out], env=environment(), **PIPED)
        for form, out in (([*one, "--batch_size", "8"], "module"), ([*two, "--batch_size", "4"], "file"))
    ]
    for process, out in zip(running, ("module", "file"), strict=True):
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said
        assert losses(out) == pytest.approx(losses("module"), rel=1e-5)


PIPED = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_torchrun_passes_a_refusal_on():
    write_list(clips=8)
    with launch(M2D, f"{LIST} --batch_size 9", processes=2) as process:
        said, _ = process.communicate(timeout=400)
    assert process.returncode != 0 and said.count("8 samples, fewer than the 18") == 1
    assert command(M2D)[0] == sys.executable


# ---------------------------------------------------------------- the pieces

ALONE = Launch(0, 1, 0, torch.device("cpu"))


LEAVE = (
    "import atexit; from m2d.train.distributed.launch import exit_process; "
    "atexit.register(print, 'taken down'); print('said', end=' '); exit_process(75)"
)


@pytest.mark.parametrize(("variables", "said"), [({}, "said taken down\n"), ({"RANK": "1", "WORLD_SIZE": "2"}, "said ")])
def test_one_of_several_processes_leaves_at_once(variables, said):
    """What was printed is there, and the status; the interpreter is not taken down beside running threads."""
    alone = {name: value for name, value in environment().items() if name not in ("WORLD_SIZE", "SLURM_STEP_ID")}
    done = subprocess.run([sys.executable, "-c", LEAVE], env=alone | variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, said)


def test_one_process_passes_results_and_errors_through():
    assert from_rank0(ALONE, lambda: 3) == run_on_all_ranks(ALONE, lambda: 3) == 3
    for share in (from_rank0, run_on_all_ranks):
        with pytest.raises(KeyError):
            share(ALONE, lambda: {}["x"])
    assert list(lockstep([1, 2])) == [1, 2]


def test_lockstep_turns_errors_of_reading_into_one_kind():
    def items():
        yield 1
        raise FileNotFoundError("row 3: gone")

    received = lockstep(items())
    assert next(received) == 1
    with pytest.raises(ReadError, match="^row 3: gone$"):
        next(received)


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, (0, 1, 0)),
        (dict(RANK="3", WORLD_SIZE="8", LOCAL_RANK="1"), (3, 8, 1)),
        (dict(SLURM_PROCID="0", SLURM_NTASKS="8", SLURM_JOB_ID="7"), (0, 1, 0)),  # a plain python in a batch script
        (dict(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_STEP_ID="0"), (0, 1, 0)),
        (dict(SLURM_PROCID="5", SLURM_NTASKS="8", SLURM_STEP_ID="0", SLURM_LOCALID="1", MASTER_ADDR="n1"), (5, 8, 1)),
    ],
)
def test_who_launched_us(variables, ranks, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes._ranks() == ranks


def test_srun_without_an_address(monkeypatch):
    for name, value in dict(SLURM_PROCID="5", SLURM_NTASKS="8", SLURM_STEP_ID="0").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="MASTER_ADDR"):
        processes.start("cpu")


def test_tasks_of_srun_count_where_flags_need_or_refuse_several_processes(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in dict(SLURM_PROCID="0", SLURM_NTASKS="2", SLURM_STEP_ID="0").items():
        monkeypatch.setenv(name, value)
    write_list()
    settings = settings_of(M2D, flags_of(M2D, f"{LIST} --fsdp"))
    check(settings, program_of(M2D).families)
    monkeypatch.delenv("SLURM_STEP_ID")
    with pytest.raises(UserError, match="torchrun"):
        check(settings, program_of(M2D).families)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_devices():
    assert processes._device("cpu", 0).type == processes._device("cuda", 0).type == processes._device("cuda:1", 0).type == "cpu"
    for wanted in ("tpu", "gpu0", ""):
        with pytest.raises(UserError, match="cuda, mps, cpu"):
            processes._device(wanted, 0)
