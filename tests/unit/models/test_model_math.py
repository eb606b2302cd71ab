"""What the models compute, against the same written out plainly: tokens one by one, loops over parameters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_math import COLUMNS, DUOS, ROWS, close, embedded_patches, in_order, numpy, one_by_one, shuffled, through
from scipy import stats
from small_models import KEEP, LENGTH, plan, small_model

from m2d.models.registry import FAMILIES
from m2d.models.vit import PatchProjection

# ---------------------------------------------------------------- encoder


@pytest.mark.parametrize("family", ["mae", "encoder", *DUOS])
def test_the_encoder_sees_the_visible_patches_alone(family):
    model, x, (ids_restore, keep) = small_model(family), torch.randn(2, 1, 80, 115), plan()
    tokens, x_target, mask, _ = model.forward_encoder(x, (ids_restore, keep))
    patches = embedded_patches(model, x)
    visible = one_by_one([[clip[i] for i in order[:keep]] for clip, order in zip(patches, shuffled(ids_restore), strict=True)])
    close(tokens, through(model.blocks, model.norm, model, visible)[0])
    for row, order in zip(mask, shuffled(ids_restore), strict=True):
        assert row.nonzero().flatten().tolist() == sorted(order[keep:])
    if family in ("mae", "encoder"):
        assert x_target is None
    elif family == "m2d_d2v":
        close(x_target, patches)
    else:
        hidden = one_by_one([[clip[i] for i in order[keep:]] for clip, order in zip(patches, shuffled(ids_restore), strict=True)])
        close(x_target, hidden)


def test_hidden_patches_do_not_reach_the_encoder():
    model, x, (ids_restore, keep) = small_model("m2d"), torch.randn(1, 1, 80, 115), plan(batch=1)
    other = torch.randn_like(x)
    for i in shuffled(ids_restore)[0][:keep]:
        f, t = 16 * (i // COLUMNS), 16 * (i % COLUMNS)
        other[:, :, f : f + 16, t : t + 16] = x[:, :, f : f + 16, t : t + 16]
    assert torch.equal(*(model.forward_encoder(clip, (ids_restore, keep))[0] for clip in (x, other)))


def test_no_mask_gives_all_tokens_in_order():
    model, x = small_model("m2d"), torch.randn(2, 1, 80, 115)
    tokens, x_target, mask, ids_restore = model.forward_encoder(x, 0.0)
    close(tokens, through(model.blocks, model.norm, model, embedded_patches(model, x))[0])
    assert x_target is None
    assert mask.shape == (2, LENGTH) and not mask.any()
    assert ids_restore.tolist() == [list(range(LENGTH))] * 2


def test_return_layers_gives_every_block_and_normalises_the_last():
    model, x = small_model("encoder"), torch.randn(2, 1, 80, 115)
    layers = model.forward_encoder(x, 0.0, return_layers=True)[0]
    final, expected = through(model.blocks, model.norm, model, embedded_patches(model, x))
    assert layers.shape == (3, 2, 1 + LENGTH, 32)
    close(layers, torch.stack([*expected[:-1], final]))


@pytest.mark.parametrize("family", ["m2d", "mae"])
def test_a_short_input_is_that_of_a_model_made_for_it(family):
    long, short = small_model(family), small_model(family, img_size=(80, 70))
    short.load_state_dict({k: v for k, v in long.state_dict().items() if "pos_embed" not in k}, strict=False)
    x, fixed = torch.randn(2, 1, 80, 70), plan(length=20, keep=8)
    tokens, _, _, ids_restore = long.forward_encoder(x, fixed, adjust_short=True)
    close(tokens, short.forward_encoder(x, fixed)[0])
    close(long.forward_decoder(tokens, ids_restore), short.forward_decoder(tokens, ids_restore))


@pytest.mark.parametrize("channels, size, patch", [(1, (80, 115), (16, 16)), (3, (36, 47), (8, 5)), (1, (80, 9), (80, 4))])
def test_the_patch_projection_is_the_convolution(channels, size, patch):
    projection = PatchProjection(channels, 24, patch)
    assert isinstance(projection, torch.nn.Conv2d) and list(projection.state_dict()) == ["weight", "bias"]
    x, grads = torch.randn(2, channels, *size), []
    for convolve in (projection, lambda image: F.conv2d(image, projection.weight, projection.bias, stride=patch)):
        image = x.clone().requires_grad_()
        output = convolve(image)
        projection.zero_grad()
        (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
        grads.append([output, image.grad, projection.weight.grad.clone(), projection.bias.grad.clone()])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_hooks_on_the_patch_projection_are_called():
    model, shapes = small_model("encoder"), []
    model.patch_embed.proj.register_forward_hook(lambda module, args, output: shapes.append(list(output.shape)))
    model(torch.randn(2, 1, 80, 115))
    assert shapes == [[2, 32, ROWS, COLUMNS]]


def test_class_token_helpers():
    model, x = small_model("encoder"), torch.randn(2, 4, 8)
    assert torch.equal(torch.cat([model.get_cls_token(x), model.drop_cls_token(x)], dim=1), x)
    assert model.get_cls_token(x).shape == (2, 1, 8)


def spread_evenly(values, bound):
    """Whether values are a uniform sample of -bound to bound (Kolmogorov-Smirnov)."""
    return stats.kstest(numpy(values).ravel(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-4


def starts_as_torchs_own(layer):
    """Whether weight and bias are uniform within 1/sqrt(fan-in), PyTorch's own start."""
    bound = layer.weight[0].numel() ** -0.5
    return spread_evenly(layer.weight, bound) and spread_evenly(layer.bias, bound)


