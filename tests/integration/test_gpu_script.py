"""benchmarks/gpu.sh on the CPU: every part runs, and one that fails costs the others nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu_sh(tmp_path):
    """Run the script with some arguments: its result, and the table that it prints."""

    def run(*arguments: object) -> tuple[int, list[str]]:
        environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        command = ["bash", ROOT / "benchmarks/gpu.sh", "--device", "cpu", "--quick", "--out", tmp_path / "out", *arguments]
        done = subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines()

    return run


@pytest.mark.timeout(1800)
def test_every_part_runs(gpu_sh, tmp_path):
    status, table = gpu_sh()
    assert status == 0, table
    parts = {path.stem for path in (tmp_path / "out").glob("*.txt")} - {"table"}
    assert parts == {"step", "embedding", "run_from_pack", "embed_files"}
    for words in ("plain |", "fast |", "ours, bfloat16 |", "data-wait", "m2d embed"):
        assert any(words in row for row in table), words


def test_a_part_that_fails_is_named(gpu_sh, tmp_path):
    status, table = gpu_sh("--published", tmp_path, "published")
    assert status == 1
    assert table == [f"| published | failed with status 1: {tmp_path}/out/published.txt |"]
    assert "has no m2d/models_mae.py" in (tmp_path / "out/published.txt").read_text()


@pytest.mark.parametrize(
    "arguments", [["--quik"], ["--device"], ["--device", "gpu"], ["no_such_part"]], ids=["flag", "value", "device", "part"]
)
def test_what_is_not_there(gpu_sh, arguments):
    assert gpu_sh(*arguments) == (2, [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_without_a_gpu_nothing_runs(gpu_sh, tmp_path):
    assert gpu_sh("--device", "cuda") == (2, [])
    assert not (tmp_path / "out").exists()
