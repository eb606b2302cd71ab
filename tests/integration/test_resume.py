"""Which file a run continues from, and which run: torn checkpoints, changed settings, two runs in one folder."""

import json
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from small_runs import LIST, M2D, Forked, digest, load, log_lines, run, write_list

from m2d.run.folder import RunFolder, existing_run

pytestmark = pytest.mark.usefixtures("small_workplace")


# ---------------------------------------------------------------- torn files


@pytest.fixture
def two_saves():
    """A folder `run` whose last.pth is of epoch 2 and last-previous.pth of epoch 1; 3 epochs to go are in `whole`."""
    write_list(clips=16)
    assert run(M2D, f"{LIST} --epochs 3 --output_dir whole") == 0
    assert run(M2D, f"{LIST} --epochs 3 --stop_at 2 --output_dir stopped") == 0
    Path("stopped/checkpoint-2.pth").unlink()
    assert load(Path("stopped/last.pth"))["epoch"] == 2 and load(Path("stopped/last-previous.pth"))["epoch"] == 1
    return f"{LIST} --epochs 3 --auto_resume --output_dir"


def torn_copy(change):
    """A fresh copy of the folder with last.pth's bytes changed."""
    shutil.rmtree("torn", ignore_errors=True)
    shutil.copytree("stopped", "torn")
    path = Path("torn/last.pth")
    path.write_bytes(change(bytearray(path.read_bytes())))


def newest(folder):
    return RunFolder(Path(folder)).find_run(auto_resume=True)


