"""Attention of short sequences (N <= 256) as two Triton kernels, forward and backward.

They read the packed projection `[B, N, 3·H·D]` and write its gradient packed, so that nothing is permuted, stacked or copied
on either way. The softmax is in float32. There is no mask and no dropout.

A program handles one block of 64 tokens of one head. The forward goes over the key blocks with a running softmax and stores
the logarithm of its denominator; the backward recomputes the weights from it (FlashAttention: Dao et al., 2022): once with
the block as keys, for their and the values' gradients, and once with the block as queries, for theirs. At these lengths the
second reading of a head's tokens comes from the cache.

Importing this module needs triton.
"""

import math

import torch
import triton
import triton.language as tl

MAX_TOKENS = 256
HEAD_WIDTHS = (32, 64)
BLOCK = 64
# Compiled for H100 and A100, these leave the fewest registers in use; no GPU was at hand to measure by.
WARPS = 4
STAGES = 1


def suits(qkv: torch.Tensor, heads: int) -> bool:
    """Whether the kernels take a projection `[B, N, 3·H·D]`: in half precision, on a CUDA device of capability 8.0 or more."""
    return (
        qkv.is_cuda
        and qkv.dtype in (torch.bfloat16, torch.float16)
        and 0 < qkv.shape[1] <= MAX_TOKENS
        and qkv.shape[2] // (3 * heads) in HEAD_WIDTHS
        and torch.cuda.get_device_properties(qkv.device).major >= 8
    )


def attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(q kᵀ / √D) v of every head: `[B, N, 3·H·D]` to `[B, N, H·D]`."""
    return forward_op(qkv, heads)[0]


# ---------------------------------------------------------------- kernels


@triton.jit
def _load(head, rows, n, STRIDE: tl.constexpr, D: tl.constexpr):
    """Rows `[BLOCK, D]` of a head, zero from row n on."""
    return tl.load(head + rows[:, None] * STRIDE + tl.arange(0, D)[None, :], mask=rows[:, None] < n, other=0.0)


@triton.jit
def _store(head, rows, n, values, STRIDE: tl.constexpr, D: tl.constexpr):
    at = head + rows[:, None] * STRIDE + tl.arange(0, D)[None, :]
    tl.store(at, values.to(head.dtype.element_ty), mask=rows[:, None] < n)


@triton.jit(do_not_specialize=["n"])
def _forward(qkv, out, lse, n, H: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """Output of one block of queries, and log2 of their softmax's denominators. SCALE: log2(e) / √D."""
    WIDTH: tl.constexpr = H * D
    pair = tl.program_id(0) // BLOCKS  # clip and head
    clip = (pair // H).to(tl.int64)
    query = qkv + clip * n * 3 * WIDTH + pair % H * D
    key, value = query + WIDTH, query + 2 * WIDTH

    rows = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    q = _load(query, rows, n, 3 * WIDTH, D)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    o = tl.zeros([BLOCK, D], tl.float32)
    for j in range(BLOCKS):
        columns = j * BLOCK + tl.arange(0, BLOCK)
        k = _load(key, columns, n, 3 * WIDTH, D)
        v = _load(value, columns, n, 3 * WIDTH, D)
        s = tl.where(columns[None, :] < n, tl.dot(q, tl.trans(k)) * SCALE, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        o = tl.dot(p.to(v.dtype), v, o * shrink[:, None])
        top = new_top
    _store(out + clip * n * WIDTH + pair % H * D, rows, n, o / total[:, None], WIDTH, D)
    tl.store(lse + pair.to(tl.int64) * n + rows, top + tl.log2(total), mask=rows < n)


@triton.jit
def _query_rows(query, out, dout, lse, rows, n, WIDTH: tl.constexpr, D: tl.constexpr):
    """A block of queries: q, the gradient of their output, log2 of their denominators, and delta = Σ (dP · P)."""
    q = _load(query, rows, n, 3 * WIDTH, D)
    do = _load(dout, rows, n, WIDTH, D)
    o = _load(out, rows, n, WIDTH, D)
    # Infinite beyond the last query, which makes its weights zero.
    denominator = tl.load(lse + rows, mask=rows < n, other=float("inf"))
    return q, do, denominator, tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)


@triton.jit(do_not_specialize=["n"])
def _backward(
    qkv,
    out,
    dout,
    lse,
    dqkv,
    n,
    H: tl.constexpr,
    D: tl.constexpr,
    SCALE: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of one block of tokens as keys and values, then as queries. SCALE: log2(e) / √D; FACTOR: 1 / √D."""
    WIDTH: tl.constexpr = H * D
    pair = tl.program_id(0) // BLOCKS
    clip = (pair // H).to(tl.int64)
    packed, single = clip * n * 3 * WIDTH + pair % H * D, clip * n * WIDTH + pair % H * D
    query, key, value = qkv + packed, qkv + packed + WIDTH, qkv + packed + 2 * WIDTH
    gradient = dqkv + packed
    out += single
    dout += single
    lse += pair.to(tl.int64) * n
    rows = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)

    k = _load(key, rows, n, 3 * WIDTH, D)
    v = _load(value, rows, n, 3 * WIDTH, D)
    dk = tl.zeros([BLOCK, D], tl.float32)
    dv = tl.zeros([BLOCK, D], tl.float32)
    for i in range(BLOCKS):
        at = i * BLOCK + tl.arange(0, BLOCK)
        q, do, denominator, delta = _query_rows(query, out, dout, lse, at, n, WIDTH, D)  # pyright: ignore
        # Keys first: no tile that was computed has to be transposed. Rows beyond the last key are never stored.
        p = tl.exp2(tl.dot(k, tl.trans(q)) * SCALE - denominator[None, :])
        ds = p * (tl.dot(v, tl.trans(do)) - delta[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv)
        dk = tl.dot(ds.to(q.dtype), q, dk)
    _store(gradient + WIDTH, rows, n, dk * FACTOR, 3 * WIDTH, D)
    _store(gradient + 2 * WIDTH, rows, n, dv, 3 * WIDTH, D)

    q, do, denominator, delta = _query_rows(query, out, dout, lse, rows, n, WIDTH, D)
    dq = tl.zeros([BLOCK, D], tl.float32)
    for j in range(BLOCKS):
        columns = j * BLOCK + tl.arange(0, BLOCK)
        k = _load(key, columns, n, 3 * WIDTH, D)
        v = _load(value, columns, n, 3 * WIDTH, D)
        p = tl.exp2(tl.dot(q, tl.trans(k)) * SCALE - denominator[:, None])
        p = tl.where(columns[None, :] < n, p, 0.0)
        ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    _store(gradient, rows, n, dq * FACTOR, 3 * WIDTH, D)


# ---------------------------------------------------------------- the operator


def _launch(qkv: torch.Tensor, heads: int) -> tuple[tuple[int], dict]:
    """The grid, and what the kernels are compiled for."""
    batch, n, width = qkv.shape
    head_width, blocks = width // (3 * heads), -(-n // BLOCK)
    scale = math.log2(math.e) * head_width**-0.5
    sizes = dict(H=heads, D=head_width, SCALE=scale, BLOCKS=blocks, BLOCK=BLOCK)
    return (batch * heads * blocks,), dict(sizes, num_warps=WARPS, num_stages=STAGES)


@torch.library.custom_op("m2d::short_attention", mutates_args=())
def forward_op(qkv: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[B, N, H·D]`, and log2 of the softmax's denominators, float32 `[B, H, N]`."""
    qkv = qkv.contiguous()
    batch, n, width = qkv.shape
    out = qkv.new_empty(batch, n, width // 3)
    lse = qkv.new_empty(batch, heads, n, dtype=torch.float32)
    grid, settings = _launch(qkv, heads)
    _forward[grid](qkv, out, lse, n, **settings)
    return out, lse


@torch.library.custom_op("m2d::short_attention_backward", mutates_args=())
def backward_op(qkv: torch.Tensor, out: torch.Tensor, dout: torch.Tensor, lse: torch.Tensor, heads: int) -> torch.Tensor:
    """Gradient of the projection, packed as it is."""
    qkv = qkv.contiguous()
    dqkv = torch.empty_like(qkv)
    grid, settings = _launch(qkv, heads)
    _backward[grid](qkv, out, dout.contiguous(), lse, dqkv, n=qkv.shape[1], FACTOR=settings["D"] ** -0.5, **settings)
    return dqkv


@forward_op.register_fake
def _(qkv: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch, n, width = qkv.shape
    return qkv.new_empty(batch, n, width // 3), qkv.new_empty(batch, heads, n, dtype=torch.float32)


@backward_op.register_fake
def _(qkv: torch.Tensor, out: torch.Tensor, dout: torch.Tensor, lse: torch.Tensor, heads: int) -> torch.Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:
    qkv, ctx.heads = inputs
    ctx.save_for_backward(qkv, *output)


def _gradient(ctx, dout: torch.Tensor, _) -> tuple[torch.Tensor, None]:
    qkv, out, lse = ctx.saved_tensors
    return backward_op(qkv, out, dout, lse, ctx.heads), None


forward_op.register_autograd(_gradient, setup_context=_save)
