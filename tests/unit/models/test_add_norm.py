"""Sums and norms of a block's inference: by Triton's interpreter on the CPU, and compiled under `-m gpu`."""

import subprocess

import pytest
import torch
from interpreter import check_interpreted

from m2d.models.transformer import kernels
from m2d.models.transformer.kernels import kernels_run
from m2d.train.config import MachineSettings
from m2d.train.device import choose_computation
from m2d.utils.errors import UserError

pytest.importorskip("triton")
import add_norm_checks as checks  # noqa: E402  imports triton, as do these

from m2d.models.transformer import add_norm, short_attention  # noqa: E402


def test_in_tritons_interpreter():
    check_interpreted(checks)


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """Which need not be the current one: --device cuda:1."""
    current, launched = [], []

    class DeviceOf:
        def __init__(self, tensor):
            self.tensor = tensor

        def __enter__(self):
            current.append(self.tensor)

        def __exit__(self, *_):
            current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda first, *_, **__: launched.append(current[-1] is first)

    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    for module, name in ((add_norm, "_add_norm"), (short_attention, "_forward"), (short_attention, "_backward")):
        monkeypatch.setattr(module, name, Kernel())
    x, qkv = torch.zeros(1, 2, 96), torch.zeros(1, 2, 96)
    add_norm.add_norm(x, x.bfloat16(), torch.nn.LayerNorm(96))
    out, lse = short_attention.forward_op(qkv, 1)
    short_attention.backward_op(qkv, out, out.clone(), lse, 1)
    assert launched == [True] * 3


@pytest.fixture
def one_try():
    """Whether kernels run is found out again, before and after."""
    kernels_run.cache_clear()
    yield
    kernels_run.cache_clear()


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable\nor not"),
        subprocess.CalledProcessError(1, ["gcc", "main.c"]),
        ModuleNotFoundError("No module named 'triton.language'"),
    ],
)
def test_where_triton_cannot_compile_a_warning_says_so_once(error, one_try, monkeypatch, caplog):
    def fail(device):
        raise error

    device = torch.device("cuda")
    properties = type("Properties", (), {"major": 9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr("m2d.models.transformer.add_norm.try_kernel", fail)
    assert [kernels_run(device) for _ in range(3)] == [False] * 3
    why, remedy = messages(caplog)
    assert "without our own kernels" in why and str(error).split("\n")[0] in why and "or not" not in why
    assert "apt-get install gcc python3-dev" in remedy


def test_what_does_not_run_them_needs_no_warning(one_try, monkeypatch, caplog):
    assert not kernels_run(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"major": 7}))
    assert not kernels_run(torch.device("cuda", 0))
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert not kernels_run(torch.device("cuda", 1)) and not messages(caplog)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_where_there_is_no_driver_they_do_not_run(one_try, caplog):
    assert not kernels_run(torch.device("cuda")) and len(messages(caplog)) == 2


def test_a_run_that_asks_for_them_is_refused_where_they_do_not_run(monkeypatch):
    monkeypatch.setattr("m2d.train.device.kernels_run", lambda device: False)
    with pytest.raises(UserError, match="--short_attention: our kernels do not run on this device: omit it"):
        choose_computation(torch.nn.Module(), MachineSettings(short_attention=True), torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", checks.WIDTHS)
def test_values_on_a_gpu(width, dtype):
    for tokens in (*checks.TOKENS, (3, 1000)):
        checks.check_values(width, tokens, dtype, "cuda")
    checks.check_values(width, (2, 5), dtype, "cuda", mean=300.0)
    checks.check_nothing_beyond_the_ends(width, "cuda")


@pytest.mark.gpu
def test_blocks_and_encoders_on_a_gpu():
    assert kernels_run(torch.device("cuda"))
    checks.check_block("cuda")
    checks.check_encoder("cuda")
