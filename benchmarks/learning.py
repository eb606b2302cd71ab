"""What small encoders learn of real sound in minutes: one short training run, judged as it goes.

    python benchmarks/real_sound.py SOUND
    python wav_to_lms.py SOUND/audio SOUND/lms --suffix wav --min_length None --csv SOUND/all.csv
    python benchmarks/learning.py SOUND mae --clips 96000 --out results.jsonl

trains on all clips, without labels, and probes every task of SOUND with the trained encoder, the untrained one and the
log-mel's statistics. The objective is one of OBJECTIVES. A probe is a ridge regression on standardised features; whole groups
are held out, and its regularisation is chosen on groups that are held out of the fitted ones. Intervals are 95 %, by
resampling groups. docs/learning.md says what was found.
"""

import argparse
import csv
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from m2d.audio.logmel import SILENCE
from m2d.models.m2d import M2DViT
from m2d.models.masking import draw_random_plan
from m2d.models.vit import take_tokens

TASKS = ("drums", "language", "instruments", "words", "numbers")
STRENGTHS = 10.0 ** np.arange(-7, 2)
BANDS = 80


class Objective(NamedTuple):
    """Weights of the losses, and whether the views of `clips` are distorted.

    m2d: predict the target encoder; channels: with each of its channels standardised over the batch first; pixels: predict
    the patches' values (MAE); clips: tell clips apart by two disjoint sets of their patches (InfoNCE).
    """

    m2d: float = 0.0
    pixels: float = 0.0
    clips: float = 0.0
    channels: bool = False
    distort: bool = False


OBJECTIVES = {
    "m2d": Objective(m2d=1),
    "m2d-channels": Objective(m2d=1, channels=True),
    "m2d-channels+mae": Objective(m2d=1, pixels=1, channels=True),
    "mae": Objective(pixels=1),
    "clips": Objective(clips=1),
    "clips-distorted": Objective(clips=1, distort=True),
    "mae+clips": Objective(pixels=1, clips=0.3),
    "mae+clips-distorted": Objective(pixels=1, clips=0.5, distort=True),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sound", type=Path, metavar="SOUND", help="the folder that real_sound.py wrote, with lms/ and all.csv")
    parser.add_argument("objective", choices=OBJECTIVES)
    parser.add_argument("--clips", type=int, default=16000, help="clips seen; 0: judge the untrained encoder and the log-mel")
    parser.add_argument("--probe_at", type=int, nargs="*", default=[], help="clips seen, to judge at as well")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to add to")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mask_ratio", type=float, default=0.7)
    parser.add_argument("--frames", type=int, default=96, help="of a crop")
    parser.add_argument("--patch", type=int, nargs=2, default=(16, 16), help="mel bands and frames of a patch")
    parser.add_argument("--depth", type=int, default=6, help="blocks of the encoder")
    parser.add_argument("--predictor_depth", type=int, default=1, help="blocks of the predictor")
    parser.add_argument("--ema", type=float, nargs=2, default=(0.996, 0.9999), help="EMA decay at the first and last update")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    lms = Lms(args.sound, args.frames, args.seed)
    model = Learner(OBJECTIVES[args.objective], args)
    if not args.clips:
        for features_of in (log_mel_statistics, lambda clips: encoder_statistics(model, lms, clips)):
            for row in probes(lms, features_of):
                report(args, 0, row)
        return
    for seen in train(model, lms, args):
        for row in probes(lms, lambda clips: encoder_statistics(model, lms, clips)):
            report(args, seen, row)


def report(args: argparse.Namespace, seen: int, row: dict) -> None:
    settings = dict(lr=args.lr, mask_ratio=args.mask_ratio, frames=args.frames, patch=list(args.patch), depth=args.depth)
    settings |= dict(predictor_depth=args.predictor_depth, batch_size=args.batch_size)
    row = {"objective": args.objective, "seen": seen, "seed": args.seed} | settings | row
    print(
        "{objective} {seen:6d} {task:12s} {features:18s} {accuracy:.3f} ({low:.3f} to {high:.3f})  RankMe {rankme:.0f}".format(
            **row
        )
    )
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


