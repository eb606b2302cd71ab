"""The Dockerfile: its steps fit the project, and run one by one without Docker."""

import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from checkpoint_files import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGE_BYTES = 135e6  # python:3.11-slim-bookworm, unpacked


def steps(target: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of an image, those of the stages that it builds on first."""
    stages: dict[str, list[tuple[str, str]]] = {}
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            base, _, name = arguments.split()
            stages[name] = current = list(stages.get(base, ()))
        else:
            current.append((instruction, arguments))
    return stages[target]


def run_steps(target: str) -> tuple[list[str], list[str]]:
    """The commands of an image that install Debian's packages, and the others."""
    runs = [arguments for instruction, arguments in steps(target) if instruction == "RUN"]
    return [run for run in runs if run.startswith("apt-get ")], [run for run in runs if not run.startswith("apt-get ")]


@pytest.fixture(scope="module")
def extras():
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = ", section, re.M))


@pytest.mark.parametrize("target", ["embed", "train"])
def test_its_steps_fit_the_project(target, extras):
    packages, runs = run_steps(target)
    assert runs and all("pip install" in run and "-c constraints.txt" in run for run in runs)  # the pinned versions alone
    # Triton, which comes with torch for CUDA, needs a compiler.
    assert ["g++" in run.split() for run in packages] == ([True] if target == "train" else [])
    assert steps(target)[-1] == ("ENTRYPOINT", '["m2d"]')
    (asked,) = re.findall(r'"\.\[(.*)\]"', " ".join(runs))
    assert set(asked.split(",")) <= extras
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [arguments.split()[:-1] for instruction, arguments in steps(target) if instruction == "COPY"]
    assert sorted(sum(copied, [])) == sorted(sent) and all((ROOT / name).exists() for name in sent)


def copy(arguments: str, folder: Path) -> None:
    """COPY, as Docker does it: links inside of the copied tree stay links."""
    *sources, dest = arguments.split()
    for source in map(ROOT.joinpath, sources):
        if source.is_dir():
            shutil.copytree(source, folder / dest, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target = folder / dest / source.name if dest.endswith("/") else folder / dest
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", ["embed", "train"])
def test_its_steps_run(target, tmp_path):
    """In a virtual environment in place of an image. M2D_TORCH_INDEX: another index with PyTorch for the CPU."""
    folder, env = tmp_path / "m2d", tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", env], check=True)
    empty = size(env)
    values = {"PATH": f"{env / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for instruction, arguments in steps(target):
        if instruction == "ENV":
            values |= dict(word.split("=", 1) for word in shlex.split(arguments))
        elif instruction == "ARG":
            name, _, default = arguments.partition("=")
            values[name] = os.environ.get(f"M2D_{name}", default)
            try:
                urllib.request.urlopen(values[name], timeout=20).close()
            except urllib.error.URLError as error:
                pytest.skip(f"{values[name]} is not reached: {error.reason}")
        elif instruction == "COPY":
            copy(arguments, folder)
        elif instruction == "RUN" and arguments in run_steps(target)[1]:
            words = [string.Template(word).substitute(values) for word in shlex.split(arguments)]
            subprocess.run(words, cwd=folder, env=values, check=True)
    if target == "embed":
        assert size(env) - empty + BASE_IMAGE_BYTES < 1.2e9
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(16000) * 0.2), 16000)
    command = [env / "bin/m2d", "embed", "tone.wav", "--weights", write_checkpoint(tmp_path), "--out", "e.npz", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=values, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "e.npz")["embeddings"].shape == (1, 960)


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
