"""Linear layers in float8, emulated on the CPU: near losses, the same parameters, and refusals in a line."""

import copy

import pytest
import torch
from small_models import inputs, plan, small_model
from small_runs import program_of, settings_of

from m2d.models.transformer import float8
from m2d.models.transformer.float8 import check_float8, use_float8
from m2d.train.checks import check
from m2d.utils.errors import UserError

pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def models():
    """A model as it is, and the same in emulated float8."""
    torch.manual_seed(0)
    plain = small_model("m2d", embed_dim=64, num_heads=2, decoder_embed_dim=32).train()
    in_float8 = copy.deepcopy(plain)
    use_float8(in_float8, emulate=True)
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


def test_the_linear_layers_of_all_blocks_are_replaced_and_no_others(models):
    kinds = {name: type(module).__name__ for name, module in models[1].named_modules() if isinstance(module, torch.nn.Linear)}
    replaced = {name for name, kind in kinds.items() if kind == "Float8Linear"}
    assert replaced == {name for name in kinds if "blocks." in name} and len(replaced) == 4 * (3 + 3 + 2)


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
    use_float8(model, emulate=True)
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
    monkeypatch.setattr(float8, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'm2d-audio\[fp8\]'"):
        check_float8(cuda)


def test_flags_that_do_not_go_with_it_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(UserError, match="--fp8 takes --bf16"):
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
    use_float8(in_float8)
    x, mask = inputs(plain, "m2d", 3)[0].cuda(), plan(3)
    with torch.autocast("cuda", torch.bfloat16):
        expected, found = plain(x, mask)[0], in_float8(x, mask)[0]
    found.backward()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
