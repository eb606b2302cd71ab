"""A release: version, source archive and wheel hold what they should, and the wheel runs where there is no clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from checkpoint_files import semantic_tensors, write_checkpoint, write_clap
from text_models import bert_folder

import m2d

ROOT = Path(__file__).resolve().parents[2]
#: What is installed with m2d-audio[train] alone.
TRAINING_PACKAGES = ("matplotlib", "pandas", "pyarrow", "sklearn", "tensorboard")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the source archive and the wheel built from it, of a copy of the sources, with what is installed here."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT / "m2d", folder / "m2d", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("util", "audioset", "speech", "app", "examples"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE", "train_audio.py", "wav_to_lms.py", "examples/portable_m2d.py"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation"], cwd=folder, check=True, capture_output=True)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
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
    assert scripts.split() == "[console_scripts] m2d = m2d.cli.main:main m2d-audio = m2d.cli.main:main".split()
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "m2d").rglob("*") if path.suffix in (".py", ".css", ".js")}
    assert sources | {"m2d/py.typed"} == {name for name in names if name.startswith("m2d/")}


def test_the_source_archive_holds_the_package_alone(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as file:
        members = [member for member in file if not member.isdir()]
    names = {member.name.partition("/")[2] for member in members}
    sources = {source.relative_to(ROOT).as_posix() for source in (ROOT / "m2d").rglob("*.py")}
    assert all(member.isfile() for member in members) and sources | {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert {name.split("/")[0] for name in names if "/" in name} == {"m2d", "m2d_audio.egg-info"}


def test_the_index_would_take_both(dist):
    """Metadata are complete, and the description renders."""
    command = [sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout


def test_there_is_one_version(wheel):
    assert wheel.name == f"m2d_audio-{m2d.__version__}-py3-none-any.whl"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == m2d.__version__
    assert f"## {m2d.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_its_command_helps(installed):
    folder, run = installed
    done = run("m2d", "--help")
    assert done.returncode == 0 and "embed" in done.stdout
    assert run("m2d-audio", "--help").stdout == done.stdout
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


def test_it_exports_without_the_packages_of_training(installed):
    folder, run = installed
    weights = write_checkpoint(folder / "more")
    done = run("m2d", "export", str(weights), "shared", "--to", "hf")
    assert done.returncode == 0, done.stderr
    assert "class AudioModel" in (folder / "shared/modeling_m2d.py").read_text()


@pytest.fixture
def elsewhere(tmp_path):
    """A folder outside of the clone with weights, a text encoder and a sound; what is installed there (gigabytes) is removed."""
    write_checkpoint(tmp_path).rename(tmp_path / "m2d_vit_tiny-80x208p16x16.pth")
    write_clap(tmp_path, semantic_tensors(192)).rename(tmp_path / "m2d_clap_vit_tiny-80x64p16x16p16k.pth")
    bert_folder(tmp_path / "bert", width=192, heads=3)
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(16000) * 0.2), 16000)
    yield tmp_path
    shutil.rmtree(tmp_path / "env", ignore_errors=True)


def run_outside(folder, *command):
    """Run a command there as a user would who has never seen the clone; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def interpreter(version):
    """A Python of this version that runs (a shim of pyenv on the path may not); None: there is none."""
    found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    return next((each for each in found if each and subprocess.run([each, "-c", ""], capture_output=True).returncode == 0), None)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_an_empty_environment(version, wheel, elsewhere):
    """With all that the wheel asks for, from the package index: embedding, classes by their names, both kinds of export."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version}")
    run_outside(elsewhere, python, "-m", "venv", "env")
    run_outside(elsewhere, "env/bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[clap,hf,onnx]")
    for arguments in (
        "embed tone.wav --weights m2d_vit_tiny-80x208p16x16.pth --out e.npz --device cpu",
        "export m2d_vit_tiny-80x208p16x16.pth shared --to hf",
        "export shared model.onnx --to onnx",
        "embed tone.wav --weights shared --out shared.npz --device cpu",
    ):
        run_outside(elsewhere, "env/bin/m2d-audio", *arguments.split())
    ours, theirs = (np.load(elsewhere / name)["embeddings"] for name in ("e.npz", "shared.npz"))
    assert ours.shape == (1, 960) and np.array_equal(ours, theirs)
    clap = "zeroshot tone.wav --weights m2d_clap_vit_tiny-80x64p16x16p16k.pth --text_encoder bert --device cpu --classes dog,rain"
    assert sorted(line.split()[1] for line in run_outside(elsewhere, "env/bin/m2d-audio", *clap.split()).splitlines()[1:]) == [
        "dog",
        "rain",
    ]
