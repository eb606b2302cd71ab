"""What the models compute, against the same written out plainly: tokens one by one, losses in NumPy, loops over parameters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from small_models import GRID, KEEP, LENGTH, OFFLINE, inputs, plan, small_model

from m2d.models.registry import FAMILIES
from m2d.models.vit import PatchProjection

ROWS, COLUMNS = GRID
DUOS = ["m2d", "m2d_d2v", "m2d_x", "m2d_as"]


def shuffled(ids_restore):
    """Patches in the order of their places: visible first."""
    return [row.tolist() for row in ids_restore.argsort(dim=1)]


def one_by_one(rows):
    """Stack a nested list of vectors: `[B, N, D]`."""
    return torch.stack([torch.stack(row) for row in rows])


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def in_order(model, latent, ids_restore):
    """The predictor as the MAE paper tells it: mask tokens put in, all tokens in order, positions, blocks; with class token."""
    batches = []
    for embedded, order in zip(model.decoder_embed(latent), shuffled(ids_restore), strict=True):
        tokens = [model.mask_token[0, 0]] * LENGTH
        for place, patch in enumerate(order[:KEEP]):
            tokens[patch] = embedded[1 + place]
        batches.append([embedded[0], *tokens])
    x = one_by_one(batches) + model.decoder_pos_embed
    for block in model.decoder_blocks:
        x = block(x)
    return model.decoder_pred(model.decoder_norm(x))


def embedded_patches(model, x):
    """Each patch cut out and projected on its own, with its position: `[B, L, D]`."""
    weight, bias = model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.bias
    batches = []
    for clip in x:
        cut = [clip[:, 16 * f : 16 * f + 16, 16 * t : 16 * t + 16].flatten() for f in range(ROWS) for t in range(COLUMNS)]
        batches.append([weight @ patch + bias + model.pos_embed[0, 1 + i] for i, patch in enumerate(cut)])
    return one_by_one(batches)


def through(blocks, norm, model, patches):
    """Class token in front, blocks, norm; and every block's output before the norm."""
    x = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(len(patches), -1, -1), patches], dim=1)
    layers = []
    for block in blocks:
        x = block(x)
        layers.append(x)
    return norm(x), layers


def numpy(tensor):
    return tensor.detach().double().numpy()


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


# ---------------------------------------------------------------- losses


def standardized(target):
    """Mean 0 and variance 1 per vector: unbiased variance, 1e-6 under the root."""
    return (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)


def plain_loss(pred, target, norm_pix, loss_type):
    target = standardized(target) if norm_pix else target
    if loss_type == "mse":
        return ((pred - target) ** 2).mean()
    cosine = (pred * target).sum(-1) / np.sqrt((pred**2).sum(-1) * (target**2).sum(-1))
    return (2 - 2 * cosine).mean()


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("loss_type", ["norm_mse", "mse"])
@pytest.mark.parametrize("family", DUOS)
def test_m2d_loss(family, loss_type, norm_pix):
    model = small_model(family, loss_type=loss_type, norm_pix_loss=norm_pix)
    x, fixed = torch.randn(2, 1, 80, 115), plan()
    args = (x, None) if family in OFFLINE else (x,)
    loss, pred, _ = model(*args, mask_ratio=fixed)
    _, x_target, _, ids_restore = model.forward_encoder(x, fixed)
    target = model.forward_target_encoder(x_target)
    if family == "m2d_d2v":
        target = one_by_one([[clip[i] for i in order[KEEP:]] for clip, order in zip(target, shuffled(ids_restore), strict=True)])
    assert target.shape == pred.shape == (2, LENGTH - KEEP, 32)
    assert loss.item() == pytest.approx(plain_loss(numpy(pred), numpy(target), norm_pix, loss_type), rel=1e-5)


def test_losses_of_a_worked_example():
    """Along [3, 4], towards [4, 3] the cosine is 24/25, so the loss 2 - 48/25; the mean squared error is 1."""
    model = small_model("m2d", norm_pix_loss=False)
    pred, target = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
    assert model.forward_loss(target, pred).item() == pytest.approx(2 - 48 / 25)
    model.loss_type = "mse"
    assert model.forward_loss(target, pred).item() == pytest.approx(1)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("loss_type", ["norm_mse", "mse"])
def test_losses_of_half_precision_values_are_computed_in_float32(loss_type, norm_pix):
    model = small_model("m2d", loss_type=loss_type, norm_pix_loss=norm_pix)
    target, pred = torch.randn(2, 2, 25, 32).bfloat16()
    assert torch.equal(model.forward_loss(target, pred), model.forward_loss(target.float(), pred.float()))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_mae_loss_and_pictures(norm_pix):
    model, x, fixed = small_model("mae", norm_pix_loss=norm_pix), torch.randn(2, 1, 80, 115), plan()
    loss, pred, mask = model(x, fixed)
    whole = numpy(x)[:, 0, :, :112].reshape(2, ROWS, 16, COLUMNS, 16).transpose(0, 1, 3, 2, 4).reshape(2, LENGTH, 256)
    target = standardized(whole) if norm_pix else whole
    hidden = mask.bool().numpy()
    assert hidden.sum(axis=1).tolist() == [LENGTH - KEEP] * 2
    assert loss.item() == pytest.approx(((numpy(pred)[hidden] - target[hidden]) ** 2).mean(), rel=1e-5)

    viz_loss, recons, errors, viz_mask = model.forward_viz(x, fixed)
    assert viz_loss.item() == loss.item()
    assert torch.equal(viz_mask, mask.reshape(2, ROWS, COLUMNS))
    covered = viz_mask.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2).bool()[:, None]
    shown = x[..., :112]
    assert torch.equal(recons[~covered], shown[~covered])
    assert torch.equal(recons[covered], model.unpatchify(pred)[covered])
    assert torch.equal(errors, (recons - shown).abs())


