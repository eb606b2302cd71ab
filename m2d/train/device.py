"""How the device computes: precision of matrix products, memory, compilation.

A model is prepared in this order: weights loaded, moved to the device, activation checkpointing set, compiled, wrapped for
several processes or sharded.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from ..models.transformer.kernels import kernels_run
from ..models.vit import AudioViT
from ..utils.compiled_code import try_compiled
from ..utils.errors import UserError
from ..utils.malloc import keep_freed_memory
from .config import MachineSettings

#: Settings of torch._inductor.config. A GELU has more operations than the compiler computes again by default, where a kernel
#: reads a row twice: it would write them out in float32, and double what such a kernel moves.
COMPILER = {"realize_opcount_threshold": 64}


def configure(device: torch.device) -> None:
    """TF32 for products that stay in float32 beside mixed precision; cuDNN chooses its kernels, since all shapes are static.

    On a CPU, also tune malloc (fewer page faults).
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def precision_of(device: torch.device, bf16: bool) -> torch.dtype:
    """float16 or bfloat16 on CUDA; float32 elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if bf16 else torch.float16


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Highest memory in use on the device so far, in bytes; 0 where the device does not report it."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def total_memory(device: torch.device) -> int | None:
    """Memory that this process may take on the device, in bytes; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    limits = []
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
        limits.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # a container's limit; "max" where there is none
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def choose_computation(model: AudioViT, machine: MachineSettings, device: torch.device) -> Literal["", "blocks", "whole"]:
    """Set up how a model on a device is computed; returns what of it to compile.

    On CUDA, where the settings leave it open: attention by our kernels if they run there; compilation by block, which on an
    H200 keeps 98.7% of the speed of the whole model compiled and takes less time; GELUs computed again in compiled code.
    """
    if machine.fp8:
        model.use_float8()
    if machine.short_attention and device.type == "cuda" and not kernels_run(device):
        raise UserError("--short_attention: our kernels do not run on this device: omit it")
    on_cuda = device.type == "cuda"
    compiles_itself = machine.compile is None and on_cuda and not machine.fsdp
    by_block = machine.compile_blocks or compiles_itself
    compilation = "blocks" if by_block else "whole" if machine.compile else ""
    model.recompute_activations(machine.activation_checkpointing)
    model.recompute_gelu(on_cuda and bool(compilation) if machine.recompute_gelu is None else machine.recompute_gelu)
    model.use_short_attention(kernels_run(device) if machine.short_attention is None else machine.short_attention)
    model.half_target = machine.half_target
    return compilation


def compile_in_place(model: AudioViT, by_block: bool = False, options: dict | None = None) -> None:
    """Compile a model's forward for its one input size, or its blocks alone; `options` are of torch._inductor.config."""
    options = {**COMPILER, **(options or {})}
    if by_block:
        model.compile_blocks(options=options)
    else:
        model.compile(dynamic=False, options=options)


def try_compile(model: AudioViT, try_step: Callable[[], None], by_block: bool = False) -> bool:
    """Compile a model's forward in place and try it; where that fails, log why and run the model uncompiled.

    Args:
        model: the model.
        try_step: one forward and backward pass, after which nothing but gradients has changed.
        by_block: compile the blocks alone: less to compile, as the blocks share their code.

    Returns:
        whether the model is compiled.
    """

    def undo() -> None:
        model._compiled_call_impl = None
        model.compile_blocks(False)

    try:
        return try_compiled(lambda: compile_in_place(model, by_block), try_step, undo)
    finally:
        model.zero_grad(set_to_none=True)
