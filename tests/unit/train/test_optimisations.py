"""What makes a training step fast changes no loss: each optimisation on and off under a fixed seed."""

import copy
import platform
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from small_models import inputs, plan, small_model
from small_runs import ROOT, small_builders

from benchmarks.train_step import PLAIN, Choices, Step, make_batch
from m2d.data.batch import Batch
from m2d.data.loader import on_device
from m2d.models import registry as models_mae
from m2d.models.transformer.block import Attention
from m2d.models.transformer.feed_forward import FeedForward
from m2d.train import device as compute
from m2d.train.config import MachineSettings
from m2d.train.cost import blocks_flops, step_flops, step_memory

STEPS = 3


@pytest.fixture
def settings(monkeypatch):
    """Settings of the benchmark's steps for a very small model."""
    monkeypatch.setattr(models_mae, "BUILDERS", small_builders())

    class Settings:
        model, input_size, patch_size, mask_ratio = "m2d_vit_tiny", "80x48", "16x16", 0.6
        batch_size, device, precision = 4, "cpu", "fp32"
        compile, compile_blocks, inductor = False, False, []
        activation_checkpointing, short_attention, recompute_gelu, half_target, fp8 = [False] * 5

    return Settings


@pytest.fixture
def fresh_compiler():
    """Nothing compiled is left from or for other tests: torch compiles a function for a few kinds of inputs alone."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def losses(settings, choices: Choices, fast: bool = True) -> torch.Tensor:
    """Losses of a few steps."""
    return losses_of(Step(settings, choices, fast))


def losses_of(step: Step) -> torch.Tensor:
    """Losses of a step's first updates."""
    torch.manual_seed(1)
    found = []
    for _ in range(STEPS):
        batch = make_batch(step)
        with torch.no_grad():
            found.append(step.forward(*batch))
        step(*batch)
    return torch.stack(found)


@pytest.mark.parametrize("family", ["m2d", "m2d_x", "m2d_as", "m2d_d2v", "mae"])
def test_the_fast_step_is_the_plain_one(settings, family):
    settings.model = f"{family}_vit_tiny"
    torch.testing.assert_close(losses(settings, Choices()), losses(settings, PLAIN), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [field.name for field in fields(Choices)])
