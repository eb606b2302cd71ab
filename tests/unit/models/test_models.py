"""The published names: sizes, options, what is trained, inputs that are refused, and what a model survives."""

import ast
import copy
import pickle
from pathlib import Path

import pytest
import torch
from small_models import ENCODER, GRID, KEEP, LENGTH, OFFLINE, SPEECH, inputs, plan, small_model

from m2d import models_mae
from m2d.models import registry
from m2d.models.registry import BUILDERS, FAMILIES, build
from m2d.models.vit import DEFAULT_NORM_STATS

SIZES = {"tiny": (192, 256), "small": (384, 384)}
COMBINATIONS = [(family, size) for family in FAMILIES for size in SIZES]


# ---------------------------------------------------------------- every family and size


@pytest.mark.parametrize("family, size", COMBINATIONS)
def test_forward_and_backward(family, size):
    shape = SPEECH if family == "m2d_s" else dict(img_size=ENCODER["img_size"], patch_size=16)
    model = build(f"{family}_vit_{size}", decoder_depth=2, off_emb_dim=OFFLINE.get(family), **shape).train()
    width, decoder_width = SIZES[size]
    if family == "msm_mae":
        decoder_width = 384
    assert (model.embed_dim, len(model.blocks), model.mask_token.shape[2]) == (width, 12, decoder_width)
    args = inputs(model, family)
    loss, pred, extra = model(*args, mask_ratio=0.7)
    mels, frames = model.patch_size()
    rows = LENGTH if "mae" in family else LENGTH - KEEP
    assert pred.shape == (2, rows, mels * frames if "mae" in family else width)
    assert loss.shape == ()
    if "mae" in family:
        mask = extra
    elif family == "m2d_d2v":
        assert extra.shape == (2, LENGTH)
        mask = (extra >= KEEP).float()
    else:
        ids_restore, mask, *losses = extra
        assert ids_restore.shape == (2, LENGTH)
        assert [part.shape for part in losses] == ([(), ()] if family in OFFLINE else [])
    assert mask.sum(dim=1).tolist() == [LENGTH - KEEP] * 2

    loss.backward()
    parameters = dict(model.named_parameters())
    fixed = {n for n in parameters if n in ("pos_embed", "decoder_pos_embed", "norm_stats") or n.startswith("target_")}
    assert {n for n, p in parameters.items() if not p.requires_grad} == fixed
    assert {n for n, p in parameters.items() if p.grad is None} == fixed
    assert all(parameters[n].grad.abs().max() > 0 for n in parameters if n not in fixed)


