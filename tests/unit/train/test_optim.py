"""Which parameters the optimizer decays."""

import pytest
from small_models import small_model

from m2d.models.registry import FAMILIES
from m2d.train.optim import split_by_decay


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_and_tokens_are_decayed_and_biases_and_norms_are_not(family):
    model = small_model(family)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain, decayed = split_by_decay((name, p.ndim) for name, p in trained.items())
    assert sorted(plain + decayed) == sorted(trained)
    assert all(name.endswith(".bias") or "norm" in name or name == "logit_scale" for name in plain)
    assert {"cls_token", "mask_token", "patch_embed.proj.weight"} <= set(decayed)
    assert all(name.endswith((".weight", "_token")) and "norm" not in name for name in decayed)
    fixed = {"pos_embed", "decoder_pos_embed", "norm_stats"}
    assert set(model.state_dict()) - set(trained) == fixed | {n for n in model.state_dict() if n.startswith("target_")}
