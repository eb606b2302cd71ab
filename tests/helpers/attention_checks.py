"""Checks of the short-sequence attention kernels against float64.

As a program, with TRITON_INTERPRET=1, it runs them on the CPU; `-m gpu` tests call them on a GPU.
"""

import torch
import torch.nn.functional as F

from m2d.models.transformer import short_attention

#: One block, whole and not; several; one token; the longest. Beside the training's lengths: 59, 135, 191.
LENGTHS = (1, 5, 59, 64, 65, 135, 191, 192, 256)
#: Tokens, of which the queries begin at the second number: within a block, at its edge, in a later one.
QUERIES_FROM = ((59, 20), (135, 64), (191, 58), (191, 150), (2, 1))
#: Largest relative error (2-norm) of outputs and gradients.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
GUARD = 1 << 12


def reference(qkv: torch.Tensor, heads: int, dout: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and gradient of the projection, by torch in float64; the queries are the last tokens, as many as `dout` has."""
    x = qkv.double().requires_grad_()
    batch, n, width = x.shape
    query, key, value = x.view(batch, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(query[:, :, n - dout.shape[1] :], key, value).transpose(1, 2).reshape(dout.shape)
    return out.detach(), torch.autograd.grad(out, x, dout.double())[0]


def relative_error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true).norm() / true.norm().clamp(min=1e-30))


def make_inputs(n: int, heads: int, head_width: int, dtype: torch.dtype, device: str, batch: int = 2, spread: float = 1.0):
    """A projection and a gradient of the output."""
    generator = torch.Generator().manual_seed(1000 * n + head_width)
    qkv = torch.randn(batch, n, 3 * heads * head_width, generator=generator) * spread
    dout = torch.randn(batch, n, heads * head_width, generator=generator)
    return qkv.to(device, dtype), dout.to(device, dtype)


def check_values(n: int, head_width: int, dtype: torch.dtype, device: str, spread: float = 1.0, first: int = 0) -> None:
    """Output and gradient."""
    qkv, dout = make_inputs(n, 2, head_width, dtype, device, spread=spread)
    dout = dout[:, first:]
    expected = reference(qkv, 2, dout)
    qkv.requires_grad_()
    out = short_attention.attention(qkv, 2, first)
    (dqkv,) = torch.autograd.grad(out, qkv, dout)
    for name, found, true in zip(("output", "gradient"), (out.detach(), dqkv), expected, strict=True):
        # Of a single token the queries' and keys' gradients are zero, and so is the norm to compare with.
        error = relative_error(found, true)
        assert found.dtype == dtype and error < TOLERANCE[dtype] * spread, (n, first, head_width, dtype, name, error)


def check_large_negative_logits(device: str) -> None:
    """Logits of -1000 and less: the denominators' logarithms are negative, and tokens beyond the last must not count."""
    for n in (59, 135):
        qkv, dout = make_inputs(n, 2, 32, torch.float32 if device == "cpu" else torch.float16, device)
        packed = qkv.view(2, n, 3, 2, 32)
        packed[:, :, 0] += 12
        packed[:, :, 1] -= 12
        out, dqkv = reference(qkv, 2, dout)
        found, lse = short_attention.forward_op(qkv, 2)
        assert lse.max() < -1000
        assert relative_error(found, out) < 2e-2
        assert relative_error(short_attention.backward_op(qkv, found, dout, lse, 2), dqkv) < 5e-2


def check_nothing_beyond_the_ends(n: int, device: str, first: int = 0) -> None:
    """NaNs around each tensor are neither read nor overwritten."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    fenced = {}

    def fence(name: str, values: torch.Tensor) -> torch.Tensor:
        whole = torch.full((values.numel() + 2 * GUARD,), float("nan"), dtype=values.dtype, device=device)
        inside = whole[GUARD:-GUARD].view(values.shape)
        inside.copy_(values)
        fenced[name] = whole
        return inside

    values, gradients = make_inputs(n, 4, 32, dtype, device)
    qkv, dout = fence("qkv", values), fence("dout", gradients[:, first:])
    out = fence("out", torch.full_like(dout, float("nan")))
    lse = fence("lse", torch.full((2, 4, n - first), float("nan"), device=device))
    short_attention.launch_forward(qkv, out, lse, 4, first)
    dqkv = fence("dqkv", torch.full_like(qkv, float("nan")))
    short_attention.launch_backward(qkv, out, dout, lse, dqkv, 4, first)
    for name, whole in fenced.items():
        assert whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all(), (n, first, name)
        assert whole[GUARD:-GUARD].isfinite().all(), (n, first, name)


def check_operator(device: str) -> None:
    """What torch requires of an operator (its schema, its shapes, its gradient), compiled too."""
    qkv, _ = make_inputs(65, 2, 32, torch.float32 if device == "cpu" else torch.float16, device)
    for first in (0, 3):
        torch.library.opcheck(short_attention.forward_op, (qkv.requires_grad_(), 2, first), test_utils=OPERATOR_TESTS)
    compiled = torch.compile(short_attention.attention, backend="aot_eager", fullgraph=True)
    found, expected = (torch.autograd.grad(call(qkv, 2).square().sum(), qkv)[0] for call in (compiled, short_attention.attention))
    assert torch.equal(found, expected)


OPERATOR_TESTS = ("test_schema", "test_autograd_registration", "test_faketensor")


def main() -> None:
    """Everything, in Triton's interpreter (which multiplies no bfloat16)."""
    torch.set_num_threads(1)
    for n, head_width in ((1, 32), (59, 64), (64, 32), (135, 64), (191, 32)):
        check_values(n, head_width, torch.float32, "cpu")
    check_values(135, 32, torch.float16, "cpu")
    check_values(59, 32, torch.float32, "cpu", spread=6.0)
    check_large_negative_logits("cpu")
    for n, first in QUERIES_FROM:
        check_values(n, 32, torch.float32, "cpu", first=first)
    for n, first in ((1, 0), (59, 0), (65, 0), (59, 20), (135, 64)):
        check_nothing_beyond_the_ends(n, "cpu", first)
    check_operator("cpu")
    print("all hold")


if __name__ == "__main__":
    main()
