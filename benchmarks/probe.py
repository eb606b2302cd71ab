"""Time and accuracy of the probe's logistic regression beside scikit-learn's.

    OMP_NUM_THREADS=1 python -m benchmarks.probe --clips 20000 --width 3840

Features are made like those of encoders: correlated, with variances that fall as a power law; classes are told with errors.
Both fit the same 80% of the clips at the strengths that `m2d probe` chooses from, strong to weak, each from the one before
(scikit-learn's `warm_start`), on standardised float32 features. scikit-learn stops by itself, at its own tolerance. The loss is
the objective of both, computed in the same way in float64.
"""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.preprocessing import StandardScaler

from m2d.evaluation.logistic import STRENGTHS, LogisticRegression


def make_clips(clips: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 `[clips, width]` and class indices `[clips]`."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(clips, width)).astype(np.float32) / np.arange(1, width + 1, dtype=np.float32)
    told = min(width, 60)
    scores = hidden[:, :told] @ rng.normal(size=(told, classes)) * 3
    turned = np.linalg.qr(rng.normal(size=(width, width)))[0].astype(np.float32)
    return hidden @ turned, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


class Trial:
    """Fitted and held-out clips, standardised, and what classifiers reach on them."""

    def __init__(self, clips: int, width: int, classes: int):
        self.features, self.targets = make_clips(clips, width, classes)
        self.fitted = np.arange(clips) < 0.8 * clips
        scaler = StandardScaler().fit(self.features[self.fitted])
        self.deviations = scaler.scale_
        self.x, self.y = scaler.transform(self.features[self.fitted]), self.targets[self.fitted]
        if len(np.unique(self.y)) <= self.targets.max():
            raise SystemExit(f"probe.py: error: of {classes} classes some have no fitted clip: --clips needs more than {clips}")
        self.held_out, self.wanted = scaler.transform(self.features[~self.fitted]), self.targets[~self.fitted]

    def figures(self, scores: np.ndarray, weights: np.ndarray, held_out: np.ndarray, strength: float) -> tuple[float, float]:
        """The objective at scores of the fitted clips and weights of standardised features; accuracy on the held-out ones."""
        loss = F.cross_entropy(torch.from_numpy(scores).double(), torch.from_numpy(self.y)).item()
        return loss + strength / 2 * np.square(weights, dtype=np.float64).sum(), (held_out.argmax(axis=1) == self.wanted).mean()

    def ours(self, device: str):
        """Seconds, CPU seconds, loss and accuracy for each strength; the first one's seconds are those of preparation too."""
        features = torch.from_numpy(self.features).to(device)
        solver = LogisticRegression(features, torch.from_numpy(self.targets), int(self.targets.max()) + 1, device)
        path = solver.path(torch.from_numpy(np.flatnonzero(self.fitted)))
        for strength in STRENGTHS:
            with Stopwatch() as watch:
                classifier = next(path)
            scores = classifier.scores(features).cpu().numpy()
            weights = classifier.weight.cpu().numpy() * self.deviations[:, None]
            yield watch, *self.figures(scores[self.fitted], weights, scores[~self.fitted], strength)

    def theirs(self):
        """The same of scikit-learn's."""
        reference = Reference(max_iter=10000, warm_start=True)
        for strength in STRENGTHS:
            reference.C = 1 / (strength * len(self.x))
            with Stopwatch() as watch:
                reference.fit(self.x, self.y)
            scores, held_out = reference.decision_function(self.x), reference.decision_function(self.held_out)
            yield watch, *self.figures(scores, reference.coef_, held_out, strength)


class Stopwatch:
    """Seconds of a block, and of the CPU time of all its threads, which tell more on a machine that others use too."""

    def __enter__(self) -> "Stopwatch":
        self.seconds, self.cpu_seconds = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20000)
    parser.add_argument("--width", type=int, default=3840)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    trial = Trial(args.clips, args.width, args.classes)
    print(f"{args.clips} clips x {args.width}, {args.classes} classes; {torch.get_num_threads()} threads", flush=True)
    totals = {}
    for name, fits in (("m2d probe", trial.ours(args.device)), ("scikit-learn", trial.theirs())):
        seconds = cpu_seconds = 0.0
        print(f"{name:>12} {'strength':>9} {'s':>8} {'CPU s':>8} {'loss':>9} {'accuracy':>9}", flush=True)
        for strength, (watch, loss, accuracy) in zip(STRENGTHS, fits, strict=True):
            print(f"{'':12} {strength:9g} {watch.seconds:8.1f} {watch.cpu_seconds:8.1f} {loss:9.5f} {accuracy:9.4f}", flush=True)
            seconds, cpu_seconds = seconds + watch.seconds, cpu_seconds + watch.cpu_seconds
        print(f"{'':12} {'all':>9} {seconds:8.1f} {cpu_seconds:8.1f}", flush=True)
        totals[name] = seconds, cpu_seconds
    ratios = [theirs / ours for ours, theirs in zip(*totals.values(), strict=True)]
    print(f"scikit-learn takes {ratios[0]:.1f} times as long, {ratios[1]:.1f} times as much of CPU time")


if __name__ == "__main__":
    main()