# ---------------------------------------------------------------- data


class Lms:
    """All log-mel clips in memory.

    Attributes:
        clips: float16 `[BANDS, frames]` by name.
        mean, std: of crops, padded with silence.
    """

    def __init__(self, sound: Path, frames: int, seed: int):
        names = [row["file_name"] for row in csv.DictReader((sound / "all.csv").open())]
        self.clips = {Path(name).with_suffix("").as_posix(): torch.from_numpy(np.load(sound / name)[0]).half() for name in names}
        self.sound, self.frames = sound, frames
        self._rng, self._order = np.random.default_rng(seed), []
        crops = torch.stack([self.crop(clip) for clip in self.clips.values()])
        self.mean, self.std = crops.mean().item(), crops.std().item()

    def crop(self, clip: torch.Tensor) -> torch.Tensor:
        """A random crop of a clip, padded with silence at its end."""
        begin = self._rng.integers(0, max(0, clip.shape[1] - self.frames) + 1)
        crop = clip[:, begin : begin + self.frames].float()
        return F.pad(crop, (0, self.frames - crop.shape[1]), value=SILENCE)

    def batch(self, size: int) -> torch.Tensor:
        """Normalised crops `[size, 1, BANDS, frames]` of clips in random order."""
        names = list(self.clips)
        while len(self._order) < size:
            self._order += self._rng.permutation(len(names)).tolist()
        picked, self._order = self._order[:size], self._order[size:]
        return (torch.stack([self.crop(self.clips[names[i]]) for i in picked])[:, None] - self.mean) / self.std

    def task(self, name: str) -> tuple[list[torch.Tensor], np.ndarray, np.ndarray]:
        """A task's clips, labels and groups."""
        rows = list(csv.DictReader((self.sound / f"{name}.csv").open()))
        prefix = Path(next(iter(self.clips))).parts[0]
        clips = [self.clips[Path(prefix, row["file_name"]).with_suffix("").as_posix()] for row in rows]
        return clips, *(np.array([row[column] for row in rows]) for column in ("label", "group"))


