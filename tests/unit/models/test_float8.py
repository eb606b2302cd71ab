"""Products in float8, on the CPU of values rounded to it: near losses, the same parameters, and refusals in a line."""

import copy

import pytest
import torch
from small_models import inputs, plan, small_model
from small_runs import program_of, settings_of
from torch._subclasses import FakeTensorMode

from m2d.models.transformer.feed_forward import FeedForward
from m2d.models.transformer.float8 import Float8Linear, check_float8, float8_linear, to_float8, use_float8
from m2d.train.checks import check
from m2d.utils.errors import UserError


@pytest.fixture(scope="module")
def models():
    """A model as it is, and the same in float8."""
    torch.manual_seed(0)
    plain = small_model("m2d", embed_dim=64, num_heads=2, decoder_embed_dim=32).train()
    in_float8 = copy.deepcopy(plain)
    in_float8.use_float8()
    return plain, in_float8


def losses_and_gradient(model, x, mask):
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, mask)[0]
    model.zero_grad()
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_parameters_and_their_names_stay(models):
    plain, in_float8 = models
    assert list(in_float8.state_dict()) == list(plain.state_dict())
    assert [(n, p.requires_grad, p.dtype) for n, p in in_float8.named_parameters()] == [
        (n, p.requires_grad, p.dtype) for n, p in plain.named_parameters()
    ]
    in_float8.load_state_dict(plain.state_dict())


