"""M2D as an upstream of s3prl: laid out and imported as s3prl does it, with a stand-in for s3prl itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import mlp_tensors, write_clap
from torch.nn.utils.rnn import pad_sequence

from m2d.inference.runtime import RuntimeM2D
from m2d.models import registry as models_mae

ROOT = Path(__file__).resolve().parents[2]
INTERFACES = '''
import torch

class UpstreamBase(torch.nn.Module):
    """What s3prl's UpstreamBase does where no hooks are set."""

    def __init__(self, hooks=None, hook_postprocess=None, **kwargs):
        super().__init__()

    def __call__(self, wavs, *args, **kwargs):
        result = super().__call__(wavs, *args, **kwargs) or {}
        assert isinstance(result, dict)
        return {**result, **{f"hidden_state_{i}": x for i, x in enumerate(result["hidden_states"])}}
'''
PROGRAM = """
import json, sys
import numpy as np, torch
import s3prl.hub as hub

assert not any(path == sys.argv[1] for path in sys.path) and "m2d" not in sys.modules
ckpt, out = sys.argv[2:4]
wavs = [torch.from_numpy(wav) for wav in np.load(out + "/wavs.npz").values()]
for name, upstream in {
    "m2d": hub.m2d(ckpt=f"{ckpt},-9.5,3.5", model_config=None, refresh=False),
    "m2d_local": hub.m2d_local(ckpt=ckpt, model_config=None, refresh=False),
}.items():
    upstream.eval()
    with torch.no_grad():
        result = upstream(wavs)
    assert all(torch.equal(x, result[f"hidden_state_{i}"]) for i, x in enumerate(result["hidden_states"]))
    np.savez(f"{out}/{name}.npz", *[x.numpy() for x in result["hidden_states"]], last=result["last_hidden_state"].numpy())
    key = "hidden_states"
    facts = dict(dim=upstream.get_output_dim(), rate=upstream.get_downsample_rates(key), module=type(upstream.model).__module__)
    json.dump(facts, open(f"{out}/{name}.json", "w"))
calc = hub.m2d_calcnorm(ckpt=ckpt)
calc.batches = 3
for i in range(10):
    batch = wavs[i % len(wavs):][:2]
    calc(batch)
    print("batch", i)
"""


@pytest.fixture(scope="module")
def s3prl(tmp_path_factory) -> Path:
    """s3prl's layout, with M2D set up in it."""
    repository = tmp_path_factory.mktemp("my s3prl")
    package = repository / "s3prl"
    other = package / "upstream" / "other"
    other.mkdir(parents=True)
    for folder in (package, package / "upstream", other):
        (folder / "__init__.py").touch()
    (other / "hubconf.py").write_text("def other(*args, **kwargs):\n    return None\n")
    (package / "upstream" / "interfaces.py").write_text(INTERFACES)
    (package / "hub.py").write_text("from s3prl.upstream.other.hubconf import *")
    setup(repository)
    return repository


def setup(repository: Path) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(ROOT / "superb/setup_s3prl.sh"), str(repository)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "m2d_s_vit_tiny-80x64p80x4-230220, old"
    folder.mkdir()
    torch.manual_seed(0)
    model = models_mae.__dict__["m2d_s_vit_tiny"](img_size=(80, 64), patch_size=(80, 4), norm_stats=[-7.5, 4.5])
    torch.save({"model": model.state_dict()}, folder / "checkpoint-1000.pth")
    return folder / "checkpoint-1000.pth"


@pytest.fixture(scope="module")
def result(s3prl, checkpoint, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """What a program that uses s3prl's hub wrote, the project's folder not being on its path."""
    out = tmp_path_factory.mktemp("out")
    rng = np.random.default_rng(0)
    np.savez(out / "wavs.npz", *[(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (16_000, 9_000, 23_457)])
    environment = {**os.environ, "PYTHONPATH": str(s3prl), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(checkpoint), str(out)]
    return out, subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)


def wavs_of(out: Path) -> list[torch.Tensor]:
    with np.load(out / "wavs.npz") as file:
        return [torch.from_numpy(file[name]) for name in file.files]


def test_features_are_the_runtimes_of_padded_normalised_waveforms(result, checkpoint):
    out, done = result
    assert done.returncode == 0, done.stderr
    runtime = RuntimeM2D(weight_file=checkpoint)
    batch = pad_sequence(wavs_of(out), batch_first=True)
    assert batch.shape == (3, 23_457)
    for name, (mean, std) in {"m2d": (-9.5, 3.5), "m2d_local": (-7.5, 4.5)}.items():
        with torch.no_grad():
            expected = runtime.encode_lms((runtime.to_feature(batch) - mean) / std, return_layers=True)
        with np.load(out / f"{name}.npz") as got:
            layers = [got[f"arr_{i}"] for i in range(len(expected))]
            assert len(got.files) == len(expected) + 1 == 13
            np.testing.assert_array_equal(got["last"], layers[-1])
        for layer, wanted in zip(layers, expected, strict=True):
            np.testing.assert_allclose(layer, wanted.numpy(), rtol=1e-4, atol=1e-4)
        facts = json.loads((out / f"{name}.json").read_text())
        assert facts == {"dim": 192, "rate": 640, "module": "s3prl.upstream.m2d.m2d.m2d.inference.runtime"}
        # s3prl accepts features whose length is within 5 steps of that of the waveform.
        assert abs(layers[-1].shape[1] - round(23_457 / 640)) <= 1


def test_calcnorm_prints_the_statistics_and_stops(result, checkpoint):
    out, done = result
    lines = done.stdout.splitlines()
    assert lines[:2] == ["batch 0", "batch 1"] and len(lines) == 3
    runtime, wavs = RuntimeM2D(weight_file=checkpoint), wavs_of(out)
    values = torch.cat([runtime.to_feature(pad_sequence(wavs[i:][:2], batch_first=True)).flatten() for i in (0, 1, 2)]).double()
    words = lines[2].replace(",", "").split()
    mean, std = float(words[words.index("mean") + 1]), float(words[words.index("std") + 1])
    assert mean == pytest.approx(values.mean().item(), abs=1e-5) and std == pytest.approx(values.std().item(), rel=1e-5)
    assert "over 3 batches" in lines[2]


@pytest.fixture
def hub(s3prl, monkeypatch):
    monkeypatch.syspath_prepend(str(s3prl))
    for name in [name for name in sys.modules if name.split(".")[0] == "s3prl"]:
        monkeypatch.delitem(sys.modules, name)
    import s3prl.hub

    yield s3prl.hub
    for name in [name for name in sys.modules if name.split(".")[0] == "s3prl"]:
        del sys.modules[name]


def test_what_users_get_wrong_is_named(hub, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="CHECKPOINT,MEAN,STD"):
        hub.m2d(ckpt=str(checkpoint))
    with pytest.raises(ValueError, match="feature_d is 3840, but .* width 192"):
        hub.m2d_local(ckpt=str(checkpoint), feature_d=3840)
    with pytest.raises(ValueError, match="together"):
        hub.m2d_local(ckpt=str(checkpoint), norm_mean=-7.0)
    with pytest.raises(FileNotFoundError):
        hub.m2d_local(ckpt=str(tmp_path / "m2d_vit_tiny-80x64p80x4/none.pth"))
    with pytest.raises(ValueError, match="32000 Hz"):
        hub.m2d_local(ckpt="m2d_vit_tiny-80x64p80x4p32k-random")


def test_the_published_constructor(hub, checkpoint):
    from s3prl.upstream.m2d.expert import UpstreamExpert

    expert = UpstreamExpert(str(checkpoint), None, 192, norm_mean=-10.0, norm_std=4.0)
    assert (expert.model.cfg.mean, expert.model.cfg.std) == (-10.0, 4.0)
    assert expert.get_output_dim() == 192 and expert.get_downsample_rates("last_hidden_state") == 640


@pytest.mark.parametrize("prefix, text", [("", None), ("backbone.", {"embeddings.word_embeddings.weight": torch.randn(9, 32)})])
@torch.no_grad()
def test_the_encoder_of_m2d_clap(hub, tmp_path, prefix, text):
    """The layouts of 2024 and 2025; what belongs to captions makes no difference, and is not among the features."""
    projectors = mlp_tensors(192) | {"text_proj.weight": torch.randn(192, 32), "text_proj.bias": torch.randn(192)}
    clap = write_clap(tmp_path, projectors, prefix=prefix, text=text, size=(80, 64))
    state = {name.removeprefix(prefix): tensor for name, tensor in torch.load(clap, weights_only=False)["model"].items()}
    plain = models_mae.build("m2d_vit_tiny_encoder_only", img_size=(80, 64), patch_size=(16, 16), norm_stats=(-6.5, 3.5))
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    upstream = hub.m2d(ckpt=f"{clap},-9.5,3.5").eval()
    wavs = [0.1 * torch.randn(samples) for samples in (20_320, 9_000)]  # 128 frames
    found = upstream(wavs)["hidden_states"]
    assert upstream.get_output_dim() == 5 * 192 and upstream.get_downsample_rates("hidden_states") == 2560

    spectrograms = (upstream.model.to_feature(pad_sequence(wavs, batch_first=True)) + 9.5) / 3.5
    layers = zip(*(plain.forward_encoder(x, 0, return_layers=True)[0] for x in spectrograms.split(64, dim=-1)), strict=True)
    expected = [torch.cat([part[:, 1:].unflatten(1, (5, 4)).transpose(1, 2).flatten(2) for part in layer], 1) for layer in layers]
    assert len(found) == len(expected) == 12
    for layer, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(layer, wanted, rtol=1e-4, atol=1e-4)


def test_calcnorm_measures_10000_batches(hub, checkpoint):
    calc = hub.m2d_calcnorm(ckpt=str(checkpoint))
    assert calc.batches == 10000
    wavs = [torch.randn(16_000), torch.randn(20_000)]
    features, zeros = hub.m2d_local(ckpt=str(checkpoint)).eval()(wavs), calc(wavs)
    assert zeros["last_hidden_state"].shape == features["last_hidden_state"].shape
    assert len(zeros["hidden_states"]) == len(features["hidden_states"])


def test_setting_up_again_and_elsewhere(s3prl, tmp_path):
    before = (s3prl / "s3prl/hub.py").read_text()
    done = setup(s3prl)
    assert done.returncode == 0 and (s3prl / "s3prl/hub.py").read_text() == before
    assert before.splitlines().count("from s3prl.upstream.m2d.hubconf import *") == 1
    assert (s3prl / "s3prl/__init__.py").read_text().count("import m2d_compat") == 1
    assert (s3prl / "s3prl/upstream/m2d/m2d").resolve() == ROOT
    done = setup(tmp_path)
    assert done.returncode == 1 and "git" not in done.stdout and "clone" in done.stderr.lower()


STAND_IN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
"""
# Statistics and learning rates of the published runs, in their order: mean, std, rate, downstream.
TASKS = {
    "pr": ("-10.43253231048584", "4.241369724273682", 1e-3, "ctc"),
    "ks": ("-11.506255149841309", "4.314857482910156", 1e-4, "speech_commands"),
    "ic": ("-13.017439842224121", "4.417759895324707", 1e-3, "fluent_commands"),
    "sid": ("-10.571271", "4.3681135", 1e-3, "voxceleb1"),
    "er": ("-13.037399291992188", "3.619741439819336", 1e-5, "emotion"),
    "asv": ("-11.070931", "4.1807961", 5e-5, "sv_voxceleb1"),
    "ss": ("-9.58743667602539", "4.168412208557129", 1e-3, "separation_stft2"),
}


@pytest.fixture
def workplace(tmp_path) -> Path:
    """s3prl's folder of programs, which write down how they were called."""
    folder = tmp_path / "my s3prl" / "s3prl"
    for path in ("upstream/m2d/hubconf.py", "downstream/sv_voxceleb1/test_expdir.sh", "run_downstream.py"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(STAND_IN)
    (folder / "downstream/sv_voxceleb1/test_expdir.sh").write_text('printf "%s\\n" "$@" > test_expdir.txt\n')
    return folder


def run(task: str, *args, cwd: Path, **env) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    calls = cwd / "calls.jsonl"
    environment = {**os.environ, "CALLS": str(calls), "PYTHON": sys.executable, "VOXCELEB1": "/my/Vox Celeb", **env}
    command = ["bash", str(ROOT / f"superb/{task}.sh"), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return done, [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.mark.parametrize("task", TASKS)
def test_task_commands(workplace, checkpoint, task):
    done, calls = run(task, checkpoint, "config.runner.total_steps=10", cwd=workplace)
    assert done.returncode == 0, done.stderr
    mean, std, rate, downstream = TASKS[task]
    training, evaluation = [call for call in calls if "train" in call], [call for call in calls if "evaluate" in call]
    assert len(training) == (5 if task == "er" else 1)
    for fold, call in enumerate(training, 1):
        flags = dict(zip(call[::2], call[1::2], strict=True))
        assert flags["-m"] == "train" and flags["-u"] == "m2d" and flags["-d"] == downstream
        assert flags["-k"] == f"{checkpoint},{mean},{std}"
        overrides = flags["-o"].split(",,")
        key, _, value = overrides[0].partition("=")
        assert key == "config.optimizer.lr" and float(value) == rate and "." in value
        assert overrides[-1] == "config.runner.total_steps=10"
        assert (f"config.downstream_expert.datarc.test_fold='fold{fold}'" in overrides) == (task == "er")
    names = [call[call.index("-n") + 1] for call in training]
    assert len(set(names)) == len(names)
    best = "best-states-dev.ckpt" if task == "ss" else "dev-best.ckpt"
    tested = [] if task == "asv" else [["-m", "evaluate", "-e", f"result/downstream/{name}/{best}"] for name in names]
    assert evaluation == tested
    if task == "asv":
        assert (workplace / "test_expdir.txt").read_text().splitlines() == [f"result/downstream/{names[0]}", "/my/Vox Celeb"]


def test_task_scripts_say_what_is_missing(workplace, checkpoint, tmp_path):
    for args, cwd, status, message in [
        ((), workplace, 2, "usage"),
        ((checkpoint,), tmp_path, 1, "setup_s3prl.sh"),
        ((tmp_path / "none.pth",), workplace, 1, "no such checkpoint"),
    ]:
        done, calls = run("ks", *args, cwd=cwd)
        assert done.returncode == status and message in done.stderr and calls == []
    done, calls = run("asv", checkpoint, cwd=workplace, VOXCELEB1="")
    assert done.returncode == 1 and "VOXCELEB1" in done.stderr and calls == []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    scripts = [str(path.relative_to(ROOT)) for path in (ROOT / "superb").glob("*.sh")]
    done = subprocess.run(["shellcheck", "-x", "-P", ".", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert len(scripts) == 9 and done.returncode == 0, done.stdout
