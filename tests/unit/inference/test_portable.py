"""PortableM2D: one file on its own, with RuntimeM2D's numbers."""

import argparse
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from checkpoint_files import published_name, write_checkpoint, write_fine_tuned

from examples import portable_m2d
from examples.portable_m2d import PortableM2D
from m2d.inference.runtime import RuntimeM2D

FILE = Path(portable_m2d.__file__)
PACKAGES = {"torch", "timm", "einops", "nnAudio", "numpy", "torchaudio", "transformers", "sentence_transformers"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def weight_file(folder):
    return write_checkpoint(folder)


@pytest.fixture(scope="module")
def audio():
    return torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0)) * 0.1


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=[True, False])
def allows_tf32(request):
    """TF32 allowed, or not, for products and convolutions on CUDA."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = request.param
    yield request.param
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


def test_its_log_mel_is_in_true_float32_and_the_programs_settings_stay(weight_file, audio, monkeypatch, allows_tf32):
    model, seen = PortableM2D(weight_file), []
    make = model.to_spec.forward

    def spy(x):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
        return make(x)

    monkeypatch.setattr(model.to_spec, "forward", spy)
    model.to_log_mel_spec(audio)
    assert set(seen) == {("ieee", "ieee")}
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allows_tf32


def test_it_runs_alone_in_an_empty_folder(weight_file, tmp_path):
    """No other file of the project is found, and of other packages only those it names are imported."""
    shutil.copy(FILE, tmp_path / "portable_m2d.py")
    program = """
        import sys, torch
        from portable_m2d import PortableM2D
        model = PortableM2D(sys.argv[1])
        print(tuple(model(torch.zeros(3, 32000)).shape))
        ours = [name for name in sys.modules if name.split(".")[0] in ("m2d", "examples", "util")]
        assert not ours, ours
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(weight_file)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 13, 960)"


def test_its_imports_are_those_it_names():
    lines = [line.split() for line in FILE.read_text().splitlines()]
    imported = {words[1].split(".")[0] for words in lines if words and words[0] in ("import", "from")}
    assert imported - sys.stdlib_module_names == PACKAGES


@torch.no_grad()
def test_it_gives_the_runtimes_numbers(weight_file, audio):
    for flat in (None, True):
        model, runtime = PortableM2D(weight_file, flat_features=flat), RuntimeM2D(weight_file=weight_file, flat_features=flat)
        assert_same(model(audio), runtime(audio))
        assert_same(model.encode(audio, average_per_time_frame=True), runtime.encode(audio, average_per_time_frame=True))
        assert_same(model.to_log_mel_spec(audio), runtime.to_feature(audio))
        assert_same(model.to_normalized_feature(audio), runtime.to_normalized_spec(audio))
        assert_same(model.get_scene_embeddings(audio), runtime.get_scene_embeddings(audio))
        for ours, theirs in zip(model.get_timestamp_embeddings(audio), runtime.get_timestamp_embeddings(audio), strict=True):
            assert_same(ours, theirs)
        lms = runtime.to_normalized_spec(audio)
        layers = model.encode_lms(lms, return_layers=True)
        assert len(layers) == 12
        for ours, theirs in zip(layers, runtime.encode_lms(lms, return_layers=True), strict=True):
            assert_same(ours, theirs)
        for name in ("feature_d", "mean", "std", "sample_rate", "n_fft", "hop_size", "input_size", "patch_size", "sr"):
            assert getattr(model.cfg, name) == getattr(runtime.cfg, name), name


@torch.no_grad()
def test_other_sampling_rates(folder, audio):
    path = write_fine_tuned(folder / "rates", classes=6, width=960)
    model, runtime = PortableM2D(path, num_classes=6), RuntimeM2D(weight_file=path, num_classes=6)
    assert_same(model(audio, sample_rate=44100), runtime(audio, sample_rate=44100))
    assert_same(model.encode(audio, sample_rate=8000), runtime.encode(audio, sample_rate=8000))
    assert_same(model.get_scene_embeddings(audio, sample_rate=16000), runtime.get_scene_embeddings(audio))
    for ours, theirs in zip(model.forward_frames(audio, 48000), runtime.forward_frames(audio, 48000), strict=True):
        assert_same(ours, theirs)


def test_a_name_that_contradicts_the_file(weight_file, tmp_path):
    saved = torch.load(weight_file, weights_only=False)
    saved["args"] = argparse.Namespace(input_size=[80, 208], sr="16k")
    path = tmp_path / published_name(rate="p32k") / "w.pth"
    path.parent.mkdir()
    torch.save(saved, path)
    with pytest.raises(ValueError, match="its name tells 80x208 at 32k, the settings in the file 80x208 at 16k"):
        PortableM2D(path)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
