"""Weights and sounds that stand in for the reader's own, so that the notebooks run before anything is downloaded.

The weights are a tiny model's, drawn at random: they show how things are done, and know nothing about sound.
"""

import logging
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F

from m2d.inference.runtime import RuntimeM2D
from util.make_sample_audio import CLASSES, SAMPLE_RATE

#: Time steps of 160 ms that make about a second.
STEPS_PER_WINDOW = 6
#: A scene's sounds, one after the other.
SCENE = ("speech", "rain", "bell", "engine", "bird", "clock")


def _new_folder(name: str = "") -> Path:
    folder = Path(tempfile.mkdtemp(prefix="m2d_stand_in_")) / name
    folder.mkdir(exist_ok=True)
    return folder


def write_weights(sizes: str = "80x200p16x4") -> Path:
    """A tiny model's random weights, in a folder whose name tells the sizes; returns the file's path."""
    runtime = _random_model(f"m2d_vit_tiny-{sizes}-random")
    path = _new_folder(f"m2d_vit_tiny-{sizes}-stand_in") / "checkpoint-0.pth"
    torch.save({"model": runtime.backbone.state_dict()}, path)
    return path


def make_sound(name: str, number: int) -> np.ndarray:
    """Sound `number` of one of util.make_sample_audio's classes, 2 to 3 s, with a little noise: float32 `[samples]`."""
    rng = np.random.default_rng([list(CLASSES).index(name), number])
    sound = CLASSES[name](rng, int(rng.uniform(2, 3) * SAMPLE_RATE))
    sound = 0.5 * sound / np.abs(sound).max()
    return (sound + 0.003 * rng.standard_normal(len(sound))).astype(np.float32)


def write_sounds(clips: int, classes: Sequence[str] = tuple(CLASSES)) -> Path:
    """`clips` sounds of each of some classes, 16 kHz, 2 to 3 s, in a folder per class; returns the folder."""
    folder = _new_folder("sounds")
    for name in classes:
        (folder / name).mkdir()
        for number in range(clips):
            soundfile.write(folder / name / f"{name}_{number}.wav", make_sound(name, number), SAMPLE_RATE)
    return folder


def write_scene() -> Path:
    """One file with six kinds of sounds (SCENE) one after the other, 16 kHz; returns its path."""
    path = _new_folder() / "scene.wav"
    soundfile.write(path, np.concatenate([make_sound(name, 99) for name in SCENE]), SAMPLE_RATE)
    return path


def write_wideband_sounds() -> Path:
    """Three sounds at 44.1 kHz that differ in what lies above 8 kHz, 3 s each; returns their folder."""
    rate, seconds, rng = 44100, 3, np.random.default_rng(0)
    t = np.arange(rate * seconds) / rate
    noise = np.fft.rfft(rng.standard_normal(len(t)))
    hiss = np.fft.irfft(noise * (np.fft.rfftfreq(len(t), 1 / rate) > 5000), len(t)) * np.exp(-(t % 0.5) * 12)
    chirps = np.sin(2 * np.pi * (11000 * t + 60 * np.sin(2 * np.pi * 8 * t))) * np.sin(2 * np.pi * 2 * t).clip(0)
    speech = soxr.resample(np.resize(make_sound("speech", 0), SAMPLE_RATE * seconds), SAMPLE_RATE, rate)
    folder = _new_folder("wideband")
    for name, sound in (("speech", speech), ("cymbal", hiss), ("cricket", chirps)):
        soundfile.write(folder / f"{name}.wav", 0.5 * sound / np.abs(sound).max(), rate)
    return folder