@pytest.mark.parametrize("tenths", range(10))
def test_a_file_cut_at_every_tenth_is_recognised(two_saves, tenths, capsys):
    torn_copy(lambda content: content[: len(content) * tenths // 10])
    if tenths % 4:
        assert newest("torn") == Path("torn/last-previous.pth")
        return
    capsys.readouterr()
    assert run(M2D, f"{two_saves} torn") == 0
    said = capsys.readouterr().out
    assert "torn/last.pth is incomplete: using the checkpoint before" in said and "resuming from torn/last-previous.pth" in said
    assert digest(Path("torn/last.pth")) == digest(Path("whole/last.pth"))
    # What was torn has not been kept as the one to go back to.
    assert load(Path("torn/last-previous.pth"))["epoch"] == 2
    assert log_lines(Path("torn")) == log_lines(Path("whole"))


def test_flipped_bytes_are_recognised(two_saves):
    size, rng = Path("stopped/last.pth").stat().st_size, random.Random(0)
    good, found = digest(Path("stopped/last.pth")), 0
    for _ in range(40):
        place = rng.randrange(size)

        def flip(content, place=place):
            content[place] ^= 1 << rng.randrange(8)
            return content

        torn_copy(flip)
        path = newest("torn")
        if path == Path("torn/last.pth"):  # padding between the tensors means nothing
            assert digest(path) == good
        else:
            assert path == Path("torn/last-previous.pth")
            found += 1
    assert found > 30


def test_numbered_checkpoints_are_the_last_resort(two_saves):
    shutil.copytree("stopped", "torn")
    for name in ("last.pth", "last-previous.pth"):
        Path("torn", name).rename(Path("torn", name.replace("last", "checkpoint-1" if "previous" in name else "checkpoint-2")))
    Path("torn/checkpoint-1-previous.pth").rename("torn/checkpoint-1.pth")
    assert newest("torn") == Path("torn/checkpoint-2.pth")
    Path("torn/checkpoint-2.pth").write_bytes(b"PK")
    assert newest("torn") == Path("torn/checkpoint-1.pth")
    assert run(M2D, f"{two_saves} torn") == 0
    assert digest(Path("torn/last.pth")) == digest(Path("whole/last.pth"))


def test_a_run_whose_checkpoints_are_all_torn_does_not_begin_anew(two_saves, capsys):
    torn_copy(lambda content: content[:-1000])
    Path("torn/last-previous.pth").write_bytes(b"")
    assert run(M2D, f"{two_saves} torn") == 2
    assert "none of its 2 checkpoints is whole" in capsys.readouterr().out
    assert len(log_lines(Path("torn"))) == 2


def test_killed_before_the_first_save_begins_again():
    write_list(clips=16)
    assert run(M2D, f"{LIST} --output_dir whole") == 0
    shutil.copytree("whole", "early")
    for path in Path("early").glob("*.pth"):
        path.unlink()
    assert run(M2D, f"{LIST} --output_dir early --auto_resume") == 0
    assert digest(Path("early/last.pth")) == digest(Path("whole/last.pth"))
    assert log_lines(Path("early")) == log_lines(Path("whole"))


def test_a_torn_line_of_the_log_and_what_a_killed_save_left(two_saves):
    with Path("stopped/log.txt").open("a") as file:
        file.write('{"train_loss": 1.2, "ep')
    for name in (f".last.new.pth.{7:016x}.m2d-tmp", "last.new.pth", ".notes.tmp"):
        Path("stopped", name).write_bytes(b"half")
    Path("stopped/run.json").write_text(Path("stopped/run.json").read_text())
    assert run(M2D, f"{two_saves} stopped") == 0
    assert log_lines(Path("stopped")) == log_lines(Path("whole"))
    assert (
        not list(Path("stopped").glob(".*.m2d-tmp"))
        and Path("stopped/.notes.tmp").read_bytes() == b"half"
        and not Path("stopped/last.new.pth").exists()
    )


# ---------------------------------------------------------------- the same run, and no other


def test_changed_flags_are_refused_with_both_values_and_some_may_change(two_saves, capsys):
    before = {path: path.stat().st_mtime_ns for path in Path("stopped").glob("*.pth")}
    assert run(M2D, f"{two_saves} stopped --seed 3 --mask_ratio 0.6 --batch_size 4 --norm_stats [-8,2]") == 2
    said = capsys.readouterr().out
    for words in ("--seed was 0, is 3", "--mask_ratio was 0.7, is 0.6", "--norm_stats was None, is [-8.0, 2.0]", "was 8, is 4"):
        assert words in said
    assert {path: path.stat().st_mtime_ns for path in Path("stopped").glob("*.pth")} == before
    assert run(M2D, f"{two_saves} stopped --epochs 4 --save_freq 7 --batch_size 4 --accum_iter 2 --num_workers 1") == 0
    said = capsys.readouterr().out
    assert "resuming with --epochs 4, which was 3" in said and "save_freq" not in said
    assert load(Path("stopped/last.pth"))["epoch"] == 4
    starts = json.loads(Path("stopped/run.json").read_text())["starts"]
    assert len(starts) == 2


def test_a_changed_list_is_refused(two_saves, capsys):
    path = Path("data/files_main.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    assert run(M2D, f"{two_saves} stopped") == 2
    assert "--csv_main data/files_main.csv has changed" in capsys.readouterr().out


def test_changed_files_of_the_same_names_are_named(two_saves, capsys):
    assert "files" in load(Path("stopped/last.pth"))
    shutil.copytree("stopped", "again")
    assert run(M2D, f"{two_saves} again") == 0
    assert "other sizes or times" not in capsys.readouterr().out
    np.save("data/main_lms/003.npy", np.full((1, 80, 41), -8, np.float32))
    assert run(M2D, f"{two_saves} stopped") == 0
    assert "files of --csv_main data/files_main.csv have other sizes or times" in capsys.readouterr().out


def test_a_finished_run_is_finished_and_the_same_command_is_refused(capsys):
    write_list(clips=16)
    flags = f"{LIST} --epochs 1 --output_dir out"
    assert run(M2D, flags) == 0
    before = digest(Path("out/last.pth"))
    capsys.readouterr()
    assert run(M2D, f"{flags} --auto_resume") == 0
    assert "out is finished: 1 of 1 epochs" in capsys.readouterr().out
    assert run(M2D, flags) == 2
    assert "holds a run already: --auto_resume" in capsys.readouterr().out
    assert digest(Path("out/last.pth")) == before and len(log_lines(Path("out"))) == 1


def test_a_run_goes_on_where_its_name_has_yesterdays_date(capsys):
    write_list(clips=16)
    flags = f"{LIST} --epochs 2"
    assert run(M2D, f"{flags} --stop_at 1") == 0
    (today,) = (path.parent for path in Path().glob("*/run.json"))
    yesterday = Path(re.sub(r"-\d{6}-", "-231231-", today.name))
    today.rename(yesterday)
    assert run(M2D, f"{flags} --auto_resume") == 0
    assert f"resuming from {yesterday}/last.pth" in capsys.readouterr().out and not today.exists()
    assert load(yesterday / "last.pth")["epoch"] == 2


def test_the_newest_of_several_dates_is_taken(tmp_path):
    for day in ("231230", "240101", "231231"):
        (tmp_path / f"m-{day}-x").mkdir()
        (tmp_path / f"m-{day}-x" / "run.json").touch()
    (tmp_path / "m-250101-x").mkdir()
    (tmp_path / "m-250101-xy").mkdir()
    assert existing_run(tmp_path / "m-260101-x").name == "m-240101-x"
    assert existing_run(tmp_path / "m-260101-y").name == "m-260101-y"
    assert existing_run(tmp_path / "plain").name == "plain"


def test_two_runs_in_one_folder(capsys):
    write_list(clips=16)
    flags = f"{LIST} --epochs 100000 --output_dir out"
    forked = Forked(M2D, flags)
    forked.wait_until(lambda: "epoch 2/" in forked.said())
    holder = f"out is in use by process {forked.ranks[0].pid} on "
    for more in ("", "--auto_resume"):
        assert run(M2D, f"{flags} {more}") == 2
        assert holder in capsys.readouterr().out
    forked.signal(signal.SIGKILL)
    forked.wait()
    assert str(forked.ranks[0].pid) in Path("out/run.lock").read_text()
    epoch = load(Path("out/last.pth"))["epoch"]
    assert run(M2D, f"{flags} --auto_resume --stop_at {epoch + 1}") == 0


def test_a_run_that_began_meanwhile_is_not_overwritten(tmp_path):
    first, second = RunFolder(tmp_path / "x"), RunFolder(tmp_path / "x")
    assert first.find_run(False) is None and second.find_run(False) is None
    first.begin({"seed": 1})
    with pytest.raises(ValueError, match="began there in the meantime"):
        second.begin({"seed": 2})


def test_the_checkpoint_of_resume_is_not_needed_any_more():
    write_list(clips=16)
    assert run(M2D, f"{LIST} --epochs 1 --output_dir source") == 0
    flags = f"{LIST} --epochs 2 --resume source/checkpoint-1.pth --output_dir out"
    assert run(M2D, f"{flags} --stop_at 1") == 0
    shutil.rmtree("source")
    assert run(M2D, f"{flags} --auto_resume") == 0
