"""Training and embedding on a CUDA device: `pytest -m gpu`. Without one, the same tests run on the CPU, to stay valid."""

import copy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import write_checkpoint
from recordings import melody
from small_models import inputs, small_model
from small_runs import digest, log_lines, run, small_builders, step_losses, write_list
from torch.utils._python_dispatch import TorchDispatchMode

from examples.portable_m2d import PortableM2D
from m2d.data.batch import Batch
from m2d.data.loader import on_device
from m2d.data.sampler import EpochSampler
from m2d.inference import stream
from m2d.inference.embed import main as embed
from m2d.inference.runtime import RuntimeM2D
from m2d.inference.stream import Sink, StreamEncoder
from m2d.models import registry
from m2d.train.batch_transform import BatchTransform, MaskRule
from m2d.train.config import OptimSettings, Settings
from m2d.train.distributed.launch import Launch
from m2d.train.metrics import LossMeter
from m2d.train.optim import make_optimizer
from m2d.train.trainer import Trainer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def flags(device, tmp_path, monkeypatch) -> str:
    """Flags of a run on the device in a folder with a list of clips, with the small models in place of the tiny ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "BUILDERS", {**registry.BUILDERS, **small_builders()})
    return f"--csv_main {write_list(clips=24)} --device {device.type}"


@pytest.mark.parametrize("precision", ["", "--bf16"])
def test_mixed_precision_learns(flags, precision):
    assert run("train_audio", f"{flags} {precision} --no_compile --epochs 8 --output_dir run") == 0
    losses = [line["train_loss"] for line in log_lines(Path("run"))]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_a_stopped_run_goes_on_to_the_same_weights(flags, tmp_path):
    flags = f"{flags} --bf16 --no_compile --epochs 4"
    assert run("train_audio", f"{flags} --output_dir whole") == 0
    assert run("train_audio", f"{flags} --stop_at 2 --output_dir parts") == 0
    assert run("train_audio", f"{flags} --auto_resume --output_dir parts") == 0
    assert digest(tmp_path / "parts/checkpoint-4.pth") == digest(tmp_path / "whole/checkpoint-4.pth")


def losses_with(flags: str, how: str, capsys) -> list[float]:
    """The losses that a run prints, which compiles and captures what it is asked to."""
    assert run("train_audio", f"{flags} --bf16 {how} --output_dir {how.replace(' ', '').strip('-')}") == 0
    printed = capsys.readouterr().out
    assert "not compiled" not in printed and "no CUDA graphs" not in printed
    return [float(loss) for loss in step_losses(printed)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--compile", "--compile_blocks"])
def test_the_compiled_run_gives_near_losses(flags, how, capsys):
    eager = losses_with(flags, "--no_compile", capsys)
    assert losses_with(flags, how, capsys) == pytest.approx(eager, rel=0.02)


@pytest.mark.parametrize("device", DEVICES[1:], indirect=True)
@pytest.mark.parametrize("compilation", ["--no_compile", pytest.param("--compile_blocks", marks=pytest.mark.slow)])
def test_a_run_by_cuda_graphs_gives_near_losses(flags, compilation, capsys):
    launched = losses_with(flags, compilation, capsys)
    assert losses_with(flags, f"{compilation} --cuda_graphs", capsys) == pytest.approx(launched, rel=0.02)


@pytest.mark.parametrize("family", ["m2d", "m2d_x", "m2d_as", "m2d_d2v", "mae"])
def test_the_device_and_the_cpu_give_the_same_loss(device, family):
    model = small_model(family)
    arguments = inputs(model, family)
    rule = MaskRule(model.grid_size(), 0.7, seed=0)
    on_cpu = model(*arguments, rule(0, torch.arange(2)))[0]
    moved = copy.deepcopy(model).to(device)
    there = moved(*(x.to(device) for x in arguments), rule(0, torch.arange(2, device=device)))[0]
    torch.testing.assert_close(there.cpu(), on_cpu, rtol=2e-3, atol=2e-3)


def test_masks_are_the_same_on_every_device(device):
    rule = MaskRule((5, 38), 0.7, seed=3)
    position = torch.arange(64)
    assert torch.equal(rule(2, position).ids_restore, rule(2, position.to(device)).ids_restore.cpu())


class NoScalarReads(TorchDispatchMode):
    """Raises where the host reads a tensor's value, which on a CUDA device is a wait for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero")):
            raise RuntimeError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


