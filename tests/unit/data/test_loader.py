"""Reading ahead by threads: the same batches in the same order, errors in their place, nothing left behind."""

import threading

import pytest
import torch

from m2d.data.batch import Batch
from m2d.data.loader import BatchLoader
from m2d.data.sampler import EpochSampler


class Numbers:
    """A data set whose batches are their keys' indices; it counts what is asked for."""

    def __init__(self, size=50, bad=None):
        self.size, self.bad, self.asked = size, bad, []

    def __getitems__(self, keys):
        self.asked.append(keys[0].position)
        if self.bad is not None and any(key.index == self.bad for key in keys):
            raise ValueError("data/x.csv row 7: bad.npy")
        index = torch.tensor([key.index for key in keys])
        return Batch(index, index, index, epoch=0)


def plan_of(data, batch_size=4):
    return EpochSampler(data.size, batch_size)


@pytest.mark.parametrize("workers", [0, 1, 3, 20])
def test_batches_come_in_order_whatever_the_workers(workers):
    data = Numbers()
    loader = BatchLoader(data, workers)
    for epoch in range(3):
        got = [batch.index.tolist() for batch in loader.batches(plan_of(data).batches(epoch))]
        assert got == [[key.index for key in keys] for keys in plan_of(data).batches(epoch)]
    assert list(loader.batches([])) == []
    loader.close()


def test_reads_ahead_but_not_further():
    data = Numbers()
    loader = BatchLoader(data, workers=1, ahead=3)
    batches = loader.batches(plan_of(data).batches(0))
    assert data.asked == []
    next(batches)
    list(loader._pool.map(lambda _: None, [0]))  # the one thread has done what was asked before
    assert len(data.asked) == 4
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_batchs_place_as_it_was_raised(workers):
    data = Numbers(bad=int(EpochSampler(50, 4).order(0)[9]))
    loader = BatchLoader(data, workers)
    batches = loader.batches(plan_of(data).batches(0))
    assert len([next(batches) for _ in range(2)]) == 2
    with pytest.raises(ValueError, match=r"^data/x.csv row 7: bad.npy$"):
        next(batches)
    assert len(list(loader.batches(plan_of(Numbers()).batches(1, first_step=12)))) == 0
    loader.close()


def test_an_epoch_left_early_is_not_read_to_its_end():
    data = Numbers(size=4000)
    loader = BatchLoader(data, workers=2)
    batches = loader.batches(plan_of(data).batches(0))
    next(batches)
    batches.close()
    first = next(loader.batches(plan_of(data).batches(1)))
    assert first.index.tolist() == [key.index for key in next(plan_of(data).batches(1))]
    assert len(data.asked) < 20
    loader.close()


def test_what_an_epoch_left_early_had_asked_for_is_not_read():
    class Slow(Numbers):
        go_on = threading.Event()

        def __getitems__(self, keys):
            if self.asked:
                self.go_on.wait()
            return super().__getitems__(keys)

    data = Slow()
    loader = BatchLoader(data, workers=1, ahead=8)
    batches = loader.batches(plan_of(data).batches(0))
    next(batches)
    batches.close()
    data.go_on.set()
    list(loader._pool.map(lambda _: None, [0]))
    assert len(data.asked) <= 2
    loader.close()


def test_closing_ends_the_threads():
    before = threading.active_count()
    loader = BatchLoader(Numbers(), workers=4)
    list(loader.batches(plan_of(Numbers()).batches(0)))
    assert threading.active_count() > before
    loader.close()
    assert threading.active_count() == before


@pytest.mark.gpu
def test_pinned_batches():
    data = Numbers()
    loader = BatchLoader(data, workers=1, pin_memory=True)
    assert all(batch.index.is_pinned() for batch in loader.batches(plan_of(data).batches(0)))
    loader.close()
