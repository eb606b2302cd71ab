"""A checkpoint as an ONNX file: waveforms in, embeddings and logits out, for batches and clips of any length."""

import copy
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import __version__
from ..audio.logmel_torch import EPS
from ..checkpoint.build import no_sizes
from ..checkpoint.weights import Weights
from ..inference.runtime import RuntimeM2D
from ..utils.atomic_file import write_bytes
from ..utils.errors import UserError
from ..utils.outputs import check_outputs
from .classes import Classes
from .encoder import describe

logger = logging.getLogger("m2d")

OPSET = 17  # the first with LayerNormalization; onnxruntime 1.12 and later
_HIDDEN = -1e4  # added to the attention to what is padding: its weight is 0 in float16 too
_BYTES = 1 << 31  # of an ONNX file with its weights inside


class WaveformModel(nn.Module):
    """A runtime's model without Python's control flow, so that its trace holds for every batch and length.

    The pieces that a clip is cut into are encoded together: the last one is filled up to the length of the others, and
    attention leaves out what was filled up. The values are those of the runtime, which encodes each piece alone.

    Args:
        runtime: the model, with a classifier or without.
        half: encode in float16; waveforms, spectrograms and outputs stay float32.
    """

    def __init__(self, runtime: RuntimeM2D, half: bool = False):
        super().__init__()
        self.backbone = runtime.backbone.half() if half else runtime.backbone
        self.to_spec, self.front_end, self.cutting = runtime.to_spec, runtime.front_end, runtime.cutting
        self.mean, self.std = runtime.cfg.mean, runtime.cfg.std
        self.head = one_layer(runtime.head_norm, runtime.head) if runtime.num_classes is not None else None
        self.flat_head = runtime.cfg.flat_features
        self.rows = self.backbone.grid_size()[0]

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Waveforms `[B, samples]` to embeddings of clips `[B, F·D]` and of time steps `[B, T, F·D]`.

        With a classifier also logits of clips `[B, classes]` and of time steps `[B, T, classes]`.
        """
        frames = self.encode(self.log_mel(waveform))
        clips = frames.mean(dim=1)
        if self.head is None:
            return clips, frames
        inputs = frames.unflatten(2, (self.rows, -1)).mean(dim=2) if self.flat_head else frames
        return clips, frames, self.head(inputs.mean(dim=1)), self.head(inputs)

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` to normalised log-mel spectrograms `[B, 1, n_mels, frames]`."""
        missing = torch.clamp(self.front_end.min_samples - torch.as_tensor(waveform.shape[1]), min=0)
        mel = self.to_spec(F.pad(waveform, (0, missing)))
        return ((mel + EPS).log()[:, None] - self.mean) / self.std

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Spectrograms `[B, 1, n_mels, frames]` to stacked features `[B, T, F·D]`."""
        unit, patch, rows = self.cutting.unit, self.cutting.patch, self.rows
        batch, frames = x.shape[0], torch.as_tensor(x.shape[3])
        pieces = (frames + unit - 1) // unit
        rest = frames - (pieces - 1) * unit
        rest = torch.clamp((rest + patch - 1) // patch * patch, max=unit)  # of the last piece, to a whole patch
        length = torch.where(pieces == 1, rest, unit)
        columns, last = length // patch, rest // patch
        x = F.pad(x, (0, pieces * length - frames)).reshape(batch, 1, x.shape[2], pieces, length)
        tokens = self.tokens(x.permute(0, 3, 1, 2, 4).flatten(0, 1), columns)
        tokens = self.blocks(tokens, self.hidden(pieces, columns, last).repeat(batch, 1)[:, None, None])
        stacked = tokens[:, 1:].reshape(batch, pieces, rows, columns, -1).permute(0, 1, 3, 2, 4)
        return stacked.reshape(batch, pieces * columns, -1)[:, : (pieces - 1) * columns + last].float()

    def tokens(self, pieces: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Pieces `[N, 1, n_mels, frames]` to tokens `[N, 1 + F·columns, D]` with their positions."""
        net = self.backbone
        project = net.patch_embed.proj
        patches = F.conv2d(pieces.to(project.weight), project.weight, project.bias, stride=project.stride)
        positions = net.pos_embed[:, 1:].unflatten(1, net.grid_size())[:, :, :columns].flatten(1, 2)
        first = (net.cls_token + net.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat([first, patches.flatten(2).transpose(1, 2) + positions], dim=1)

    def hidden(self, pieces: Any, columns: Any, last: Any) -> torch.Tensor:
        """What is added to the attention of each piece's tokens, `[pieces, 1 + F·columns]`: 0, or less where filled up."""
        place = torch.arange(columns)[None] + (torch.arange(pieces)[:, None] == pieces - 1) * (columns - last)
        filled = (place >= columns).to(self.backbone.cls_token.dtype) * _HIDDEN
        return torch.cat([torch.zeros_like(filled[:, :1]), filled.repeat(1, self.rows)], dim=1)

    def blocks(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The encoder's blocks and norm on tokens `[N, L, D]`; `hidden` `[N, 1, 1, L]` is added to their attention."""
        for block in self.backbone.blocks:
            heads = block.attn.num_heads
            qkv = block.attn.qkv(block.norm1(x)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            query, key, value = qkv.unbind(0)
            weights = (query * key.shape[-1] ** -0.5) @ key.transpose(2, 3) + hidden
            x = x + block.attn.proj((weights.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        return self.backbone.norm(x)


@torch.no_grad()
def one_layer(norm: Any, linear: nn.Linear) -> nn.Linear:
    """A linear layer of the values of a batch norm (as in evaluation) and a linear layer."""
    scale = (norm.running_var + norm.eps).rsqrt()
    layer = nn.Linear(linear.in_features, linear.out_features)
    layer.weight.copy_(linear.weight * scale)
    layer.bias.copy_(linear.bias - layer.weight @ norm.running_mean)
    return layer


OUTPUTS = ("clip_embedding", "frame_embeddings", "clip_logits", "frame_logits")
_AXES = {name: {0: "batch", **({1: "steps"} if name.startswith("frame") else {})} for name in OUTPUTS}


def export_onnx(weights: Weights, dest: Path, classes: Classes | None, half: bool = False, overwrite: bool = False) -> None:
    """Write a checkpoint as an ONNX file, and compare it with the runtime where onnxruntime is installed.

    Args:
        weights: the checkpoint.
        dest: the file, whose name ends in .onnx; an existing one is replaced on `overwrite`.
        classes: of the classifier; None where there is none.
        half: weights and encoder in float16.

    Raises:
        CheckpointError, UserError: it does not give its sizes; it is too large; the package onnx is missing.
        OSError: the disk is full, or the folder is not writable.
    """
    if dest.suffix != ".onnx":
        raise UserError(f"DEST {dest}: expected a file name that ends in .onnx")
    check_outputs([dest], [weights.path], overwrite)
    if weights.spec is None:
        raise no_sizes(weights.path)
    try:
        import onnx
    except ModuleNotFoundError:
        raise UserError("--to onnx needs the package onnx: pip install 'm2d-audio[onnx]'") from None
    runtime = RuntimeM2D(weight_file=weights.path, num_classes=len(classes.names) if classes else None)
    size = sum(tensor.nbytes for tensor in runtime.state_dict().values()) // (2 if half else 1)
    if size >= _BYTES:
        raise UserError(f"{weights.path} has {size / 1e9:.1f} GB of weights; an ONNX file holds less than {_BYTES / 1e9:.1f}")
    reference = copy.deepcopy(runtime)  # in float32, whatever the exported weights become
    reference.cfg.flat_features = False  # embeddings are stacked, whatever features a classifier takes
    model = onnx.load_from_string(trace(WaveformModel(runtime, half).eval()))
    told = describe(weights) | {"sample_rate": str(runtime.sample_rate), "written_by": f"m2d export of M2D {__version__}"}
    if classes:
        told |= {"classes": json.dumps(classes.names, ensure_ascii=False), "single_label": str(classes.single_label).lower()}
    onnx.helper.set_model_props(model, told)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    difference = compare(content, reference)
    dest.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(dest, content)
    compared = "not compared (onnxruntime is not installed)" if difference is None else f"within {difference:.1e} of the runtime"
    logger.info("%s: %.1f MB, opset %d, %s", dest, len(content) / 1e6, OPSET, compared)


@torch.no_grad()
def trace(model: WaveformModel) -> bytes:
    """The ONNX file of a model: `waveform` `[batch, samples]` to OUTPUTS, the logits only where it has a classifier."""
    outputs = OUTPUTS[: 2 if model.head is None else 4]
    file = io.BytesIO()
    samples = model.cutting.unit * model.front_end.hop_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: what it traces holds no decision that depends on the input
        torch.onnx.export(
            model,
            (torch.zeros(2, samples + samples // 2),),
            file,
            input_names=["waveform"],
            output_names=list(outputs),
            dynamic_axes={"waveform": {0: "batch", 1: "samples"}, **{name: _AXES[name] for name in outputs}},
            opset_version=OPSET,
            dynamo=False,
        )
    return file.getvalue()


def compare(content: bytes, runtime: RuntimeM2D) -> float | None:
    """The largest difference of clip embeddings between an ONNX file and the runtime; None without onnxruntime."""
    try:
        session = open_session(content)
    except ModuleNotFoundError:
        return None
    length = runtime.cutting.unit * runtime.front_end.hop_size
    audio = torch.randn(1, length + length // 3, generator=torch.Generator().manual_seed(0)) * 0.1
    (ours,) = session.run(["clip_embedding"], {"waveform": audio.numpy()})
    with torch.no_grad():
        return float((torch.from_numpy(ours) - runtime.get_scene_embeddings(audio)).abs().max())


def open_session(source: bytes | Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU; `threads` 0: as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    model = source if isinstance(source, bytes) else str(source)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
