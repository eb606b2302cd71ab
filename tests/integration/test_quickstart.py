"""quickstart.sh on a shrunken setting, with the interpreter of the tests in place of an installation; util/setup_venv.sh."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile

from m2d.inference.runtime import RuntimeM2D

ROOT = Path(__file__).resolve().parents[2]


def run(script: Path, *args: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "M2D_PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", str(script), *args], env=env, capture_output=True, text=True)


def quickstart(folder: Path, *args: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {"QUICKSTART_DIR": str(folder), "QUICKSTART_EPOCHS": "1", "QUICKSTART_CLIPS": "12", **environment}
    return run(ROOT / "quickstart.sh", *args, **settings)


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "samples-12" / "audio.part").mkdir(parents=True)  # what a run leaves that was killed while it made sounds
    result = quickstart(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "samples-12", result.stdout


def test_sample_set_becomes_an_encoder(sample_run):
    work, said = sample_run
    checkpoints = list(work.glob("run-*/checkpoint-1.pth"))
    assert len(checkpoints) == 1
    assert f"--weights {checkpoints[0]} tiny" in said
    runtime = RuntimeM2D(weight_file=checkpoints[0])
    assert runtime.cfg.model == "mae_vit_mini"
    assert len(list((work / "lms").rglob("*.npy"))) == 120


def test_says_what_was_learned_in_a_line_each_and_a_picture(sample_run):
    work, said = sample_run
    probes = [line for line in said.splitlines() if line.startswith("linear probe on held-out clips:")]
    assert [line.split("%")[1].strip() for line in probes] == [
        "trained encoder",
        "same encoder, untrained",
        "mean and deviation of the log-mel",
    ]
    assert all(0 <= float(line.split(":")[1].split("%")[0]) <= 100 for line in probes)
    picture = matplotlib.image.imread(work / "learned.png")
    assert picture.shape[0] > 400 and picture.shape[1] > 800
    assert picture[..., :3].std() > 0.1


def test_second_run_trains_nothing_and_shows_the_same(sample_run):
    work, said = sample_run
    checkpoint = next(work.glob("run-*/checkpoint-1.pth"))
    written = checkpoint.stat().st_mtime_ns
    result = quickstart(work.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    assert checkpoint.stat().st_mtime_ns == written
    assert [line for line in result.stdout.splitlines() if "probe" in line] == [
        line for line in said.splitlines() if "probe" in line
    ]


def test_own_recordings_of_several_formats(tmp_path):
    audio = tmp_path / "my recordings" / "2024"
    audio.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(["a.wav", "b.FLAC", "c.ogg", "d e.mp3"]):
        soundfile.write(audio / name, 0.1 * rng.standard_normal((4000 * (i + 1), 2)), 22050, format=name.split(".")[1].upper())
    (audio / "broken.wav").write_bytes(b"RIFF")
    result = quickstart(tmp_path / "out", str(audio.parent))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "broken.wav" in result.stdout + result.stderr
    assert "linear probe" not in result.stdout
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 4
    assert len(list((tmp_path / "out").rglob("learned.png"))) == 1
    runtime = RuntimeM2D(weight_file=next((tmp_path / "out").rglob("checkpoint-1.pth")))
    assert runtime.cfg.model == "m2d_x_vit_mini"
    assert "began as the encoder tiny" in result.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "nowhere is not a folder"),
        ([str(ROOT / "docs")], "holds no audio file"),
        (["a", "b"], "one folder at most"),
    ],
)
def test_wrong_folder_is_said_before_anything_is_made(tmp_path, args, said):
    result = quickstart(tmp_path / "out", *args)
    assert result.returncode == 2
    assert said in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_help():
    result = run(ROOT / "quickstart.sh", "--help")
    assert result.returncode == 0
    assert "bash quickstart.sh AUDIO_DIR" in result.stdout


# ---------------------------------------------------------------- util/setup_venv.sh

FAKE_PYTHON = """#!/usr/bin/env bash
[ "$1" = -I ] && shift
case "$*" in
  *'sys.exit(sys.version_info'*) exit "${FAKE_TOO_OLD:-0}" ;;
  *'sys.version_info'*) echo 3.8.10 ;;
  '-m venv '*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
  '-m pip install '*) echo "$*" >>"$FAKE_LOG"; exit "${FAKE_PIP_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    """A copy of what setup_venv reads, with a Python on the path that only notes what it is asked to do."""
    (tmp_path / "util").mkdir()
    (tmp_path / "util" / "setup_venv.sh").write_text((ROOT / "util" / "setup_venv.sh").read_text())
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    (tmp_path / "go.sh").write_text(
        'set -euo pipefail\nsource "$(dirname "$0")/util/setup_venv.sh"\nsetup_venv "$@"\necho "$PYTHON"\n'
    )
    (tmp_path / "bin").mkdir()
    for name in ("python", "python3", *(f"python3.{minor}" for minor in range(10, 16))):
        (tmp_path / "bin" / name).write_text(FAKE_PYTHON)
        (tmp_path / "bin" / name).chmod(0o755)

    def go(*args: str, **environment: str) -> subprocess.CompletedProcess:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return run(tmp_path / "go.sh", *args, M2D_PYTHON="", PATH=path, FAKE_LOG=str(tmp_path / "log"), **environment)

    return tmp_path, go


def installs(project: Path) -> list[str]:
    log = project / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_installs_once(project):
    folder, go = project
    first = go()
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == str(folder / ".venv/bin/python")
    assert installs(folder) == ["-m pip install --quiet --disable-pip-version-check -e .[train] -c constraints.txt"]
    again = go()
    assert again.returncode == 0 and again.stdout.splitlines() == first.stdout.splitlines()[-1:]
    assert len(installs(folder)) == 1


def test_installs_again_when_the_pins_change_or_the_folder_moves(project):
    folder, go = project
    go()
    (folder / "constraints.txt").write_text("other pins")
    go()
    assert len(installs(folder)) == 2


def test_an_installation_with_extras_serves_those_who_need_none(project):
    folder, go = project
    go("test")
    assert any("-e .[test] -c constraints.txt" in line for line in installs(folder))
    assert "--no-deps hearvalidator" in installs(folder)[-1]  # never with TensorFlow
    count = len(installs(folder))
    go()
    assert len(installs(folder)) == count
    go("speech")
    assert len(installs(folder)) > count


def test_a_failed_installation_is_tried_again(project):
    folder, go = project
    failed = go(FAKE_PIP_STATUS="1")
    assert failed.returncode == 2 and "the installation failed" in failed.stderr
    assert len(installs(folder)) == 1
    assert go().returncode == 0
    assert len(installs(folder)) == 2


def test_python_too_old_is_named(project):
    folder, go = project
    result = go(FAKE_TOO_OLD="1")
    assert result.returncode == 2
    assert result.stderr == "go.sh: error: Python 3.10 or later is needed; 3.8.10 was found here\n"
    assert not (folder / ".venv").exists()


def test_a_named_interpreter_is_used_as_it_is(project):
    folder, go = project
    result = run(folder / "go.sh", M2D_PYTHON="/some/python")
    assert result.stdout == "/some/python\n"
    assert not (folder / ".venv").exists()