def write_tagger() -> tuple[Path, Path]:
    """A tiny model with a classifier of the ten classes, as fine-tuning leaves it, and the table of its classes.

    The encoder is random; the classifier alone was fitted, to how each class's sounds come out of it.

    Returns:
        The checkpoint's path and that of a table in the form of AudioSet's class_labels_indices.csv.
    """
    sizes = "m2d_vit_tiny-80x1001p16x16"
    model = _random_model(f"{sizes}-random", num_classes=len(CLASSES))
    windows, targets = _windows_of_classes(model)
    _fit_head(model, windows, targets)
    state = {f"module.ar.runtime.backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    state |= {f"module.head.norm.{name}": tensor for name, tensor in model.head_norm.state_dict().items()}
    state |= {f"module.head.mlp.mlp.0.{name}": tensor for name, tensor in model.head.state_dict().items()}
    folder = _new_folder(f"{sizes}-stand_in")
    torch.save(state, folder / "weights.pth")
    rows = [f"{i},/m/{i:03d},{name}" for i, name in enumerate(CLASSES)]
    (folder / "classes.csv").write_text("\n".join(["index,mid,display_name", *rows]) + "\n")
    return folder / "weights.pth", folder / "classes.csv"


def encode_texts(texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
    """Vectors of texts, float32 `[B, 192]`: the mean over their words, each of which has a vector of its own, drawn at random."""
    return torch.stack([torch.stack([_word_vector(word) for word in text.lower().split()]).mean(dim=0) for text in texts])


def _word_vector(word: str) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(zlib.crc32(word.encode())).standard_normal(192, np.float32))


def write_clap() -> Path:
    """A tiny M2D-CLAP whose texts are those of `encode_texts`; returns the checkpoint's path.

    The encoder is random; the projector alone was fitted: the sounds of the ten classes come to lie at their names.
    """
    sizes = "m2d_clap_vit_tiny-80x304p16x16p16k"
    model = _random_model(f"{sizes}-random")
    sounds = [torch.from_numpy(make_sound(name, 100 + number)) for name in CLASSES for number in range(6)]
    with torch.no_grad():
        clips = torch.cat([model.clap_patches(model.encode(sound[None])).mean(dim=1) for sound in sounds])
    names = encode_texts([f"{name} can be heard" for name in CLASSES]).repeat_interleave(len(sounds) // len(CLASSES), dim=0)
    state = model.backbone.state_dict() | {f"audio_proj.{name}": tensor for name, tensor in _fit_projector(clips, names).items()}
    path = _new_folder(f"{sizes}-stand_in") / "checkpoint-0.pth"
    torch.save({"model": state}, path)
    return path


def _fit_projector(clips: torch.Tensor, names: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights of a linear layer at random, and of one after a ReLU by ridge regression, from clips to names, both `[N, D]`."""
    first = torch.randn(clips.shape[1], clips.shape[1], generator=torch.Generator().manual_seed(0)) / clips.std(dim=0)
    bias = -first @ clips.mean(dim=0)
    hidden = F.relu(clips @ first.T + bias)
    centred = hidden - hidden.mean(dim=0)
    ridge = centred.T @ centred + 0.1 * centred.square().sum() / len(first) * torch.eye(len(first))
    second = torch.linalg.solve(ridge, centred.T @ (names - names.mean(dim=0))).T
    return {"0.weight": first, "0.bias": bias, "2.weight": second, "2.bias": names.mean(dim=0) - second @ hidden.mean(dim=0)}


def _random_model(weight_file: str, num_classes: int | None = None) -> RuntimeM2D:
    torch.manual_seed(0)
    log = logging.getLogger("m2d")
    level = log.level
    log.setLevel(logging.ERROR)  # that a new classifier starts at random is no news here
    try:
        return RuntimeM2D(weight_file=weight_file, num_classes=num_classes)
    finally:
        log.setLevel(level)


@torch.no_grad()
def _windows_of_classes(model: RuntimeM2D, clips: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of stretches of about a second `[N, feature_d]` of clips of all classes, and their classes `[N]`.

    The clips come one after the other in random order, as in a scene: a random encoder's features tell place from place too.
    """
    order = np.random.default_rng(0).permutation([(i, number) for i in range(len(CLASSES)) for number in range(clips)])
    names = list(CLASSES)
    sounds = [make_sound(names[i], number) for i, number in order]
    features = model.encode(torch.from_numpy(np.concatenate(sounds))[None])[0]
    steps_per_sample = len(features) / sum(map(len, sounds))
    windows, targets, end = [], [], 0
    for sound, (i, _) in zip(sounds, order, strict=True):
        start, end = end, end + len(sound)
        stretches = features[round(start * steps_per_sample) : round(end * steps_per_sample)].split(STEPS_PER_WINDOW)
        windows += [stretch.mean(dim=0) for stretch in stretches]
        targets += [i] * len(stretches)
    return torch.stack(windows), torch.tensor(targets)


def _fit_head(model: RuntimeM2D, features: torch.Tensor, targets: torch.Tensor) -> None:
    """Fit batch norm and linear head to features: logistic regressions, each class against the others."""
    model.head_norm.running_mean.copy_(features.mean(dim=0))
    model.head_norm.running_var.copy_(features.var(dim=0))
    wanted = F.one_hot(targets, len(CLASSES)).float()
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=0.01, weight_decay=1.0)
    for _ in range(200):
        loss = F.binary_cross_entropy_with_logits(model.classify(features), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