def test_the_linear_layers_of_all_blocks_but_attentions_last_are_replaced_and_no_others(models):
    kinds = {name: type(module) for name, module in models[1].named_modules() if isinstance(module, torch.nn.Linear)}
    replaced = {name for name, kind in kinds.items() if kind is Float8Linear}
    expected = {name for name in kinds if "blocks." in name and not name.endswith("attn.proj")}
    assert replaced == expected and len(replaced) == 3 * (3 + 3 + 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_is_rounded_to_its_own_scale(dtype):
    rows = (torch.randn(5, 64) * torch.logspace(-6, 6, 5)[:, None]).to(dtype)
    rows[2] = 0
    rounded, scale = to_float8(rows)
    assert rounded.dtype == torch.float8_e4m3fn and scale.shape == (5, 1) and scale.dtype == torch.float32
    back = rounded.double() * scale
    # Four bits of mantissa, its first one implied; far below a row's largest value, fixed steps.
    limit = torch.maximum(rows.double().abs() / 16, rows.double().abs().amax(dim=1, keepdim=True) / 448 / 2**9)
    assert ((back - rows.double()).abs() <= 1.01 * limit).all()
    torch.testing.assert_close(back.abs().amax(dim=1), rows.double().abs().amax(dim=1), rtol=1e-2, atol=0)


def test_what_is_not_finite_stays_so():
    x = torch.randn(3, 16)
    x[1, 4], x[2, 5] = float("nan"), float("inf")
    result = float8_linear(x, torch.randn(32, 16))
    assert result[0].isfinite().all() and not result[1:].isfinite().any()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_device_takes_the_factors_as_they_are_laid_out(transposed):
    """By what torch checks of sizes, strides and types before it calls the device."""
    with FakeTensorMode():
        x = torch.empty(3, 7, 64, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(32, 64, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(64, 32, device="cuda", dtype=torch.bfloat16).t() if transposed else weight
        result = float8_linear(x, weight, torch.empty(32, device="cuda", dtype=torch.bfloat16))
        assert (result.shape, result.dtype, result.device.type) == ((3, 7, 32), torch.bfloat16, "cuda")


def test_gradients_are_those_of_the_layer_in_half_precision():
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 48).bfloat16()
    in_float8 = copy.deepcopy(layer)
    use_float8([in_float8])
    x, gradient = torch.randn(2, 5, 32).bfloat16().requires_grad_(), torch.randn(2, 5, 48).bfloat16()
    expected = torch.autograd.grad(layer(x), [x, *layer.parameters()], gradient)
    found = torch.autograd.grad(in_float8(x), [x, *in_float8.parameters()], gradient)
    torch.testing.assert_close(found, expected)


def test_the_compiled_mlp_multiplies_in_float8_too():
    torch.manual_seed(0)
    mlp = FeedForward(64, 256)
    mlp.recompute_gelu = True
    use_float8([mlp.fc1, mlp.fc2])
    x = torch.randn(4, 33, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        results = mlp(x), torch.compile(mlp, backend="aot_eager_decomp_partition")(x)
    torch._dynamo.reset()
    torch.testing.assert_close(results[1], results[0], rtol=0.02, atol=0.02)
    plain, compiled = (torch.autograd.grad(result.float().sum(), [x, *mlp.parameters()]) for result in results)
    for one, other in zip(compiled, plain, strict=True):
        assert (one.float() - other.float()).norm() < 0.05 * other.float().norm()


@pytest.mark.parametrize("batch", [2, 3])
def test_losses_and_gradients_are_near(models, batch):
    plain, in_float8 = models
    x, mask = inputs(plain, "m2d", batch)[0], plan(batch)
    expected, found = losses_and_gradient(plain, x, mask), losses_and_gradient(in_float8, x, mask)
    torch.testing.assert_close(found[0], expected[0], rtol=0.02, atol=0.02)
    assert not torch.equal(found[1], expected[1])
    assert torch.cosine_similarity(found[1], expected[1], dim=0) > 0.97


def test_a_model_in_float8_learns(models):
    model = copy.deepcopy(models[1])
    x, mask = inputs(model, "m2d", 4)[0], plan(4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for _ in range(12):
        found.append(losses_and_gradient(model, x, mask)[0])
        optimizer.step()
    assert all(loss.isfinite() for loss in found) and found[-1] < 0.8 * found[0]


def test_layers_of_other_sizes_stay():
    model = small_model("m2d", embed_dim=36, num_heads=2, decoder_embed_dim=32)
    model.use_float8()
    kinds = {type(module).__name__ for module in model.blocks.modules() if isinstance(module, torch.nn.Linear)}
    assert kinds == {"Linear"}


def test_devices_without_float8_are_refused_in_a_line(monkeypatch):
    cuda = torch.device("cuda")
    with pytest.raises(UserError, match="--fp8 needs a CUDA device"):
        check_float8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(UserError, match=r"compute capability 8.9 or later \(Ada, Hopper\); NVIDIA A100 has 8.0"):
        check_float8(cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    check_float8(cuda)


def test_flags_that_do_not_go_with_it_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(UserError, match="--fp8 needs --bf16"):
        check(settings_of("train_audio", ["--fp8"]), program_of("train_audio").families)
    monkeypatch.undo()
    with pytest.raises(UserError, match="--fp8 needs a CUDA device"):
        check(settings_of("train_audio", ["--fp8", "--bf16", "--device", "cpu"]), program_of("train_audio").families)


@pytest.mark.gpu
def test_on_a_gpu_float8_is_near_bfloat16():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("a GPU without float8 products")
    plain = small_model("m2d", embed_dim=64, num_heads=2, decoder_embed_dim=32).cuda().train()
    in_float8 = copy.deepcopy(plain)
    in_float8.use_float8()
    x, mask = inputs(plain, "m2d", 3)[0].cuda(), plan(3)
    with torch.autocast("cuda", torch.bfloat16):
        expected, found = plain(x, mask)[0], in_float8(x, mask)[0]
    found.backward()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_on_a_gpu_the_product_is_that_of_the_rounded_values():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("a GPU without float8 products")
    x, weight, bias = torch.randn(3, 37, 64).bfloat16(), torch.randn(48, 64).bfloat16(), torch.randn(48).bfloat16()
    found = float8_linear(x.cuda(), weight.cuda(), bias.cuda()).cpu()
    torch.testing.assert_close(found, float8_linear(x, weight, bias), rtol=0.02, atol=0.02)
