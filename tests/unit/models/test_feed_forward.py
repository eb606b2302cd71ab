"""The MLP's GELU: its formula, its gradients, and what compiled code keeps for the backward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from m2d.models.transformer.feed_forward import FeedForward, Gelu, GeluLinear, normal_cdf
from m2d.models.transformer.precision import product_dtype


def exact_cdf(x: torch.Tensor) -> torch.Tensor:
    return torch.special.erfc(-x.double() * 0.5**0.5) / 2


def test_the_normal_distribution_function():
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    cdf, bell = normal_cdf(x)
    torch.testing.assert_close(cdf, exact_cdf(x), rtol=0, atol=8e-8)
    torch.testing.assert_close(cdf, exact_cdf(x), rtol=0.04, atol=0)
    torch.testing.assert_close(bell, torch.exp(-x.square() / 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_gelu_in_half_precision_is_no_further_from_the_truth_than_torchs(dtype, fresh_compiler):
    x = torch.linspace(-12, 12, 100_001).to(dtype).unique()
    exact = x.double() * exact_cdf(x)
    with torch.no_grad():
        found, torchs = torch.compile(Gelu(), backend="aot_eager")(x), F.gelu(x)
    assert found.dtype == dtype
    assert not torch.equal(found, torchs)
    for error in (torch.Tensor.abs, lambda difference: difference.abs() / exact.abs().clamp(min=1e-6)):
        assert error(found.double() - exact).max() <= 1.01 * error(torchs.double() - exact).max()


def test_gelu_is_torchs_where_nothing_is_compiled():
    x = torch.randn(100)
    with torch.no_grad():
        assert torch.equal(Gelu()(x.bfloat16()), F.gelu(x.bfloat16()))
        assert torch.equal(Gelu()(x), F.gelu(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1.5e-3)])
def test_values_and_gradients_are_those_of_the_definition(dtype, tolerance):
    torch.manual_seed(0)
    shapes = dict(hidden=(3, 7, 24), bias=(24,), weight=(8, 24), out_bias=(8,))
    exact = {name: torch.randn(shape).to(dtype).double().requires_grad_() for name, shape in shapes.items()}
    ours = {name: value.detach().to(torch.float32 if name == "bias" else dtype).requires_grad_() for name, value in exact.items()}
    out = torch.randn(3, 7, 8)

    def with_gradients(result: torch.Tensor, inputs: dict) -> list[torch.Tensor]:
        return [result, *torch.autograd.grad(result, list(inputs.values()), out.to(result.dtype))]

    hidden, bias, weight, out_bias = exact.values()
    expected = with_gradients(F.linear(F.gelu(hidden + bias), weight, out_bias), exact)
    found = with_gradients(GeluLinear.apply(*ours.values()), ours)
    for name, one, other in zip(("result", *shapes), found, expected, strict=True):
        assert (one.double() - other).norm() < tolerance * other.norm(), name
    assert [one.dtype for one in found] == [dtype, dtype, torch.float32, dtype, dtype]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def kept(function, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A result, and how many values its backward pass keeps."""
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * (not isinstance(tensor, nn.Parameter))
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        return function(x), total


def test_compiled_training_keeps_the_input_and_what_enters_the_gelu(fresh_compiler):
    torch.manual_seed(0)
    mlp = FeedForward(64, 256)
    mlp.recompute_gelu = True
    x = torch.randn(4, 33, 64, requires_grad=True)
    plain, _ = kept(mlp, x)
    found, values = kept(torch.compile(mlp, backend="aot_eager_decomp_partition"), x)
    tokens, weights = 4 * 33, 64 * 256
    assert values <= tokens * (64 + 256) + 2 * weights + 1000  # input, hidden layer; the weights in half precision
    gradients = [torch.autograd.grad(result.float().square().sum(), [x, *mlp.parameters()]) for result in (found, plain)]
    for one, other in zip([found, *gradients[0]], [plain, *gradients[1]], strict=True):
        assert (one.float() - other.float()).norm() < 0.02 * other.float().norm()


def test_a_layer_of_another_kind_is_computed_by_its_own_code(fresh_compiler):
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    mlp = FeedForward(8, 16)
    mlp.recompute_gelu = True
    mlp.fc1 = Doubled(8, 16)
    x = torch.randn(2, 3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.compile(mlp, backend="aot_eager")(x), mlp(x))


def test_hooks_run_in_compiled_training_too(fresh_compiler):
    mlp = FeedForward(8, 16)
    mlp.recompute_gelu = True
    mlp.act.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    x = torch.randn(2, 3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = torch.compile(mlp, backend="aot_eager")(x)
    torch.testing.assert_close(result, mlp.fc2.bias.bfloat16().expand(2, 3, 8))


def test_the_precision_of_products():
    x = torch.randn(1)
    assert product_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(x) == torch.bfloat16
