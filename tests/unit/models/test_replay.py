"""What is replayed, and when, with a stand-in for CUDA graphs; the graphs themselves are tested on a GPU (test_gpu.py)."""

import pytest
import torch

from m2d.models import replay
from m2d.models.replay import Replay


class StandIn:
    """Captures by keeping the function, and counts what is replayed, which differs a little from what is computed."""

    def __init__(self):
        self.captured, self.replayed = [], 0

    def __call__(self, compute, x):
        self.captured.append(tuple(x.shape))

        def replay(x):
            self.replayed += 1
            return 1.01 * compute(x)

        return replay


@pytest.fixture
def stand_in(monkeypatch):
    capture = StandIn()
    monkeypatch.setattr(replay, "Capture", lambda: capture)
    return capture


def test_a_shape_is_replayed_from_its_second_time_on(stand_in):
    double = Replay(lambda x: 2 * x)
    found = [double(torch.full((3,), float(i)))[0].item() for i in range(4)]
    assert found == pytest.approx([0, 2.02, 4.04, 6.06])
    assert double(torch.ones(2))[0] == 2
    assert stand_in.captured == [(3,)]


def test_a_few_graphs_are_kept_and_other_shapes_are_computed(stand_in):
    double = Replay(lambda x: 2 * x, most=2)
    found = [[round(double(torch.ones(size))[0].item(), 2) for _ in range(2)] for size in (1, 2, 3)]
    assert found == [[2, 2.02], [2, 2.02], [2, 2]]
    assert stand_in.captured == [(1,), (2,)]


@pytest.mark.parametrize("wrong", [lambda x: torch.zeros_like(x), lambda x: x * float("nan"), lambda x: -x])
def test_graphs_whose_first_result_is_another_are_not_used(wrong, monkeypatch, caplog):
    """As of a graph that reads memory which is someone else's by then."""
    monkeypatch.setattr(replay, "Capture", lambda: lambda compute, x: lambda x: wrong(compute(x)))
    double = Replay(lambda x: 2 * x)
    assert [double(torch.ones(2)).tolist() for _ in range(3)] == [[2, 2]] * 3
    assert "computing without CUDA graphs: a graph's result differs" in caplog.text


def test_after_one_wrong_graph_all_is_computed(monkeypatch):
    """Graphs share their memory: none is trusted then."""
    monkeypatch.setattr(replay, "Capture", lambda: lambda compute, x: lambda x: (1.01 if len(x) == 1 else -1) * compute(x))
    double = Replay(lambda x: 2 * x)
    found = [double(torch.ones(size))[0].item() for size in (1, 1, 2, 2, 1)]
    assert found == pytest.approx([2, 2.02, 2, 2, 2])


def test_numbers_that_are_not_finite_do_not_turn_graphs_off(stand_in):
    double = Replay(lambda x: 2 * x)
    for _ in range(3):
        found = double(torch.tensor([1.0, float("nan"), float("inf")]))
    assert stand_in.captured and stand_in.replayed == 3
    torch.testing.assert_close(found, torch.tensor([2.02, float("nan"), float("inf")]), equal_nan=True)


def test_where_capturing_fails_nothing_is_replayed(monkeypatch, caplog):
    def fail(compute, x):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(replay, "Capture", lambda: fail)
    double = Replay(lambda x: 2 * x)
    assert [double(torch.ones(1)).item() for _ in range(4)] == [2, 2, 2, 2]
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == ["computing without CUDA graphs: operation not permitted when stream is capturing"]


@pytest.mark.gpu
def test_graphs_on_cuda_compute_what_the_function_does():
    """Two shapes that take turns, whose results stay as they are while the other is replayed."""
    weights = torch.randn(64, 64, device="cuda")

    def compute(x):
        return torch.nn.functional.gelu(x @ weights) @ weights.mT

    replayed = Replay(compute)
    inputs = [torch.randn(size, 64, device="cuda") for size in (32, 8) * 4]
    found = [replayed(x) for x in inputs]
    for x, values in zip(inputs, found, strict=True):
        torch.testing.assert_close(values, compute(x))