@torch.no_grad()
def test_every_size(size, folder):
    """Encoders of two blocks, else of the named size: width and heads tell them apart."""
    from m2d.models.registry import ENCODERS, M2DEncoderViT

    sizes = {**ENCODERS[size], "depth": 2}
    encoder = M2DEncoderViT(img_size=(80, 64), patch_size=(16, 16), **sizes).eval()
    path = folder / published_name(f"m2d_vit_{size}", (80, 64)) / "w.pth"
    path.parent.mkdir()
    torch.save(encoder.state_dict(), path)
    model = PortableM2D(path)
    x = torch.randn(1, 1, 80, 64)
    expected = encoder.forward_encoder(x, 0.0)[0][:, 1:].unflatten(1, (5, 4)).transpose(1, 2).flatten(2)
    assert_same(model.encode_lms(x), expected)


@pytest.mark.parametrize(("size", "patch", "rate"), [((80, 100), (16, 16), "p32k"), ((80, 60), (80, 4), "")])
@torch.no_grad()
def test_other_patches_rates_and_lengths(folder, size, patch, rate, monkeypatch):
    path = write_checkpoint(folder, size=size, patch=patch, rate=rate)
    model, runtime = PortableM2D(path), RuntimeM2D(weight_file=path)
    monkeypatch.setattr(portable_m2d, "_FRAMES_PER_STRETCH", 100)
    monkeypatch.setattr(portable_m2d, "_TOKENS_PER_BLOCK", 1)
    for samples in (1, 150, 3000, 16_000, 40_321, 33_333):
        audio = torch.randn(1, samples) * 0.1
        assert_same(model(audio), runtime(audio))


@torch.no_grad()
def test_classifiers(folder, weight_file, audio, caplog):
    for width in (960, 192):
        path = write_fine_tuned(folder / "fine-tuned", classes=6, width=width)
        model, runtime = PortableM2D(path, num_classes=6), RuntimeM2D(weight_file=path, num_classes=6)
        assert_same(model(audio), runtime(audio))
        for ours, theirs in zip(model.forward_frames(audio), runtime.forward_frames(audio), strict=True):
            assert_same(ours, theirs)
        assert model.cfg.feature_d == width
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    torch.save(runtime.state_dict(), path)
    assert_same(PortableM2D(path, num_classes=6)(audio), runtime(audio))
    assert PortableM2D(path, num_classes=3)(audio).shape == (2, 3)
    assert "its classifier is [6, 192], not [3, 192]" in caplog.text
    assert PortableM2D(weight_file, num_classes=3)(audio).shape == (2, 3)
    assert "its classifier is not there" in caplog.text
    with pytest.raises(ValueError, match="give num_classes"):
        PortableM2D(weight_file).forward_frames(audio)


@pytest.mark.parametrize("freeze", [False, True])
def test_what_is_frozen(weight_file, freeze):
    model = PortableM2D(weight_file, freeze_embed=freeze)
    frozen = {name for name, parameter in model.backbone.named_parameters() if not parameter.requires_grad}
    assert frozen == {"pos_embed", "norm_stats"} | ({"patch_embed.proj.weight", "patch_embed.proj.bias"} if freeze else set())
    model(torch.zeros(1, 16000)).sum().backward()


def test_sizes_from_the_settings_in_the_file_or_an_error(weight_file, tmp_path):
    saved = torch.load(weight_file, weights_only=False)
    saved["args"] = argparse.Namespace(input_size=[80, 208], sr="16k")
    torch.save(saved, tmp_path / "w.pth")
    assert PortableM2D(tmp_path / "w.pth").cfg.input_size == [80, 208]
    saved["args"] = {}
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="neither the folder's name.*m2d_vit_base-80x608p16x16"):
        PortableM2D(tmp_path / "w.pth")


def test_files_that_cannot_be_used(weight_file, tmp_path):
    folder = tmp_path / published_name()
    folder.mkdir()
    path = folder / "w.pth"
    with pytest.raises(FileNotFoundError, match="give the path of a .pth file"):
        PortableM2D(path)
    torch.save({"a": os.system}, path)
    with pytest.raises(ValueError, match="asks to run posix.system: refused"):
        PortableM2D(path)
    path.write_bytes(weight_file.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="damaged, or no checkpoint"):
        PortableM2D(path)
    path.write_text("<html>")
    with pytest.raises(ValueError, match="damaged, or no checkpoint"):
        PortableM2D(path)
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no checkpoint of an M2D model"):
        PortableM2D(path)
    (tmp_path / "m2d_vit_tiny-80x304p16x16").mkdir()
    other = tmp_path / "m2d_vit_tiny-80x304p16x16" / "w.pth"
    shutil.copy(weight_file, other)
    with pytest.raises(ValueError, match="does not fit the input size 80x304 of its name"):
        PortableM2D(other)
    with pytest.raises(ValueError, match="a sample rate of 8k"):
        shutil.copytree(weight_file.parent, tmp_path / "m2d_vit_tiny-80x208p16x16p8k")
        PortableM2D(tmp_path / "m2d_vit_tiny-80x208p16x16p8k" / "checkpoint-1.pth")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.zeros(16000), "batch, samples"),
        (torch.zeros(1, 0), "batch, samples"),
        (torch.zeros(1, 100, dtype=torch.int16), "int16"),
        (torch.full((1, 400), float("nan")), "NaN"),
    ],
)
def test_wrong_audio(weight_file, wrong, words):
    with pytest.raises(ValueError, match=words):
        PortableM2D(weight_file)(wrong)
