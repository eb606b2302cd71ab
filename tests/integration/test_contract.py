"""Every call that EVAR, its fine-tuning, the SUPERB wrapper and the application programs make, made their way."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from checkpoint_files import semantic_tensors, write_checkpoint, write_clap
from torch import nn

from examples.portable_m2d import PortableM2D
from m2d.inference.runtime import Config, RuntimeM2D, get_backbone, get_timestamps, get_to_melspec, parse_sizes_by_name

EasyDict = pytest.importorskip("easydict").EasyDict
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("weights")))


def evar_config(weight_file, **entries):
    """The settings as EVAR reads them from YAML: entries without a value are None, others are missing."""
    yaml = dict(
        audio_repr="ar_m2d.AR_M2D",
        weight_file=weight_file,
        feature_d=768 * 5,
        pooling_type="mean",
        model="m2d_vit_base",
        input_size=[80, 208],
        patch_size=[16, 16],
        sr="16k",
        training_mask=0.0,
        flat_features=None,
        dur_frames=None,
        freeze_embed=None,
        runtime="M2D",
        batch_size=64,
        lr_lineareval=0.00003,
        mean=None,
        std=None,
    )
    return EasyDict({**yaml, **entries})


class AudioRepresentation(nn.Module):
    """EVAR's wrapper: spectrogram, augmentation in training, normalisation, encoder, pooling by the config's settings."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.runtime = RuntimeM2D(
            cfg=cfg,
            weight_file=cfg.weight_file,
            training_mask=cfg.training_mask,
            encoder_only=cfg.get("encoder_only"),
            dur_frames=cfg.dur_frames,
            freeze_embed=cfg.freeze_embed,
        )
        self.augmented = 0

    def augment(self, lms):
        self.augmented += self.training
        return lms + 0.1 * torch.randn_like(lms) if self.training else lms

    def encode_frames(self, audio):
        lms = self.augment(self.runtime.to_feature(audio))
        return self.runtime.encode_lms(self.runtime.normalize_batch(lms))

    def forward(self, audio):
        return self.encode_frames(audio).mean(dim=1)


class TaskHead(nn.Module):
    """EVAR's head: batch norm without affine parameters, and an MLP of one layer."""

    def __init__(self, width, classes):
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.mlp = nn.Module()
        self.mlp.mlp = nn.Sequential(nn.Linear(width, classes))

    def forward(self, x):
        return self.mlp.mlp(self.norm(x))


class TaskNetwork(nn.Module):
    def __init__(self, cfg, classes):
        super().__init__()
        self.ar = AudioRepresentation(cfg)
        self.head = TaskHead(cfg.feature_d, classes)

    def forward(self, audio):
        return self.head(self.ar(audio))


# ---------------------------------------------------------------- EVAR


def test_linear_evaluation_reads_back_from_its_own_config(weight_file):
    cfg = evar_config(weight_file)
    representation = nn.DataParallel(AudioRepresentation(cfg)).eval()
    assert representation.module.runtime.cfg is cfg
    with torch.no_grad():
        assert representation(torch.randn(2, 40_000) * 0.1).shape == (2, cfg.feature_d)
    found = dict(
        feature_d=960,
        input_size=[80, 208],
        patch_size=[16, 16],
        sr="16k",
        model="m2d_vit_tiny",
        sample_rate=16000,
        n_fft=400,
        window_size=400,
        hop_size=160,
        n_mels=80,
        f_min=50,
        f_max=8000,
        decoder_depth=2,
        weight_file=weight_file,
        flat_features=False,
        training_mask=0.0,
    )
    assert {name: cfg[name] for name in found} == found
    assert (float(cfg.mean), float(cfg.std)) == (-6.5, 3.5)


@pytest.mark.parametrize("kind", [RuntimeM2D, PortableM2D])
def test_clap_is_evaluated_by_its_own_calls(kind, tmp_path):
    """EVAR's AR_M2D_CLAP and AR_M2D_CLAP_PORTABLE: patch tokens, then one projection a clip, and class names as texts."""
    path = str(write_clap(tmp_path, semantic_tensors(192), extras="p16kpBpTI", prefix="backbone."))
    cfg = evar_config(path, flat_features=True)
    runtime = kind(cfg=cfg, weight_file=cfg.weight_file, flat_features=cfg.flat_features)
    assert runtime.cfg is cfg and (cfg.feature_d, cfg.sample_rate, cfg.input_size) == (192, 16000, [80, 64])
    audio = torch.randn(2, 30_000) * 0.1
    with torch.no_grad():
        vectors = runtime.project_audio(runtime.encode(audio))
        torch.testing.assert_close(vectors, runtime.encode_clap_audio(audio))
    runtime.text_encoder = lambda texts, truncate=False: torch.ones(len(texts), 192)
    texts = runtime.encode_clap_text(["dog can be heard", "rain can be heard", "speech can be heard"])
    assert vectors.shape == (2, 192) and texts.shape == (3, 192)


