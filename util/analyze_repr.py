"""Published name of m2d.evaluation.label_free."""

from m2d.evaluation.label_free import GramAccumulator, get_cumulative_explained_variance_auc, rank_me

__all__ = ["GramAccumulator", "get_cumulative_explained_variance_auc", "rank_me"]
