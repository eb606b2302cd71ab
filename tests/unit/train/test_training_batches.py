"""Batches of a run: read ahead across the ends of epochs, from any step, and to the run's end alone."""

import pytest
import torch

from m2d.data.batch import Batch
from m2d.data.sampler import EpochSampler
from m2d.train.config import MachineSettings, Settings
from m2d.train.metrics import Throughput
from m2d.train.setup import TrainingBatches

SAMPLES, BATCH_SIZE, STEPS = 22, 4, 5


class Numbers:
    """A data set whose batches are their keys' indices."""

    def __getitems__(self, keys):
        index = torch.tensor([key.index for key in keys])
        return Batch(index, index, index, keys[0].epoch)


class Asked(EpochSampler):
    """Remembers for which (epoch, position) batches were asked."""

    asked: list[tuple[int, int]] = []

    def batches(self, epoch, first_step=0):
        for keys in super().batches(epoch, first_step):
            self.asked.append((epoch, keys[0].position))
            yield keys


@pytest.fixture
def batches_of():
    """Make a run's batches, which are closed after the test."""
    made = []

    def make(sampler: EpochSampler, workers: int = 1, start: tuple[int, int] = (0, 0), last_epoch: int = 3) -> TrainingBatches:
        settings = Settings(machine=MachineSettings(num_workers=workers))
        made.append(TrainingBatches(Numbers(), sampler, settings, torch.device("cpu"), start, last_epoch))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def expected(epoch: int, first_step: int = 0) -> list[list[int]]:
    return [[key.index for key in keys] for keys in EpochSampler(SAMPLES, BATCH_SIZE).batches(epoch, first_step)]


def rest_of_epoch(batches: TrainingBatches) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches.rest_of_epoch(Throughput(BATCH_SIZE))]


@pytest.mark.parametrize("workers", [0, 1, 3, 20])
def test_epochs_follow_each_other_whatever_is_read_ahead(batches_of, workers):
    batches = batches_of(EpochSampler(SAMPLES, BATCH_SIZE), workers)
    assert [rest_of_epoch(batches) for _ in range(4)] == [expected(0), expected(1), expected(2), []]


@pytest.mark.parametrize("step", [0, 1, STEPS - 1])
def test_a_resumed_run_has_the_batches_of_the_whole_one(batches_of, step):
    batches = batches_of(EpochSampler(SAMPLES, BATCH_SIZE), start=(1, step))
    assert [rest_of_epoch(batches) for _ in range(2)] == [expected(1, step), expected(2)]


def test_the_next_epochs_first_batches_are_asked_for_before_an_epoch_ends(batches_of):
    sampler = Asked(SAMPLES, BATCH_SIZE)
    sampler.asked = []
    batches = batches_of(sampler, workers=2)  # which read four batches ahead
    epoch = batches.rest_of_epoch(Throughput(BATCH_SIZE))
    for _ in range(STEPS - 1):
        next(epoch)
    assert sampler.asked == [*((0, 4 * i) for i in range(5)), *((1, 4 * i) for i in range(3))]
    assert len(list(epoch)) == 1
    assert sampler.asked[5:] == [(1, 4 * i) for i in range(4)]


def test_nothing_beyond_the_last_epoch_is_asked_for(batches_of):
    sampler = Asked(SAMPLES, BATCH_SIZE)
    sampler.asked = []
    batches = batches_of(sampler, workers=20, last_epoch=2)
    next(batches.rest_of_epoch(Throughput(BATCH_SIZE)))
    assert len(sampler.asked) == 2 * STEPS and max(sampler.asked)[0] == 1


def test_the_wait_for_each_batch_is_counted_with_its_epoch(batches_of):
    batches, throughput = batches_of(EpochSampler(SAMPLES, BATCH_SIZE)), Throughput(BATCH_SIZE)
    assert len(list(batches.rest_of_epoch(throughput))) == throughput._steps == STEPS
