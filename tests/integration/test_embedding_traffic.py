"""What encoding asks of a GPU: weights are cast once, and each sum is one operation with its norm."""

import pytest

pytest.importorskip("triton")
from benchmarks.embedding_traffic import encoded
from m2d.inference.runtime import RuntimeM2D

DEPTH = 12


@pytest.fixture(scope="module")
def runtime():
    runtime = RuntimeM2D(weight_file="m2d_vit_tiny-80x208p16x16-random")
    runtime.backbone.use_short_attention()
    return runtime


def test_weights_are_cast_once(runtime):
    plain, half = (encoded(runtime, 2, 208, half, in_one_pass=False).operations for half in (False, True))
    assert plain["_to_copy"] - half["_to_copy"] >= 8 * DEPTH
    assert half["short_attention"] == plain["short_attention"] == DEPTH


def test_sums_and_norms_take_one_pass(runtime):
    apart, together = (encoded(runtime, 2, 208, True, in_one_pass) for in_one_pass in (False, True))
    assert together.operations["add_norm"] == 2 * DEPTH and together.operations["native_layer_norm"] == 1
    assert apart.operations["native_layer_norm"] == 2 * DEPTH + 1
    values = 2 * (1 + 5 * 13) * 192
    assert together.bytes["add_norm"] == pytest.approx(2 * DEPTH * 12 * values, rel=0.02)
    saved = sum(apart.bytes.values()) - sum(together.bytes.values())
    # 24 bytes a value in place of 12, but for the first block's sum with zeros.
    assert saved == pytest.approx(2 * DEPTH * 12 * values, rel=0.06)
