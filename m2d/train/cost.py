"""What a training step costs: its arithmetic, its memory, and what share of the device's peak it reaches (MFU)."""

import time
from collections.abc import Iterable
from typing import Any

import torch

from ..models.masking import keep_count
from .device import synchronize

#: Dense matrix products per second by device name, float16 and bfloat16 (NVIDIA's data sheets, without sparsity).
PEAK_FLOPS = {
    "V100": 125e12,
    "T4": 65e12,
    "A10": 125e12,
    "A30": 165e12,
    "A40": 150e12,
    "A100": 312e12,
    "A6000": 155e12,
    "L4": 121e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
#: Values kept for the backward pass by each token of each block, per unit of width (measured: 16.1 to 16.9).
_KEPT_VALUES = 16.5
#: Of these, the outputs of its GELU.
_GELU_VALUES = 4.0
#: Bytes of a kept value: half of the operations of mixed precision keep float32 (measured on an H100).
_KEPT_BYTES = {torch.float32: 4.0, torch.float16: 2.5, torch.bfloat16: 2.5}
#: Share of the measured peak that a step reaches, for estimates before the first one.
_TYPICAL_UTILISATION = 0.5
_MEASURED_SIZE = {"cuda": 8192, "mps": 4096, "cpu": 1024}


def blocks_flops(blocks: Iterable[Any], tokens: int) -> float:
    """Operations of transformer blocks on a clip's tokens, forward: two per multiplication and addition.

    Per block of width D: 24·N·D² in the matrices (at an MLP ratio of 4), 4·N²·D in attention.
    """
    total = 0.0
    for block in blocks:
        width, hidden = block.mlp.fc1.in_features, block.mlp.fc1.out_features
        total += 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width
    return total


def step_flops(model: Any, mask_ratio: float) -> float:
    """Operations of one clip's training step: forward and twice that backward, and the target encoder's forward.

    Norms, activations and the loss are left out, as are projectors, a teacher and a text encoder.
    """
    rows, columns = model.grid_size()
    length = rows * columns
    keep = keep_count(length, mask_ratio)
    embed = 2 * length * model.patch_embed.proj.weight.numel()
    if not hasattr(model, "decoder_blocks"):
        encoder = embed + blocks_flops(model.blocks, keep + 1)
        return encoder * (3 if next(model.blocks.parameters()).requires_grad else 1)
    predictor = blocks_flops(model.decoder_blocks, length + 1)
    ends = 2 * (keep + 1) * model.decoder_embed.weight.numel() + 2 * (length - keep) * model.decoder_pred.weight.numel()
    trained = embed + blocks_flops(model.blocks, keep + 1) + predictor + ends
    target = blocks_flops(model.used_target_blocks(), length - keep + 1) if model.has_ema_target else 0.0
    return 3 * trained + target


def step_memory(model: Any, mask_ratio: float, batch_size: int, precision: torch.dtype, recomputed: bool) -> float:
    """Estimate of a training step's memory in bytes: weights, gradients, AdamW's state, and what the backward pass needs.

    Args:
        model: the model.
        mask_ratio: the run's.
        batch_size: clips of a step.
        precision: of the step; parameters are float32.
        recomputed: activations are recomputed (--activation_checkpointing): blocks keep their inputs alone.
    """
    parameters = sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters())
    rows, columns = model.grid_size()
    length = rows * columns
    blocks = [(block, keep_count(length, mask_ratio) + 1) for block in model.blocks]
    if hasattr(model, "decoder_blocks"):
        blocks += [(block, length + 1) for block in model.decoder_blocks]
    values = sum(tokens * block.mlp.fc1.in_features for block, tokens in blocks)
    kept = _KEPT_VALUES - _GELU_VALUES * model.blocks[0].mlp.recompute_gelu
    return parameters + batch_size * values * (4.0 if recomputed else kept * _KEPT_BYTES[precision])


def run_seconds(clips: int, flops_per_clip: float, device_flops: float) -> float:
    """Estimate of the time that training on `clips` clips takes, before the first step."""
    return clips * flops_per_clip / (device_flops * _TYPICAL_UTILISATION)


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """Floating point operations per second of the device's matrix products: from a table, else measured."""
    if device.type == "cuda" and precision != torch.float32:
        name = torch.cuda.get_device_name(device)
        for key in sorted(PEAK_FLOPS, key=len, reverse=True):
            if key in name:
                return PEAK_FLOPS[key]
    return measured_flops(device, precision)


def measured_flops(device: torch.device, precision: torch.dtype, repeats: int = 5) -> float:
    """The best of a few large matrix products, in operations per second."""
    size = _MEASURED_SIZE.get(device.type, 1024)
    a = torch.randn(size, size, device=device, dtype=precision)
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        torch.mm(a, a)
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
