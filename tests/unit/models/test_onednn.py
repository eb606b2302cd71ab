"""Linear layers by oneDNN compute what torch's own do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import inputs, plan, small_model
from torch import nn
from torch.profiler import profile

from m2d.models.transformer import onednn
from m2d.models.transformer.onednn import HAS_ONEDNN, OneDnnLinear, linear, onednn_is_faster, use_onednn, use_onednn_if_faster

SIZE = st.integers(1, 40)
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="no oneDNN for an x86 CPU in this PyTorch")


def layers(width: int = 24, out: int = 10, bias: bool = True) -> tuple[OneDnnLinear, nn.Linear]:
    """The layer and torch's, of the same weights but not the same parameters."""
    torch.manual_seed(0)
    theirs = nn.Linear(width, out, bias=bias)
    return OneDnnLinear.sharing(copy.deepcopy(theirs)), theirs


def operations(call) -> set[str]:
    """Names of the operations that a call runs."""
    with profile() as profiler:
        call()
    return {event.name for event in profiler.events()}


@needs_onednn
def test_float32_products_of_a_model_are_onednns():
    model = small_model("m2d").train()
    use_onednn(model)
    ran = operations(lambda: model.encode_tokens(torch.randn(2, 7, 32)).sum().backward())
    assert "mkldnn::_linear_pointwise" in ran
    assert not ran & {"aten::linear", "aten::addmm"}


@settings(deadline=None)
@given(leading=st.lists(st.integers(1, 5), max_size=3), width=SIZE, out=SIZE, bias=st.booleans(), seed=st.integers(0, 99))
def test_values_and_gradients_are_those_of_float64(leading, width, out, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(*leading, width), (out, width), (out,)][: 3 if bias else 2]
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    found, expected = linear(*tensors), F.linear(*exact)
    weights = torch.randn(expected.shape, generator=generator)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    for tensor, reference in zip(tensors, exact, strict=True):
        torch.testing.assert_close(tensor.grad, reference.grad.float(), rtol=1e-5, atol=1e-4)


def test_an_input_with_gaps_and_an_empty_one():
    ours, theirs = layers()
    x = torch.randn(5, 24, 6).transpose(1, 2)[::2]
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(torch.empty(0, 3, 24)).shape == (0, 3, 10)


def test_only_wanted_gradients_are_computed():
    ours, _ = layers()
    ours.weight.requires_grad_(False)
    x = torch.randn(3, 24, requires_grad=True)
    ours(x).sum().backward()
    assert x.grad is not None and ours.weight.grad is None and ours.bias.grad is not None


@pytest.mark.parametrize("out", [10, 50])
def test_gradients_of_gradients(out):
    penalties = []
    for layer in layers(out=out):
        x = torch.linspace(-1, 1, 72).reshape(3, 24).requires_grad_()
        (slope,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        slope.square().sum().backward()
        penalties.append((x.grad, layer.weight.grad, layer.bias.grad))
    for ours, theirs in zip(*penalties, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradients_of_each_sample():
    x = torch.randn(4, 3, 24)

    def of(layer: nn.Module) -> dict[str, torch.Tensor]:
        def loss(parameters, sample):
            return torch.func.functional_call(layer, parameters, (sample,)).square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(layer.named_parameters()), x)

    ours, theirs = map(of, layers())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs_own(dtype):
    ours, theirs = (layer.to(dtype) for layer in layers())
    x = torch.randn(3, 24, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))


def test_mixed_precision_is_torchs_own():
    ours, theirs = layers()
    x = torch.randn(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
        assert torch.equal(ours(x), theirs(x))


def test_it_compiles_whole():
    ours, _ = layers(out=50)
    x = torch.randn(3, 7, 24)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    compiled(x).square().sum().backward()
    gradient = ours.weight.grad.clone()
    ours.zero_grad()
    ours(x).square().sum().backward()
    torch.testing.assert_close(gradient, ours.weight.grad)


def test_an_exported_layer_needs_nothing_of_ours():
    ours, theirs = layers()
    x = torch.randn(3, 24)
    exported = torch.export.export(ours, (x,), strict=False)
    assert not any("m2d" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), theirs(x))
    torch.testing.assert_close(torch.jit.trace(ours, x)(x), theirs(x))


def test_a_copied_layer_stays_one():
    ours, _ = layers()
    twin = copy.deepcopy(ours)
    assert type(twin) is OneDnnLinear and torch.equal(twin.weight, ours.weight)


def test_a_model_keeps_its_parameters_their_names_and_what_it_computes():
    model = small_model("m2d_x")
    plain = copy.deepcopy(model)
    parameters, frozen = dict(model.named_parameters()), model.target_blocks[0].mlp.fc1.weight
    use_onednn(model)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {OneDnnLinear}
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(p is parameters[name] for name, p in model.named_parameters()) and not frozen.requires_grad
    args, fixed = inputs(model, "m2d_x"), plan()
    losses = [each(*args, mask_ratio=fixed)[0] for each in (model, plain)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_layers_in_evaluation_stay_there():
    model = small_model("encoder").eval()
    use_onednn(model)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("vendor, faster", [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_it_is_used_on_processors_that_it_is_faster_on(tmp_path, monkeypatch, vendor, faster):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(onednn, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(onednn, "HAS_ONEDNN", True)
    onednn_is_faster.cache_clear()
    model = small_model("encoder")
    use_onednn_if_faster(model)
    onednn_is_faster.cache_clear()
    assert isinstance(model.blocks[0].attn.qkv, OneDnnLinear) is faster


def test_without_onednn_it_is_never_used(monkeypatch):
    monkeypatch.setattr(onednn, "HAS_ONEDNN", False)
    onednn_is_faster.cache_clear()
    assert not onednn_is_faster()
    onednn_is_faster.cache_clear()


def test_a_bias_with_strides_is_added_right():
    x, weight, table = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4, 7)
    torch.testing.assert_close(linear(x, weight, table[:, 2]), F.linear(x, weight, table[:, 2]))
