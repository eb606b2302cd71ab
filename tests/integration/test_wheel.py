"""The wheel: the package and the command m2d, nothing else, and they run where there is no clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from checkpoint_files import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
#: What is installed with m2d-audio[train] alone.
TRAINING_PACKAGES = ("matplotlib", "pandas", "pyarrow", "sklearn", "tensorboard")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources, with what is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "m2d", folder / "m2d", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("util", "audioset", "speech", "app", "examples"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE", "train_audio.py", "wav_to_lms.py"):
        shutil.copy(ROOT / name, folder)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run(pip, cwd=folder, check=True, capture_output=True)
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a command of an environment that holds the wheel; its dependencies are those of this one, without [train]."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "env/bin/python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    subprocess.run(pip, check=True, capture_output=True)
    # Behind the environment's own packages. Files .pth are not read there, so an editable m2d is not seen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({TRAINING_PACKAGES}))\n")

    def run(*command):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        program = [folder / "env/bin" / command[0], *command[1:]]
        return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)

    return folder, run


def test_it_holds_the_package_and_the_command_alone(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        scripts = file.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"m2d", "m2d_audio"}
    assert scripts.split() == ["[console_scripts]", "m2d", "=", "m2d.cli.main:main"]
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "m2d").rglob("*") if path.suffix in (".py", ".css", ".js")}
    assert sources | {"m2d/py.typed"} == {name for name in names if name.startswith("m2d/")}


def test_its_command_helps(installed):
    folder, run = installed
    done = run("m2d", "--help")
    assert done.returncode == 0 and "embed" in done.stdout
    assert run("python", "-m", "m2d").stdout == done.stdout


def test_the_runtime_can_be_imported(installed):
    folder, run = installed
    done = run("python", "-c", "import m2d.runtime_audio as runtime; print(runtime.RuntimeM2D.__name__, runtime.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "RuntimeM2D" and Path(done.stdout.split()[1]).is_relative_to(folder)


def test_it_embeds_without_the_packages_of_training(installed):
    folder, run = installed
    weights = write_checkpoint(folder)
    soundfile.write(folder / "tone.wav", np.sin(np.arange(16000) * 0.2), 16000)
    done = run("m2d", "embed", "tone.wav", "--weights", str(weights), "--out", "e.npz", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert np.load(folder / "e.npz")["embeddings"].shape == (1, 192 * 5)


def test_training_names_what_it_needs(installed):
    _, run = installed
    done = run("m2d", "train", "--help")
    assert done.returncode == 2
    assert done.stderr.endswith("is not installed: pip install 'm2d-audio[train]'\n") and done.stderr.count("\n") == 1
