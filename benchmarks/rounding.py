"""Options that change rounding, on real sound: 200 steps with each, against another seed without.

    python -m benchmarks.rounding FOLDER            # of log-mel spectrograms (.npy, by m2d convert)

Losses are averaged over 20 steps at a time; the table has the largest difference from the run without options.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.train_step import Choices, Step, make_batch
from benchmarks.train_step import parse as parse_step

FRAMES = 96


def load(folder: Path) -> torch.Tensor:
    """The first frames of each spectrogram, shorter ones repeated, standardised: `[clips, 1, 80, FRAMES]`."""
    clips = [np.load(path).squeeze() for path in sorted(folder.rglob("*.npy"))]
    x = torch.from_numpy(np.stack([np.resize(clip.T, (FRAMES, len(clip))).T for clip in clips])).float()
    return ((x - x.mean()) / x.std())[:, None]


def curve(clips: torch.Tensor, seed: int, *flags: str) -> torch.Tensor:
    """Losses of 200 steps, by 20."""
    sizes = ["--model", "m2d_vit_tiny", "--input_size", f"80x{FRAMES}", "--precision", "bf16"]
    step = Step(parse_step([*sizes, *flags]), Choices(), compiled=True)
    torch.manual_seed(seed)
    losses = []
    for _ in range(200):
        _, target, plan = make_batch(step)
        x = clips[torch.randint(len(clips), (step.args.batch_size,))].to(step.device)
        losses.append(step(x, target, plan))
    return torch.stack(losses).float().view(-1, 20).mean(dim=1).cpu()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    clips = load(parser.parse_args().folder)
    plain = curve(clips, 1)
    print(f"{len(clips)} clips; loss {plain[0]:.3f} to {plain[-1]:.3f}")
    for name, seed, flags in (("another seed", 2, []), ("--fp8", 1, ["--fp8"]), ("--half_target", 1, ["--half_target"])):
        print(f"| {name} | {(curve(clips, seed, *flags) - plain).abs().max():.4f} |", flush=True)


if __name__ == "__main__":
    main()