@pytest.mark.parametrize("channels, frames", [(1, 115), (3, 112), (1, 70)])
def test_patchify_cuts_rows_of_frequency_first_and_unpatchify_puts_back(channels, frames):
    model = small_model("mae", in_chans=channels)
    x = torch.randn(2, channels, 80, frames)
    columns = frames // 16
    patches = model.patchify(x)
    assert patches.shape == (2, ROWS * columns, 256 * channels)
    f, t = 3, 2
    expected = x[:, :, 16 * f : 16 * f + 16, 16 * t : 16 * t + 16].permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(patches[:, f * columns + t], expected)
    assert torch.equal(model.unpatchify(patches), x[..., : 16 * columns])


# ---------------------------------------------------------------- offline tasks


def joined_by_hand(latent, pred, ids_restore):
    """Per time step the vectors of all frequency rows, end to end: visible ones from the encoder, hidden ones predicted."""
    batches = []
    for visible, hidden, order in zip(latent[:, 1:], pred, shuffled(ids_restore), strict=True):
        vectors = dict(zip(order, [*visible, *hidden], strict=True))
        batches.append([torch.cat([vectors[f * COLUMNS + t] for f in range(ROWS)]) for t in range(COLUMNS)])
    return one_by_one(batches)


@pytest.mark.parametrize("loss_m2d, loss_off", [(1.0, 1.0), (1.0, 0.5), (0.0, 2.0)])
@pytest.mark.parametrize("family", ["m2d_x", "m2d_as"])
def test_offline_losses(family, loss_m2d, loss_off):
    model = small_model(family, loss_m2d=loss_m2d, loss_off=loss_off)
    (x, target), fixed = inputs(model, family), plan()
    loss, pred, (ids_restore, mask, online, offline) = model(x, target, mask_ratio=fixed)
    latent = model.forward_encoder(x, fixed)[0]
    layer = model.offline_predictor
    out = numpy(joined_by_hand(latent, pred, ids_restore)) @ numpy(layer.weight).T + numpy(layer.bias)
    assert out.shape == (2, COLUMNS, OFFLINE[family])
    if family == "m2d_as":
        chance, labels = 1 / (1 + np.exp(-out.mean(axis=1))), numpy(target)
        expected = -(labels * np.log(chance) + (1 - labels) * np.log(1 - chance)).mean()
    else:
        expected = plain_loss(out, numpy(target), True, "norm_mse")
    assert offline.item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(loss_m2d * online.item() + loss_off * offline.item())
    assert torch.equal(mask, (ids_restore >= KEEP).float())


def test_a_speech_model_joins_one_row_per_time_step():
    model = small_model("m2d_s", loss_off=0.5)
    (x, target), fixed = inputs(model, "m2d_s"), plan()
    loss, pred, (ids_restore, _, online, offline) = model(x, target, mask_ratio=fixed)
    tokens = torch.cat([model.forward_encoder(x, fixed)[0][:, 1:], pred], dim=1)
    patches = one_by_one([[clip[place] for place in places] for clip, places in zip(tokens, ids_restore.tolist(), strict=True)])
    out = numpy(model.offline_predictor(patches))
    assert offline.item() == pytest.approx(plain_loss(out, numpy(target), True, "norm_mse"), rel=1e-5)
    assert loss.item() == pytest.approx(online.item() + 0.5 * offline.item())


def test_without_a_target_the_offline_task_is_left_out():
    model = small_model("m2d_x")
    loss, _, (_, _, online, offline) = model(torch.randn(2, 1, 80, 115), None, mask_ratio=plan())
    assert offline.item() == 0
    assert torch.equal(loss, online)
    loss.backward()
    assert model.offline_predictor.weight.grad is None


def test_gradients_of_the_offline_task_reach_predictor_and_encoder():
    model = small_model("m2d_x", loss_m2d=0.0)
    x, target = inputs(model, "m2d_x")
    model(x, target, mask_ratio=plan())[0].backward()
    reached = [model.offline_predictor.weight, model.mask_token, model.decoder_pred.weight, model.patch_embed.proj.weight]
    assert all(p.grad.abs().max() > 0 for p in reached)


@pytest.mark.parametrize(
    "family, shape, message",
    [
        ("m2d_x", (2, 12, 24), r"target is \[2, 12, 24\], the model predicts \[2, 7, 24\] .*same number of frames"),
        ("m2d_x", (2, 7, 1), r"\[2, 7, 1\].*\[2, 7, 24\].*off_emb_dim is the target's width"),
        ("m2d_as", (2, 10), r"labels are \[2, 10\], the model predicts \[2, 11\] .*number of classes"),
    ],
)
def test_offline_targets_of_another_shape_are_refused(family, shape, message):
    with pytest.raises(ValueError, match=message):
        small_model(family)(torch.randn(2, 1, 80, 115), torch.zeros(shape), mask_ratio=plan())


def test_labels_may_be_integers():
    model = small_model("m2d_as")
    (x, labels), fixed = inputs(model, "m2d_as"), plan()
    assert torch.equal(model(x, labels, mask_ratio=fixed)[0], model(x, labels.long(), mask_ratio=fixed)[0])
