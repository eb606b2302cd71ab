"""Attention of short sequences: our Triton kernels against torch's, and what they compile to.

python -m benchmarks.attention                 # milliseconds, on a GPU
python -m benchmarks.attention --compile_only  # registers, spills and shared memory; needs no GPU
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.testing import do_bench

from m2d.models.transformer import short_attention
from m2d.models.transformer.block import attend

#: (tokens, heads, head width): m2d_vit_base, 80x608, 16x16, mask 0.7.
SHAPES = {"online": (59, 12, 64), "target": (135, 12, 64), "predictor": (191, 16, 32), "whole clip": (191, 12, 64)}
KERNELS = {
    "forward": (short_attention._forward, short_attention.forward_settings),
    "backward": (short_attention._backward, short_attention.backward_settings),
}
POINTERS = {"qkv": "*bf16", "out": "*bf16", "dout": "*bf16", "dqkv": "*bf16", "lse": "*fp32"}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def compiled_size(kernel, settings_of: Callable[[torch.Tensor, int], dict], shape: tuple[int, int, int], capability: int) -> str:
    """Resources of an attention kernel for a shape."""
    n, heads, head_width = shape
    settings = settings_of(torch.empty(1, n, 3 * heads * head_width, device="meta"), heads)
    return resources(kernel, POINTERS, {"n": "i32"}, settings, capability)


def resources(kernel, pointers: dict[str, str], numbers: dict[str, str], settings: dict, capability: int) -> str:
    """Resources of a kernel compiled for a device of a capability (90: H100, 80: A100).

    Args:
        kernel: the kernel.
        pointers, numbers: types of its arguments, by name; pointers are aligned to 16 bytes.
        settings: its constants, and options such as num_warps.
    """
    names = kernel.arg_names
    options = {name: value for name, value in settings.items() if name not in names}
    signature = {name: {**pointers, **numbers}.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in settings.items() if name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in pointers}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOLS / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
        code = subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage).group(1)) for key in ("REG", "STACK"))
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    shared = binary.metadata.shared
    return f"{registers:4} registers, {stack:4} B of stack, {spills:3} spills, {shared / 1024:5.1f} KiB shared"


def measure(shape: tuple[int, int, int], batch: int) -> str:
    """Milliseconds of forward, and of forward and backward: torch's, ours."""
    n, heads, head_width = shape
    qkv = torch.randn(batch, n, 3 * heads * head_width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dout = torch.randn(batch, n, heads * head_width, device="cuda", dtype=torch.bfloat16)
    figures = []
    for call in (attend, short_attention.attention):
        with torch.no_grad():
            figures.append(f"{do_bench(lambda call=call: call(qkv, heads)):.3f}")
        figures.append(f"{do_bench(lambda call=call: torch.autograd.grad(call(qkv, heads), qkv, dout)):.3f}")
    return "torch {} / {}, ours {} / {}".format(*figures)


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--compile_only", action="store_true")
    args = parser.parse_args()
    for name, shape in SHAPES.items():
        if not args.compile_only:
            print(f"{name} {shape}: forward / forward and backward, ms: {measure(shape, args.batch_size)}", flush=True)
            continue
        for capability in (90, 80):
            for label, (kernel, settings_of) in KERNELS.items():
                size = compiled_size(kernel, settings_of, shape, capability)
                print(f"{name} {shape}, sm_{capability}, {label:8}: {size}", flush=True)


if __name__ == "__main__":
    main()
