"""The profile of a training step: its phases, on real settings and data."""

import json

import pytest
from small_runs import flags_of, small_builders, write_list

from m2d.cli import profile as profile_step
from m2d.models import registry as models_mae


@pytest.fixture
def flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models_mae, "BUILDERS", small_builders())
    monkeypatch.setattr(profile_step.nn.utils, "clip_grad_norm_", profile_step.nn.utils.clip_grad_norm_)
    return flags_of("train_audio", f"--csv_main {write_list()} --batch_size 4")


def test_it_names_every_phase_and_writes_a_trace(flags, tmp_path, capsys):
    profile_step.profile_run(["m2d", *flags, "--steps", "2", "--trace", "trace.json"])
    table = capsys.readouterr().out
    for phase in ("online encoder", "predictor", "target encoder", "optimizer", "EMA", "gradient clipping", "waiting for data"):
        line = next(line for line in table.splitlines() if line.startswith(phase))
        assert float(line.split()[-1]) > 0
    assert "aten::" in table
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert "phase: predictor" in names


def test_a_trace_that_cannot_be_written_is_refused_before_the_work(flags, tmp_path):
    csv = flags[flags.index("--csv_main") + 1]
    with pytest.raises(ValueError, match="is an input"):
        profile_step.profile_run([*flags, "--trace", csv])
    with pytest.raises(ValueError, match=r"trace\.json cannot be written: .* is not a folder"):
        profile_step.profile_run([*flags, "--trace", f"{csv}/trace.json"])


def test_too_few_steps_are_said(flags):
    with pytest.raises(ValueError, match="lower --batch_size"):
        profile_step.profile_run([*flags, "--batch_size", "16"])
