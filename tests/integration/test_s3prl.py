"""The real s3prl of PyPI with M2D as an upstream, and the compatibility file that it needs with later releases."""

import importlib.util
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from checkpoint_files import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compat():
    """The module, loaded under a name of its own: it adds to torchaudio and huggingface_hub what they lack."""
    spec = importlib.util.spec_from_file_location("m2d_compat", ROOT / "superb" / "upstream" / "m2d" / "compat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_s3prl_imports_is_there(compat):
    from huggingface_hub import HfApi, HfFolder, Repository
    from torchaudio import info, load, save, set_audio_backend
    from torchaudio.sox_effects import apply_effects_file, apply_effects_tensor

    assert all((HfApi, info, load, save, apply_effects_file, apply_effects_tensor))
    assert set_audio_backend("sox_io") is None
    if HfFolder is compat._Removed:
        with pytest.raises(NotImplementedError, match="huggingface_hub below 1.0"):
            Repository("x")


def test_files_and_effects(compat, tmp_path):
    stereo = 0.3 * np.random.RandomState(0).standard_normal((44100, 2)).clip(-1, 1).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", stereo, 44100, subtype="FLOAT")
    audio, rate = compat.load(tmp_path / "x.wav")
    assert rate == 44100 and np.array_equal(audio, stereo.T)
    part, _ = compat.load(tmp_path / "x.wav", 100, 50)
    assert np.array_equal(part, stereo[100:150].T)
    found = compat.info(tmp_path / "x.wav")
    assert (found.num_frames, found.num_channels, found.sample_rate) == (44100, 2, 44100)
    compat.save(tmp_path / "y.wav", audio, 44100)
    np.testing.assert_allclose(compat.load(tmp_path / "y.wav")[0], audio, atol=2**-15)
    effects = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]  # of s3prl's keyword spotting
    changed, rate = compat.apply_effects_file(str(tmp_path / "x.wav"), effects)
    assert changed.shape == (1, 16000) and rate == 16000
    louder, _ = compat.apply_effects_tensor(audio, 44100, [["channels", "1"], ["gain", "6.0206"]])
    torch.testing.assert_close(louder, 2 * audio.mean(dim=0, keepdim=True), rtol=1e-4, atol=1e-5)
    with pytest.raises(NotImplementedError, match="the effect silence 1 0.1 needs SoX"):
        compat.apply_effects_tensor(audio, 44100, [["silence", "1", "0.1"]])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_s3prl_of_pypi_trains_and_evaluates(tmp_path):
    """In an environment of its own that sees this one's packages; skipped where PyPI cannot be reached."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}))
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib"))
    wanted = ["s3prl==0.4.18", "tensorboardX", "omegaconf", "antlr4-python3-runtime==4.9.*"]
    installed = subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *wanted], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"s3prl cannot be installed: {installed.stderr[-200:]}")
    subprocess.run(["bash", ROOT / "superb" / "setup_s3prl.sh", packages], check=True)
    config = yaml.safe_load((ROOT / "superb" / "example.yaml").read_text())
    config["runner"] |= {"total_steps": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint = write_checkpoint(tmp_path / "weights", patch=(80, 16))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}

    def run(*arguments):
        command = [python, "run_downstream.py", "--device", "cpu", *map(str, arguments)]
        done = subprocess.run(command, cwd=packages / "s3prl", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    flags = ["-u", "m2d", "-k", f"{checkpoint},-10,4", "-d", "example", "-c", tmp_path / "config.yaml"]
    run("-m", "train", "-p", tmp_path / "run", *flags)
    assert "Loading Downstream weights" in run("-m", "evaluate", "-t", "dev", "-e", tmp_path / "run" / "dev-best.ckpt")