def starts_xavier(layer):
    """Whether the weight, seen as a matrix, is Xavier-uniform."""
    rows, columns = layer.weight.flatten(1).shape
    return spread_evenly(layer.weight, (6 / (rows + columns)) ** 0.5)


@pytest.mark.parametrize("family", ["encoder", *FAMILIES])
def test_initial_values_of_every_tensor(family):
    model = small_model(family, embed_dim=96, num_heads=4, **({} if family == "encoder" else dict(decoder_embed_dim=64)))
    projection = model.patch_embed.proj
    bound = projection.weight[0].numel() ** -0.5
    assert starts_xavier(projection) and spread_evenly(projection.bias, bound)
    seen = {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "decoder_pos_embed", "norm_stats"}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), name
        elif not isinstance(module, torch.nn.Linear):
            continue
        elif (family, name) == ("m2d_s", "offline_predictor") or name.startswith(("audio_proj.", "text_proj")):
            assert starts_as_torchs_own(module)
        else:
            assert starts_xavier(module) and not module.bias.any(), name
        seen |= {f"{name}.weight", f"{name}.bias"}
    if family == "m2d_clap":
        assert model.logit_scale.item() == pytest.approx(np.log(1 / 0.07))
        seen.add("logit_scale")
    for name in {"cls_token", "mask_token"} & set(model.state_dict()):
        token = numpy(model.get_parameter(name)).ravel()
        assert stats.kstest(token, stats.norm(0, 0.02).cdf).pvalue > 1e-4, name
        seen.add(name)
    assert set(model.state_dict()) <= seen


@pytest.mark.parametrize("family", DUOS)
def test_the_target_starts_from_random_values_of_its_own(family):
    model = small_model(family)
    matrices = [name for name, p in model.target_blocks.named_parameters() if p.ndim > 1]
    assert matrices
    for name in matrices:
        assert not torch.equal(model.target_blocks.get_parameter(name), model.blocks.get_parameter(name))


# ---------------------------------------------------------------- predictor