@pytest.mark.parametrize("nothing", [None, "None", "", "missing"])
def test_entries_of_the_config_may_be_empty(weight_file, nothing):
    cfg = evar_config(weight_file, dur_frames=nothing, freeze_embed=nothing, encoder_only=nothing, training_mask=nothing)
    if nothing == "missing":
        for name in ("dur_frames", "freeze_embed", "encoder_only", "training_mask", "flat_features", "feature_d"):
            cfg.pop(name)
    runtime = RuntimeM2D(cfg=cfg, weight_file=weight_file, training_mask=None if nothing == "missing" else nothing)
    assert cfg.input_size == [80, 208] and cfg.training_mask == 0.0 and not hasattr(runtime.backbone, "decoder_blocks")
    assert runtime.backbone.patch_embed.proj.weight.requires_grad


def test_options_of_the_command_line(weight_file):
    """`weight_file=…,encoder_only=True,dur_frames=304,freeze_embed=True`, as numbers and as text."""
    for options in (dict(encoder_only=True, dur_frames=304, freeze_embed=True), dict(encoder_only="True", dur_frames="304")):
        cfg = evar_config(weight_file, **options)
        runtime = AudioRepresentation(cfg).runtime
        assert cfg.input_size == [80, 304] and runtime.backbone.patch_embed.img_size == (80, 304)
        assert runtime.backbone.patch_embed.proj.weight.requires_grad is (options.get("freeze_embed") is None)


def test_fine_tuning_saves_and_loads_strictly(weight_file, tmp_path):
    """Training in DataParallel with structured masking and augmentation; the names in the file; then logits from it."""
    cfg = evar_config(weight_file, training_mask=0.5, encoder_only=True, freeze_embed=True)
    network = nn.DataParallel(TaskNetwork(cfg, 4))
    assert cfg.flat_features is True and cfg.feature_d == 192
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    backbone = "module.ar.runtime.backbone."
    assert frozen == {backbone + name for name in ("pos_embed", "norm_stats", "patch_embed.proj.weight", "patch_embed.proj.bias")}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.05)
    audio, labels = torch.randn(4, 20_000) * 0.1, torch.arange(4)
    network.train()
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(audio), labels).backward()
        optimizer.step()
    assert network.module.ar.augmented == 2

    path = Path(weight_file).parent / "weights_ep2it4-0.5.pth"
    torch.save(network.state_dict(), path)
    saved = torch.load(path)
    rest = {name for name in saved if not name.startswith(backbone)}
    assert rest == {f"module.ar.runtime.to_spec.{name}" for name in ("mel_basis", *STFT_BUFFERS)} | {
        f"module.head.{name}" for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", *HEAD)
    }
    fresh = nn.DataParallel(TaskNetwork(evar_config(weight_file, training_mask=0.5, encoder_only=True), 4))
    fresh.load_state_dict(saved, strict=True)
    network.eval()
    with torch.no_grad():
        expected = network(audio)
        torch.testing.assert_close(fresh.eval()(audio), expected)
        torch.testing.assert_close(RuntimeM2D(weight_file=path, num_classes=4)(audio), expected, rtol=1e-4, atol=1e-4)


STFT_BUFFERS = ("stft.wsin", "stft.wcos", "stft.window_mask")
HEAD = ("mlp.mlp.0.weight", "mlp.mlp.0.bias")


# ---------------------------------------------------------------- application programs


def test_an_application_with_its_own_head_and_log_mels():
    """ICBHI: a subclass with 801 frames, random weights and a linear layer of its own over features of its own log-mels."""

    class Classifier(RuntimeM2D):
        def __init__(self, classes):
            cfg = Config()
            cfg.dur_frames = 801
            cfg.weight_file = "m2d_vit_tiny-80x200p16x4-230529/random"
            cfg.freeze_embed = True
            super().__init__(cfg=cfg)
            self.linear = nn.Linear(cfg.feature_d, classes)
            self.head = nn.Sequential(self.linear)

        def forward(self, lms):
            return self.head(self.encode_lms(lms).mean(dim=1))

    model = Classifier(4).train()
    assert model.cfg.feature_d == 960 and model.cfg.input_size == [80, 801]
    logits = model(torch.randn(2, 1, 80, 801))
    assert logits.shape == (2, 4)
    logits.sum().backward()
    assert model.linear.weight.grad is not None and model.backbone.patch_embed.proj.weight.grad is None


