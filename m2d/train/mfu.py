"""The arithmetic of a training step: floating point operations per clip, for the utilisation in the log."""

from torch import nn

from ..models.masking import keep_count


def blocks_flops(blocks: nn.ModuleList, tokens: int) -> float:
    """Operations of transformer blocks on a clip's tokens, forward: two per multiplication and addition.

    Per block of width D: 24·N·D² in the matrices (at an MLP ratio of 4), 4·N²·D in attention.
    """
    total = 0.0
    for block in blocks:
        width, hidden = block.mlp.fc1.in_features, block.mlp.fc1.out_features
        total += 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width
    return total


def step_flops(model: nn.Module, mask_ratio: float) -> float:
    """Operations of one clip's training step: forward and twice that backward, and the target encoder's forward.

    Norms, activations and the loss are left out, as is a teacher.
    """
    rows, columns = model.grid_size()
    length = rows * columns
    keep = keep_count(length, mask_ratio)
    embed = 2 * length * model.patch_embed.proj.weight.numel()
    predictor = blocks_flops(model.decoder_blocks, length + 1)
    ends = 2 * (keep + 1) * model.decoder_embed.weight.numel() + 2 * (length - keep) * model.decoder_pred.weight.numel()
    trained = embed + blocks_flops(model.blocks, keep + 1) + predictor + ends
    target = blocks_flops(model.used_target_blocks(), length - keep + 1) if model.has_ema_target else 0.0
    return 3 * trained + target
