"""PortableM2D: pre-trained and fine-tuned M2D encoders, and M2D-CLAP, in one file.

Copy this file anywhere. It needs torch, timm, einops, nnAudio and numpy, torchaudio for audio of other sampling rates,
transformers or sentence_transformers for M2D-CLAP's texts, and nothing else of the M2D project (Apache License 2.0).

    model = PortableM2D("m2d_as_vit_base-80x1001p16x16-240213_AS-FT_enconly/weights_ep69it3124-0.48494.pth")
    frames = model(audio)                      # [B, samples] in ±1 -> [B, T, 3840], one vector per time step
    clips = model.get_scene_embeddings(audio)  # [B, 3840]
    clips = model.get_scene_embeddings(audio, sample_rate=44100)  # resampled on the audio's device
    tagger = PortableM2D(path, num_classes=527)
    logits = tagger(audio)                     # [B, 527], with a fine-tuned checkpoint
    clap = PortableM2D("m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025/checkpoint-30.pth")
    sounds, texts = clap.encode_clap_audio(audio), clap.encode_clap_text(["a dog barks", "rain"])  # to compare by cosine

The model is that of Niizumi et al., "Masked Modeling Duo: Towards a Universal Audio Pre-training Framework", 2024.
"""

import argparse
import logging
import math
import pickle
import re
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import nn

log = logging.getLogger("m2d")

FRONT_ENDS = {
    "16k": dict(sample_rate=16000, n_fft=400, window_size=400, hop_size=160, n_mels=80, f_min=50, f_max=8000),
    "32k": dict(sample_rate=32000, n_fft=800, window_size=800, hop_size=320, n_mels=80, f_min=50, f_max=16000),
}
EPS = torch.finfo(torch.float32).eps
#: Kaiser-windowed sinc, 64 zero crossings: aliases and ripple below -80 dB up to 0.9 of the lower rate's band.
RESAMPLING = dict(
    lowpass_filter_width=64,
    rolloff=0.9475937167399596,
    resampling_method="sinc_interp_kaiser",
    beta=14.769656459379492,
)
#: (mean, std) of checkpoints that bring none.
DEFAULT_NORM_STATS = (-7.1, 4.2)
HEAD_WIDTH = 64
#: M2D-CLAP's text encoders by the letter in a checkpoint's name, and how a text's vector is made.
TEXT_ENCODERS = {
    "A": ("thenlper/gte-base", "mean"),
    "B": ("google-bert/bert-base-uncased", "cls"),
    "E": ("google-bert/bert-large-uncased", "cls"),
    "L": ("Alibaba-NLP/gte-large-en-v1.5", "cls"),
    "M": ("answerdotai/ModernBERT-base", "cls"),
    "N": ("nvidia/NV-Embed-v2", "sentence"),
    "Q": ("Alibaba-NLP/gte-Qwen2-7B-instruct", "sentence"),
    "R": ("FacebookAI/roberta-base", "cls"),
}
_NAME = re.compile(r"(?<![A-Za-z0-9_])([A-Za-z]\w*)-(\d+)x(\d+)p(\d+)x(\d+)(?:p(\d+k))?((?:p[A-Z]+)*)(?![A-Za-z0-9])")
_HEAD = re.compile(r"(?:^|\.)head(?:(?:\.|_)norm\.running_(mean|var)|\.(?:mlp\.mlp\.0\.)?(weight|bias))$")
_OWN_HEAD = re.compile(r"^classifier\.(weight|bias)$")  # of app/finetune.py
_ANCHOR = "patch_embed.proj.weight"
# Frames of log-mel made, and tokens encoded at a time: a long input needs no more memory than a short one.
_FRAMES_PER_STRETCH = 1 << 14
_TOKENS_PER_BLOCK = 1 << 13
_TEXTS_PER_BLOCK = 64


# ---------------------------------------------------------------- checkpoint