def small_trainer(device: torch.device) -> Trainer:
    settings = Settings(optim=OptimSettings(bf16=True))
    model = small_model("m2d").to(device).train()
    return Trainer(
        settings=settings,
        launch=Launch(0, 1, 0, device),
        model=model,
        ddp_model=model,
        optimizer=make_optimizer(model, settings.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        transform=BatchTransform(device, MaskRule(model.grid_size(), 0.6, 0), (-7.0, 4.0)),
        sampler=EpochSampler(8, 4),
        peak_lr=1e-3,
    )


def make_batch(device: torch.device, value: float | None = None) -> Batch:
    clips = torch.randn(4, 1, 80, 115) if value is None else torch.full((64, 1, 80, 608), value)
    batch = Batch(clips, torch.arange(len(clips)), torch.arange(len(clips)), epoch=int(value or 0))
    return batch.pin_memory() if device.type == "cuda" else batch


def test_the_hot_loop_never_waits_for_the_device(device):
    """Two steps (forward, backward, update and target) under CUDA's synchronisation check, and without reading a value."""
    trainer, batch, meter = small_trainer(device), make_batch(device), LossMeter()

    def two_steps():
        for moved in on_device([batch, batch], device):
            meter.add(trainer.forward_backward(moved, synchronize=True), moved)
            meter.norms.append(trainer.update(0))

    two_steps()
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoScalarReads():
            two_steps()
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert meter.unreported == 4
    means = meter.report()
    assert np.isfinite(means["loss"]) and meter.count == 4


def test_reading_a_loss_is_a_wait(device):
    trainer, batch = small_trainer(device), make_batch(device)
    with NoScalarReads(), pytest.raises(RuntimeError, match="waits for the device"):
        trainer.forward_backward(batch, synchronize=True)["loss"].item()


def test_batches_copied_ahead_arrive_whole_and_in_order(device):
    batches = [make_batch(device, float(i)) for i in range(6)]
    for i, batch in enumerate(on_device(batches, device)):
        assert batch.clean.device.type == device.type and batch.epoch == i
        assert (batch.clean == i).all() and batch.index.tolist() == list(range(64))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@torch.no_grad()
def test_embeddings_in_bfloat16_are_near_those_of_the_cpu(device, weights):
    audio = torch.from_numpy(np.stack([melody(3, 16000), -melody(3, 16000)]))
    expected = RuntimeM2D(weight_file=weights).encode(audio)
    with torch.autocast(device.type, torch.bfloat16):
        found = RuntimeM2D(weight_file=weights).to(device).encode(audio.to(device))
    assert torch.cosine_similarity(found.float().cpu(), expected, dim=-1).min() > 0.999


@torch.no_grad()
def test_embedding_does_not_wait_for_the_device(device, weights):
    """From the check of the waveforms to the last kernel: on CUDA the host reads one number, which was copied before."""
    runtime = RuntimeM2D(weight_file=weights).to(device)
    audio = torch.randn(2, 40_000, device=device)
    runtime.encode(audio)
    lms = runtime.to_normalized_spec(audio)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoScalarReads():
            runtime.encode_lms(lms)
            runtime.log_mel(audio, 0, 100)
        if device.type == "cuda":
            runtime.encode(audio)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


class Kept(Sink):
    """Keeps the mean of each piece, as it comes from `condense`."""

    def __init__(self, files: int):
        super().__init__([Path(str(i)) for i in range(files)])
        self.pieces = {}

    def condense(self, embeddings):
        return embeddings.sum(dim=1, dtype=torch.float64)

    def put(self, clip, step, embeddings):
        self.pieces[clip, step] = embeddings.clone()

    def complete(self, clip, samples, frames):
        pass


def encode_sounds(runtime: RuntimeM2D) -> Kept:
    """Sounds of many lengths in batches of three pieces."""
    sink = Kept(7)
    encoder = StreamEncoder(runtime, 3, sink, ahead=1)
    for seconds in (1, 2.08, 2.5, 0.1, 5, 2.5, 2.5):
        encoder.start()
        for segment in encoder.framing([melody(seconds, 16000)]):
            encoder.add(encoder.hold(segment))
        encoder.end()
    encoder.flush()
    return sink


def test_encoding_files_waits_for_no_kernel(device, weights):
    """From the decoded files on: on CUDA the host waits for copies of results alone."""
    runtime = RuntimeM2D(weight_file=weights)
    expected = encode_sounds(runtime).pieces
    runtime = runtime.to(device)
    encode_sounds(runtime)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoScalarReads():
            found = encode_sounds(runtime).pieces
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert found.keys() == expected.keys() and len(found) == 13
    for key, values in found.items():
        torch.testing.assert_close(values, expected[key], rtol=1e-3, atol=1e-2)


@torch.no_grad()
def test_graphs_that_are_replayed_give_what_kernels_give(device, weights):
    """For two lengths of pieces and two sizes of batches, each of which comes again; also after the weights have changed."""
    runtime = RuntimeM2D(weight_file=weights).to(device)
    sounds = [torch.randn(clips, 40_000, device=device) for clips in (2, 3, 2, 2, 3, 3)]
    for _ in range(2):
        with torch.autocast(device.type, torch.bfloat16):
            runtime.use_half_encoder(False)
            expected = [runtime.encode(audio) for audio in sounds]
            runtime.use_half_encoder()
            found = [runtime.encode(audio) for audio in sounds]
        for values, wanted in zip(found, expected, strict=True):
            assert torch.cosine_similarity(values.float(), wanted.float(), dim=-1).min() > 0.9999
            torch.testing.assert_close(values, wanted, rtol=0.05, atol=0.05)
        for parameter in runtime.backbone.parameters():
            parameter.mul_(1.01)


@pytest.mark.parametrize("kind", [RuntimeM2D, PortableM2D])
def test_log_mels_are_in_true_float32_where_tf32_is_allowed(device, weights, kind):
    """A tone beside silence: TF32 would move the quiet bands by whole units."""
    model = kind(weight_file=weights)
    to_log_mel = model.to_feature if kind is RuntimeM2D else model.to_log_mel_spec
    audio = torch.sin(torch.arange(16000) * 0.2)[None]
    expected = to_log_mel(audio)
    chosen = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model.to(device)
    try:
        found = to_log_mel(audio.to(device))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = chosen
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=5e-3)


def test_waveforms_that_are_not_finite_are_refused(device, weights):
    audio = torch.randn(3, 40_000, device=device)
    audio[1, 7] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in clip 1 of the batch"):
        RuntimeM2D(weight_file=weights).to(device).encode(audio)


@pytest.mark.parametrize("in_processes", [False, True])
def test_files_are_embedded_as_on_the_cpu(device, weights, tmp_path, monkeypatch, in_processes):
    monkeypatch.setattr(stream, "decodes_in_processes", lambda *_: in_processes)
    for i in range(5):
        soundfile.write(tmp_path / f"{i}.wav", melody(1 + i, 16000), 16000)
    found = []
    for name, flags in (("cpu", []), (device.type, ["--precision", "fp32", "--batch_size", "2"])):
        out = tmp_path / f"{len(found)}.npz"
        assert embed([str(tmp_path), "--weights", str(weights), "--out", str(out), "--device", name, *flags]) == 0
        with np.load(out) as saved:
            found.append(saved["embeddings"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-3)
