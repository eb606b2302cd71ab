"""A linear probe: how much of a clip's class a linear classifier reads from its features, on held-out clips."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..inference.runtime import RuntimeM2D

FOLDS = 4
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # scikit-learn's C


def mel_statistics(clips: list[np.ndarray]) -> np.ndarray:
    """Mean and standard deviation over time of each mel band of log-mel clips `[1, n_mels, frames]`: `[clips, 2·n_mels]`."""
    return np.stack([np.concatenate([clip[0].mean(axis=1), clip[0].std(axis=1)]) for clip in clips])


@torch.no_grad()
def encoder_means(runtime: RuntimeM2D, clips: list[np.ndarray]) -> np.ndarray:
    """The encoder's features of log-mel clips `[1, n_mels, frames]`, averaged over time: `[clips, feature_d]`."""
    device = runtime.backbone.norm_stats.device
    features = []
    for clip in clips:
        lms = runtime.normalize_batch(torch.from_numpy(clip)[None].to(device))
        features.append(runtime.encode_lms(lms)[0].mean(dim=0).float().cpu().numpy())
    return np.stack(features)


def held_out_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Share of clips whose class a logistic regression names that was fitted without them.

    The clips are dealt into FOLDS parts, always the same way; each part is judged by a probe of the others, whose
    regularisation is chosen by cross-validation among those others.

    Args:
        features: `[clips, width]`.
        labels: `[clips]`, each class at least FOLDS times.
    """
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe = GridSearchCV(probe, {"logisticregression__C": STRENGTHS}, cv=FOLDS - 1)
    return float((cross_val_predict(probe, features, labels, cv=folds) == labels).mean())
