"""The encoder in half precision: autocast's numbers, with weights that are cast once, and again when they change."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from m2d.models.half_encoder import HalfEncoder
from m2d.models.vit import M2DEncoderViT


def make_model() -> M2DEncoderViT:
    torch.manual_seed(0)
    return M2DEncoderViT(img_size=(80, 64), patch_size=(16, 16), embed_dim=48, depth=3, num_heads=3, mlp_ratio=2.0).eval()


@pytest.fixture(scope="module")
def model() -> M2DEncoderViT:
    return make_model()


def plain(model, x):
    return model.forward_encoder(x, 0.0, adjust_short=True)[0]


@torch.no_grad()
@settings(deadline=None, max_examples=15)
@given(batch=st.integers(1, 4), frames=st.integers(16, 64), seed=st.integers(0, 99))
def test_tokens_are_those_of_autocast_and_near_those_of_float32(model, batch, frames, seed):
    x = torch.randn(batch, 1, 80, frames, generator=torch.Generator().manual_seed(seed))
    encoder = HalfEncoder(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(x)
        assert torch.equal(found, plain(model, x))
    assert torch.cosine_similarity(found.float(), plain(model, x), dim=-1).min() > 0.999


class Casts(TorchDispatchMode):
    """Counts casts of matrices of weights."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_to_copy" in str(function) and tuple(args[0].shape) in self.shapes:
            self.count += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_weights_are_cast_once_until_they_change():
    model = make_model()
    shapes = {tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, torch.nn.Linear)}
    state, x, encoder = copy.deepcopy(model.state_dict()), torch.randn(2, 1, 80, 64), HalfEncoder(model)

    def casts() -> int:
        with Casts(shapes) as mode, torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder(x), plain_tokens())
        return mode.count

    def plain_tokens():
        with torch.utils._python_dispatch._disable_current_modes(), torch.autocast("cpu", torch.bfloat16):
            return plain(model, x)

    assert [casts(), casts()] == [12, 0]
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.blocks[1].mlp.fc1.weight.mul_(1.5)
    assert [casts(), casts()] == [12, 0]
    model.load_state_dict(state)
    assert [casts(), casts()] == [12, 0]


def test_it_applies_to_inference_under_autocast_to_its_type_alone(model):
    encoder = HalfEncoder(model)
    with torch.no_grad():
        assert not encoder.applies()
        with torch.autocast("cpu", torch.float16):
            assert not encoder.applies()
        with torch.autocast("cpu", torch.bfloat16):
            assert encoder.applies()
    with torch.autocast("cpu", torch.bfloat16):
        assert not encoder.applies()
        with torch.inference_mode():
            assert encoder.applies()
            assert encoder(torch.randn(1, 1, 80, 64)).shape == (1, 21, 48)


@torch.no_grad()
def test_copies_encode_by_their_own_weights(model):
    x, pair = torch.randn(1, 1, 80, 64), (model, HalfEncoder(model))
    with torch.autocast("cpu", torch.bfloat16):
        expected = pair[1](x)
        for twin, encoder in (copy.deepcopy(pair), torch.load(saved(pair), weights_only=False)):
            assert torch.equal(encoder(x), expected)
            twin.blocks[0].attn.qkv.weight.zero_()
            assert not torch.equal(encoder(x), expected)
        assert torch.equal(pair[1](x), expected)


def saved(value) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_give_the_same_but_for_rounding():
    model = make_model()
    inputs = [torch.randn(3, 1, 80, frames) for frames in (64, 32, 64)]
    expected = [plain(model, x) for x in inputs]
    model.compile_inference()
    encoder = HalfEncoder(model)
    with torch.autocast("cpu", torch.bfloat16):
        for x, tokens in zip(inputs, expected, strict=True):
            assert torch.cosine_similarity(encoder(x).float(), tokens, dim=-1).min() > 0.999
