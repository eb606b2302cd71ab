"""One process or many: torchrun, Slurm, or a plain `python`; CUDA, MPS or CPU."""

import logging
import os
import re
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from ...utils.errors import UserError
from .watchdog import RankLostError, Watchdog, ranks_text

#: A collective that is not complete after this time fails: some rank is alive and makes no progress.
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
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
        """Whether this is rank 0, which logs and writes."""
        return self.rank == 0


def _ranks() -> tuple[int, int, int]:
    """(rank, world size, local rank) from the variables of torchrun or `srun`; one process otherwise.

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
    """How many processes the run has, from the variables of torchrun or `srun`."""
    return _ranks()[1]


def _device(wanted: str, local_rank: int) -> torch.device:
    """The device of a flag: cuda (where there is one, else the CPU with a warning), mps, cpu, or auto (cuda or cpu)."""
    kind, _, index = wanted.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cuda", "mps", "cpu"):
        raise UserError(f"--device {wanted}: choose from auto, cuda, mps, cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        if local_rank == 0:
            logger.warning("no CUDA device here: running on the CPU (--device cpu: without this warning)")
        return torch.device("cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has no MPS device")
    if kind != "cuda":
        return torch.device(kind)
    number = int(index) if index else local_rank
    if number >= torch.cuda.device_count():
        raise UserError(f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}")
    return torch.device("cuda", number)


def start(device: str, rank_timeout: float = 10.0) -> Launch:
    """Join the run's processes: NCCL on GPUs (with gloo for messages on the host), gloo on CPUs.

    Args:
        device: the flag.
        rank_timeout: minutes after which this process ends because another rank does not answer.

    Raises:
        UserError: a device that is not there.
        RankLostError: a rank did not join in time.
    """
    rank, world_size, local_rank = _ranks()
    target = _device(device, local_rank)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    if world_size > 1:
        if "MASTER_ADDR" not in os.environ:
            raise UserError("srun with several tasks needs MASTER_ADDR (the first node's name), or torchrun on each node")
        timeout = timedelta(minutes=rank_timeout)
        stores = [_connect(rank, timeout, is_master) for is_master in (True, False)]
        prefix = _agree_on_prefix(stores[0], rank, world_size, timeout)
        group_store, watchdog_store = (dist.PrefixStore(f"m2d/{prefix}", store) for store in stores)
        Watchdog.start(watchdog_store, rank, world_size, timeout)
        backend = "cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo"
        limit = max(_COLLECTIVE_TIMEOUT, timeout)
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=world_size, timeout=limit)
    return Launch(rank, world_size, local_rank, target)


def _connect(rank: int, timeout: timedelta, is_master: bool) -> dist.Store:
    """A connection to the run's store: torchrun's, else one that rank 0 hosts where `is_master`."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", 29500))
    hosts = is_master and rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return dist.TCPStore(address, port, is_master=hosts, timeout=timeout, wait_for_workers=False)
    except dist.DistNetworkError as error:
        raise RankLostError(f"rank 0 cannot be reached at {address}:{port} within {timeout}") from error


def _agree_on_prefix(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A part of the store that only the processes of this start know.

    A restart by torchrun finds the store as the processes before it left it, and would take their addresses for its own.

    Raises:
        RankLostError: a rank does not join in time.
    """
    return _offer_prefix(store, world_size, timeout) if rank == 0 else _accept_prefix(store, rank, timeout)


def _offer_prefix(store: dist.Store, world_size: int, timeout: timedelta) -> str:
    """Offer a new name; return it when all other ranks have answered.

    The offer is withdrawn before its `go` is set, so that an offer that lost processes left there never gets one.
    """
    name = uuid.uuid4().hex
    store.set(_OFFER, name)
    answers = {rank: f"{name}/{rank}" for rank in range(1, world_size)}
    try:
        store.wait(list(answers.values()), timeout)
    except dist.DistStoreError as error:
        absent = [rank for rank, key in answers.items() if not store.check([key])]
        raise RankLostError(f"{ranks_text(absent)} did not join within {timeout}") from error
    store.set(_OFFER, _WITHDRAWN)
    store.set(f"{name}/go", "")
    return name


def _accept_prefix(store: dist.Store, rank: int, timeout: timedelta) -> str:
    """Answer each name that is offered; return the one that gets its `go`."""
    name, end = _WITHDRAWN, time.monotonic() + timeout.total_seconds()
    while not store.check([f"{name}/go"]):
        if time.monotonic() > end:
            raise RankLostError(f"rank 0 did not join within {timeout}, or another rank did not")
        offered = store.get(_OFFER).decode() if store.check([_OFFER]) else _WITHDRAWN
        if offered not in (name, _WITHDRAWN):
            name = offered
            store.set(f"{name}/{rank}", "")
        time.sleep(0.02)
    return name


def stop() -> None:
    """Leave the run's processes."""
    Watchdog.stop()
    if dist.is_initialized():
        dist.destroy_process_group()


def exit_process(status: int) -> NoReturn:
    """Exit; one of several processes skips the interpreter's shutdown.

    After an FSDP run the process group's threads keep running. In about one run of 40 a process aborted when the
    interpreter shut down beside them, and torchrun took the finished run for a failed one.
    """
    if world_size() > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def is_rank_loss(error: RuntimeError) -> bool:
    """Whether an error means that another process of the run is gone."""
    if isinstance(error, RankLostError):
        return True
    return dist.is_initialized() and (isinstance(error, dist.DistError) or bool(re.search(_LOST, str(error))))
