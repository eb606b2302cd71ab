"""Losses of all families, of worked examples and of plain formulas; offline tasks."""

import numpy as np
import pytest
import torch
from model_math import COLUMNS, DUOS, ROWS, numpy, one_by_one, shuffled
from small_models import KEEP, LENGTH, OFFLINE, inputs, plan, small_model

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
