"""RuntimeM2D's settings, checkpoints, heads, and loading."""

import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import published_name

from m2d.checkpoint.weights import CheckpointError, save_atomically
from m2d.inference.runtime import Config, RuntimeM2D

# ---------------------------------------------------------------- settings


def test_each_runtime_has_its_own_settings(files):
    first = RuntimeM2D(weight_file=files(), dur_frames=112, training_mask=0.5)
    second = RuntimeM2D(weight_file=files())
    assert first.cfg is not second.cfg and first.cfg.input_size == [80, 112] and second.cfg.input_size == [80, 208]
    assert second.cfg.dur_frames is None and second.cfg.training_mask == 0.0 and not second.cfg.flat_features
    assert Config().input_size is None and Config.dur_frames is None


def test_settings_from_keywords_attributes_and_subclasses():
    class Mine(Config):
        dur_frames = 801

    assert Config(dur_frames=801).dur_frames == Mine().dur_frames == 801
    assert repr(Config(sr="32k")) == "Config(sr='32k')"
    with pytest.raises(TypeError, match="unknown settings dur_frame"):
        Config(dur_frame=801)


def test_arguments_win_over_the_settings(files):
    cfg = Config(weight_file="elsewhere", dur_frames="304", flat_features=True, freeze_embed="True")
    runtime = RuntimeM2D(cfg=cfg, weight_file=files(), dur_frames=112)
    assert cfg.dur_frames == 112 and cfg.weight_file == str(files()) and cfg.flat_features is True
    assert not runtime.backbone.patch_embed.proj.weight.requires_grad
    assert RuntimeM2D(cfg=cfg, freeze_embed=False).backbone.patch_embed.proj.weight.requires_grad


def test_what_is_found_stands_in_the_settings(files):
    cfg = Config()
    RuntimeM2D(cfg, files())
    found = dict(model="m2d_vit_tiny", patch_size=[16, 16], sr="16k", decoder_depth=2, feature_d=960, mean=-6.5, std=3.5)
    assert {name: getattr(cfg, name) for name in found} == found


def test_a_checkpoint_without_statistics_takes_those_of_2022(files, tmp_path):
    path = tmp_path / published_name() / "w.pth"
    path.parent.mkdir()
    torch.save({k: v for k, v in torch.load(files(), weights_only=False)["model"].items() if k != "norm_stats"}, path)
    cfg = RuntimeM2D(weight_file=path).cfg
    assert (cfg.mean, cfg.std) == pytest.approx((-7.1, 4.2))


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("random", ["{}-random", "{}/random"])
def test_random_weights_of_the_sizes_in_a_path(tmp_path, random):
    name = "m2d_s_vit_tiny-80x100p80x4"
    first, second = (RuntimeM2D(weight_file=str(tmp_path / random.format(name)), num_classes=3) for _ in range(2))
    assert first.cfg.feature_d == 192 and first(torch.zeros(1, 16000)).shape == (1, 3)
    assert not torch.equal(first.backbone.blocks[0].attn.qkv.weight, second.backbone.blocks[0].attn.qkv.weight)


def test_sizes_from_inside_where_the_name_does_not_tell(files, tmp_path):
    saved = torch.load(files(), weights_only=False)
    saved["args"] = dict(model="m2d_vit_tiny", input_size="80x208", patch_size=[16, 16], sr="16k")
    save_atomically(saved, tmp_path / "checkpoint-1.pth")
    assert RuntimeM2D(weight_file=tmp_path).cfg.input_size == [80, 208]
    save_atomically({**saved, "args": {}}, tmp_path / "checkpoint-1.pth")
    with pytest.raises(CheckpointError, match=r"neither the folder's name.*m2d_vit_base-80x608p16x16"):
        RuntimeM2D(weight_file=tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m2d_vit_tiny-80x304p16x16", r"pos_embed of the checkpoint has 66 positions.*needs 96.*does not fit"),
        ("m2d_vit_tiny-80x104p16x8", r"\[192, 1, 16, 16\] in the checkpoint and \[192, 1, 16, 8\] in the model"),
        ("m2d_vit_small-80x208p16x16", r"\[1, 1, 192\] in the checkpoint and \[1, 1, 384\] in the model"),
        ("m2d_vit_tyni-80x208p16x16", "unknown model 'm2d_vit_tyni_encoder_only': did you mean"),
        ("m2d_vit_tiny-80x208p16x16p8k", "a sample rate of 8k is not known: choose from 16k, 32k"),
    ],
)
def test_a_name_that_does_not_fit_what_is_inside(files, tmp_path, name, words):
    (tmp_path / name).mkdir()
    (tmp_path / name / "w.pth").symlink_to(files())
    with pytest.raises(ValueError, match=words):
        RuntimeM2D(weight_file=tmp_path / name / "w.pth")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (published_name(rate="p32k"), {}, "name says sr 32k, the settings in the file 16k"),
        (published_name(), {"patch_size": "16x8"}, "name says patch_size 16x16, the settings in the file 16x8"),
        (published_name(), {"input_size": "64x208"}, "name says input_size 80x208, the settings in the file 64x208"),
    ],
)
def test_a_name_that_contradicts_the_settings_in_the_file(files, tmp_path, name, settings, words):
    saved = torch.load(files(), weights_only=False)
    saved["args"] = dict(model="m2d_vit_tiny", input_size="80x208", patch_size="16x16", sr="16k") | settings
    path = tmp_path / name / "w.pth"
    path.parent.mkdir()
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=words):
        RuntimeM2D(weight_file=path)


