"""One process or many: torchrun, Slurm, or a plain `python`; CUDA, MPS or CPU."""

import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from ..utils.errors import ReadError, UserError

T = TypeVar("T")
_TIMEOUT = timedelta(minutes=30)
_OFFER, _WITHDRAWN = "m2d/offer", "none"
_LOST = "closed by peer|reset by peer|[Bb]roken pipe|gloo|NCCL"

logger = logging.getLogger("m2d")


@dataclass(frozen=True)
class Launch:
    """This process among the processes of a run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 speaks and writes."""
        return self.rank == 0


def _ranks() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun or `srun` says them; one process otherwise.

    A Slurm job's variables count only in a step that srun started with several tasks: in a batch script or an
    interactive shell of the same job, a plain `python` is one process.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        return int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", 0))
    return 0, 1, 0


def world_size() -> int:
    """How many processes the run has, by what torchrun or `srun` says."""
    return _ranks()[1]


def _device(wanted: str, local_rank: int) -> torch.device:
    """The device of a flag: cuda (where there is one, else the CPU with a warning), mps or cpu."""
    kind, _, index = wanted.partition(":")
    if kind not in ("cuda", "mps", "cpu"):
        raise UserError(f"--device {wanted}: choose from cuda, mps, cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        if local_rank == 0:
            logger.warning("no CUDA device here: running on the CPU (--device cpu says so without this warning)")
        return torch.device("cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: there is no MPS device here")
    if kind != "cuda":
        return torch.device(kind)
    number = int(index) if index else local_rank
    if number >= torch.cuda.device_count():
        raise UserError(f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}")
    return torch.device("cuda", number)


def start(device: str) -> Launch:
    """Join the run's processes: NCCL on GPUs (with gloo for messages on the host), gloo on CPUs.

    Raises:
        UserError: a device that is not there.
    """
    rank, world_size, local_rank = _ranks()
    target = _device(device, local_rank)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    if world_size > 1:
        if "MASTER_ADDR" not in os.environ:
            raise UserError("srun with several tasks needs MASTER_ADDR (the first node's name), or torchrun on each node")
        os.environ.setdefault("MASTER_PORT", "29500")
        backend = "cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo"
        store = _torchrun_store(rank, world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    return Launch(rank, world_size, local_rank, target)


def _torchrun_store(rank: int, world_size: int) -> dist.Store | None:
    """torchrun's store, in a part that only the processes of this start know; None without torchrun.

    A restart finds the store as the processes before it left it, and would take their addresses for those of now.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=_TIMEOUT, wait_for_workers=False)
    return dist.PrefixStore(_name_a_part(store, world_size) if rank == 0 else _answer(store, rank), store)


def _name_a_part(store: dist.Store, world_size: int) -> str:
    """Offer a new name; return it when all other ranks have answered.

    The offer is withdrawn before its `go` is given, so that an offer that is still there from lost processes never gets one.
    """
    name = uuid.uuid4().hex
    store.set(_OFFER, name)
    store.wait([f"{name}/{rank}" for rank in range(1, world_size)])
    store.set(_OFFER, _WITHDRAWN)
    store.set(f"{name}/go", "")
    return name


def _answer(store: dist.Store, rank: int) -> str:
    """Answer each name that is offered; return the one that gets its `go`."""
    name, end = _WITHDRAWN, time.monotonic() + _TIMEOUT.total_seconds()
    while not store.check([f"{name}/go"]):
        if time.monotonic() > end:
            raise TimeoutError(f"rank {rank} has heard nothing of rank 0 for {_TIMEOUT}")
        offered = store.get(_OFFER).decode()
        if offered not in (name, _WITHDRAWN):
            name = offered
            store.set(f"{name}/{rank}", "")
        time.sleep(0.02)
    return name


def stop() -> None:
    """Leave the run's processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End the program, of whose run nothing is left to do, with an exit status.

    After a sharded run (--fsdp) the process group's threads run on. About one run in 40 had a process aborted while the
    interpreter took itself down beside them, and torchrun took the finished run for a failed one. So one of several processes
    ends at once.
    """
    if world_size() > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def from_rank0(launch: Launch, compute: Callable[[], T]) -> T:
    """Compute once, on rank 0, and give the result, or the error, to all ranks."""
    if launch.world_size == 1:
        return compute()
    outcome: list = [None, None]
    if launch.is_main:
        try:
            outcome[0] = compute()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def together(launch: Launch, compute: Callable[[], T]) -> T:
    """Compute on every rank; where that fails on one, raise the first such rank's error on all.

    `compute` must not talk to other ranks.
    """
    if launch.world_size == 1:
        return compute()
    result, error = None, None
    try:
        result = compute()
    except Exception as failed:
        error = failed
    raise_first(error)
    return result


def raise_first(error: Exception | None) -> None:
    """Raise on every rank the first rank's error that has one."""
    errors: list = [error]
    if dist.is_initialized():
        errors = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
    for found in errors:
        if found is not None:
            raise found


def in_step(items: Iterable[T]) -> Iterator[T]:
    """Each rank's items, as many on each; where one rank cannot get its next one, all raise before that item.

    Raises:
        ReadError: with the message of the rank that failed.
    """
    items = iter(items)
    while True:
        item, error = None, None
        try:
            item = next(items, None)
        except (OSError, ValueError) as failed:
            error = ReadError(str(failed))
        failures = int(error is not None)
        if sum_over_ranks(torch.tensor(failures)):
            raise_first(error)
        if item is None:
            return
        yield item


def lost_another(error: RuntimeError) -> bool:
    """Whether an error says that another process of the run is not there any more."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or bool(re.search(_LOST, str(error))))


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
