"""Retrieval figures against a plain loop, and where they must be 0 or 1."""

import pytest
import torch

from m2d.evaluation.retrieval import retrieval_figures


def by_hand(queries, items, relevant):
    """The figures by their definitions, one query at a time; of equal items the relevant ones last."""
    r1 = r10 = total = 0.0
    for query, belongs in zip(queries, relevant, strict=True):
        scores = [float(torch.cosine_similarity(query, item, dim=0)) for item in items]
        order = sorted(range(len(items)), key=lambda n: (-scores[n], bool(belongs[n])))[:10]
        hits = [bool(belongs[n]) for n in order]
        r1, r10 = r1 + hits[0], r10 + any(hits)
        total += sum(sum(hits[: n + 1]) / (n + 1) for n in range(len(hits)) if hits[n]) / min(10, int(belongs.sum()))
    return {"r1": r1 / len(queries), "r10": r10 / len(queries), "map10": total / len(queries)}


@pytest.mark.parametrize(("count", "captions"), [(3, 2), (12, 1), (30, 3), (4, 14)])
def test_figures_are_those_of_their_definitions(count, captions):
    audio = torch.randn(count, 6)
    texts = audio.repeat_interleave(captions, dim=0) + torch.randn(count * captions, 6)
    belongs = torch.arange(count).repeat_interleave(captions)[:, None] == torch.arange(count)
    for queries, items, relevant in ((texts, audio, belongs), (audio, texts, belongs.T)):
        assert retrieval_figures(queries, items, relevant) == pytest.approx(by_hand(queries, items, relevant))


def test_the_best_and_the_worst():
    same = torch.eye(20)
    assert retrieval_figures(3 * same, same, same.bool()) == {"r1": 1.0, "r10": 1.0, "map10": 1.0}
    constant = torch.ones(20, 4)
    assert retrieval_figures(constant, constant, same.bool()) == {"r1": 0.0, "r10": 0.0, "map10": 0.0}