def _allowed() -> list:
    """What published checkpoints hold beside tensors: settings in an argparse.Namespace, numpy numbers."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    return [argparse.Namespace, np.dtype, *dtypes, *[(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]]


def _read(path: Path) -> tuple[dict, dict]:
    """The tensors of a checkpoint, and the settings in it. No code that it may hold is run."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: give the path of a .pth file")
    try:
        with torch.serialization.safe_globals(_allowed()):
            # Files from before torch 1.6 are no zip archives, and cannot be mapped.
            saved = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = re.findall(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks to run {', '.join(asked)}: refused" if asked else "it is damaged, or no checkpoint"
        raise ValueError(f"{path} cannot be read: {reason}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read: it is damaged, or no checkpoint ({reason})") from error
    settings = saved.get("args") if isinstance(saved, dict) else None
    settings = vars(settings) if isinstance(settings, argparse.Namespace) else settings or {}
    for key in ("model", "state_dict"):
        saved = saved[key] if isinstance(saved, dict) and isinstance(saved.get(key), dict) else saved
    if not isinstance(saved, dict) or not any(str(name).endswith(_ANCHOR) for name in saved):
        raise ValueError(f"{path} is no checkpoint of an M2D model: it holds no {_ANCHOR}")
    return {name.replace("_orig_mod.", ""): value for name, value in saved.items() if torch.is_tensor(value)}, settings


def _split(tensors: dict) -> tuple[dict, dict]:
    """The encoder's tensors with M2D-CLAP's projectors, under their own names, and a classifier's: mean, var, weight, bias."""
    anchors = [name for name in tensors if name.endswith(_ANCHOR)]
    prefix = next((name for name in anchors if name.startswith("backbone.")), anchors[0]).removesuffix(_ANCHOR)
    outer = prefix.removesuffix("backbone.")
    projectors = tuple(f"{outer}{side}_proj." for side in ("audio", "text"))
    encoder = {name.removeprefix(outer): tensor for name, tensor in tensors.items() if name.startswith(projectors)}
    head = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            encoder[name.removeprefix(prefix)] = tensor
        if found := _HEAD.search(name) or _OWN_HEAD.search(name):
            head[found[found.lastindex or 0]] = tensor
    return encoder, head


def _named(path: Path) -> re.Match | None:
    """What the folder's name, or else the file's, tells."""
    return next(filter(None, map(_NAME.search, (path.absolute().parent.name, path.name))), None)


def _sizes(path: Path, settings: dict) -> tuple[int, int, str]:
    """(mel bands, frames, rate) from the folder's name, the file's name, or the settings in the file.

    Raises:
        ValueError: none of them tells, or name and settings contradict each other.
    """
    found = _named(path)
    named = (int(found[2]), int(found[3]), found[6] or "16k") if found else None
    told = settings.get("input_size")
    if told:
        mels, frames = map(int, told.split("x") if isinstance(told, str) else told)
        sizes = mels, frames, str(settings.get("sr") or (named[2] if named else "16k"))
        if named not in (None, sizes):
            raise ValueError(
                f"{path}: its name tells {named[0]}x{named[1]} at {named[2]}, the settings in the file {mels}x{frames} at "
                f"{sizes[2]}: rename the folder (or the file) to what it holds"
            )
        return sizes
    if named:
        return named
    raise ValueError(
        f"{path}: neither the folder's name nor the file's tells the input size. Put the file into a folder named "
        "{model}-{mel bands}x{frames}p{patch bands}x{patch frames}[p{rate}k][p{text encoder}[pTI]]-…, "
        "such as m2d_vit_base-80x608p16x16-221006"
    )


# ---------------------------------------------------------------- encoder


class PatchEmbed(nn.Module):
    """Non-overlapping patches of a spectrogram, each projected to the encoder's width."""

    def __init__(self, img_size: tuple[int, int], patch_size: tuple[int, int], width: int):
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        self.proj = nn.Conv2d(1, width, patch_size, patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, 1, mels, frames]` to `[B, F·T, D]`, frequency first."""
        return self.proj(x.to(self.proj.weight)).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """The M2D encoder: a ViT with a class token and stored positions."""

    def __init__(self, img_size: tuple[int, int], patch_size: tuple[int, int], width: int, depth: int):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.embed_dim = width
        self.patch_embed = PatchEmbed(img_size, patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid_size()), width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, width // HEAD_WIDTH, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        self.norm_stats = nn.Parameter(torch.zeros(2), requires_grad=False)

    def grid_size(self) -> tuple[int, int]:
        """Patches along (frequency, time)."""
        size, patch = self.patch_embed.img_size, self.patch_embed.patch_size
        return size[0] // patch[0], size[1] // patch[1]

    def patch_size(self) -> tuple[int, int]:
        """Mel bands and frames of a patch."""
        return self.patch_embed.patch_size

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`[B, 1, mels, frames]`, no longer than the model's input, to one `[B, F·T, D]` per block, the last normalised."""
        positions = self.pos_embed[:, 1:].unflatten(1, self.grid_size())[:, :, : x.shape[-1] // self.patch_size()[1]]
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls_token, self.patch_embed(x) + positions.flatten(1, 2)], dim=1)
        layers = []
        for block in self.blocks:
            x = block(x)
            layers.append(x)
        return [layer[:, 1:] for layer in [*layers[:-1], self.norm(x)]]


def _load_encoder(state: dict, img_size: tuple[int, int], path: Path) -> Encoder:
    width, _, *patch_size = state[_ANCHOR].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    # On the meta device nothing is drawn at random that the checkpoint replaces at once.
    with torch.device("meta"):
        encoder = Encoder(img_size, tuple(patch_size), width, depth)
    state = {"norm_stats": torch.tensor(DEFAULT_NORM_STATS), **state}
    own = {name: state[name].float().clone() for name in encoder.state_dict() if name in state}
    try:
        encoder.load_state_dict(own, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the input size {img_size[0]}x{img_size[1]} of its name: {error}") from error
    return encoder


# ---------------------------------------------------------------- M2D-CLAP


class MeanProjector(nn.Sequential):
    """The mean over tokens `[B, N, D]`, through layers if there are any: `[B, D]`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.mean(dim=1))


class SemanticProjector(nn.Module):
    """A token that attends to tokens `[B, N, D]` through blocks of one head: `[B, D]`."""

    def __init__(self, width: int, depth: int, mlp_ratio: float):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-5)
        self.sem_token = nn.Parameter(torch.zeros(1, 1, width))
        self.sem_blocks = nn.Sequential(*(Block(width, 1, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)))
        self.norm = norm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.sem_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.norm(self.sem_blocks(x)[:, 0])


def _load_projectors(state: dict, path: Path) -> tuple[nn.Module | None, nn.Module | None]:
    """The projectors behind the audio and the text encoder, told by the tensors that are there; None where there are none."""
    audio, text = (
        {n.removeprefix(p): t.float().clone() for n, t in state.items() if n.startswith(p)} for p in ("audio_proj.", "text_proj.")
    )
    if not audio and not text:
        return None, None

    def layers(tensors: dict) -> list[nn.Module]:
        linear = [nn.Linear(t.shape[1], t.shape[0]) for name, t in tensors.items() if name.endswith("weight")]
        return [linear[0], nn.ReLU(), linear[1]] if len(linear) == 2 else [*linear]

    if "sem_token" in audio:
        depth = len({name.split(".")[1] for name in audio if name.startswith("sem_blocks.")})
        width, hidden = audio["sem_token"].shape[2], audio["sem_blocks.0.mlp.fc1.bias"].shape[0]
        audio_proj = SemanticProjector(width, depth, hidden / width)
    else:
        audio_proj = MeanProjector(*layers(audio))
    text_proj = layers(text)[0] if "weight" in text else nn.Sequential(*layers(text))
    try:
        audio_proj.load_state_dict(audio)
        text_proj.load_state_dict(text)
    except RuntimeError as error:
        raise ValueError(f"{path}: its projectors are not M2D-CLAP's: {error}") from error
    return audio_proj.requires_grad_(False), text_proj.requires_grad_(False)


class TextEncoder:
    """Texts to vectors, on the CPU: `encoder(texts, truncate=False)` gives float32 `[B, E]`.

    Args:
        name: a model of the Hugging Face hub, or a local folder.
        pooling: how a text's vector is made: the first token's output (`cls`), the mean over tokens (`mean`), or as a model of
            sentence-transformers does it (`sentence`).
        weights: the model's weights, where they are not to be read or downloaded.
        tokenizer: a local folder of the tokenizer, where it is not the model's.
        trust_remote_code: run the Python code that comes with the model.
    """

    model: Any

    def __init__(self, name: str, pooling: str, weights: dict | None, tokenizer: str | None, trust_remote_code: bool):
        self.name, self.pooling, self._has_warned = name, pooling, False
        try:
            if pooling == "sentence":
                from sentence_transformers import SentenceTransformer

                self.model = SentenceTransformer(name, device="cpu", trust_remote_code=trust_remote_code)
                self.tokenizer, self.longest = self.model.tokenizer, self.model.max_seq_length
            else:
                import transformers

                self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                    tokenizer or name, trust_remote_code=trust_remote_code
                )
                self.model = self._transformer(transformers, weights, tokenizer, trust_remote_code)
                longest = getattr(self.model.config, "max_position_embeddings", self.tokenizer.model_max_length)
                self.longest = min(longest, self.tokenizer.model_max_length)
        except ImportError as error:
            raise ValueError(f"texts need {error.name}: pip install {str(error.name).replace('_', '-')}") from error
        self.end = ""
        if name == TEXT_ENCODERS["N"][0]:
            self.tokenizer.padding_side, self.end = "right", self.tokenizer.eos_token
            self.model.max_seq_length = self.longest = 32768
        self.model.float().eval()

    def _transformer(self, transformers, weights: dict | None, tokenizer: str | None, trust_remote_code: bool) -> nn.Module:
        if not weights:
            return transformers.AutoModel.from_pretrained(self.name, trust_remote_code=trust_remote_code)
        folder = next((f for f in (tokenizer, self.name) if f and Path(f, "config.json").is_file()), None)
        is_bert_base = folder is None and self.name in (TEXT_ENCODERS["A"][0], TEXT_ENCODERS["B"][0])
        config = transformers.BertConfig() if is_bert_base else transformers.AutoConfig.from_pretrained(folder or self.name)
        model = transformers.AutoModel.from_config(config, trust_remote_code=trust_remote_code)
        prefix = next((p for p in ("text_encoder.", "model.") if all(name.startswith(p) for name in weights)), "")
        missing, unknown = model.load_state_dict({name.removeprefix(prefix): t for name, t in weights.items()}, strict=False)
        wrong = [name for name in (*missing, *unknown) if not name.startswith("pooler.") and not name.endswith("position_ids")]
        if wrong:
            raise ValueError(f"the checkpoint's text encoder is not {self.name}: look at {', '.join(wrong[:3])}")
        return model

    @torch.no_grad()
    def __call__(self, texts: list[str], truncate: bool = False) -> torch.Tensor:
        texts = [text + self.end for text in texts]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt", verbose=False)
        if tokens["input_ids"].shape[1] > self.longest:
            what = f"a text has more than the {self.longest} tokens that {self.name} takes"
            if not truncate:
                raise ValueError(f"{what}: shorten it, or truncate=True")
            if not self._has_warned:
                log.warning("%s: longer texts are cut to that length", what)
            self._has_warned = True
            tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        if self.pooling == "sentence":
            return self.model.encode(texts, convert_to_tensor=True, show_progress_bar=False).float()
        outputs = self.model(**tokens).last_hidden_state
        if self.pooling == "cls":
            return outputs[:, 0]
        mask = tokens["attention_mask"][..., None].to(outputs)
        return (outputs * mask).sum(dim=1) / mask.sum(dim=1)


# ---------------------------------------------------------------- the model


class _TrueFloat32:
    """A context in which float32 convolutions and products on CUDA are without TF32, for all threads that are within it.

    PyTorch's convolutions use TF32 unless told otherwise, which moves quiet bands.
    """

    def __init__(self):
        self.lock, self.users, self.chosen = Lock(), 0, []

    def settings(self) -> list[tuple[Any, str, Any]]:
        """Where the settings are, by what name, and the exact value."""
        products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        if hasattr(products, "fp32_precision"):  # PyTorch 2.9
            return [(products, "fp32_precision", "ieee"), (cudnn.conv, "fp32_precision", "ieee")]
        return [(products, "allow_tf32", False), (cudnn, "allow_tf32", False)]

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.chosen = [getattr(place, name) for place, name, _ in self.settings()]
                for setting in self.settings():
                    setattr(*setting)
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                for (place, name, _), value in zip(self.settings(), self.chosen, strict=True):
                    setattr(place, name, value)


_TRUE_FLOAT32 = _TrueFloat32()


class AudioModel(nn.Module):
    """Waveforms to embeddings, or logits.

    Features are stacked: all frequencies of a time step in one vector, `[B, T, F·D]`. Inputs longer than the model's are
    cut into pieces of its length, each encoded alone; the end is padded to a whole patch.

    Args:
        encoder: the encoder, with its weights.
        rate: "16k" or "32k".
        norm_stats: mean and standard deviation of log-mel values.
        flat_features: every patch a vector of its own, `[B, F·T, D]`.
        num_classes: add a batch norm and a linear head, with random weights.
    """

    to_spec: Any

    def __init__(
        self,
        encoder: Encoder,
        rate: str,
        norm_stats: Sequence[float],
        flat_features: bool = False,
        num_classes: int | None = None,
    ):
        super().__init__()
        self.backbone = encoder
        mean, std = norm_stats
        self.cfg = SimpleNamespace(sr=rate, mean=mean, std=std, **FRONT_ENDS[rate])
        self.cfg.input_size, self.cfg.patch_size = list(encoder.patch_embed.img_size), list(encoder.patch_size())
        self.cfg.flat_features = flat_features
        self.cfg.feature_d = encoder.embed_dim if flat_features else encoder.embed_dim * encoder.grid_size()[0]
        self.to_spec = self._make_to_spec()
        self.num_classes = num_classes
        if num_classes is not None:
            self.head_norm = nn.BatchNorm1d(self.cfg.feature_d, affine=False)
            self.head = nn.Linear(self.cfg.feature_d, num_classes)

    def _make_to_spec(self) -> nn.Module:
        from nnAudio.features import MelSpectrogram  # takes seconds to import

        cfg = self.cfg
        sizes = dict(sr=cfg.sample_rate, n_fft=cfg.n_fft, win_length=cfg.window_size, hop_length=cfg.hop_size)
        return MelSpectrogram(**sizes, n_mels=cfg.n_mels, fmin=cfg.f_min, fmax=cfg.f_max, center=True, power=2, verbose=False)

    # ------------------------------------------------------------ waveforms to spectrograms

    def _stretch(self, audio: torch.Tensor, start: int, stop: int, total: int) -> torch.Tensor:
        """Log-mel frames start to stop, from a stretch of audio wide enough that its ends do not show in them."""
        hop, margin = self.cfg.hop_size, -(-self.cfg.n_fft // 2 // self.cfg.hop_size)
        before = min(start, margin)
        end = audio.shape[1] if stop + margin >= total else (stop + margin) * hop
        exact = nullcontext() if torch.compiler.is_compiling() else _TRUE_FLOAT32
        with torch.autocast(audio.device.type, enabled=False), exact:
            mel = self.to_spec(audio[:, (start - before) * hop : end])
            return (mel[:, None, :, before : before + stop - start] + EPS).log()

    def to_log_mel_spec(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` of full scale ±1 to log-mel spectrograms `[B, 1, n_mels, 1 + samples // hop_size]`.

        Raises:
            ValueError: another shape, no samples, or NaN.
        """
        if audio.ndim != 2 or 0 in audio.shape or not audio.is_floating_point():
            raise ValueError(f"audio is a float tensor [batch, samples] in ±1; this is {audio.dtype} {list(audio.shape)}")
        if not torch.compiler.is_compiling() and audio.isnan().any():
            raise ValueError("the audio holds NaN")
        audio = audio.to(self.to_spec.mel_basis)
        audio = F.pad(audio, (0, max(0, self.cfg.n_fft // 2 + 1 - audio.shape[1])))
        total = 1 + audio.shape[1] // self.cfg.hop_size
        starts = range(0, total, _FRAMES_PER_STRETCH)
        return torch.cat([self._stretch(audio, i, min(i + _FRAMES_PER_STRETCH, total), total) for i in starts], dim=-1)

    def _resample(self, audio: torch.Tensor, rate: int | None) -> torch.Tensor:
        """Waveforms of another rate (None: the model's) at the model's, on their device."""
        if rate is None or rate == self.cfg.sample_rate:
            return audio
        from torchaudio.functional import resample  # takes long to import

        with torch.autocast(audio.device.type, enabled=False):
            return resample(audio.float(), rate, self.cfg.sample_rate, **RESAMPLING)

    def normalize_batch(self, x: torch.Tensor) -> torch.Tensor:
        """`(x - mean) / std` with the checkpoint's statistics."""
        return (x - self.cfg.mean) / self.cfg.std

    def to_normalized_feature(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` to normalised log-mel spectrograms `[B, 1, n_mels, frames]`."""
        return self.normalize_batch(self.to_log_mel_spec(audio))

    # ------------------------------------------------------------ spectrograms to features

    def _encode_pieces(self, x: torch.Tensor, piece: int, return_layers: bool, per_frame: bool) -> list[torch.Tensor]:
        batch, rows = x.shape[0], self.backbone.grid_size()[0]
        layers = self.backbone(rearrange(x, "b c m (n t) -> (b n) c m t", t=piece))
        features = []
        for layer in layers if return_layers else layers[-1:]:
            if not self.cfg.flat_features:
                layer = rearrange(layer, "b (f t) d -> b t (f d)", f=rows)
            elif per_frame:
                layer = rearrange(layer, "b (f t) d -> b t f d", f=rows).mean(dim=2)
            features.append(rearrange(layer, "(b n) t d -> b (n t) d", b=batch))
        return features

    def encode_lms(
        self, lms: torch.Tensor, return_layers: bool = False, average_per_time_frame: bool = False
    ) -> torch.Tensor | list[torch.Tensor]:
        """Normalised log-mel `[B, 1, n_mels, frames]`, of any length, to features `[B, T, F·D]`, or flat `[B, F·T, D]`.

        With `return_layers` a list, one per block, the last normalised. `average_per_time_frame` averages flat features
        over frequency: `[B, T, D]`.
        """
        (mels, unit), patch = self.backbone.patch_embed.img_size, self.backbone.patch_size()[1]
        if lms.ndim != 4 or tuple(lms.shape[1:3]) != (1, mels) or 0 in lms.shape:
            raise ValueError(f"log-mel spectrograms are [batch, 1, {mels}, frames]; these are {list(lms.shape)}")
        lms = F.pad(lms, (0, (patch - lms.shape[3] % unit % patch) % patch))
        whole = lms.shape[3] // unit * unit
        tokens = lms.shape[0] * (1 + math.prod(self.backbone.grid_size()))
        parts = lms[..., :whole].split(unit * max(1, _TOKENS_PER_BLOCK // tokens), dim=3) if whole else ()
        blocks = [(part, unit) for part in parts]
        if lms.shape[3] - whole >= patch:
            blocks.append((lms[..., whole:], lms.shape[3] - whole))
        encoded = [self._encode_pieces(part, piece, return_layers, average_per_time_frame) for part, piece in blocks]
        layers = [torch.cat(parts, dim=1) for parts in zip(*encoded, strict=True)]
        return layers if return_layers else layers[0]

    def encode(self, audio: torch.Tensor, average_per_time_frame: bool = False, sample_rate: int | None = None) -> torch.Tensor:
        """Waveforms `[B, samples]` to features, as `encode_lms` gives them; sample_rate: theirs, in Hz (None: the model's)."""
        lms = self.to_normalized_feature(self._resample(audio, sample_rate))
        return self.encode_lms(lms, average_per_time_frame=average_per_time_frame)  # pyright: ignore[reportReturnType]

    def forward(self, audio: torch.Tensor, average_per_time_frame: bool = False, sample_rate: int | None = None) -> torch.Tensor:
        """Waveforms `[B, samples]` to features `[B, T, feature_d]`, or with `num_classes` to logits `[B, classes]`."""
        features = self.encode(audio, average_per_time_frame, sample_rate)
        return features if self.num_classes is None else self.classify(features.mean(dim=1))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Features averaged over some time `[N, feature_d]` to logits `[N, classes]`."""
        return self.head(self.head_norm(features))

    def get_scene_embeddings(self, audio: torch.Tensor, sample_rate: int | None = None) -> torch.Tensor:
        """Waveforms `[B, samples]` to one vector a clip, the mean over time: `[B, feature_d]`."""
        return self.encode(audio, sample_rate=sample_rate).mean(dim=1)

    def get_timestamp_embeddings(self, audio: torch.Tensor, sample_rate: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms `[B, samples]` to features per time step `[B, T, feature_d]` and their times in ms `[B, T]`.

        The times follow the published rule, i · duration / T: a little earlier than the patches begin, where the end of a
        clip was padded to a whole patch.
        """
        audio = self._resample(audio, sample_rate)
        features = self.encode(audio, average_per_time_frame=True)
        step = audio.shape[1] / self.cfg.sample_rate * 1000 / features.shape[1]
        times = torch.arange(features.shape[1], device=features.device) * step
        return features, times.expand(len(features), -1)

    def forward_frames(self, audio: torch.Tensor, sample_rate: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms `[B, samples]` to logits per time step `[B, T, classes]` and their times in ms `[B, T]`."""
        if self.num_classes is None:
            raise ValueError("logits need a classifier: give num_classes")
        features, times = self.get_timestamp_embeddings(audio, sample_rate)
        return self.classify(features.flatten(0, 1)).unflatten(0, times.shape), times


class PortableM2D(AudioModel):
    """A checkpoint's model: waveforms to embeddings, or logits. See AudioModel.

    Args:
        weight_file: a .pth of any M2D model (tiny, small, base, large; pre-trained, encoder-only, fine-tuned or M2D-CLAP).
        num_classes: add a batch norm and a linear head, loaded from the checkpoint if it has one with this number of classes.
        freeze_embed: do not train the patch embedding.
        flat_features: every patch a vector of its own, `[B, F·T, D]`; None: only where the checkpoint's head asks for it.
        cfg: a settings object that receives what is found (sizes, rates, statistics, feature_d), as EVAR's; its weight_file
            counts where none is given.

    Raises:
        FileNotFoundError, ValueError: no such file, or one that cannot be used; says why.
    """

    def __init__(
        self,
        weight_file: str | Path | None = None,
        num_classes: int | None = None,
        freeze_embed: bool | None = False,
        flat_features: bool | None = None,
        cfg: Any = None,
    ):
        weight_file = weight_file or getattr(cfg, "weight_file", None)
        if not weight_file:
            raise ValueError("no weight_file: give the path of a checkpoint")
        path = Path(weight_file)
        tensors, settings = _read(path)
        mels, frames, rate = _sizes(path, settings)
        if rate not in FRONT_ENDS:
            raise ValueError(f"{path}: a sample rate of {rate} is not known: choose from {', '.join(FRONT_ENDS)}")
        state, head = _split(tensors)
        encoder = _load_encoder(state, (mels, frames), path)
        narrow_head = num_classes is not None and "weight" in head and head["weight"].shape[1] == encoder.embed_dim
        super().__init__(encoder, rate, encoder.norm_stats.tolist(), bool(flat_features) or narrow_head, num_classes)
        self.cfg.weight_file = str(weight_file)
        if cfg is not None:
            for name, value in vars(self.cfg).items():
                setattr(cfg, name, value)
            self.cfg = cfg
        self.audio_proj, self.text_proj = _load_projectors(state, path)
        self.text_encoder = None
        if num_classes is not None:
            self._load_head(head)
        self.backbone.patch_embed.requires_grad_(not freeze_embed)
        self.eval()

    def _load_head(self, head: dict) -> None:
        shape, wanted = list(head["weight"].shape) if "weight" in head else None, list(self.head.weight.shape)
        if shape != wanted:
            said = f"is {shape}, not" if shape else "is not there:"
            log.warning("%s: its classifier %s %s: a new one starts at random", self.cfg.weight_file, said, wanted)
            return
        neutral = {"mean": torch.zeros(wanted[1]), "var": torch.full(wanted[1:], 1 - self.head_norm.eps)}
        norm = {**neutral, **head}  # the classifier of app/finetune.py has no batch norm
        self.head_norm.load_state_dict({"running_mean": norm["mean"], "running_var": norm["var"]}, strict=False)
        self.head.load_state_dict({"weight": head["weight"], "bias": head["bias"]})

    # ------------------------------------------------------------ M2D-CLAP

    def __setattr__(self, name: str, value) -> None:
        if name == "text_encoder":  # no part of the module: `to`, `train` and `state_dict` leave it alone
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def project_audio(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patch tokens `[B, N, D]`, without the class token, to one vector a clip `[B, D]`."""
        if self.audio_proj is None:
            raise ValueError(f"{self.cfg.weight_file} has no projector: sounds and texts are compared by M2D-CLAP checkpoints")
        return self.audio_proj(tokens)

    def encode_clap_audio(self, audio: torch.Tensor, sample_rate: int | None = None) -> torch.Tensor:
        """Waveforms `[B, samples]` to vectors `[B, D]`, not normalised, to compare with those of texts by cosine."""
        features = self.encode(audio, sample_rate=sample_rate)
        return self.project_audio(rearrange(features, "b t (f d) -> b (t f) d", d=self.backbone.embed_dim))

    def load_text_encoder(
        self,
        name: str | None = None,
        tokenizer: str | None = None,
        pooling: str | None = None,
        trust_remote_code: bool = False,
    ) -> TextEncoder:
        """Load the text encoder and set `text_encoder` to it.

        Without arguments it is the checkpoint's: by the letter in its name, with the weights in the file where it holds them.
        name: a letter of TEXT_ENCODERS, a model of the Hugging Face hub, or a local folder; the others: see TextEncoder.
        """
        weights, path = None, Path(self.cfg.weight_file)
        if name is None:
            found = _named(path)
            name = next((letter for letter in (found[7] if found else "").split("p") if len(letter) == 1), "A")
            prefix = "text_encoder."
            weights = {n.removeprefix(prefix): t for n, t in _read(path)[0].items() if n.startswith(prefix)}
        default = str(name), "sentence" if Path(name, "modules.json").is_file() else "mean"
        model, own_pooling = TEXT_ENCODERS.get(str(name), default)
        self.text_encoder = TextEncoder(model, pooling or own_pooling, weights, tokenizer, trust_remote_code)
        return self.text_encoder

    @torch.no_grad()
    def encode_clap_text(self, texts: list[str], truncate: bool = False) -> torch.Tensor:
        """Texts to vectors, float32 `[B, D]` on the CPU; `truncate` allows texts beyond the text encoder's length.

        `text_encoder`, where it is set, is called as `text_encoder(texts, truncate=False)` and gives `[B, E]`.
        """
        if self.text_proj is None:
            raise ValueError(f"{self.cfg.weight_file} has no projector: sounds and texts are compared by M2D-CLAP checkpoints")
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"a list of texts is expected, with at least one; this is {texts!r:.60}")
        encoder = self.load_text_encoder() if self.text_encoder is None else self.text_encoder
        starts = range(0, len(texts), _TEXTS_PER_BLOCK)
        vectors = torch.cat([encoder(list(texts[i : i + _TEXTS_PER_BLOCK]), truncate=truncate) for i in starts])
        wanted = next((layer.in_features for layer in self.text_proj.modules() if isinstance(layer, nn.Linear)), None)
        if vectors.shape[1] != (wanted or self.backbone.embed_dim):
            raise ValueError(
                f"the text encoder gives vectors of width {vectors.shape[1]}, {self.cfg.weight_file} takes "
                f"{wanted or self.backbone.embed_dim}: use the one that it was trained with"
            )
        return self.text_proj(vectors.to(self.backbone.norm_stats)).float().cpu()
