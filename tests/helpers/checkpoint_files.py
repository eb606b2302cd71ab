"""Checkpoints of tiny models in the published layouts, for tests."""

import argparse

import torch

from m2d.models import registry as models_mae
from m2d.models.projectors import SemanticProjector

SMALL = dict(img_size=(80, 64), patch_size=(16, 16), embed_dim=32, depth=2, num_heads=2)
FULL = dict(SMALL, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
NAME = "m2d_vit_tiny-80x64p16x16-261122-x"


def published_name(model="m2d_vit_tiny", size=(80, 208), patch=(16, 16), rate=""):
    """A folder's name that tells the sizes."""
    return f"{model}-{size[0]}x{size[1]}p{patch[0]}x{patch[1]}{rate}-261122-test"


def head_tensors(classes, width, prefix="module.head."):
    """A classifier as EVAR's fine-tuning saves it."""
    return {
        f"{prefix}norm.running_mean": torch.randn(width),
        f"{prefix}norm.running_var": 0.5 + torch.rand(width),
        f"{prefix}norm.num_batches_tracked": torch.tensor(3),
        f"{prefix}mlp.mlp.0.weight": torch.randn(classes, width) / width**0.5,
        f"{prefix}mlp.mlp.0.bias": torch.randn(classes),
    }


def write_checkpoint(root, model="m2d_vit_tiny", size=(80, 208), patch=(16, 16), rate="", stats=(-6.5, 3.5), **options):
    """A training checkpoint of random weights; returns its path."""
    built = models_mae.build(model, img_size=size, patch_size=patch, norm_stats=stats, decoder_depth=2, **options)
    path = root / published_name(model.replace("_encoder_only", ""), size, patch, rate) / "checkpoint-1.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": built.state_dict(), "optimizer": {}, "epoch": 1, "args": argparse.Namespace(seed=0)}, path)
    return path


def write_fine_tuned(root, classes, width, model="m2d_vit_tiny", size=(80, 208), patch=(16, 16)):
    """A checkpoint as EVAR's fine-tuning writes it, of a classifier over `width` features; returns its path."""
    built = models_mae.build(f"{model}_encoder_only", img_size=size, patch_size=patch)
    state = {f"module.ar.runtime.backbone.{name}": value for name, value in built.state_dict().items()}
    path = root / published_name(model, size, patch) / f"weights_ep1-{width}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state | head_tensors(classes, width), path)
    return path


def semantic_tensors(width, depth=1):
    """A semantic projector's tensors, at random, under the published names."""
    projector = SemanticProjector(width, depth)
    return {f"audio_proj.{name}": torch.randn_like(tensor) / width**0.5 for name, tensor in projector.state_dict().items()}


def mlp_tensors(width, name="audio_proj", inputs=None):
    """Tensors of two linear layers around a ReLU, at random, under the published names."""
    inputs = inputs or width
    shapes = {"0.weight": (inputs, inputs), "0.bias": (inputs,), "2.weight": (width, inputs), "2.bias": (width,)}
    return {f"{name}.{key}": torch.randn(shape) / inputs**0.5 for key, shape in shapes.items()}


def write_clap(root, projectors, extras="p16k", prefix="", text=None, model="m2d_clap_vit_tiny", size=(80, 64)):
    """An encoder with projectors, and with `text` a text encoder's tensors, in an M2D-CLAP layout; returns its path.

    `extras` is what follows the sizes in the folder's name, `prefix` is `backbone.` in the layout of 2025.
    """
    encoder = models_mae.build(f"{model}_encoder_only", img_size=size, patch_size=(16, 16), norm_stats=(-6.5, 3.5))
    state = {prefix + name: tensor for name, tensor in {**encoder.state_dict(), **projectors}.items()}
    state |= {f"text_encoder.{name}": tensor for name, tensor in (text or {}).items()}
    state["logit_scale"] = torch.tensor(4.6)
    path = root / published_name(model, size, rate=extras) / "checkpoint-1.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state, "optimizer": {}, "epoch": 1, "args": argparse.Namespace(seed=0)}, path)
    return path


def training_checkpoint(model, epoch=1, args=None):
    """What training saves of a model."""
    return {"model": model.state_dict(), "optimizer": {"state": {}}, "epoch": epoch, "scaler": {}, "args": args or {"seed": 0}}


def assert_same(state, expected):
    """Two models' tensors are the same, by name."""
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
