"""Learning rate and EMA decay: functions of the position in a run, and of nothing else."""

import math


def learning_rate(position: float, peak: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Linear warm-up from 0, then half a cosine to `min_lr` (Loshchilov and Hutter, 2017, equation 5, one cycle).

    Args:
        position: epoch plus the fraction of it that is done.
        peak: the rate at the end of the warm-up.
        min_lr: the rate at the end.
        warmup_epochs, epochs: lengths of the warm-up and of the whole run, in epochs.
    """
    if position < warmup_epochs:
        return peak * position / warmup_epochs
    remaining = max(epochs - warmup_epochs, 1e-12)
    done = min((position - warmup_epochs) / remaining, 1.0)
    return min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def ema_decay(update: int, updates: int, initial: float, final: float) -> float:
    """EMA decay rate of the target encoder: linear from `initial` at the first update to `final` at the last.

    Args:
        update: the update, from 0.
        updates: updates of the whole run; with a single one its rate is `initial`.
    """
    if updates <= 1:
        return initial
    return initial + (final - initial) * min(update / (updates - 1), 1.0)
