"""The encoder alone: what is kept, what is told, what is warned of."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import mlp_tensors, published_name, write_checkpoint, write_clap, write_fine_tuned

from m2d.checkpoint.weights import read_weights
from m2d.cli.export import main
from m2d.inference.runtime import RuntimeM2D

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"), model="m2d_x_vit_tiny", rate="p32k")


@pytest.mark.parametrize("name", ["plain.pth", "plain.safetensors"])
@torch.no_grad()
def test_the_encoder_alone_gives_the_same_embeddings(source, tmp_path, name):
    assert main([str(source.parent), str(tmp_path / "new" / name)]) == 0
    weights = read_weights(tmp_path / "new" / name)
    assert not any(part.startswith(("decoder_", "target_", "mask_token", "offline_")) for part in weights.state)
    assert tuple(weights.spec) == ([80, 208], [16, 16], "32k", "m2d_x_vit_tiny") and weights.norm_stats == (-6.5, 3.5)
    assert weights.path.stat().st_size < 0.5 * source.stat().st_size
    audio = torch.randn(1, 40_000) * 0.1
    ours, theirs = RuntimeM2D(weight_file=weights.path), RuntimeM2D(weight_file=source)
    assert torch.equal(ours(audio), theirs(audio)) and ours.cfg.mean == -6.5


def test_an_encoder_in_float16_is_half_as_large_and_nearly_the_same(source, tmp_path):
    for name, flags in (("full.pth", []), ("half.pth", ["--precision", "float16"])):
        assert main([str(source), str(tmp_path / name), *flags]) == 0
    full, half = (tmp_path / name for name in ("full.pth", "half.pth"))
    assert half.stat().st_size < 0.55 * full.stat().st_size
    assert read_weights(half).norm_stats == (-6.5, 3.5)
    audio = torch.randn(1, 40_000) * 0.1
    torch.testing.assert_close(RuntimeM2D(weight_file=half)(audio), RuntimeM2D(weight_file=full)(audio), atol=0.05, rtol=0)


def test_a_file_of_2022_stays_without_statistics(source, tmp_path):
    path = tmp_path / published_name() / "w.pth"
    path.parent.mkdir()
    torch.save({k: v for k, v in torch.load(source, weights_only=False)["model"].items() if k != "norm_stats"}, path)
    for name in ("a.pth", "a.safetensors"):
        assert main([str(path), str(tmp_path / name)]) == 0
        assert read_weights(tmp_path / name).norm_stats is None


def test_the_loss_of_a_classifier_is_said(tmp_path, caplog):
    path = write_fine_tuned(tmp_path, classes=5, width=960)
    assert main([str(path), str(tmp_path / "encoder.pth")]) == 0
    assert "is fine-tuned: its classifier (5 classes) is lost" in caplog.text
    assert not read_weights(tmp_path / "encoder.pth").head


@pytest.mark.parametrize("form", ["encoder", "hf", "onnx"])
def test_the_loss_of_the_projectors_is_said(tmp_path, caplog, form):
    pytest.importorskip({"hf": "transformers", "onnx": "onnx"}.get(form, "torch"))
    path = write_clap(tmp_path, mlp_tensors(192))
    dest = tmp_path / {"encoder": "encoder.pth", "hf": "folder", "onnx": "model.onnx"}[form]
    with caplog.at_level(logging.INFO, "m2d"):
        assert main([str(path), str(dest), "--to", form]) == 0
    assert len(set(caplog.messages)) == len(caplog.messages), "a line came twice"
    (line,) = (record.message for record in caplog.records if "M2D-CLAP" in record.message)
    assert f"{path} is an M2D-CLAP checkpoint; {dest} holds only its encoder, which cannot compare sounds with texts" in line


def test_what_is_there_is_replaced_on_request_alone(source, tmp_path, caplog):
    dest = tmp_path / "encoder.pth"
    dest.write_bytes(b"somebody's")
    assert main([str(source), str(dest)]) == 2 and dest.read_bytes() == b"somebody's"
    assert "encoder.pth is there already" in caplog.text
    assert main([str(source), str(dest), "--overwrite"]) == 0 and read_weights(dest).state


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{source}", "{tmp}/folder"], "ends in .pth or .safetensors"),
        (["{source}", "{source}"], "is an input"),
        (["{tmp}/none.pth", "{tmp}/a.pth"], "no checkpoint"),
    ],
)
def test_mistakes_end_in_one_line(source, tmp_path, arguments, words):
    before = source.read_bytes()
    command = [sys.executable, "util/to_encoder_only_weight.py", *(a.format(source=source, tmp=tmp_path) for a in arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and source.read_bytes() == before
