"""No program replaces a file that it did not write, or one of its inputs: each refuses before any work."""

import os
from pathlib import Path

import numpy as np
import pytest
from app_data import prepare_lungs, prepared_lungs, write_icbhi
from audio_files import write

from app import finetune
from m2d.cli import report
from m2d.data.clip_list import read_list
from m2d.data.file_store import NpyStore
from m2d.data.pack.format import PackInfo
from m2d.data.pack.writer import packing, start_pack
from m2d.utils.shard import WHOLE
from util import make_as_weighted_list
from wav_to_lms import convert_wav

FOREIGN = "file_name,label\nmine.npy,1\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write(tmp_path / f"src/{name}.wav")
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuses(call, words: str, folder: Path = Path()) -> None:
    before = snapshot(folder)
    with pytest.raises(ValueError, match=words):
        call()
    assert snapshot(folder) == before


# ---------------------------------------------------------------- the converter


def test_a_list_with_more_columns_is_not_replaced_by_the_converters():
    Path("list.csv").write_text(FOREIGN)
    refuses(lambda: convert_wav("src", "lms", csv="list.csv", workers=1), "list.csv is there already")
    convert_wav("src", "lms", csv="list.csv", workers=1, overwrite=True)
    assert Path("list.csv").read_text() == "file_name\nlms/a.npy\nlms/b.npy\n"


def test_a_list_of_other_files_is_not_replaced():
    Path("list.csv").write_text("file_name\nlms/a.npy\nother/c.npy\n")
    refuses(lambda: convert_wav("src", "lms", csv="list.csv", workers=1), "list.csv is there already")


def test_the_converters_own_list_grows():
    convert_wav("src", "lms", csv="list.csv", workers=1)
    write(Path("src/c.wav"))
    convert_wav("src", "lms", csv="list.csv", workers=1)
    assert len(Path("list.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("target", [{"to_dir": "out"}, {"pack": "out"}])
def test_a_users_failed_csv_is_neither_replaced_nor_removed(target):
    Path("out").mkdir()
    Path("out/failed.csv").write_text(FOREIGN)
    refuses(lambda: convert_wav("src", workers=1, **target), "failed.csv is there already")


def test_the_converters_own_failed_csv_is_replaced_and_removed():
    Path("src/bad.wav").write_bytes(b"not audio")
    for _ in range(2):
        convert_wav("src", "out", workers=1)
        assert Path("out/failed.csv").exists()
    Path("src/bad.wav").unlink()
    convert_wav("src", "out", workers=1)
    assert not Path("out/failed.csv").exists()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_input_is_not_replaced_under_another_name(link):
    Path("src/list.csv").write_text("not audio")
    link(os.path.abspath("src/list.csv"), "list.csv")
    refuses(lambda: convert_wav("src", "lms", suffix="wav,csv", csv="list.csv", workers=1, overwrite=True), "is an input")


# ---------------------------------------------------------------- packs


def test_a_second_packer_says_so(folder, caplog):
    np.save("a.npy", np.zeros((1, 80, 20), np.float32))
    Path("list.csv").write_text("file_name\na.npy\n")
    clips = read_list("list.csv")
    info = PackInfo(clips.digest(), 1, 8192, "float16", 80, 0, ("file_name",))
    start_pack("x.pack", info)
    child = os.fork()
    if child == 0:
        with packing("x.pack"):
            Path("held").touch()
            while not Path("done").exists():
                pass
        os._exit(0)
    while not Path("held").exists():
        pass
    from m2d.cli import pack

    try:
        refuses(lambda: pack.pack(NpyStore(clips, ".", 80), clips, Path("x.pack"), info, WHOLE, 1), "another process is packing")
    finally:
        Path("done").touch()
        os.waitpid(child, 0)
    assert pack.pack(NpyStore(clips, ".", 80), clips, Path("x.pack"), info, WHOLE, 1) == 1
    assert not list(Path("x.pack").glob("*.lock"))


# ---------------------------------------------------------------- lists, pictures and checkpoints


def test_the_weighted_list(caplog):
    Path("list.csv").write_text("file_name\na.npy\n")
    Path("out.csv").write_text(FOREIGN)
    call = ["--org_list", "list.csv", "--segments", "none"]
    for name, words in (("out.csv", "out.csv is there already"), ("list.csv", "is an input")):
        assert make_as_weighted_list.main([*call, "--to_list", name]) == 2
        assert words in caplog.text
    assert Path("out.csv").read_text() == FOREIGN and Path("list.csv").read_text() == "file_name\na.npy\n"


def test_lists_of_an_application(folder, caplog):
    recordings = write_icbhi(folder / "ICBHI final database")
    assert prepare_lungs(recordings, folder) == 0
    before = snapshot(folder / "data")
    assert prepare_lungs(recordings, folder) == 2 and snapshot(folder / "data") == before
    assert "segments.csv is there already" in caplog.text
    assert prepare_lungs(recordings, folder, "--overwrite") == 0 and snapshot(folder / "data") == before


def test_fine_tuning_does_not_replace_the_weights_it_starts_from(folder, caplog):
    data = prepared_lungs(folder)
    Path("run").mkdir()
    Path("run/checkpoint.pth").write_bytes(b"fine-tuned before")
    flags = [str(data / "segments.csv"), "--output_dir", "run"]
    assert finetune.main([*flags, "--weights", "m2d_vit_tiny-80x208p16x16-random"]) == 2
    assert "checkpoint.pth is there already" in caplog.text
    for weights in ("run/checkpoint.pth", "run"):
        caplog.clear()
        assert finetune.main([*flags, "--weights", weights, "--overwrite"]) == 2
        assert "is an input" in caplog.text
    assert snapshot(folder / "run") == {"checkpoint.pth": b"fine-tuned before"}


def test_the_picture_of_a_run(caplog):
    Path("learned.png").write_bytes(b"a photograph")
    Path("list.csv").write_text("file_name\na.npy\n")
    Path("run").mkdir()
    Path("run/run.json").write_text('{"starts": [], "settings": {}}')
    assert report.main(["run", "--csv", "list.csv", "--out", "learned.png"]) == 2
    assert "learned.png is there already" in caplog.text and Path("learned.png").read_bytes() == b"a photograph"


# ---------------------------------------------------------------- names in lists


@pytest.mark.parametrize("name", ["a\rb", "a\nb", 'a"b', '"ab', "a,b", " a ", "é"])
def test_any_name_survives_the_converters_list(name):
    Path("src/a.wav").rename(f"src/{name}.wav")
    Path("src/bad.wav").write_bytes(b"not audio")
    convert_wav("src", "lms", csv="list.csv", workers=1)
    assert set(read_list("list.csv").names) == {f"lms/{name}.npy", "lms/b.npy"}
    convert_wav("src", "lms", csv="list.csv", workers=1)  # it is recognised as its own