def test_an_encoder_that_is_not_whole_is_refused(files, tmp_path):
    path = tmp_path / published_name() / "w.pth"
    path.parent.mkdir()
    saved = torch.load(files(), weights_only=False)["model"]
    torch.save({name: value for name, value in saved.items() if not name.startswith("blocks.11.")}, path)
    with pytest.raises(CheckpointError, match="does not fit m2d_vit_tiny: .* not in the checkpoint: blocks.11.norm1.weight"):
        RuntimeM2D(weight_file=path)
    extra = {name.replace("blocks.11.", "blocks.12."): value for name, value in saved.items() if name.startswith("blocks.11.")}
    torch.save(saved | extra, path)
    with pytest.raises(CheckpointError, match="m2d_vit_tiny: the checkpoint has 13 encoder blocks, the model has 12"):
        RuntimeM2D(weight_file=path)


def test_no_weight_file():
    for cfg in (None, Config(weight_file="None")):
        with pytest.raises(ValueError, match="no weight_file"):
            RuntimeM2D(cfg)


@pytest.mark.parametrize("family", ["m2d_x", "m2d_as", "m2d_s", "m2d_d2v", "msm_mae"])
@pytest.mark.parametrize("encoder_only", [True, False])
@torch.no_grad()
def test_every_family_with_and_without_its_decoder(files, family, encoder_only):
    path = files(model=f"{family}_vit_tiny", size=(80, 64))
    runtime = RuntimeM2D(weight_file=path, encoder_only=encoder_only)
    assert hasattr(runtime.backbone, "decoder_blocks") is not encoder_only
    saved = torch.load(path, weights_only=False)["model"]
    state = runtime.backbone.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in state.items())
    assert encoder_only or set(state) == set(saved)
    assert runtime(torch.zeros(1, 8000)).shape == (1, 4, 960)


def test_a_decoder_that_is_not_there_starts_at_random(files, tmp_path, caplog):
    path = tmp_path / published_name("m2d_x_vit_tiny") / "w.pth"
    path.parent.mkdir()
    encoder = RuntimeM2D(weight_file=files()).backbone.state_dict()
    torch.save(encoder, path)
    runtime = RuntimeM2D(weight_file=path, encoder_only=False)
    assert "has no decoder_blocks" in caplog.text
    assert runtime.backbone.decoder_blocks[0].mlp.fc1.weight.std() > 0.01
    assert torch.equal(runtime.backbone.target_norm.weight, encoder["norm.weight"])


# ---------------------------------------------------------------- heads


@torch.no_grad()
def test_a_fine_tuned_head_gives_logits(files):
    path = files("fine-tuned", classes=5, width=960)
    runtime = RuntimeM2D(weight_file=path, num_classes=5)
    saved = torch.load(path)
    audio = torch.randn(3, 50_000) * 0.1
    mean, variance = saved["module.head.norm.running_mean"], saved["module.head.norm.running_var"]

    def logits(features):
        scaled = (features - mean) / (variance + 1e-5).sqrt()
        return scaled @ saved["module.head.mlp.mlp.0.weight"].T + saved["module.head.mlp.mlp.0.bias"]

    embeddings = runtime.encode(audio)
    torch.testing.assert_close(runtime(audio), logits(embeddings.mean(dim=1)), rtol=1e-4, atol=1e-4)
    frames, ms = runtime.forward_frames(audio)
    assert frames.shape == (3, 20, 5) and ms.shape == (3, 20)
    torch.testing.assert_close(frames, logits(embeddings), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_head_as_wide_as_the_encoder_switches_flat_features_on(files):
    runtime = RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=192), num_classes=5, flat_features=False)
    assert runtime.cfg.flat_features and runtime.cfg.feature_d == 192
    assert runtime(torch.zeros(1, 16000)).shape == (1, 5)
    assert runtime.forward_frames(torch.zeros(1, 16000))[0].shape == (1, 7, 5)
    assert RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=192)).cfg.feature_d == 960


def test_a_head_of_another_size(files, caplog):
    assert RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=960), num_classes=7).head.weight.shape == (7, 960)
    assert "has 5 classes: one of 7 starts at random" in caplog.text
    with pytest.raises(ValueError, match="takes 960 features; there are 192 .flat"):
        RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=960), num_classes=5, flat_features=True)


def test_a_new_head_is_said_and_no_head_gives_no_logits(files, runtime, caplog):
    assert RuntimeM2D(weight_file=files(), num_classes=3)(torch.zeros(2, 16000)).shape == (2, 3)
    assert "has no classifier" in caplog.text
    with pytest.raises(ValueError, match="give num_classes"):
        runtime.forward_frames(torch.zeros(1, 16000))


# ---------------------------------------------------------------- speed of loading


def test_weights_to_be_overwritten_are_not_drawn_at_random(files):
    path = files()
    state = torch.get_rng_state()
    RuntimeM2D(weight_file=path)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_loaded_runtime_does_not_hold_on_to_the_file(files):
    path = files("fine-tuned", classes=5, width=960)
    runtime = RuntimeM2D(weight_file=path, num_classes=5)
    assert runtime.num_classes == 5 and str(path) not in Path("/proc/self/maps").read_text()
