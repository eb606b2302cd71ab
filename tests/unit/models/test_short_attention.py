"""The short-sequence attention kernels: by Triton's interpreter on the CPU, and compiled under `-m gpu`."""

import attention_checks as checks
import pytest
import torch
from interpreter import check_interpreted
from small_models import inputs, plan, small_model

from m2d.models.transformer import kernels
from m2d.utils.errors import UserError

pytest.importorskip("triton")


def test_in_tritons_interpreter():
    check_interpreted(checks)


def test_on_a_cpu_torchs_attention_stays():
    model = small_model("m2d").bfloat16()
    x, fixed = inputs(model, "m2d")[0].bfloat16(), plan()
    expected = model(x, fixed)[0]
    model.use_short_attention()
    assert torch.equal(model(x, fixed)[0], expected)
    compiled = torch.compile(model.blocks[0], backend="aot_eager", fullgraph=True)
    tokens = torch.randn(2, 7, 32).bfloat16()
    torch.testing.assert_close(compiled(tokens), model.blocks[0](tokens))


def test_without_triton_it_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    model = small_model("encoder")
    model.use_short_attention(False)
    with pytest.raises(UserError, match="needs triton, which is not installed"):
        model.use_short_attention()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_width", [32, 64])
@pytest.mark.parametrize("n", checks.LENGTHS)
def test_values_on_a_gpu(n, head_width, dtype):
    checks.check_values(n, head_width, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("head_width", [32, 64])
@pytest.mark.parametrize("n, first", checks.QUERIES_FROM)
def test_values_of_the_last_queries_on_a_gpu(n, first, head_width):
    checks.check_values(n, head_width, torch.bfloat16, "cuda", first=first)
    checks.check_nothing_beyond_the_ends(n, "cuda", first)


@pytest.mark.gpu
@pytest.mark.parametrize("n", checks.LENGTHS)
def test_nothing_beyond_the_ends_on_a_gpu(n):
    checks.check_nothing_beyond_the_ends(n, "cuda")


@pytest.mark.gpu
def test_the_operator_on_a_gpu():
    checks.check_large_negative_logits("cuda")
    checks.check_operator("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("heads, taken", [(1, True), (2, True), (4, False)])
def test_a_model_uses_them_where_they_fit(heads, taken, monkeypatch):
    from m2d.models.transformer import short_attention

    model, calls = small_model("m2d", embed_dim=64, num_heads=heads).cuda(), []
    original = short_attention.attention
    monkeypatch.setattr(short_attention, "attention", lambda *args: calls.append(1) or original(*args))
    x, fixed = inputs(model, "m2d")[0].cuda(), plan()
    losses = []
    for on in (False, True):
        model.use_short_attention(on)
        with torch.autocast("cuda", torch.bfloat16):
            losses.append(model(x, fixed)[0].item())
    assert bool(calls) is taken
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
