"""One folder of every odd file through every program that takes audio: each file is done whole, or named."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import write_fine_tuned
from odd_audio import OddFolder, make_odd_folder

import wav_to_lms
from m2d.cli import check
from m2d.data.clip_list import read_list
from m2d.data.pack.format import read_info
from m2d.data.pack.index import read_index, text_column
from m2d.inference import embed, tag
from m2d.utils.names import shown

pytest.importorskip("av")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names and kinds of files that other systems do not have")


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> OddFolder:
    return make_odd_folder(tmp_path_factory.mktemp("odd") / "src")


@pytest.fixture(scope="module")
def lms(odd) -> Path:
    """The folder, converted; the program's exit status is in `status`."""
    folder = odd.path.parent
    flags = ["--suffix", "all", "--min_length", "None", "--csv", str(folder / "list.csv"), "--workers", "2"]
    status = wav_to_lms.main([str(odd.path), str(folder / "lms"), *flags])
    (folder / "status").write_text(str(status))
    return folder / "lms"


def target(name: str) -> str:
    return name.rpartition(".")[0] + ".npy"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as table:
        return list(csv.DictReader(table))


def assert_refused_are_named(odd: OddFolder, reasons: dict[str, str]) -> None:
    assert reasons.keys() == odd.refused.keys()
    for name, reason in reasons.items():
        assert odd.refused[name] in reason and Path(name).name in reason


def test_the_converter_does_or_names_each_file(odd, lms):
    assert (lms.parent / "status").read_text() == "1"
    assert_refused_are_named(odd, {row["file_name"]: row["reason"] for row in rows(lms / "failed.csv")})
    done = {str(path.relative_to(lms)): np.load(path).shape[-1] for path in lms.rglob("*.npy")}
    assert done.keys() == {target(name) for name in odd.seconds}
    # Of a lossy file, what encoders put before and behind the sound is a part.
    extra = {name: done[target(name)] - 1 - int(100 * seconds) for name, seconds in odd.seconds.items()}
    assert not {name: frames for name, frames in extra.items() if not -3 <= frames <= 13}
    assert sorted(read_list(lms.parent / "list.csv").names) == sorted(f"lms/{target(name)}" for name in odd.seconds)


def test_what_is_wrong_with_files_that_were_read_is_said(odd, tmp_path, caplog):
    caplog.set_level("INFO")
    assert wav_to_lms.main([str(odd.path), str(tmp_path / "lms"), "--suffix", "all", "--workers", "1"]) == 1
    for name, words in odd.warned.items():
        assert re.search(f"{re.escape(name)} {words}", caplog.text)
    assert f"{len(odd.refused)} failed, {len(odd.warned)} with warnings, 0.5 s of sound left out" in caplog.text
    assert "not taken" not in caplog.text


def test_the_packer_does_or_names_each_file(odd, tmp_path):
    pack = tmp_path / "all.pack"
    assert wav_to_lms.main([str(odd.path), "--pack", str(pack), "--suffix", "all", "--workers", "2"]) == 1
    assert_refused_are_named(odd, {row["file_name"]: row["reason"] for row in rows(pack / "failed.csv")})
    info = read_info(pack)
    packed = [name for chunk in range(info.chunks) for name in text_column(read_index(pack, info, chunk), "file_name")]
    assert sorted(packed) == sorted(map(target, odd.seconds))


def test_check_data_finds_what_the_converter_could_not_see(odd, lms, capsys):
    assert check.main([str(lms.parent / "list.csv"), "--data_path", str(lms.parent), "--input_frames", "40"]) == 1
    found = {row["file_name"]: row["problem"] for row in rows(lms.parent / "list.csv.problems.csv")}
    assert found.pop("lms/warned/loud.npy") == "beyond full scale"
    assert set(found.values()) == {"same content as another"}  # many names, one sound


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_fine_tuned(tmp_path_factory.mktemp("weights"), classes=4, width=192)


def test_embed_does_or_names_each_file(odd, weights, tmp_path, caplog):
    caplog.set_level("INFO")
    arguments = [str(odd.path), "--weights", str(weights), "--out", str(tmp_path / "e.npz"), "--device", "cpu"]
    assert embed.main(arguments) == 1
    with np.load(tmp_path / "e.npz") as saved:
        files, embeddings = list(saved["files"]), saved["embeddings"]
    assert sorted(Path(file).relative_to(odd.path).as_posix() for file in files) == sorted(odd.seconds)
    assert len(embeddings) == len(files) and np.isfinite(embeddings).all()
    assert_left_out_in_log(odd, caplog.text)


def test_tag_does_or_names_each_file(odd, weights, capsys, caplog):
    caplog.set_level("INFO")
    assert tag.main([str(odd.path), "--weights", str(weights), "--top", "1", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        shown(path) for path in sorted(odd.path / name for name in odd.seconds)
    ]
    assert_left_out_in_log(odd, caplog.text)


def assert_left_out_in_log(odd: OddFolder, log: str) -> None:
    for name, words in odd.refused.items():
        assert re.search(f"left out: .*{re.escape(name)} .*{re.escape(words)}", log)
    for name, words in odd.warned.items():
        assert re.search(f"{re.escape(name)} {words}", log)
    assert f"{len(odd.refused)} left out, {len(odd.warned)} with warnings, 0.5 s of sound left out" in log
    assert not {"\x1b", "\r"} & set(log)
