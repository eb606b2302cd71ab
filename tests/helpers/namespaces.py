"""Processes in PID namespaces of their own, as containers have them: each is process 1, on a host of the same name."""

import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

_NEWPID, _NEWNS, _RECURSIVE, _PRIVATE = 0x20000000, 0x00020000, 0x4000, 0x40000


def containers(*calls: Callable[[], int], log: Path) -> list[int]:
    """Run each call in a namespace of its own, all at once; their exit statuses. What they print goes to `log`.N."""
    if os.geteuid() != 0:
        pytest.skip("only root makes PID namespaces")
    running = [_start(call, Path(f"{log}.{number}")) for number, call in enumerate(calls)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running]


def _start(call: Callable[[], int], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEWPID | _NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        first = os.fork()
        if first == 0:
            _be_the_first(libc, call, log)
        status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    finally:
        os._exit(status if status >= 0 else 98)


def _be_the_first(libc: ctypes.CDLL, call: Callable[[], int], log: Path) -> None:
    status = 97
    try:
        libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None)
        libc.mount(b"proc", b"/proc", b"proc", 0, None)
        with log.open("w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            assert os.getpid() == 1
            status = call()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
