"""Where compiled code is kept, and what happens where what is kept is broken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import ROOT
from torch import nn

from m2d.train.device import try_compile
from m2d.utils.compiled_code import keep_compiled_code, leave_kept_code


def test_compiled_code_is_kept_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("M2D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache/compiled")


def test_where_the_users_cache_folder_cannot_be_written_torchs_own_place_stays(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("M2D_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    keep_compiled_code()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_kept_code_is_left_where_there_is_some(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert leave_kept_code() is None
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert leave_kept_code() is None
    (tmp_path / "result").write_text("")
    assert leave_kept_code() == tmp_path
    new = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert new.is_dir() and new != tmp_path


class Compilable(nn.Linear):
    """A model whose compiled code comes from a folder."""

    def compile(self, **_):
        self._compiled_call_impl = self.from_folder

    def compile_blocks(self, on=True, **_):
        pass

    def from_folder(self, x):
        if list(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).glob("*.so")):
            raise ImportError("x.so: file too short")
        return self.forward(x)


def test_broken_results_of_the_compiler_are_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "x.so").write_text("")
    model = Compilable(2, 2)
    with caplog.at_level("INFO", "m2d"):
        assert try_compile(model, lambda: model(torch.ones(1, 2)).sum().backward())
    assert f"compiling again, without the results in {tmp_path}" in caplog.text and "file too short" in caplog.text
    assert model._compiled_call_impl and all(p.grad is None for p in model.parameters())


COMPILE = """
import logging, torch
from m2d.train.device import try_compile

class Tiny(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x).sin()

    def compile_blocks(self, on=True, **_):
        pass

logging.basicConfig(level="INFO", format="%(message)s")
model = Tiny(8, 8)
assert try_compile(model, lambda: model(torch.ones(1, 8)).sum().backward())
"""


@pytest.mark.slow
def test_a_compiler_that_was_killed_as_it_wrote_costs_one_more_compilation(tmp_path):
    def output() -> str:
        command = [sys.executable, "-c", COMPILE]
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stderr

    assert "compiled in" in output() and "compiled in" in output()
    libraries = list(tmp_path.rglob("*.so"))
    assert libraries
    for library in libraries:
        os.truncate(library, 0)
    again = output()
    assert "compiling again, without the results in" in again and "compiled in" in again
