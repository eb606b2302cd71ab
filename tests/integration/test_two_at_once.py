"""Two programs on one folder, each in a container of its own: every file is the undisturbed one's."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from checkpoint_files import write_checkpoint
from namespaces import containers
from small_runs import LIST, M2D, digest, run, write_list

from m2d.cli.main import main as m2d

CLIPS = 120
OK, REFUSED = 0, 2


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def recordings(small_workplace) -> Path:
    """Clips of their own lengths and contents."""
    rng = np.random.default_rng(0)
    folder = small_workplace / "audio"
    folder.mkdir()
    for number in range(CLIPS):
        soundfile.write(folder / f"{number:03d}.wav", rng.uniform(-0.5, 0.5, 3200 + 160 * number), 16000)
    return folder


def rounds(count: int) -> pytest.MarkDecorator:
    """A round in the usual run, 20 in the slow one."""
    return pytest.mark.parametrize("count", [1, pytest.param(count, marks=pytest.mark.slow)])


def repeat(count: int, out: Path, undisturbed: Path, *calls: Callable[[], int], statuses: set[int]) -> None:
    expected = files_of(undisturbed)
    for _ in range(count):
        shutil.rmtree(out, ignore_errors=True)
        found = containers(*calls, log=Path("said"))
        assert OK in found and set(found) <= statuses, [Path(f"said.{i}").read_text() for i in range(len(calls))]
        assert files_of(out) == expected


@rounds(20)
def test_two_converters(recordings, count):
    assert m2d(["convert", "audio", "whole", "--workers", "1"]) == OK
    convert = ["convert", "audio", "lms", "--workers", "2"]
    repeat(count, Path("lms"), Path("whole"), lambda: m2d(convert), lambda: m2d(convert), statuses={OK})


@rounds(20)
def test_two_converters_into_one_pack(recordings, count):
    flags = ["--chunk_clips", "20", "--workers", "2"]
    assert m2d(["convert", "audio", "--pack", "whole", *flags]) == OK
    convert = ["convert", "audio", "--pack", "x.pack", *flags]
    repeat(count, Path("x.pack"), Path("whole"), lambda: m2d(convert), lambda: m2d(convert), statuses={OK, REFUSED})


@rounds(20)
def test_two_packers(small_workplace, count):
    csv = str(write_list(clips=CLIPS))
    flags = ["--chunk_clips", "20", "--workers", "2"]
    assert m2d(["pack", csv, "--out", "whole", *flags]) == OK
    pack = ["pack", csv, "--out", "x.pack", *flags]
    repeat(count, Path("x.pack"), Path("whole"), lambda: m2d(pack), lambda: m2d(pack), statuses={OK, REFUSED})


@rounds(20)
def test_two_packers_of_different_shards(small_workplace, count):
    csv = str(write_list(clips=CLIPS))
    flags = ["--chunk_clips", "10", "--workers", "2"]
    assert m2d(["pack", csv, "--out", "whole", *flags]) == OK
    pack = ["pack", csv, "--out", "x.pack", *flags, "--shard"]
    repeat(count, Path("x.pack"), Path("whole"), lambda: m2d([*pack, "1/2"]), lambda: m2d([*pack, "2/2"]), statuses={OK})


@rounds(20)
def test_two_embeddings(recordings, count):
    weights = write_checkpoint(Path("weights"), size=(80, 32))
    for path in sorted(recordings.iterdir())[20:]:
        path.unlink()
    embed = ["embed", "audio", "--weights", str(weights), "--device", "cpu", "--out"]
    assert m2d([*embed, "whole/e.npz"]) == OK
    call = [*embed, "out/e.npz"]
    repeat(count, Path("out"), Path("whole"), lambda: m2d(call), lambda: m2d(call), statuses={OK, REFUSED})


@rounds(20)
def test_a_packer_and_a_training_on_one_folder(small_workplace, count):
    csv = str(write_list(clips=48))
    flags = ["--chunk_clips", "8", "--workers", "2"]
    assert m2d(["pack", csv, "--out", "whole", *flags]) == OK
    train = f"{LIST} --epochs 1 --output_dir"
    assert run(M2D, f"{train} whole_run") == 0
    pack = ["pack", csv, "--out", "data/x.pack", *flags]
    for _ in range(count):
        for folder in ("data/x.pack", "run"):
            shutil.rmtree(folder, ignore_errors=True)
        Path(f"{csv}.stats.json").unlink()
        assert containers(lambda: m2d(pack), lambda: run(M2D, f"{train} run"), log=Path("said")) == [OK, OK]
        assert files_of(Path("data/x.pack")) == files_of(Path("whole"))
        assert digest(Path("run/last.pth")) == digest(Path("whole_run/last.pth"))
