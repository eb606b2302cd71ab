"""A run under torchrun whose workers are killed: the group restarts and continues."""

import multiprocessing
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from small_runs import LIST, M2D, Forked, digest, free_port, launch, load, log_lines, same_log, write_list

from m2d.train.distributed import launch as processes
from m2d.train.distributed.collectives import sum_over_ranks
from m2d.train.distributed.watchdog import RankLostError

pytestmark = pytest.mark.usefixtures("small_workplace")


def joins(rank, port):
    """Start as one of two of torchrun's workers, and talk to the other."""
    launched = dict(RANK=rank, WORLD_SIZE=2, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in launched.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    processes.start("cpu")
    os._exit(int(sum_over_ranks(torch.tensor(rank)) != 1))


def test_a_restart_is_not_misled_by_what_lost_processes_left_in_the_store_of_torchrun():
    """A start that succeeded, two of whose ranks 0 was killed waiting, and one more; rank 1 comes first and looks."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    process = partial(multiprocessing.get_context("fork").Process, target=joins)
    for killed in (False, True, True, False):
        ranks = [process(args=(rank, store.port), daemon=True) for rank in (1, 0)]
        if killed:
            ranks = ranks[1:]
        for rank in ranks:
            rank.start()
            time.sleep(0.5)
        if killed:
            ranks[0].kill()
        for rank in ranks:
            rank.join(30)
        assert [rank.exitcode for rank in ranks] == ([-signal.SIGKILL] if killed else [0, 0])


def test_a_rank_whose_rank_0_never_comes_ends():
    store = torch.distributed.HashStore()
    store.set(processes._OFFER, processes._WITHDRAWN)
    with pytest.raises(RankLostError, match="rank 0 did not join within 0:00:00.1"):
        processes._agree_on_prefix(store, 1, 2, timedelta(seconds=0.1))


def reference_and_flags(epochs):
    write_list()
    flags = f"{LIST} --batch_size 2 --epochs {epochs} --save_minutes 0 --output_dir"
    assert Forked(M2D, f"{flags} whole", 2).wait() == [0, 0]
    return flags


def children(agent):
    """Process ids of torchrun's workers."""
    listed = subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in listed]


@contextmanager
def torchruns(*agents):
    """Whatever happens, none of them is left running."""
    try:
        yield
    finally:
        for agent in agents:
            if agent.poll() is None:
                agent.terminate()
                agent.communicate(timeout=60)


def wait_until_logged(lines, *agents):
    """Wait until the run in `out` has finished so many epochs."""
    end = time.monotonic() + 300
    while not Path("out/log.txt").exists() or len(log_lines(Path("out"))) < lines:
        for agent in agents:
            assert agent.poll() is None, agent.communicate()
        assert time.monotonic() < end, "the run stands still"
        time.sleep(0.02)


@pytest.mark.slow
def test_torchrun_restarts_after_a_killed_worker_and_continues_exactly():
    flags = reference_and_flags(40)
    agent = launch(M2D, f"{flags} out --auto_resume", processes=2, agent="--standalone --max-restarts 3")
    with torchruns(agent):
        for lines, victim in ((4, 1), (12, 0), (20, 1)):
            wait_until_logged(lines, agent)
            os.kill(children(agent)[victim], signal.SIGKILL)
        said, _ = agent.communicate(timeout=300)
    assert agent.returncode == 0, said
    assert said.count("resuming from out/last") == 3
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))
    same_log("out", "whole")


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_run_continues_exactly():
    flags = reference_and_flags(40)
    agent = launch(M2D, f"{flags} out --auto_resume", processes=2)
    with torchruns(agent):
        wait_until_logged(4, agent)
        agent.send_signal(signal.SIGTERM)
        said, _ = agent.communicate(timeout=300)
    assert agent.returncode == 1 and "--auto_resume resumes from there" in said, said
    stopped_at = int(re.search(r"stopped at update (\d+)", said)[1])
    assert 4 * 12 <= load(Path("out/last.pth"))["updates"] == stopped_at < 40 * 12
    assert Forked(M2D, f"{flags} out --auto_resume", 2).wait() == [0, 0]
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))


@pytest.mark.slow
def test_two_nodes_by_rendezvous_restart_after_a_killed_worker_and_continue_exactly():
    """Two torchrun agents that find each other by c10d, one process each."""
    flags = reference_and_flags(40)
    agent = f"--nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:{free_port()} --rdzv_id=run --max-restarts 3"
    nodes = [launch(M2D, f"{flags} out --auto_resume", agent=agent) for _ in range(2)]
    with torchruns(*nodes):
        for lines, node in ((4, nodes[0]), (15, nodes[1])):
            wait_until_logged(lines, *nodes)
            os.kill(children(node)[-1], signal.SIGKILL)
        said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "".join(said).count("resuming from out/last") == 2
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))
    same_log("out", "whole")