@pytest.mark.parametrize("family", ["m2d", "m2d_x", "m2d_d2v"])
def test_predictions_in_shuffled_order_are_those_of_the_in_order_computation(family):
    model, x, fixed = small_model(family), torch.randn(2, 1, 80, 115), plan()
    latent, _, _, ids_restore = model.forward_encoder(x, fixed)
    textbook = in_order(model, latent, ids_restore)
    orders = shuffled(ids_restore)
    hidden = one_by_one([[clip[1 + i] for i in order[KEEP:]] for clip, order in zip(textbook, orders, strict=True)])
    close(model.forward_decoder(latent, ids_restore), hidden)
    with_cls = model.forward_decoder(latent, ids_restore, keep_cls=True)
    close(with_cls, torch.cat([textbook[:, :1], hidden], dim=1))


def test_mae_reconstructs_all_patches_in_order():
    model, x, fixed = small_model("mae"), torch.randn(2, 1, 80, 115), plan()
    latent, _, _, ids_restore = model.forward_encoder(x, fixed)
    textbook = in_order(model, latent, ids_restore)
    close(model.forward_decoder(latent, ids_restore), textbook[:, 1:])
    close(model.forward_decoder(latent, ids_restore, keep_cls=True), textbook)


def test_the_order_of_the_visible_patches_changes_nothing():
    model, x, (ids_restore, keep) = small_model("m2d"), torch.randn(1, 1, 80, 115), plan(batch=1)
    order = ids_restore.argsort(dim=1)
    other = torch.cat([order[:, :keep].flip(1), order[:, keep:].roll(1, dims=1)], dim=1).argsort(dim=1)
    loss, pred, _ = model(x, mask_ratio=(ids_restore, keep))
    other_loss, other_pred, _ = model(x, mask_ratio=(other, keep))
    close(other_loss, loss)
    close(other_pred.roll(-1, dims=1), pred)


# ---------------------------------------------------------------- target encoder


@pytest.mark.parametrize("layers", [None, [1], [0, 2], [-1], []])
def test_the_target_is_the_mean_of_the_chosen_blocks_normalised(layers):
    model, patches = small_model("m2d", target_layers=layers), torch.randn(2, 6, 32, requires_grad=True)
    _, outputs = through(model.target_blocks, model.target_norm, model, patches)
    expected = model.target_norm(sum(outputs[i] for i in layers or [-1]) / len(layers or [-1]))
    target = model.forward_target_encoder(patches, drop_cls=False)
    close(target, expected)
    assert torch.equal(model.forward_target_encoder(patches), target[:, 1:])
    assert not target.requires_grad


def test_blocks_after_the_last_chosen_one_are_not_run():
    model = small_model("m2d", target_layers=[0, 1])
    ran = []
    for i, block in enumerate(model.target_blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.forward_target_encoder(torch.randn(2, 6, 32))
    assert len(model.target_blocks) > 2 and ran == [0, 1]


@pytest.mark.parametrize("decay", [0.0, 0.75, 0.99995, 1.0])
def test_the_target_moves_by_the_exponential_average(decay):
    model = small_model("m2d")
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.update_target_network(decay)
    for name, parameter in model.named_parameters():
        expected = before[name]
        if name.startswith("target_"):
            online = before[name.removeprefix("target_")]
            expected = decay * before[name].double() + (1 - decay) * online.double()
            assert (before[name] != online).any() or name.endswith("bias") or "norm" in name
        close(parameter.double(), expected.double(), 1e-7)


def test_copy_online_to_target():
    model = small_model("m2d")
    model.copy_online_to_target()
    state = model.state_dict()
    twins = {name: name.removeprefix("target_") for name in state if name.startswith("target_")}
    assert len(twins) == len(model.blocks.state_dict()) + 2
    assert all(torch.equal(state[name], state[twin]) for name, twin in twins.items())
    with torch.no_grad():
        model.norm.weight.add_(1)
    assert not torch.equal(model.target_norm.weight, model.norm.weight)
