"""Models of every family, small enough to build by the dozen, and inputs for them."""

import torch

from m2d.models.registry import FAMILIES, M2DEncoderViT

ENCODER = dict(img_size=(80, 115), patch_size=16, embed_dim=32, depth=3, num_heads=2)
DECODER = dict(decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
SPEECH = dict(img_size=(80, 140), patch_size=(80, 4))
#: Width of each family's offline target.
OFFLINE = {"m2d_x": 24, "m2d_as": 11, "m2d_s": 24, "m2d_clap": 20}
#: 5 x 7 patches (speech: 1 x 35), of which plans keep 10.
GRID, LENGTH, KEEP = (5, 7), 35, 10


def small_model(family, **options):
    """A model of `models_mae.FAMILIES`, or `encoder`, with three blocks of width 32 and a decoder of two of width 16."""
    if family == "encoder":
        return M2DEncoderViT(**{**ENCODER, **options})
    sizes = {**ENCODER, **DECODER, **(SPEECH if family == "m2d_s" else {})}
    if family in OFFLINE:
        sizes["off_emb_dim"] = OFFLINE[family]
    return FAMILIES[family](**{**sizes, **options})


def inputs(model, family, batch=2):
    """A batch of log-mels and, where the family has an offline task, its target."""
    mels, frames = model.patch_embed.img_size
    x = torch.randn(batch, 1, mels, frames)
    if family == "m2d_as":
        return x, (torch.rand(batch, OFFLINE[family]) < 0.3).float()
    if family == "m2d_clap":
        return x, torch.randn(batch, OFFLINE[family])
    if family in OFFLINE:
        return x, torch.randn(batch, model.grid_size()[1], OFFLINE[family])
    return (x,)


def plan(batch=2, length=LENGTH, keep=KEEP):
    """A fixed plan `(ids_restore, keep)` at random."""
    return torch.stack([torch.randperm(length) for _ in range(batch)]), keep
