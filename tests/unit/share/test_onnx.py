"""ONNX files: onnxruntime gives the runtime's numbers for every batch and length, without this project."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_files import write_checkpoint, write_fine_tuned
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.cli.export import main
from m2d.inference.runtime import RuntimeM2D
from m2d.share.onnx_file import OPSET, OUTPUTS, open_session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
#: Frames of the input: no multiple of the patch, as in the released weights of 1001 frames.
SIZE = (80, 73)
NAMES = ["Hund, bellt", "rain", "bell"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Pre-trained at 32 kHz; fine-tuned with stacked features, and with flat ones."""
    folder = tmp_path_factory.mktemp("weights")
    pre_trained = write_checkpoint(folder, model="m2d_vit_mini", size=SIZE, rate="p32k")
    fine_tuned = [write_fine_tuned(folder, 3, width, model="m2d_vit_mini", size=SIZE) for width in (5 * 192, 192)]
    return {"pre-trained": pre_trained, "stacked": fine_tuned[0], "flat": fine_tuned[1]}


@pytest.fixture(scope="module")
def exported(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    (folder / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
    for name, checkpoint in checkpoints.items():
        options = [] if name == "pre-trained" else ["--classes", str(folder / "classes.txt")]
        assert main([str(checkpoint), str(folder / f"{name}.onnx"), "--to", "onnx", *options]) == 0
    assert main([str(checkpoints["stacked"]), str(folder / "half.onnx"), "--to", "onnx", "--precision", "float16"]) == 0
    return folder


@pytest.fixture(scope="module")
def models(checkpoints, exported):
    """Of each checkpoint the runtime and the session."""
    runtimes = {
        name: RuntimeM2D(weight_file=path, num_classes=None if name == "pre-trained" else 3, flat_features=None)
        for name, path in checkpoints.items()
    }
    return {name: (runtime, open_session(exported / f"{name}.onnx", threads=1)) for name, runtime in runtimes.items()}


@torch.no_grad()
def expected_outputs(runtime, checkpoint, audio):
    """The runtime's clip and frame embeddings (stacked) and logits."""
    stacked = RuntimeM2D(weight_file=checkpoint) if runtime.cfg.flat_features else runtime
    outputs = [stacked.get_scene_embeddings(audio), stacked.encode(audio)]
    return outputs if runtime.num_classes is None else [*outputs, runtime(audio), runtime.forward_frames(audio)[0]]


@pytest.mark.parametrize("name", ["pre-trained", "stacked", "flat"])
def test_outputs_are_the_runtimes(name, models, checkpoints):
    runtime, session = models[name]
    audio = torch.randn(2, 60_000, generator=torch.Generator().manual_seed(0)) * 0.1
    outputs = session.run(None, {"waveform": audio.numpy()})
    assert [output.name for output in session.get_outputs()] == list(OUTPUTS[: len(outputs)])
    for ours, theirs in zip(outputs, expected_outputs(runtime, checkpoints[name], audio), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 3), samples=st.integers(1, 50_000))
def test_every_batch_and_length(models, batch, samples):
    """Shorter than a patch, than a window, than the input; at its edges; several inputs long."""
    runtime, session = models["stacked"]
    audio = torch.randn(batch, samples, generator=torch.Generator().manual_seed(samples)) * 0.1
    (ours,) = session.run(["frame_embeddings"], {"waveform": audio.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(ours, runtime.encode(audio), rtol=0, atol=1e-4)


def test_each_length_around_the_edges_of_pieces(models):
    runtime, session = models["pre-trained"]
    for frames in (1, 15, 16, 17, 63, 64, 65, 72, 73, 74, 80, 88, 89, 90, 145, 146, 147):
        audio = torch.randn(1, (frames - 1) * 320) * 0.1 if frames > 1 else torch.randn(1, 10)
        (ours,) = session.run(["frame_embeddings"], {"waveform": audio.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(ours, runtime.encode(audio), rtol=0, atol=1e-4)


def test_float16(exported, models):
    audio = np.random.default_rng(0).standard_normal((1, 30_000)).astype(np.float32) * 0.1
    half = open_session(exported / "half.onnx", threads=1).run(None, {"waveform": audio})
    full = models["stacked"][1].run(None, {"waveform": audio})
    for ours, theirs in zip(half, full, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.03)
    assert (exported / "half.onnx").stat().st_size < 0.65 * (exported / "stacked.onnx").stat().st_size


def test_the_file_tells_about_itself(exported):
    model = onnx.load(exported / "stacked.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == NAMES and told["single_label"] == "false"
    assert (told["model"], told["input_size"], told["sample_rate"]) == ("m2d_vit_mini", "80x73", "16000")
    assert [opset.version for opset in model.opset_import if not opset.domain] == [OPSET]


def test_onnxruntime_alone_reads_it(exported):
    """No torch and nothing of this project is imported."""
    program = (
        "import sys, numpy, onnxruntime; s = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider']);"
        "print(s.run(['clip_embedding'], {'waveform': numpy.zeros((3, 9999), 'float32')})[0].shape, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-I", "-c", program, exported / "pre-trained.onnx"]
    done = subprocess.run(command, cwd=exported, capture_output=True, text=True)
    assert done.stdout == "(3, 960) False\n", done.stderr


def test_what_is_not_possible_is_told(checkpoints, exported, tmp_path, monkeypatch, caplog):
    source = str(checkpoints["stacked"])
    assert main([source, str(tmp_path / "a.pth"), "--to", "onnx"]) == 2 and "ends in .onnx" in caplog.text
    assert main([source, str(exported / "flat.onnx"), "--to", "onnx"]) == 2 and "is there already" in caplog.text
    monkeypatch.setattr("m2d.share.onnx_file._BYTES", 1000)
    assert main([source, str(tmp_path / "a.onnx"), "--to", "onnx"]) == 2 and "GB of weights" in caplog.text
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main([source, str(tmp_path / "a.onnx"), "--to", "onnx"]) == 2
    assert "needs the package onnx: pip install 'm2d-audio[onnx]'" in caplog.text
    assert not list(tmp_path.iterdir())
