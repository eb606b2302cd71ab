"""Time and accuracy of the probe's logistic regression beside scikit-learn's.

    python -m benchmarks.probe --clips 20000 --width 3840 --classes 20

Features are made like those of encoders: correlated, with variances that fall as a power law; classes are told with errors.
Both fit the same 80% of the clips at the same strengths, on standardised float32 features; scikit-learn stops by itself.
"""

import argparse
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.preprocessing import StandardScaler

from m2d.evaluation.logistic import LogisticRegression


def make_clips(clips: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 `[clips, width]` and class indices `[clips]`."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(clips, width)).astype(np.float32) / np.arange(1, width + 1, dtype=np.float32)
    told = min(width, 60)
    scores = hidden[:, :told] @ rng.normal(size=(told, classes)) * 3
    turned = np.linalg.qr(rng.normal(size=(width, width)))[0].astype(np.float32)
    return hidden @ turned, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


class Stopwatch:
    """Seconds of a block, and of the CPU time of all its threads, which tell more on a machine that others use too."""

    def __enter__(self) -> "Stopwatch":
        self.seconds, self.cpu_seconds = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()

    def __str__(self) -> str:
        return f"{self.seconds:8.1f} {self.cpu_seconds:8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20000)
    parser.add_argument("--width", type=int, default=3840)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--strengths", type=float, nargs="+", default=[1e-1, 1e-2, 1e-3])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    features, targets = make_clips(args.clips, args.width, args.classes)
    fitted = np.arange(args.clips) < 0.8 * args.clips
    held_out = torch.from_numpy(features[~fitted]).to(args.device)
    print(f"{args.clips} clips x {args.width}, {args.classes} classes; {torch.get_num_threads()} threads", flush=True)
    solver = LogisticRegression(torch.from_numpy(features), torch.from_numpy(targets), args.classes, args.device)
    scaler = StandardScaler().fit(features[fitted])
    x, y, x_held_out = scaler.transform(features[fitted]), targets[fitted], scaler.transform(features[~fitted])
    print(f"{'strength':>9} {'solver':>12} {'s':>8} {'CPU s':>8} {'accuracy':>9}")
    for strength in args.strengths:
        with Stopwatch() as ours:
            scores = solver.fit(torch.from_numpy(np.flatnonzero(fitted)), strength).scores(held_out)
        accuracy = (scores.argmax(dim=1).cpu().numpy() == targets[~fitted]).mean()
        print(f"{strength:9g} {'m2d probe':>12} {ours} {accuracy:9.4f}", flush=True)
        with Stopwatch() as theirs:
            reference = Reference(C=1 / (strength * len(x)), max_iter=1000).fit(x, y)
        score = reference.score(x_held_out, targets[~fitted])
        ratios = f"{theirs.seconds / ours.seconds:.1f} times, {theirs.cpu_seconds / ours.cpu_seconds:.1f} of CPU time"
        print(f"{strength:9g} {'scikit-learn':>12} {theirs} {score:9.4f}  {ratios}", flush=True)


if __name__ == "__main__":
    main()