def test_a_speech_model_has_the_families_default_width():
    assert build("m2d_s_vit_tiny", decoder_depth=1).offline_predictor.out_features == 768
    assert build("m2d_x_vit_tiny", decoder_depth=1).offline_predictor.out_features == 3840


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_only_loads_the_full_models_weights(family):
    full = build(f"{family}_vit_tiny", decoder_depth=1, **(SPEECH if family == "m2d_s" else dict(img_size=ENCODER["img_size"])))
    encoder = build(f"{family}_vit_tiny_encoder_only", img_size=full.patch_embed.img_size, patch_size=full.patch_size())
    missing, unused = encoder.load_state_dict(full.state_dict(), strict=False)
    assert missing == []
    others = {"decoder", "mask", "target", "offline", "logit", "audio", "text"}
    assert {name.split(".")[0].split("_")[0] for name in unused} <= others
    x = inputs(full, family)[0]
    fixed = plan()
    tokens, x_target, mask, ids_restore = encoder(x, fixed)
    expected = full.forward_encoder(x, fixed)
    assert torch.equal(tokens, expected[0])
    assert x_target is None
    assert torch.equal(mask, expected[2])
    assert torch.equal(ids_restore, fixed[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_norms_add_1e_6_and_blocks_have_biases_and_exact_gelu(family):
    model = small_model(family)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    blocks = [block for name, group in model.named_children() if name.endswith("blocks") for block in group]
    assert all(block.attn.qkv.bias is not None and block.mlp.act.approximate == "none" for block in blocks)


def test_every_published_name_is_there():
    families = ("mae", "msm_mae", "m2d", "m2d_d2v", "m2d_x", "m2d_as", "m2d_s", "m2d_clap")
    names = {f"{f}_vit_base" for f in families} | {f"{f}_vit_large" for f in ("m2d", "m2d_x", "m2d_as", "m2d_clap", "msm_mae")}
    names |= {f"{name}_encoder_only" for name in names}
    names |= {f"{f}_vit_base_patch16" for f in ("mae", "m2d", "m2d_d2v")}
    names |= {f"{f}_vit_{size}" for f in families for size in SIZES}
    assert all(models_mae.__dict__[name] is BUILDERS[name] for name in names)


def test_builders_are_assigned_by_name_where_tools_see_them():
    tree = ast.parse(Path(registry.__file__).read_text())
    assigned = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert len(BUILDERS) == 83 and set(BUILDERS) <= set(assigned)
    for name, builder in BUILDERS.items():
        family, size = name.removesuffix("_encoder_only").removesuffix("_patch16").split("_vit_")
        sizes = registry.ENCODERS[size]
        assert builder.model_class is (registry.M2DEncoderViT if name.endswith("_only") else FAMILIES[family])
        assert {key: builder.sizes[key] for key in sizes} == sizes


@pytest.mark.parametrize("family", ["mae", "m2d", "m2d_d2v"])
def test_image_style_models_take_three_channels(family):
    with torch.device("meta"):
        model = build(f"{family}_vit_base_patch16")
        assert (model.grid_size(), model.patch_size(), model.embed_dim) == ((14, 14), (16, 16), 768)
        _, pred, _ = model(torch.randn(1, 3, 224, 224), mask_ratio=0.75)
        assert pred.shape == ((1, 196, 768) if family == "mae" else (1, 147, 768))
        assert build(f"{family}_vit_base_patch16", img_size=64).grid_size() == (4, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_by_name(family):
    model = small_model(family)
    output = model(*inputs(model, family), mask_ratio=plan())
    losses = model.named_losses(output)
    assert tuple(losses) == model.loss_names == (("loss", "loss_m2d", "loss_off") if family in OFFLINE else ("loss",))
    assert losses["loss"] is output[0]
    if family in OFFLINE:
        assert (losses["loss_m2d"], losses["loss_off"]) == output[2][2:]


@pytest.mark.parametrize("family", ["encoder", *FAMILIES])
def test_the_models_of_a_moving_target_say_so(family):
    model = small_model(family)
    assert model.has_ema_target is any(name.startswith("target_") for name in model.state_dict())


# ---------------------------------------------------------------- options


def test_options_of_other_models_are_ignored():
    options = dict(loss_type="mse", target_layers=[0], loss_m2d=2.0, loss_off=3.0, off_emb_dim=5)
    for family in ("mae", "m2d"):
        model = build(f"{family}_vit_tiny", img_size=(80, 112), decoder_depth=1, norm_pix_loss=True, **options)
        assert not hasattr(model, "offline_predictor")
    encoder = build("m2d_vit_tiny_encoder_only", img_size=(80, 112), decoder_depth=1, norm_pix_loss=True, **options)
    assert not hasattr(encoder, "decoder_blocks")


def test_options_that_concern_a_model_reach_it():
    options = dict(loss_type="mse", target_layers=[0, -1], norm_pix_loss=False, norm_stats=(-6.0, 3.0))
    model = build("m2d_x_vit_tiny", img_size=(80, 112), decoder_depth=2, loss_m2d=2.0, loss_off=3.0, **options)
    assert (model.loss_type, model.target_layers, model.norm_pix_loss) == ("mse", {0, 11}, False)
    assert (model.loss_m2d, model.loss_off, model.norm_stats.tolist()) == (2.0, 3.0, [-6.0, 3.0])
    assert len(model.decoder_blocks) == 2


def test_msm_mae_has_its_own_decoder_whatever_is_asked():
    decoder = build("msm_mae_vit_tiny", img_size=(80, 112), decoder_depth=7)
    assert (len(decoder.decoder_blocks), decoder.decoder_blocks[0].attn.num_heads) == (4, 6)


def test_statistics_of_2022_stand_in_and_are_not_shared():
    first, second = small_model("m2d"), small_model("m2d")
    assert first.norm_stats.tolist() == pytest.approx(DEFAULT_NORM_STATS)
    given = torch.tensor([-5.0, 2.0])
    model = small_model("m2d", norm_stats=given)
    model.norm_stats.data.fill_(0)
    first.norm_stats.data.fill_(0)
    assert given.tolist() == [-5.0, 2.0]
    assert second.norm_stats.tolist() == pytest.approx(DEFAULT_NORM_STATS)


@pytest.mark.parametrize("name", ["m2d_vit_tiny", "mae_vit_tiny", "m2d_vit_tiny_encoder_only"])
def test_unknown_options_are_refused(name):
    with pytest.raises(TypeError, match="unknown model options decoder_dept, imgsize: choose from img_size"):
        build(name, imgsize=(80, 208), decoder_dept=1)


@pytest.mark.parametrize(
    "name, hint",
    [("m2d_vit_bas", "did you mean m2d_vit_base"), ("m2dvit_tiny", "m2d_vit_tiny"), ("resnet50", "choose from mae_vit_mini")],
)
def test_unknown_names_offer_close_ones(name, hint):
    with pytest.raises(ValueError, match=f"unknown model '{name}'.*{hint}"):
        build(name)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(loss_type="l1"), "unknown loss 'l1': choose from norm_mse, mse"),
        (dict(target_layers=[0, 3]), r"target layers \[0, 3\] reach outside the encoder's 3 blocks"),
        (dict(target_layers=[-4]), "outside the encoder's 3 blocks"),
        (dict(img_size=(8, 208)), r"\(8, 208\) is smaller than one patch of \(16, 16\)"),
        (dict(norm_stats=(1.0,)), r"norm_stats .*mean and std"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_model("m2d", **options)


# ---------------------------------------------------------------- inputs that are refused


@pytest.mark.parametrize("shape", [(2, 1, 64, 115), (2, 1, 80, 116), (2, 1, 80, 96), (1, 80, 115), (2, 3, 80, 115)])
def test_inputs_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match=r"inputs of \[batch, 1, 80, 115\], not " + str(list(shape)).replace("[", r"\[")):
        small_model("m2d")(torch.randn(*shape))


@pytest.mark.parametrize("frames, fits", [(115, True), (96, True), (16, True), (15, False), (116, False)])
def test_adjust_short_takes_fewer_frames_down_to_one_patch(frames, fits):
    model, x = small_model("m2d"), torch.randn(1, 1, 80, frames)
    if fits:
        tokens, _, mask, _ = model.forward_encoder(x, 0.0, adjust_short=True)
        assert tokens.shape == (1, 1 + 5 * (frames // 16), 32)
        assert mask.shape == (1, 5 * (frames // 16))
    else:
        with pytest.raises(ValueError, match="inputs of"):
            model.forward_encoder(x, 0.0, adjust_short=True)


@pytest.mark.parametrize("family", ["m2d", "m2d_d2v", "m2d_x"])
@pytest.mark.parametrize("ratio, kept", [(0, 35), (1, 0), (1.0, 0), (0.01, 34)])
def test_m2d_needs_hidden_and_visible_patches(family, ratio, kept):
    model = small_model(family)
    args = inputs(model, family)
    if kept in (0, 35):
        with pytest.raises(ValueError, match=f"{kept} of 35 patches visible"):
            model(*args, mask_ratio=ratio)
        with pytest.raises(ValueError, match=f"{kept} of 35 patches visible"):
            model(*args, mask_ratio=plan(keep=kept))
    else:
        assert torch.isfinite(model(*args, mask_ratio=ratio)[0])


def test_mae_needs_hidden_patches():
    model = small_model("mae")
    for nothing in (0, 0.0, plan(keep=35)):
        with pytest.raises(ValueError, match="35 of 35 patches visible"):
            model(torch.randn(2, 1, 80, 115), mask_ratio=nothing)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("family", ["m2d", "mae"])
def test_a_ratio_beyond_0_to_1_is_refused(family, ratio):
    with pytest.raises(ValueError, match=f"mask ratio {ratio} is not a share from 0 to 1"):
        small_model(family)(torch.randn(2, 1, 80, 115), mask_ratio=ratio)


@pytest.mark.parametrize("fixed", [plan(length=34), plan(batch=1), plan(keep=36), plan(keep=-1)])
def test_a_plan_for_another_batch_is_refused(fixed):
    with pytest.raises(ValueError, match=r"a mask plan for 2 clips of 35 patches"):
        small_model("m2d")(torch.randn(2, 1, 80, 115), mask_ratio=fixed)


@pytest.mark.parametrize("run", [0, -1, 8])
def test_runs_longer_than_the_grid_are_refused(run):
    with pytest.raises(ValueError, match=f"runs of {run} columns .* 7 columns of patches"):
        small_model("m2d").set_random_1d_mask(run)


# ---------------------------------------------------------------- masking modes


def hidden_grid(model, x, ratio):
    return model.forward_encoder(x, ratio)[2].bool().unflatten(1, GRID)


def test_masking_modes_of_a_model():
    model, x = small_model("m2d"), torch.randn(4, 1, 80, 115)
    assert len({tuple(row) for row in hidden_grid(model, x, 0.5).flatten(1).tolist()}) == 4
    model.set_random_1d_mask(3)
    hidden = hidden_grid(model, x, 0.5)
    assert torch.equal(hidden.all(dim=1), hidden.any(dim=1))
    assert hidden[:, 0].sum(dim=1).tolist() == [3] * 4
    model.set_random_structured_mask()
    hidden = hidden_grid(model, x, 0.5)
    assert torch.equal(hidden, hidden.all(dim=2)[:, :, None] | hidden.all(dim=1)[:, None, :])
    model.set_random_mask()
    hidden = hidden_grid(model, x, 0.5)
    assert (hidden.flatten(1).sum(dim=1) == 18).all()


def test_short_inputs_are_masked_over_their_own_grid():
    model = small_model("encoder")
    model.set_random_structured_mask()
    tokens, _, mask, _ = model.forward_encoder(torch.randn(2, 1, 80, 70), 0.5, adjust_short=True)
    assert mask.shape == (2, 5 * 4)
    assert tokens.shape[1] - 1 == int((1 - mask[0]).sum())


# ---------------------------------------------------------------- what a model survives


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copied_or_pickled_model_gives_the_same_output(family):
    model = small_model(family)
    model.set_random_1d_mask(1)
    args, fixed = inputs(model, family), plan()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(*args, mask_ratio=fixed)[0], model(*args, mask_ratio=fixed)[0])
        torch.manual_seed(1)
        first = model(*args, mask_ratio=0.5)[0]
        torch.manual_seed(1)
        assert torch.equal(twin(*args, mask_ratio=0.5)[0], first)
        with torch.no_grad():
            twin.norm.weight.zero_()
        assert model.norm.weight.abs().min() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_autocast_is_near_float32(family):
    model = small_model(family, norm_pix_loss=True)
    args, fixed = inputs(model, family), plan()
    loss, pred, _ = model(*args, mask_ratio=fixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low_loss, low_pred, extra = model(*args, mask_ratio=fixed)
    assert low_loss.dtype == torch.float32
    assert low_loss.item() == pytest.approx(loss.item(), rel=0.01)
    assert (low_pred.float() - pred).norm() < 0.02 * pred.norm()
    low_loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_a_model_of_bfloat16_weights_runs_and_its_mask_is_float32():
    model, x = small_model("m2d").bfloat16(), torch.randn(2, 1, 80, 115).bfloat16()
    for ratio in (0.0, 0.5):
        tokens, _, mask, _ = model.forward_encoder(x, ratio)
        assert (tokens.dtype, mask.dtype) == (torch.bfloat16, torch.float32)
    assert model(x, 0.5)[0].dtype == torch.float32
