"""Clips that cannot be read during training: they stop a run, or are skipped and counted."""

from pathlib import Path

import numpy as np
import pytest
from small_runs import (
    AS,
    LIST,
    M2D,
    digest,
    load,
    log_lines,
    run,
    trained,
    trainer_of,
    write_list,
)

pytestmark = pytest.mark.usefixtures("small_workplace")


def break_clip(number, how="torn"):
    path = Path(f"data/main_lms/{number:03d}.npy")
    if how == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "gone":
        path.unlink()
    else:
        np.save(path, np.full((1, 80, 40), np.nan, np.float32))


def test_an_unreadable_clip_stops_the_run_naming_it_and_the_position_is_kept(capsys):
    write_list(clips=32)
    trained(f"{LIST} --epochs 3", out="whole")
    trained(f"{LIST} --epochs 3 --stop_at 1", out="out")
    content = Path("data/main_lms/005.npy").read_bytes()
    break_clip(5)
    more = f"{LIST} --epochs 3 --auto_resume --output_dir out --num_workers 2"
    assert run(M2D, more) == 2
    assert "data/files_main.csv row 7: main_lms/005.npy: truncated" in capsys.readouterr().out
    assert 4 <= load(Path("out/last.pth"))["updates"] < 8
    assert "Traceback" in Path("out/console.txt").read_text()
    Path("data/main_lms/005.npy").write_bytes(content)
    assert run(M2D, more) == 0
    assert digest(Path("out/last.pth")) == digest(Path("whole/last.pth"))


@pytest.mark.parametrize("how", ["torn", "gone", "nan"])
def test_skip_bad_files_takes_the_next_clip_and_counts(how, capsys):
    write_list(clips=24)
    reference = Path("data/main_lms/006.npy").read_bytes()
    break_clip(5, how)
    trained(f"{LIST} --epochs 2 --skip_bad_files", out="skipped")
    said = capsys.readouterr().out
    assert "skipped (--skip_bad_files): data/files_main.csv row 7: main_lms/005.npy" in said
    assert [line["skipped_files"] for line in log_lines(Path("skipped"))] == [1, 1]
    # The same run as with the next clip's content under that name.
    Path("data/main_lms/005.npy").write_bytes(reference)
    trained(f"{LIST} --epochs 2 --skip_bad_files", out="copied")
    assert digest(Path("skipped/last.pth")) == digest(Path("copied/last.pth"))
    assert "skipped_files" not in log_lines(Path("copied"))[0]


def test_skipping_takes_the_next_clips_label():
    path = write_list(clips=16, label=[f"/m/{i:02d}" for i in range(16)])
    break_clip(15)
    trainer, data = trainer_of(f"--csv_main {path} --skip_bad_files", AS)
    keys = next(keys for keys in trainer.sampler.batches(0) if any(key.index == 15 for key in keys))
    batch = data.__getitems__(keys)
    row = [key.index for key in keys].index(15)
    assert batch.target[row].argmax() == 0 and batch.skipped == 1


def test_a_list_without_any_readable_clip_is_refused_even_so(capsys):
    write_list(clips=16)
    for number in range(16):
        break_clip(number)
    assert run(M2D, f"{LIST} --skip_bad_files --output_dir out") == 2
    assert "100 clips in a row" in capsys.readouterr().out and not Path("out").exists()