def test_each_optimisation_alone_changes_no_loss(settings, name):
    fast = losses(settings, Choices())
    torch.testing.assert_close(losses(settings, replace(Choices(), **{name: False})), fast, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["activation_checkpointing", "recompute_gelu"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_activations_give_the_same_losses_to_the_bit(settings, what, precision):
    settings.precision = precision
    stored = losses(settings, Choices())
    setattr(settings, what, True)
    assert torch.equal(losses(settings, Choices()), stored)


@pytest.mark.parametrize("family", ["m2d", "m2d_d2v"])
@pytest.mark.parametrize("target_layers", [None, (0, 1)])
def test_a_target_encoder_in_half_precision_gives_near_losses(settings, family, target_layers, monkeypatch):
    builder = models_mae.BUILDERS[f"{family}_vit_tiny"]
    monkeypatch.setitem(models_mae.BUILDERS, "one", replace(builder, sizes={**builder.sizes, "target_layers": target_layers}))
    settings.model = "one"
    plain = losses(settings, Choices())
    settings.half_target = True
    assert torch.equal(losses(settings, Choices()), plain)  # without autocast there is no other precision
    settings.precision = "bf16"
    half = losses(settings, Choices())
    settings.half_target = False
    mixed = losses(settings, Choices())
    torch.testing.assert_close(half, mixed, rtol=5e-3, atol=5e-3)
    assert not torch.equal(half, mixed)


def test_recomputed_activations_are_not_kept(settings):
    model = small_model("m2d").train()
    x, mask = inputs(model, "m2d")[0], plan()

    def kept_bytes() -> int:
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(x, mask)
        return total

    everything = kept_bytes()
    model.recompute_gelu()
    assert kept_bytes() < 0.85 * everything
    model.recompute_gelu(False)
    model.recompute_activations()
    assert kept_bytes() < 0.5 * everything
    model.recompute_activations(False)
    assert kept_bytes() == everything


def curve(settings, choices: Choices, seed: int) -> torch.Tensor:
    """Losses of 200 steps over batches of smooth noise that a seed gives, averaged over 20 at a time."""
    step = Step(settings, choices, True)
    torch.manual_seed(seed)
    found = []
    for _ in range(200):
        x, target, mask = make_batch(step)
        found.append(step(torch.nn.functional.avg_pool2d(x, 15, 1, 7) * 15, target, mask))
    return torch.stack(found).float().view(10, 20).mean(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_low_precision_each_optimisation_stays_within_the_spread_of_two_seeds(settings, precision):
    settings.precision = precision
    fast = curve(settings, Choices(), seed=1)
    spread = (curve(settings, Choices(), seed=2) - fast).abs().max()
    assert fast.isfinite().all() and fast[-1] < fast[0]
    for name in [field.name for field in fields(Choices)]:
        without = curve(settings, replace(Choices(), **{name: False}), seed=1)
        assert (without - fast).abs().max() < spread, name
    for name in ["half_target"] + ["fp8"] * (precision == "bf16"):
        setattr(settings, name, True)
        assert 0 < (curve(settings, Choices(), seed=1) - fast).abs().max() < spread, name
        setattr(settings, name, False)
    settings.precision = "fp32"
    assert (curve(settings, Choices(), seed=1) - fast).abs().max() < spread


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compile", "compile_blocks"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 3e-3)])
def test_the_compiled_step_gives_the_same_losses(settings, how, precision, tolerance, fresh_compiler):
    settings.precision, settings.recompute_gelu = precision, True
    plain = losses(settings, Choices())
    setattr(settings, how, True)
    torch.testing.assert_close(losses(settings, Choices()), plain, rtol=10 * tolerance, atol=tolerance)


def test_alike_blocks_and_the_code_between_them_are_compiled_once_and_in_training_alone(settings, fresh_compiler):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    step = Step(settings, Choices(), True)
    plain = copy.deepcopy(step.model)
    step.model.compile_blocks(backend=backend)
    batch = make_batch(step)
    for model in (plain, step.model):
        model(batch[0], batch[2])[0].backward()
    # The online encoder's blocks, the target encoder's without gradient, the predictor's, and its last one.
    depths = [len(blocks) for blocks in (step.model.blocks, step.model.target_blocks, step.model.decoder_blocks)]
    assert 4 < sum(depths)
    # Between them: positions, both encoders' inputs, the predictor's, its outputs, the loss.
    assert len(compiled) == 4 + 5
    for one, other in zip(plain.parameters(), step.model.parameters(), strict=True):
        assert one.grad is None if other.grad is None else torch.equal(one.grad, other.grad)
    step.model.eval()
    step.model(torch.cat([batch[0]] * 2), 0.6)
    assert len(compiled) == 4 + 5


@pytest.mark.parametrize(
    ("device", "flags", "compilation", "short", "recomputes"),
    [
        ("cpu", {}, "", False, False),
        ("cpu", dict(compile=True), "whole", False, False),
        ("cpu", dict(compile_blocks=True, recompute_gelu=True), "blocks", False, True),
        ("cuda", {}, "blocks", True, True),
        ("cuda", dict(compile=True, short_attention=False, recompute_gelu=False), "whole", False, False),
        ("cuda", dict(compile=False), "", True, False),
        ("cuda", dict(fsdp=True), "", True, False),
    ],
)
def test_what_the_settings_leave_open_is_chosen_by_device(device, flags, compilation, short, recomputes, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(compute, "kernels_run", lambda device: device.type == "cuda")
    model = small_model("m2d")
    assert compute.choose_computation(model, MachineSettings(**flags), torch.device(device)) == compilation
    assert {module.short for module in model.modules() if isinstance(module, Attention)} == {short}
    assert {module.recompute_gelu for module in model.modules() if isinstance(module, FeedForward)} == {recomputes}


def test_inference_is_compiled_once_for_all_sizes(settings, fresh_compiler):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    model = Step(settings, Choices(), True).model.eval()
    inputs = [torch.randn(batch, 1, 80, frames) for batch, frames in ((3, 48), (2, 48), (5, 32))]
    with torch.no_grad():
        plain = [model.forward_encoder(x, 0.0, adjust_short=True)[0] for x in inputs]
        model.compile_inference(backend=backend)
        for x, expected in zip(inputs, plain, strict=True):
            torch.testing.assert_close(model.forward_encoder(x, 0.0, adjust_short=True)[0], expected)
    assert len(compiled) == 1


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_and_recomputed_activations_go_together(settings, recompute, fresh_compiler):
    expected = losses(settings, Choices())
    step = Step(settings, Choices(), True)
    step.model.compile_blocks(backend="aot_eager")
    step.model.recompute_activations(recompute)
    torch.testing.assert_close(losses_of(step), expected, rtol=1e-5, atol=1e-6)


def test_a_model_that_does_not_compile_runs_as_it_is(caplog, monkeypatch):
    model = small_model("m2d")
    x, mask = inputs(model, "m2d")[0], plan()
    expected = model(x, mask)[0]

    def broken(*_args, **_kwargs):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(model, "compile", lambda **_: setattr(model, "_compiled_call_impl", broken))
    with caplog.at_level("WARNING", "m2d"):
        assert compute.try_compile(model, lambda: model(x, mask)[0].backward()) is False
    assert "no compiler" in caplog.text and "long story" not in caplog.text
    assert torch.equal(model(x, mask)[0], expected)
    assert all(p.grad is None for p in model.parameters())


def test_flops_of_a_step_by_hand():
    model = models_mae.build("m2d_vit_base", img_size=(80, 608), patch_size=(16, 16))
    width, tokens = 768, 58
    assert blocks_flops(model.blocks, tokens) == 12 * (24 * tokens * width**2 + 4 * tokens**2 * width)
    # 57 of 190 patches stay visible: the parts add up to the sum that system designers work with, about 82 GFLOP.
    online, predictor = blocks_flops(model.blocks, 58), blocks_flops(model.decoder_blocks, 191)
    target = blocks_flops(model.target_blocks, 134)
    assert step_flops(model, 0.7) == pytest.approx(3 * (online + predictor) + target, rel=0.03)


@pytest.mark.parametrize(
    ("name", "mask_ratio", "recompute_gelu"),
    [
        ("m2d_vit_tiny", 0.7, False),
        ("m2d_vit_tiny", 0.7, True),
        ("msm_mae_vit_tiny", 0.75, False),
        ("m2d_x_vit_tiny", 0.7, False),
    ],
)
def test_the_estimated_memory_is_what_the_backward_pass_keeps(name, mask_ratio, recompute_gelu):
    model = models_mae.build(name, img_size=(80, 208), patch_size=16).train()
    model.recompute_gelu(recompute_gelu)
    batch, kept = torch.randn(2, 1, 80, 208), {}

    def remember(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        model(batch, *([None] if "_x_" in name else []), mask_ratio)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in own)
    none, two = (step_memory(model, mask_ratio, clips, torch.float32, False) for clips in (0, 2))
    assert two - none == pytest.approx(activations, rel=0.08)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert none == pytest.approx(16 * trained, rel=0.4) and none > 16 * trained
    assert 0 < step_memory(model, mask_ratio, 2, torch.float32, True) - none < 0.1 * (two - none)


def test_flops_without_a_target_encoder():
    model = small_model("mae")
    assert step_flops(model, 0.75) < step_flops(small_model("m2d"), 0.75)


def test_batches_keep_their_order_and_their_epoch_stays_on_the_host():
    batches = [Batch(torch.full((2,), float(i)), torch.arange(2), torch.arange(2), epoch=i) for i in range(4)]
    seen = list(on_device(batches, torch.device("cpu")))
    assert [batch.epoch for batch in seen] == [0, 1, 2, 3]
    assert [batch.clean[0].item() for batch in seen] == [0, 1, 2, 3]


KEPT = """
import sys, torch
from m2d.utils.malloc import OWN_LIMITS, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

assert keep_freed_memory(*([] if sys.argv[1] == "keep" else OWN_LIMITS))
before = resident()
many = [torch.ones(10_000_000) for _ in range(10)]
assert resident() - before > 350e6
del many
print((resident() - before) / 400e6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than GNU's")
def test_memory_that_a_step_frees_stays_with_the_process():
    left = [
        float(subprocess.run([sys.executable, "-c", KEPT, word], cwd=ROOT, capture_output=True, check=True).stdout)
        for word in ("keep", "give back")
    ]
    assert left[0] > 0.9 and left[1] < 0.3
