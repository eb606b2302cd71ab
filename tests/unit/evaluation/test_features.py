"""Features of encoders: statistics over time of one block or two."""

import numpy as np
import pytest
import torch

from m2d.evaluation.features import POOLINGS, EncoderFeatures, FeatureCache
from m2d.inference.runtime import RuntimeM2D


@pytest.fixture(scope="module")
def runtime():
    torch.manual_seed(0)
    return RuntimeM2D(weight_file="m2d_vit_mini-80x64p16x16-random").eval()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_are_statistics_of_the_blocks_outputs(runtime, pooling):
    lms = torch.randn(3, 1, 80, 100, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        blocks = [block.double().numpy() for block in runtime.encode_lms(runtime.normalize_batch(lms), return_layers=True)]
    last = blocks[5]
    wanted = {
        "mean": [last.mean(axis=1)],
        "mean_std": [last.mean(axis=1), last.std(axis=1)],
        "mean_max": [last.mean(axis=1), last.max(axis=1)],
        "layers": [blocks[2].mean(axis=1), blocks[2].std(axis=1), last.mean(axis=1), last.std(axis=1)],
    }[pooling]
    found = EncoderFeatures(runtime, pooling, "key").of(lms)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.concatenate(wanted, axis=1), atol=1e-5)


@pytest.mark.parametrize("content", ["cut short", "one array"])
def test_a_damaged_cache_is_made_again(tmp_path, caplog, content):
    cache = FeatureCache(tmp_path, "key")
    cache["a"] = np.ones(3, np.float32)
    cache.save()
    (path,) = tmp_path.glob("*.npz")
    if content == "cut short":
        path.write_bytes(path.read_bytes()[:100])
    else:
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
    assert "a" not in FeatureCache(tmp_path, "key")
    assert "cannot be read and is made again" in caplog.text
