"""Attention of short sequences (N <= 256) as two Triton kernels, forward and backward.

They read the packed projection `[B, N, 3·H·D]` and write its gradient packed, so that nothing is permuted, stacked or copied
on either way. Tokens before `first` are keys and values alone. The softmax is in float32. There is no mask and no dropout.

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
# The fastest on an H200 of blocks of 32, 64 and 128 tokens, 2 to 8 warps, 1 to 3 stages (docs/benchmarks.md, On a GPU).
WARPS = 4
FORWARD_STAGES = 3
BACKWARD_STAGES = 1


def suits(qkv: torch.Tensor, heads: int) -> bool:
    """Whether the kernels take a projection `[B, N, 3·H·D]`: in half precision, on a CUDA device of capability 8.0 or more."""
    return (
        qkv.is_cuda
        and qkv.dtype in (torch.bfloat16, torch.float16)
        and 0 < qkv.shape[1] <= MAX_TOKENS
        and qkv.shape[2] // (3 * heads) in HEAD_WIDTHS
        and torch.cuda.get_device_properties(qkv.device).major >= 8
    )


def attention(qkv: torch.Tensor, heads: int, first: int = 0) -> torch.Tensor:
    """softmax(q kᵀ / √D) v of every head, of the queries from `first` on: `[B, N, 3·H·D]` to `[B, N - first, H·D]`."""
    return forward_op(qkv, heads, first)[0]


# ---------------------------------------------------------------- kernels


@triton.jit
def _load(head, rows, is_row, STRIDE: tl.constexpr, D: tl.constexpr):
    """Rows `[BLOCK, D]` of a head, zero where there is none."""
    return tl.load(head + rows[:, None] * STRIDE + tl.arange(0, D)[None, :], mask=is_row[:, None], other=0.0)


@triton.jit
def _store(head, rows, n, values, STRIDE: tl.constexpr, D: tl.constexpr):
    at = head + rows[:, None] * STRIDE + tl.arange(0, D)[None, :]
    tl.store(at, values.to(head.dtype.element_ty), mask=rows[:, None] < n)


@triton.jit(do_not_specialize=["n"])
def _forward(
    qkv,
    out,
    lse,
    n,
    H: tl.constexpr,
    D: tl.constexpr,
    SCALE: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCKS: tl.constexpr,
    QUERY_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Output of one block of queries, and log2 of their softmax's denominators. SCALE: log2(e) / √D."""
    WIDTH: tl.constexpr = H * D
    pair = tl.program_id(0) // QUERY_BLOCKS  # clip and head
    clip = (pair // H).to(tl.int64)
    queries = n - FIRST
    query = qkv + clip * n * 3 * WIDTH + pair % H * D
    key, value = query + WIDTH, query + 2 * WIDTH

    rows = tl.program_id(0) % QUERY_BLOCKS * BLOCK + tl.arange(0, BLOCK)  # of the output
    q = _load(query + FIRST * 3 * WIDTH, rows, rows < queries, 3 * WIDTH, D)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    o = tl.zeros([BLOCK, D], tl.float32)
    for j in range(BLOCKS):
        columns = j * BLOCK + tl.arange(0, BLOCK)
        k = _load(key, columns, columns < n, 3 * WIDTH, D)
        v = _load(value, columns, columns < n, 3 * WIDTH, D)
        s = tl.where(columns[None, :] < n, tl.dot(q, tl.trans(k)) * SCALE, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        o = tl.dot(p.to(v.dtype), v, o * shrink[:, None])
        top = new_top
    _store(out + clip * queries * WIDTH + pair % H * D, rows, queries, o / total[:, None], WIDTH, D)
    tl.store(lse + pair.to(tl.int64) * queries + rows, top + tl.log2(total), mask=rows < queries)


@triton.jit
def _query_rows(query, out, dout, lse, tokens, n, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """A block of tokens as queries: q, the gradient of their output, log2 of their denominators, and delta = Σ (dP · P)."""
    is_query = tokens < n
    q = _load(query, tokens, is_query, 3 * WIDTH, D)
    if FIRST > 0:
        is_query = is_query & (tokens >= FIRST)
    do = _load(dout, tokens - FIRST, is_query, WIDTH, D)
    o = _load(out, tokens - FIRST, is_query, WIDTH, D)
    # Infinite where a token is no query, which makes its weights zero.
    denominator = tl.load(lse + tokens - FIRST, mask=is_query, other=float("inf"))
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
    FIRST: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of one block of tokens as keys and values, then as queries. SCALE: log2(e) / √D; FACTOR: 1 / √D."""
    WIDTH: tl.constexpr = H * D
    pair = tl.program_id(0) // BLOCKS
    clip = (pair // H).to(tl.int64)
    packed, single = clip * n * 3 * WIDTH + pair % H * D, clip * (n - FIRST) * WIDTH + pair % H * D
    query, key, value = qkv + packed, qkv + packed + WIDTH, qkv + packed + 2 * WIDTH
    gradient = dqkv + packed
    out += single
    dout += single
    lse += pair.to(tl.int64) * (n - FIRST)
    rows = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)

    k = _load(key, rows, rows < n, 3 * WIDTH, D)
    v = _load(value, rows, rows < n, 3 * WIDTH, D)
    dk = tl.zeros([BLOCK, D], tl.float32)
    dv = tl.zeros([BLOCK, D], tl.float32)
    for i in range(FIRST // BLOCK, BLOCKS):
        at = i * BLOCK + tl.arange(0, BLOCK)
        q, do, denominator, delta = _query_rows(query, out, dout, lse, at, n, FIRST, WIDTH, D)  # pyright: ignore
        # Keys first: no tile that was computed has to be transposed. Rows beyond the last key are never stored.
        p = tl.exp2(tl.dot(k, tl.trans(q)) * SCALE - denominator[None, :])
        ds = p * (tl.dot(v, tl.trans(do)) - delta[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv)
        dk = tl.dot(ds.to(q.dtype), q, dk)
    _store(gradient + WIDTH, rows, n, dk * FACTOR, 3 * WIDTH, D)
    _store(gradient + 2 * WIDTH, rows, n, dv, 3 * WIDTH, D)

    q, do, denominator, delta = _query_rows(query, out, dout, lse, rows, n, FIRST, WIDTH, D)
    dq = tl.zeros([BLOCK, D], tl.float32)
    for j in range(BLOCKS):
        columns = j * BLOCK + tl.arange(0, BLOCK)
        k = _load(key, columns, columns < n, 3 * WIDTH, D)
        v = _load(value, columns, columns < n, 3 * WIDTH, D)
        p = tl.exp2(tl.dot(q, tl.trans(k)) * SCALE - denominator[:, None])
        p = tl.where(columns[None, :] < n, p, 0.0)
        ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    _store(gradient, rows, n, dq * FACTOR, 3 * WIDTH, D)


# ---------------------------------------------------------------- the operator


def _sizes(qkv: torch.Tensor, heads: int, first: int) -> dict:
    width = qkv.shape[2] // (3 * heads)
    blocks = -(-qkv.shape[1] // BLOCK)
    scale = math.log2(math.e) * width**-0.5
    return dict(H=heads, D=width, SCALE=scale, FIRST=first, BLOCKS=blocks, BLOCK=BLOCK, num_warps=WARPS)


def forward_settings(qkv: torch.Tensor, heads: int, first: int = 0) -> dict:
    """What the forward kernel is compiled for."""
    return _sizes(qkv, heads, first) | dict(QUERY_BLOCKS=-(-(qkv.shape[1] - first) // BLOCK), num_stages=FORWARD_STAGES)


def backward_settings(qkv: torch.Tensor, heads: int, first: int = 0) -> dict:
    """What the backward kernel is compiled for."""
    sizes = _sizes(qkv, heads, first)
    return sizes | dict(FACTOR=sizes["D"] ** -0.5, num_stages=BACKWARD_STAGES)


def launch_forward(qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, heads: int, first: int) -> None:
    """Write the output and log2 of the denominators."""
    settings = forward_settings(qkv, heads, first)
    with torch.cuda.device_of(qkv):  # triton launches on the current device
        _forward[qkv.shape[0] * heads * settings["QUERY_BLOCKS"],](qkv, out, lse, qkv.shape[1], **settings)


def launch_backward(
    qkv: torch.Tensor, out: torch.Tensor, dout: torch.Tensor, lse: torch.Tensor, dqkv: torch.Tensor, heads: int, first: int
) -> None:
    """Write the gradient of the projection."""
    settings = backward_settings(qkv, heads, first)
    with torch.cuda.device_of(qkv):
        _backward[qkv.shape[0] * heads * settings["BLOCKS"],](qkv, out, dout, lse, dqkv, qkv.shape[1], **settings)


@torch.library.custom_op("m2d::short_attention", mutates_args=())
def forward_op(qkv: torch.Tensor, heads: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[B, N - first, H·D]`, and log2 of the softmax's denominators, float32 `[B, H, N - first]`."""
    out, lse = _results(qkv, heads, first)
    launch_forward(qkv.contiguous(), out, lse, heads, first)
    return out, lse


@torch.library.custom_op("m2d::short_attention_backward", mutates_args=())
def backward_op(
    qkv: torch.Tensor, out: torch.Tensor, dout: torch.Tensor, lse: torch.Tensor, heads: int, first: int = 0
) -> torch.Tensor:
    """Gradient of the projection, packed as it is."""
    qkv = qkv.contiguous()
    dqkv = torch.empty_like(qkv)
    launch_backward(qkv, out, dout.contiguous(), lse, dqkv, heads, first)
    return dqkv


@forward_op.register_fake
def _results(qkv: torch.Tensor, heads: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    batch, n, width = qkv.shape
    out = qkv.new_empty(batch, n - first, width // 3)
    return out, qkv.new_empty(batch, heads, n - first, dtype=torch.float32)


@backward_op.register_fake
def _(qkv: torch.Tensor, out: torch.Tensor, dout: torch.Tensor, lse: torch.Tensor, heads: int, first: int = 0) -> torch.Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:
    qkv, ctx.heads, ctx.first = inputs
    ctx.save_for_backward(qkv, *output)


def _gradient(ctx, dout: torch.Tensor, _) -> tuple[torch.Tensor, None, None]:
    qkv, out, lse = ctx.saved_tensors
    return backward_op(qkv, out, dout, lse, ctx.heads, ctx.first), None, None


forward_op.register_autograd(_gradient, setup_context=_save)
