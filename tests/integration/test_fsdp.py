"""--fsdp: the same run, its weights sharded across two processes; checkpoints in the one layout either way."""

from pathlib import Path

import pytest
import torch
from small_runs import digest, launch, load, log_lines, step_losses, write_list

SETTINGS = "--epochs 3 --batch_size 4 --accum_iter 2 --save_freq 1 --feature_eval_freq 1"


@pytest.fixture
def lists(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"--csv_main {write_list(clips=40)} --csv_val {write_list('val', clips=33, seed=1)}"


def losses_of(flags: str) -> list[float]:
    """Printed losses of a run of two processes."""
    process = launch("train_audio", f"{SETTINGS} {flags}", processes=2)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    return [float(loss) for loss in step_losses(output)]


def test_a_sharded_run_is_the_run(lists):
    whole = losses_of(f"{lists} --output_dir whole")
    assert losses_of(f"{lists} --output_dir sharded --fsdp") == pytest.approx(whole, abs=2e-4)
    for ours, theirs in zip(log_lines(Path("sharded")), log_lines(Path("whole")), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-4)
    sharded, plain = load(Path("sharded/checkpoint-3.pth")), load(Path("whole/checkpoint-3.pth"))
    assert sharded.keys() == plain.keys()
    for name, tensor in plain["model"].items():
        torch.testing.assert_close(sharded["model"][name], tensor, rtol=1e-3, atol=1e-4)
    for number, moments in plain["optimizer"]["state"].items():
        for key, value in moments.items():
            assert sharded["optimizer"]["state"][number][key].shape == value.shape


@pytest.mark.slow
def test_sharded_and_plain_runs_go_on_from_each_others_checkpoints(lists):
    whole = losses_of(f"{lists} --output_dir whole --fsdp")
    first = losses_of(f"{lists} --output_dir parts --fsdp --stop_at 1")
    second = losses_of(f"{lists} --output_dir parts --stop_at 2 --auto_resume")
    third = losses_of(f"{lists} --output_dir parts --fsdp --auto_resume")
    assert first + second + third == pytest.approx(whole, abs=2e-4)
    assert digest(Path("parts/checkpoint-1.pth")) == digest(Path("whole/checkpoint-1.pth"))