def test_forward_hooks_steer_neurons(weight_file):
    """Module names of timm's Block: `blocks.{i}.mlp.act` and `blocks.{i}.mlp.fc1`."""
    runtime = RuntimeM2D(weight_file=weight_file)
    modules = dict(runtime.backbone.named_modules())
    assert modules["blocks.3.mlp.fc1"].out_features == 4 * 192
    seen = []

    def silence(module, inputs, output):
        seen.append(output.shape)
        return torch.zeros_like(output)

    audio = torch.randn(1, 16000) * 0.1
    with torch.no_grad():
        before = runtime(audio)
        handle = modules["blocks.3.mlp.act"].register_forward_hook(silence)
        after = runtime(audio)
        handle.remove()
        assert not torch.allclose(before, after)
        torch.testing.assert_close(runtime(audio), before)
    assert seen == [torch.Size([1, 36, 768])]


def test_the_backbone_as_others_use_it(weight_file):
    backbone = RuntimeM2D(weight_file=weight_file).backbone
    assert backbone.grid_size() == (5, 13) and backbone.patch_size() == (16, 16)
    assert backbone.patch_embed.img_size == (80, 208) and backbone.patch_embed.proj.weight.shape == (192, 1, 16, 16)
    assert backbone.pos_embed.shape == (1, 66, 192) and backbone.cls_token.shape == (1, 1, 192)
    assert backbone.norm_stats.shape == (2,) and len(backbone.blocks) == 12 and isinstance(backbone.norm, nn.LayerNorm)
    with torch.no_grad():
        tokens, target, mask, ids_restore = backbone.forward_encoder(torch.zeros(2, 1, 80, 208), mask_ratio=0.0)
        short = backbone.forward_encoder(torch.zeros(2, 1, 80, 100), mask_ratio=0.0, adjust_short=True)[0]
        layers = backbone.forward_encoder(torch.zeros(2, 1, 80, 208), mask_ratio=0.0, return_layers=True)[0]
    assert tokens.shape == (2, 66, 192) and target is None and mask.shape == ids_restore.shape == (2, 65)
    assert short.shape == (2, 31, 192) and layers.shape == (12, 2, 66, 192)


def test_functions_that_users_import(weight_file):
    size, patch, rate, model = parse_sizes_by_name("m2d_as_vit_base-80x1001p16x16p32k-240413_AS-FT_enconly")
    assert (size, patch, rate, model) == ([80, 1001], [16, 16], "32k", "m2d_as_vit_base")
    cfg = Config()
    backbone, head = get_backbone(cfg, weight_file)
    assert backbone.embed_dim == 192 and head == {} and cfg.sample_rate == 16000
    to_spec = get_to_melspec(cfg)
    assert type(to_spec).__name__ == "MelSpectrogram" and set(to_spec.state_dict()) == {"mel_basis", *STFT_BUFFERS}
    times = get_timestamps(cfg, torch.zeros(2, 16000), torch.zeros(2, 7, 960))
    torch.testing.assert_close(times[0], torch.arange(7) * 1000 / 7)


# ---------------------------------------------------------------- SUPERB


def test_superb_takes_layers_with_statistics_of_its_own(weight_file):
    runtime = RuntimeM2D(weight_file=weight_file)
    runtime.cfg.mean, runtime.cfg.std = torch.tensor(-10.4), torch.tensor(4.2)
    waveforms = [torch.randn(length) * 0.1 for length in (16000, 9000)]
    padded = nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    lms = runtime.to_feature(padded)
    torch.testing.assert_close(runtime.to_normalized_spec(padded), (lms + 10.4) / 4.2)
    hidden = runtime.encode_lms(runtime.normalize_batch(lms), return_layers=True)
    assert len(hidden) == 12 and hidden[-1].shape == (2, 7, 960)


def test_the_library_works_under_another_packages_name(weight_file, tmp_path):
    """s3prl links the project into `s3prl/upstream/m2d/m2d`; the project's root is not on the import path."""
    upstream = tmp_path / "s3prl_like" / "upstream" / "m2d"
    upstream.mkdir(parents=True)
    for folder in (upstream, upstream.parent, upstream.parent.parent):
        (folder / "__init__.py").touch()
    (upstream / "m2d").symlink_to(ROOT)
    (upstream / "expert.py").write_text("from .m2d.m2d.runtime_audio import RuntimeM2D\n")
    program = """
        import sys, torch
        from s3prl_like.upstream.m2d.expert import RuntimeM2D
        assert RuntimeM2D.__module__ == "s3prl_like.upstream.m2d.m2d.m2d.inference.runtime"
        assert "m2d" not in sys.modules and not any(name.startswith("m2d.") for name in sys.modules)
        print(RuntimeM2D(weight_file=sys.argv[1])(torch.zeros(1, 16000)).shape)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), weight_file]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 7, 960])"
