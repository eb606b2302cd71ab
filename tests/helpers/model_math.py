"""The models' steps, one by one, for tests."""

import torch
from small_models import GRID, KEEP, LENGTH

ROWS, COLUMNS = GRID
DUOS = ["m2d", "m2d_d2v", "m2d_x", "m2d_as"]


def shuffled(ids_restore):
    """Patches in the order of their places: visible first."""
    return [row.tolist() for row in ids_restore.argsort(dim=1)]


def one_by_one(rows):
    """Stack a nested list of vectors: `[B, N, D]`."""
    return torch.stack([torch.stack(row) for row in rows])


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def in_order(model, latent, ids_restore):
    """The predictor as the MAE paper tells it: mask tokens put in, all tokens in order, positions, blocks; with class token."""
    batches = []
    for embedded, order in zip(model.decoder_embed(latent), shuffled(ids_restore), strict=True):
        tokens = [model.mask_token[0, 0]] * LENGTH
        for place, patch in enumerate(order[:KEEP]):
            tokens[patch] = embedded[1 + place]
        batches.append([embedded[0], *tokens])
    x = one_by_one(batches) + model.decoder_pos_embed
    for block in model.decoder_blocks:
        x = block(x)
    return model.decoder_pred(model.decoder_norm(x))


def embedded_patches(model, x):
    """Each patch cut out and projected on its own, with its position: `[B, L, D]`."""
    weight, bias = model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.bias
    batches = []
    for clip in x:
        cut = [clip[:, 16 * f : 16 * f + 16, 16 * t : 16 * t + 16].flatten() for f in range(ROWS) for t in range(COLUMNS)]
        batches.append([weight @ patch + bias + model.pos_embed[0, 1 + i] for i, patch in enumerate(cut)])
    return one_by_one(batches)


def through(blocks, norm, model, patches):
    """Class token in front, blocks, norm; and every block's output before the norm."""
    x = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(len(patches), -1, -1), patches], dim=1)
    layers = []
    for block in blocks:
        x = block(x)
        layers.append(x)
    return norm(x), layers


def numpy(tensor):
    return tensor.detach().double().numpy()
