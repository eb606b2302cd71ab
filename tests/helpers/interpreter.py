"""Triton's interpreter, which runs kernels on the CPU."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def check_interpreted(checks: ModuleType) -> None:
    """Run a module of checks as a program, in a process of its own: a kernel is interpreted or compiled while that lives."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/helpers")))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, checks.__file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "all hold\n", done.stdout + done.stderr
