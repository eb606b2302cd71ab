"""Precision of float32 products: exact where a program asks for it, as the program chose elsewhere."""

from types import SimpleNamespace

import pytest
import torch

from m2d.utils.device import float32_products, pick_device

CUDA = torch.device("cuda")


@pytest.mark.parametrize(("name", "fast", "exact"), [("fp32_precision", "tf32", "ieee"), ("allow_tf32", True, False)])
def test_tf32_is_off_within_the_context_alone(monkeypatch, name, fast, exact):
    """PyTorch 2.9 renamed the setting."""
    settings = SimpleNamespace(**{name: fast})
    monkeypatch.setattr(torch.backends.cuda, "matmul", settings)
    with pytest.raises(KeyError), float32_products(CUDA):
        assert vars(settings) == {name: exact}
        raise KeyError
    assert vars(settings) == {name: fast}


def test_the_last_of_several_threads_restores_the_setting(monkeypatch):
    settings = SimpleNamespace(fp32_precision="tf32")
    monkeypatch.setattr(torch.backends.cuda, "matmul", settings)
    first, second = float32_products(CUDA), float32_products(CUDA)
    found = []
    for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None)):
        step()
        found.append(settings.fp32_precision)
    second.__exit__(None, None, None)
    assert [*found, settings.fp32_precision] == ["ieee", "ieee", "ieee", "tf32"]


@pytest.mark.parametrize("allowed", [True, False])
def test_torchs_own_setting_can_be_read_afterwards(allowed):
    chosen = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with float32_products(CUDA):
            pass
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = chosen


def test_other_devices_have_no_such_setting(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "matmul", None)
    with float32_products(torch.device("cpu")):
        pass


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:x", "xpu", ""])
def test_other_devices_are_unknown(name):
    with pytest.raises(ValueError, match=f"--device {name}: unknown; choose auto, cuda, mps or cpu"):
        pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")
