"""Retrieval across two kinds of embeddings: recall and mean average precision (Manning et al., 2008, chapter 8)."""

import torch
import torch.nn.functional as F

DEPTH = 10  # of mean average precision
RECALLS = (1, 10)


def retrieval_figures(queries: torch.Tensor, items: torch.Tensor, relevant: torch.Tensor) -> dict[str, float]:
    """How well queries find their items by cosine similarity: `r1`, `r10` and `map10`, means over the queries.

    Recall at k is the share of queries with a relevant item among the first k. Average precision at 10 is the sum of the
    precision at each relevant item among the first 10, divided by the number of relevant items, or by 10 if there are more.
    Of items of equal similarity the relevant ones come last, so that equal embeddings find nothing.

    Args:
        queries, items: embeddings `[Q, D]` and `[N, D]`.
        relevant: which items belong to which queries, bool `[Q, N]`; each query has at least one.
    """
    similarities = F.normalize(queries.float(), dim=-1) @ F.normalize(items.float(), dim=-1).T
    below = similarities.nextafter(similarities.new_tensor(float("-inf")))
    first = torch.where(relevant, below, similarities).topk(min(DEPTH, len(items)), dim=1).indices
    found = relevant.gather(1, first).double()
    places = torch.arange(1, found.shape[1] + 1, device=found.device)
    precision = found.cumsum(dim=1) / places
    average_precision = (precision * found).sum(dim=1) / relevant.sum(dim=1).clamp(max=DEPTH)
    recalls = {f"r{k}": found[:, :k].any(dim=1).double().mean().item() for k in RECALLS}
    return recalls | {f"map{DEPTH}": average_precision.mean().item()}
