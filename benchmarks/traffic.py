"""What the compiled training step moves through a GPU's memory, without a GPU: its kernels and their bytes.

    python -m benchmarks.traffic                     # m2d_vit_base 80x608 16x16, batch 512: a block of each part
    python -m benchmarks.traffic --fp8 --kernels     # with float8, and each kernel

A block's code is traced on shapes alone and lowered by torch's compiler for a device that this script describes to it; nothing
is run. Matrix products and our attention kernels are left out: of theirs the bytes are known. Divided by a device's bandwidth,
the rest is a bound that its elementwise kernels cannot go below.
"""

import argparse
import copy
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import torch
import torch._inductor.config as inductor_config
import triton
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.compile_fx import compile_fx_inner, partition_fn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensorMode, fake_tensor
from triton.backends.compiler import GPUTarget

from m2d.models.transformer import block as blocks
from m2d.models.transformer import float8, short_attention
from m2d.models.transformer.block import Block
from m2d.train.device import COMPILER

#: What the compiler asks of a device: an H100's.
H100 = SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    L2_cache_size=50 << 20,
    gcnArchName="",
)


@dataclass(frozen=True)
class Part:
    """Blocks of a model of one size, with the tokens they see: `[batch, tokens, width]`."""

    name: str
    blocks: int
    width: int
    heads: int
    tokens: int
    trained: bool = True


#: m2d_vit_base, 80x608, 16x16, mask 0.7.
PARTS = (
    Part("online encoder", 12, 768, 12, 59),
    Part("target encoder", 12, 768, 12, 135, trained=False),
    Part("predictor", 8, 512, 16, 191),
)


@contextmanager
def described_device() -> Iterator[None]:
    """Let the compiler find an H100."""
    fake_driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0, get_current_stream=lambda _: 0
    )
    of_cuda = dict(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_properties=lambda _=None: H100,
        get_device_capability=lambda _=None: (9, 0),
        _get_device_properties=lambda _=None: H100,
        _exchange_device=lambda _: 0,
        _maybe_exchange_device=lambda _: 0,
        _lazy_init=lambda: None,
        get_rng_state=lambda *_: torch.empty(0, device="cpu"),
        set_rng_state=lambda *_: None,
    )
    of_interface = dict(
        is_available=lambda: True,
        get_compute_capability=lambda _=None: 90,
        is_triton_capable=lambda _=None: True,
        raise_if_triton_unavailable=lambda _=None: None,
    )
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", fake_driver))
        for name, value in of_cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value, create=True))
        for name, value in of_interface.items():
            stack.enter_context(mock.patch.object(CudaInterface, name, staticmethod(value)))
        stack.enter_context(mock.patch.object(CudaInterface.Worker, "get_device_properties", staticmethod(lambda _=None: H100)))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda _: None))
        for module in ("torch._inductor.scheduler", "torch._inductor.lowering", "torch.utils._triton"):
            stack.enter_context(mock.patch(f"{module}.has_triton", lambda *_: True, create=True))
        yield


@contextmanager
def kernels_of_cuda() -> Iterator[None]:
    """Let a model on the CPU choose the kernels that it would on CUDA."""
    attend = short_attention.attention
    with (
        mock.patch.object(blocks, "attend", lambda qkv, heads, first, short: attend(qkv, heads, first)),
        mock.patch.object(float8, "multiplies_float8", lambda _: True),
    ):
        yield


Graph = tuple[str, torch.fx.GraphModule, list[torch.Tensor]]


def traced(part: Part, batch: int, fp8: bool) -> list[Graph]:
    """The graphs of a block's passes, and their inputs' shapes."""
    graphs = []

    def remember(kind: str):
        def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
            graphs.append((kind, copy.deepcopy(graph), inputs))
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(
        fw_compiler=remember("forward"),
        bw_compiler=remember("backward"),
        inference_compiler=remember("forward"),
        partition_fn=partition_fn,
        decompositions=select_decomp_table(),
    )
    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), kernels_of_cuda():
        block = Block(part.width, part.heads).train()
        block.mlp.recompute_gelu = block.attn.short = True
        if fp8:
            float8.use_float8([block.attn.qkv, block.mlp.fc1, block.mlp.fc2])
        shape = (batch, part.tokens, part.width)
        pair = [torch.empty(shape, dtype=dtype, requires_grad=part.trained) for dtype in (torch.float32, torch.bfloat16)]
        compiled = torch.compile(Block._from_pair, backend=backend, dynamic=False)
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(part.trained):
            tokens, mlp_out = compiled(block, *pair, 0)
        if part.trained:
            (tokens.sum() + mlp_out.float().sum()).backward()
    torch._dynamo.reset()
    return graphs


class OnCuda(torch.fx.Interpreter):
    """Notes of each value of a graph what it is on CUDA."""

    def run_node(self, n: torch.fx.Node) -> object:
        """A node's value."""
        if "device" in n.kwargs:
            n.kwargs = {**n.kwargs, "device": torch.device("cuda:0")}
        n.meta["val"] = super().run_node(n)
        return n.meta["val"]


def kernels(kind: str, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> list[tuple[str, float]]:
    """The compiler's kernels for a graph, `(name, bytes)`, in their order; matrix products and attention have 0 bytes."""
    found = []

    def to_module(lowering: GraphLowering) -> SimpleNamespace:
        found.append(lowering.codegen()[0].value)
        return SimpleNamespace(call=lambda _: None)

    with described_device(), inductor_config.patch(benchmark_kernel=True, force_disable_caches=True, **COMPILER):
        with FakeTensorMode(allow_non_fake_inputs=True):
            on_cuda = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in inputs]
            OnCuda(graph).run(*on_cuda)
        with mock.patch.object(GraphLowering, "compile_to_module", to_module):
            compile_fx_inner(graph, on_cuda, is_backward=kind == "backward")
    (code,) = found
    moved = dict(re.findall(r"'kernel_name': '(\w+)'.*?'kernel_num_gb': ([\d.e-]+)", code))
    calls = re.findall(
        r"(triton_\w+)\.run\(|extern_kernels\.(\w+)\(|torch\.ops\.m2d\.(\w+)\.default\(", code.split("def call(")[-1]
    )
    return [(triton_name or other or op, float(moved.get(triton_name, 0)) * 1e9) for triton_name, other, op in calls]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--fp8", action="store_true", help="products in float8")
    parser.add_argument("--kernels", action="store_true", help="each kernel")
    args = parser.parse_args()
    total = 0.0
    for part in PARTS:
        for kind, *graph in traced(part, args.batch_size, args.fp8):
            found = kernels(kind, *graph)
            moved = sum(size for _, size in found)
            total += part.blocks * moved
            print(f"| {part.name}, {kind} | {part.blocks} blocks of {moved / 1e9:.2f} GB |")
            for name, size in found if args.kernels else []:
                print(f"|   {name} | {size / 1e6:.0f} MB |")
    print(f"| all | {total / 1e9:.1f} GB |")


if __name__ == "__main__":
    main()
