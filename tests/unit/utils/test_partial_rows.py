"""Rows of a long run: what a killed run left is continued, and nothing else is touched."""

import subprocess
import sys

import numpy as np
import pytest
from recordings import ROOT

from m2d.inference.results import PartialResults
from m2d.utils.errors import UserError
from m2d.utils.own_files.partial_rows import PartialRows

BOTH = pytest.mark.parametrize("kind", [PartialRows, PartialResults])


@pytest.mark.parametrize("dtype, name, bytes_per_value", [(np.float16, "rows.f16", 2), (np.float32, "rows.f32", 4)])
def test_rows_of_a_killed_run_are_continued(tmp_path, dtype, name, bytes_per_value):
    with PartialRows(tmp_path / "out", {"a": 1}, 3, dtype) as rows:
        assert rows.append(np.ones((2, 3))) == [0, 2]
    with open(tmp_path / "out.partial" / name, "ab") as file:
        file.write(b"cut")  # a row that a kill cut short
    with PartialRows(tmp_path / "out", {"a": 1}, 3, dtype) as rows:
        assert rows.rows == 2
        assert rows.append(np.zeros((1, 3))) == [2, 1]
        assert rows.all().dtype == dtype and rows.all().tolist() == [[1] * 3, [1] * 3, [0] * 3]
        assert (tmp_path / "out.partial" / name).stat().st_size == 3 * 3 * bytes_per_value
        assert b"".join(rows.blocks(1, 2)) == np.array([[1] * 3, [0] * 3], dtype).tobytes()
        rows.remove()
    assert not (tmp_path / "out.partial").exists()


def test_rows_that_another_program_cut_are_an_error(tmp_path):
    with PartialRows(tmp_path / "out", {}, 3) as rows:
        rows.append(np.ones((2, 3)))
        rows.flush()
        (tmp_path / "out.partial/rows.f32").write_bytes(b"")
        with pytest.raises(OSError, match="truncated by another program"):
            list(rows.blocks(0, 2))


@BOTH
def test_other_settings_are_named_and_refused_unless_it_starts_over(tmp_path, kind):
    with kind(tmp_path / "out", {"weights": "a", "level": "clip"}, 3) as rows:
        rows.append(np.ones((2, 3)))
    with pytest.raises(UserError, match=r"out\.partial holds results of a run with other level, width: .*--overwrite"):
        kind(tmp_path / "out", {"weights": "a", "level": "frame"}, 4)
    (tmp_path / "out.partial/settings.json").write_text("[no JSON")
    with pytest.raises(UserError, match="a run with other settings: "):
        kind(tmp_path / "out", {"weights": "a", "level": "clip"}, 3)
    with kind(tmp_path / "out", {"weights": "b"}, 4, start_over=True) as rows:
        assert rows.rows == 0


@BOTH
def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.partial").symlink_to("elsewhere")
    with pytest.raises(UserError, match=r"out\.partial is a link: move it away"):
        kind(tmp_path / "out", {}, 3)
    (tmp_path / "elsewhere").rmdir()
    with pytest.raises(UserError, match=r"out\.partial is a link: move it away"):
        kind(tmp_path / "out", {}, 3)
    assert not (tmp_path / "elsewhere").exists()


@BOTH
def test_a_link_in_the_place_of_the_rows_is_refused(tmp_path, kind):
    with kind(tmp_path / "out", {}, 3):
        pass
    rows = next((tmp_path / "out.partial").glob("rows.*"))
    rows.unlink()
    (tmp_path / "precious").write_bytes(bytes(12))
    rows.symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="rows.f.* is there as a link"):
        kind(tmp_path / "out", {}, 3)
    assert (tmp_path / "precious").read_bytes() == bytes(12)


@BOTH
def test_one_process_at_a_time(tmp_path, kind):
    program = f"import sys; from pathlib import Path; from {kind.__module__} import {kind.__name__} as Rows; "
    program += "Rows(Path(sys.argv[1]), {}, 3)"
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    with kind(tmp_path / "out", {}, 3):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode and "another process is writing" in done.stderr.splitlines()[-1]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
