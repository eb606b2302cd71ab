"""Every program that writes, on a disk without room: an error that says so, and nothing half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import soundfile
from app_data import prepare_lungs, write_icbhi
from audio_files import sound
from checkpoint_files import write_checkpoint, write_fine_tuned
from limits import full_disk, small_disk
from small_runs import LIST, M2D, run, write_list

from app import finetune
from m2d.cli.main import main as m2d
from m2d.utils.atomic_file import is_temporary
from util import make_as_weighted_list, make_sample_audio

Program = Callable[[], int]
DISK = Path("disk")


@pytest.fixture(autouse=True)
def folder(small_workplace):
    """Recordings, spectrograms and checkpoints on another disk."""
    for number in range(16):
        path = Path(f"audio/class{number % 2}/{number}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound(8000, seed=number), 16000)
    write_list(clips=16)
    return small_workplace


def convert() -> Program:
    return lambda: m2d(["convert", "audio", "disk/lms", "--workers", "1"])


def convert_to_pack() -> Program:
    return lambda: m2d(["convert", "audio", "--pack", "disk/x.pack", "--workers", "1"])


def pack() -> Program:
    return lambda: m2d(["pack", "data/files_main.csv", "--out", "disk/x.pack", "--workers", "1"])


def cleaned_list() -> Program:
    return lambda: m2d(["check", "data/files_main.csv", "--fix", "disk/clean.csv", "--workers", "1", "--input_frames", "40"])


def export_pth() -> Program:
    source = str(write_checkpoint(Path("weights"), size=(80, 32)))
    return lambda: m2d(["export", source, "disk/encoder.pth"])


def export_safetensors() -> Program:
    source = str(write_checkpoint(Path("weights"), size=(80, 32)))
    return lambda: m2d(["export", source, "disk/encoder.safetensors"])


def embed() -> Program:
    source = str(write_checkpoint(Path("weights"), size=(80, 32)))
    return lambda: m2d(["embed", "audio", "--weights", source, "--out", "disk/e.npz", "--device", "cpu"])


def tag_picture() -> Program:
    source = str(write_fine_tuned(Path("weights"), 3, 48 * 5, size=(80, 32)))
    return lambda: m2d(["tag", "audio/class0/0.wav", "--weights", source, "--plot", "disk/tags.png", "--device", "cpu"])


def train() -> Program:
    return lambda: run(M2D, f"{LIST} --epochs 1 --output_dir disk/run")


def probe() -> Program:
    source = str(write_checkpoint(Path("weights"), size=(80, 32)))
    flags = ["--folds", "2", "--no_cache", "--device", "cpu"]
    return lambda: m2d(["probe", "audio", "--weights", source, "--out", "disk/probe", *flags])


def report() -> Program:
    assert run(M2D, f"{LIST} --epochs 1 --output_dir out") == 0
    return lambda: m2d(["report", "out", "--csv", "data/files_main.csv", "--out", "disk/learned.png"])


def fine_tune() -> Program:
    assert prepare_lungs(write_icbhi(Path("ICBHI final database")), Path()) == 0
    flags = ["--weights", "m2d_vit_tiny-80x208p80x16-random", "--dur_frames", "208", "--epochs", "1", "--num_workers", "0"]
    return lambda: finetune.main(["data/segments.csv", *flags, "--device", "cpu", "--output_dir", "disk/run"])


def lists_of_an_application() -> Program:
    recordings = write_icbhi(Path("ICBHI final database"))
    return lambda: prepare_lungs(recordings, DISK)


def sample_sounds() -> Program:
    return lambda: make_sample_audio.main(["disk/sounds", "--clips", "1"])


def weighted_list() -> Program:
    folder = Path("segments")
    folder.mkdir()
    for name in make_as_weighted_list.SEGMENT_FILES:
        (folder / name).write_text('# a\n# b\n# c\n--4gqARaEJE, 30.000, 40.000, "/x/1"\n')
    classes = [f"{i},/x/{i},Class {i}" for i in range(527)]
    (folder / make_as_weighted_list.CLASS_FILE).write_text("\n".join(["index,mid,display_name", *classes]) + "\n")
    pd.DataFrame({"file_name": ["--4gqARaEJE.npy"]}).to_csv("clips.csv", index=False)
    flags = ["--org_list", "clips.csv", "--segments", "segments", "--to_list", "disk/weighted.csv"]
    return lambda: make_as_weighted_list.main(flags)


PROGRAMS = [
    convert, convert_to_pack, pack, cleaned_list, export_pth, export_safetensors, embed, tag_picture, train, probe, report,
    fine_tune, lists_of_an_application, sample_sounds, weighted_list,
]  # fmt: skip


@pytest.mark.parametrize("prepare", PROGRAMS, ids=lambda prepare: prepare.__name__)
def test_a_full_disk_is_said_and_nothing_is_left(prepare, caplog, capsys):
    program = prepare()
    capsys.readouterr()
    with full_disk(DISK):
        status = program()
        said = caplog.text + "".join(capsys.readouterr())
        left = [path for path in DISK.rglob("*") if path.is_file() and path.name != "other"]
        assert status in (1, 2, 74), said
        told = [line for line in said.splitlines() if "No space left on device" in line or "File too large" in line]
        assert told and all("disk/" in line for line in told), said
        assert "Traceback" not in said
        assert not [path for path in left if is_temporary(path)]
        assert not [path for path in left if path.suffix in (".npy", ".npz", ".pth", ".safetensors", ".png", ".csv", ".wav")]


def test_a_check_of_a_list_on_a_full_disk(caplog):
    """Its record and its reports are beside the list."""
    with small_disk(DISK, 1 << 16):
        shutil.copy("data/files_main.csv", DISK / "list.csv")
        (DISK / "other").write_bytes(bytes(shutil.disk_usage(DISK).free))
        assert m2d(["check", "disk/list.csv", "--data_path", "data", "--workers", "1"]) == 2
        assert sorted(path.name for path in DISK.iterdir()) == ["list.csv", "other"]
    assert "No space left on device" in caplog.text
