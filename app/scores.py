"""The scores that the applications' data sets are judged by."""

import numpy as np

#: Weights of the murmur classes in the weighted accuracy of the George B. Moody PhysioNet Challenge 2022.
MURMUR_WEIGHTS = {"Present": 5, "Unknown": 3, "Absent": 1}


def unit_probabilities(units: np.ndarray, probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Average the probabilities of the segments of each unit.

    Args:
        units: names `[N]`.
        probabilities: `[N, classes]`.
        targets: class indices `[N]`, the same for all segments of a unit.

    Returns:
        the units' names, probabilities and targets.
    """
    names, first, place = np.unique(units, return_index=True, return_inverse=True)
    if (targets != targets[first][place]).any():
        raise ValueError(f"unit {units[targets != targets[first][place]][0]} has segments of different labels")
    sums = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(sums, place, probabilities)
    return names, sums / np.bincount(place)[:, None], targets[first]


def scores(targets: np.ndarray, predicted: np.ndarray, classes: list[str]) -> dict[str, float]:
    """Scores of predicted class indices `[N]`.

    Always `accuracy` and `uar` (recall averaged over the classes present). Where a class is named normal:
    `specificity`, the share of normal units called normal; `sensitivity`, the share of the others called by their exact
    class; `average_score`, their mean, the ICBHI score; `harmonic_score`, their harmonic mean; `score`, the mean of
    the last two (BioCAS 2022 challenge on SPRSound). For the murmur classes Present, Unknown, Absent:
    `weighted_accuracy` (PhysioNet Challenge 2022).
    """
    right = targets == predicted
    recalls = [right[targets == each].mean() for each in np.unique(targets)]
    found = {"accuracy": right.mean(), "uar": np.mean(recalls)}
    normal = [i for i, name in enumerate(classes) if name.lower() == "normal"]
    if normal:
        found.update(_lung_scores(right, targets == normal[0]))
    if set(classes) == set(MURMUR_WEIGHTS):
        weights = np.array([MURMUR_WEIGHTS[name] for name in classes])[targets]
        found["weighted_accuracy"] = (weights * right).sum() / weights.sum()
    return {name: float(value) for name, value in found.items()}


def _lung_scores(right: np.ndarray, normal: np.ndarray) -> dict[str, float]:
    specificity = right[normal].mean() if normal.any() else 0.0
    sensitivity = right[~normal].mean() if (~normal).any() else 0.0
    total = sensitivity + specificity
    average, harmonic = total / 2, 2 * sensitivity * specificity / total if total else 0.0
    return {
        "specificity": specificity,
        "sensitivity": sensitivity,
        "average_score": average,
        "harmonic_score": harmonic,
        "score": (average + harmonic) / 2,
    }


def main_score(classes: list[str]) -> str:
    """The score by which a data set of these classes is judged."""
    if set(classes) == set(MURMUR_WEIGHTS):
        return "weighted_accuracy"
    return "average_score" if any(name.lower() == "normal" for name in classes) else "uar"