def distort(x: torch.Tensor, silence: float) -> torch.Tensor:
    """Stretched and shifted in time and frequency, with another spectral tilt and level: `[B, 1, BANDS, frames]`."""
    batch = len(x)
    affine = torch.zeros(batch, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = (torch.empty(2, batch).uniform_(-1, 1) * torch.tensor([[0.3], [0.15]])).exp()
    affine[:, 0, 2], affine[:, 1, 2] = torch.empty(2, batch).uniform_(-1, 1) * torch.tensor([[0.2], [0.15]])
    grid = F.affine_grid(affine, x.shape, align_corners=False)
    x = F.grid_sample(x - silence, grid, align_corners=False) + silence
    waves = torch.cos(math.pi * torch.arange(1, 5)[:, None] * torch.linspace(0, 1, BANDS))
    tilt = (0.25 * torch.randn(batch, 4)) @ waves
    return (x + tilt[:, None, :, None] + 0.4 * torch.randn(batch, 1, 1, 1)).clamp(min=silence)


# ---------------------------------------------------------------- training


class Learner(M2DViT):
    """An encoder of width 192 with heads for every objective."""

    def __init__(self, objective: Objective, args: argparse.Namespace):
        predictor = dict(decoder_embed_dim=128, decoder_depth=args.predictor_depth, decoder_num_heads=4)
        size = dict(embed_dim=192, depth=args.depth, num_heads=3, **predictor)
        super().__init__(img_size=(BANDS, args.frames), patch_size=args.patch, **size)
        self.objective, self.mask_ratio = objective, args.mask_ratio
        self.pixel_head = nn.Linear(128, math.prod(args.patch))
        self.clip_head = nn.Sequential(nn.Linear(192, 256), nn.BatchNorm1d(256), nn.GELU(), nn.Linear(256, 128))

    def loss(self, x: torch.Tensor, silence: float) -> torch.Tensor:
        """The weighted sum of the objective's losses for crops `[B, 1, BANDS, frames]`."""
        weights, (rows, columns) = self.objective, self.grid_size()
        first, second = (distort(x, silence), distort(x, silence)) if weights.distort else (x, x)
        plan = draw_random_plan(len(x), (rows, columns), self.mask_ratio, x.device)
        visible, hidden = plan.ids_shuffle[:, : plan.keep], plan.ids_shuffle[:, plan.keep :]
        patches = self.embed(first)
        latent = self.encode_tokens(self.with_cls_token(take_tokens(patches, visible)))
        total = x.new_zeros(())
        if weights.m2d or weights.pixels:
            predicted = self.decoder_norm(self.decode_tokens(latent, plan.ids_restore, first=latent.shape[1]))
        if weights.m2d:
            target = self.forward_target_encoder(take_tokens(patches, hidden))
            if weights.channels:
                variance, mean = torch.var_mean(target, dim=(0, 1))
                target = (target - mean) * (variance + 1e-6).rsqrt()
            total = total + weights.m2d * self.forward_loss(target, self.decoder_pred(predicted))
        if weights.pixels:
            values = rearrange(first[:, 0], "b (f h) (t w) -> b (f t) (h w)", f=rows, t=columns)
            total = total + weights.pixels * F.mse_loss(self.pixel_head(predicted), self.standardize(take_tokens(values, hidden)))
        if weights.clips:
            if weights.distort:
                patches = self.embed(second)
                hidden = draw_random_plan(len(x), (rows, columns), self.mask_ratio, x.device).ids_shuffle
            other = self.encode_tokens(self.with_cls_token(take_tokens(patches, hidden[:, : plan.keep])))
            one, two = (F.normalize(self.clip_head(tokens[:, 1:].mean(dim=1))) for tokens in (latent, other))
            likeness, own = one @ two.T / 0.2, torch.arange(len(x))
            total = total + weights.clips * (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2
        return total


def train(model: Learner, lms: Lms, args: argparse.Namespace):
    """Train, and yield the number of clips seen where the encoder is to be judged."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if (p.ndim > 1) == matrix], "weight_decay": 0.05 * matrix} for matrix in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    steps, silence = args.clips // args.batch_size, (SILENCE - lms.mean) / lms.std
    began = time.monotonic()
    for step in range(steps):
        done = step / steps
        rate = min(1.0, (step + 1) / (0.1 * steps)) if done < 0.1 else (1 + math.cos(math.pi * (done - 0.1) / 0.9)) / 2
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        loss = model.loss(lms.batch(args.batch_size), silence)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 3.0)
        optimizer.step()
        model.update_target_network(args.ema[0] + (args.ema[1] - args.ema[0]) * done)
        seen = (step + 1) * args.batch_size
        if (step + 1) % max(1, steps // 8) == 0:
            print(f"{seen} of {args.clips} clips, loss {loss.item():.4f}, {time.monotonic() - began:.0f} s", flush=True)
        if step == steps - 1 or any(seen - args.batch_size < at <= seen for at in args.probe_at):
            yield seen


# ---------------------------------------------------------------- features and probes


def statistics(steps: torch.Tensor) -> torch.Tensor:
    """Mean and deviation over time of `[T, D]`: `[2 · D]`."""
    return torch.cat([steps.mean(dim=0), steps.std(dim=0, correction=0)])


def log_mel_statistics(clips: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"log-mel": torch.stack([statistics(clip.float().T) for clip in clips])}


@torch.no_grad()
def encoder_statistics(model: Learner, lms: Lms, clips: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """By layers: the embedded patches, the middle block, the last, and all three; bands stacked, mean and deviation over time."""
    model.eval()
    rows, middle = model.grid_size()[0], len(model.blocks) // 2
    pooled = []
    for clip in clips:
        x = (clip.float() - lms.mean) / lms.std
        x = F.pad(x, (0, -x.shape[1] % model.patch_size()[1]))
        parts = []
        for piece in x.split(lms.frames, dim=1):
            tokens = model.embed(piece[None, None], adjust_short=True)
            layers, hidden = [tokens[0]], model.with_cls_token(tokens)
            for number, block in enumerate(model.blocks, 1):
                hidden = block(hidden)
                if number == middle:
                    layers.append(hidden[0, 1:])
            layers.append(model.norm(hidden)[0, 1:])
            parts.append([layer.unflatten(0, (rows, -1)).transpose(0, 1).flatten(1) for layer in layers])
        pooled.append([statistics(torch.cat(layer)) for layer in zip(*parts, strict=True)])
    model.train()
    first, mid, last = (torch.stack(layer) for layer in zip(*pooled, strict=True))
    return {"embedded patches": first, "middle block": mid, "last block": last, "all three": torch.cat([first, mid, last], dim=1)}


def probes(lms: Lms, features_of):
    """A row of figures for each task and kind of features."""
    for task in TASKS:
        clips, labels, groups = lms.task(task)
        for what, features in features_of(clips).items():
            right = ridge_probe(features, labels, groups)
            low, high = interval(right, groups)
            yield dict(task=task, features=what, accuracy=float(right.mean()), low=low, high=high, rankme=rank_me(features))


def group_folds(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A fold for each clip: whole groups, the folds of like sizes; each group its own where there are few."""
    names, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    load, fold = np.zeros(len(names) if len(names) <= 8 and seed == 0 else min(count, len(names))), {}
    for i in order:
        fold[names[i]] = int(np.argmin(load))
        load[fold[names[i]]] += sizes[i]
    return np.array([fold[name] for name in groups])


def ridge_probe(features: torch.Tensor, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Which clips are named rightly, bool `[N]`, by a ridge regression on classes that was fitted on other groups."""
    y = np.unique(labels, return_inverse=True)[1]
    targets = 2 * F.one_hot(torch.from_numpy(y)).float() - 1
    right, outer = np.zeros(len(y), dtype=bool), group_folds(groups, 4, seed=0)
    for fold in range(outer.max() + 1):
        fitted, judged = np.flatnonzero(outer != fold), np.flatnonzero(outer == fold)
        std, mean = torch.std_mean(features[fitted], dim=0)
        z = (features - mean) / (std + 1e-6)
        kernel = z @ z[fitted].T / z.shape[1] + 1  # the 1 is the intercept's
        inner, errors = group_folds(groups[fitted], 3, seed=1), np.zeros(len(STRENGTHS))
        for part in range(inner.max() + 1):
            a, b = np.flatnonzero(inner != part), np.flatnonzero(inner == part)
            scores = ridge_scores(kernel[fitted][a][:, a], targets[fitted][a], kernel[fitted][b][:, a], STRENGTHS)
            errors += [(score.argmax(dim=1).numpy() != y[fitted][b]).sum() for score in scores]
        best = STRENGTHS[len(STRENGTHS) - 1 - np.argmin(errors[::-1])]  # of equals the strongest
        (scores,) = ridge_scores(kernel[fitted], targets[fitted], kernel[judged], [best])
        right[judged] = scores.argmax(dim=1).numpy() == y[judged]
    return right


def ridge_scores(kernel: torch.Tensor, targets: torch.Tensor, judged: torch.Tensor, strengths) -> list[torch.Tensor]:
    """Scores `[M, C]` for each strength, from kernels among the fitted `[N, N]` and of the judged with them `[M, N]`."""
    values, vectors = torch.linalg.eigh(kernel)
    turned, projected = vectors.T @ targets, judged @ vectors
    return [projected @ (turned / (values + strength * len(kernel))[:, None]) for strength in strengths]


def interval(right: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """95 % interval of the accuracy, by resampling groups."""
    index = np.unique(groups, return_inverse=True)[1]
    hits, sizes = np.bincount(index, right), np.bincount(index)
    drawn = np.random.default_rng(0).integers(0, len(sizes), (2000, len(sizes)))
    low, high = np.percentile(hits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def rank_me(features: torch.Tensor) -> float:
    """RankMe of the clips' vectors (Garrido et al., ICML 2023)."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + np.finfo(np.float64).eps
    return (-(shares * shares.log()).sum()).exp().item()


if __name__ == "__main__":
    main()
