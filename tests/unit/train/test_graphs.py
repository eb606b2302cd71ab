"""Losses by CUDA graphs: with a stand-in that, like a graph, works in memory of its own, steps are those without."""

import copy

import pytest
import torch
from small_models import inputs, plan, small_model
from small_runs import LIST, program_of, settings_of, trainer_of, write_list

from m2d.train import checks
from m2d.train.graphs import graph_losses, try_graphs
from m2d.utils.errors import UserError


def stand_in(function, given, allow_unused_input):
    """As torch.cuda.make_graphed_callables: inputs, outputs and gradients are in memory that the next call reuses."""
    assert allow_unused_input
    parameters = [p for p in function.parameters() if p.requires_grad]
    outputs = [torch.empty_like(loss) for loss in function(*given)]
    gradients = [torch.empty_like(p) for p in parameters]

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            for own, tensor in zip(given, tensors[: len(given)], strict=True):
                own.copy_(tensor)
            with torch.enable_grad():
                ctx.found = function(*given)
            for own, found in zip(outputs, ctx.found, strict=True):
                own.copy_(found.detach())
            return tuple(own.detach() for own in outputs)

        @staticmethod
        def backward(ctx, *weights):
            found = torch.autograd.grad(ctx.found, parameters, weights, allow_unused=True)
            for own, gradient in zip(gradients, found, strict=True):
                own.copy_(torch.zeros_like(own) if gradient is None else gradient)
            return *[None] * len(given), *(own.detach() for own in gradients)

    return lambda *tensors: Graphed.apply(*tensors, *parameters)


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs by a stand-in."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", stand_in)


def batch_of(model, kind: str) -> tuple:
    """Inputs on the model's device, the last one a mask plan."""
    device, (ids_restore, keep) = model.cls_token.device, plan()
    return *[tensor.to(device) for tensor in inputs(model, kind)], (ids_restore.to(device), keep)


def steps(model, losses_of, kind: str, count: int = 4) -> tuple[list[dict[str, torch.Tensor]], list[torch.Tensor]]:
    """Losses of some updates, and the parameters after them."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(0)
    found = []
    for _ in range(count):
        losses = losses_of(batch_of(model, kind))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append({name: loss.detach() for name, loss in losses.items()})
    return found, list(model.parameters())


@pytest.mark.parametrize("kind", ["m2d", "m2d_x", "mae"])
def test_steps_are_those_without_graphs(kind, graphs):
    plain = small_model(kind).train()
    graphed = copy.deepcopy(plain)
    expected = steps(plain, lambda given: plain.named_losses(plain(*given)), kind)
    found = steps(graphed, graph_losses(graphed, batch_of(graphed, kind)), kind)
    torch.testing.assert_close(found, expected)


def test_where_capturing_fails_kernels_are_launched_one_by_one(monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nand a long story")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", broken)
    model = small_model("m2d").train()
    with caplog.at_level("WARNING", "m2d"):
        assert try_graphs(model, batch_of(model, "m2d")) is None
    assert "no CUDA graphs" in caplog.text and "long story" not in caplog.text


def test_graphs_whose_gradients_are_others_are_not_used(monkeypatch, caplog):
    """As of a graph that does not read its inputs, but those of its capture."""

    def stale(function, given, **kwargs):
        graphed, old = stand_in(function, given, **kwargs), [tensor.clone() for tensor in given]
        return lambda *_: graphed(*old)

    model = small_model("m2d").train()
    for make, used in ((stand_in, True), (stale, False)):
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
        assert (try_graphs(model, batch_of(model, "m2d")) is not None) == used
        assert all(parameter.grad is None for parameter in model.parameters())
    assert "no CUDA graphs, launching kernels one by one: gradients by graphs differ" in caplog.text


def test_a_run_trains_by_graphs_and_validates_by_the_model(graphs, small_workplace):
    write_list(clips=4)
    (plain, data), (graphed, _) = (trainer_of(f"{LIST} --batch_size 2 {flag}") for flag in ("", "--cuda_graphs"))
    graphed.model.load_state_dict(plain.model.state_dict())
    batch = data.__getitems__(next(plain.sampler.batches(epoch=0)))
    updates = []
    for trainer in (plain, graphed):
        trainer.set_learning_rate(1.0)
        updates.append([(trainer.forward_backward(batch, synchronize=True), trainer.update(number)) for number in range(3)])
    torch.testing.assert_close(updates[1], updates[0])
    expected = plain.losses(plain.model, batch)
    graphed.graphed_losses = lambda _: pytest.fail("validation has batches of other sizes")
    with torch.no_grad():
        torch.testing.assert_close(graphed.losses(graphed.model, batch), expected)


def test_what_does_not_go_with_graphs_is_refused(monkeypatch):
    def checked(flags: str) -> None:
        checks.check(settings_of("train_audio", ["--cuda_graphs", *flags.split()]), program_of("train_audio").families)

    with pytest.raises(UserError, match="--cuda_graphs needs a CUDA device: omit it here"):
        checked("--device cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="--cuda_graphs and --accum_iter"):
        checked("--accum_iter 2")
    monkeypatch.setattr(checks, "world_size", lambda: 2)
    with pytest.raises(UserError, match="--cuda_graphs works in a run of one process"):
        checked("")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["m2d", "m2d_x", "mae"])
def test_on_a_gpu_steps_are_those_without_graphs(kind):
    plain = small_model(kind).cuda().train()
    graphed = copy.deepcopy(plain)
    expected = steps(plain, lambda given: plain.named_losses(plain(*given)), kind)
    found = steps(graphed, graph_losses(graphed, batch_of(graphed, kind)), kind)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
