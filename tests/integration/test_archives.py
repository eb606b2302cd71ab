"""Converting tars, zip archives and parquet files without unpacking: the results are those of the same files in a folder."""

import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import files_in, write_parquet, write_tar, write_zip
from audio_files import targets, write
from small_runs import M2D, digest, run

from m2d.audio.decode import load_audio, open_audio
from m2d.cli.check import main as check
from m2d.cli.convert import main as convert
from m2d.cli.pack import main as pack
from m2d.data.convert_folder import convert_wav
from m2d.inference.clips import list_clips


@pytest.fixture
def sounds(tmp_path) -> Path:
    """A folder of sounds of several formats, rates and depths."""
    folder = tmp_path / "sounds"
    write(folder / "b/two.wav", 3200, seed=1)
    write(folder / "a.flac", 4410, 44100, 2, seed=2)
    write(folder / "b/a.ogg", 2400, 8000, seed=3)
    write(folder / "c.mp3", 24000, seed=4)
    write(folder / "d d é.wav", 1600, 22050, seed=5)
    return folder


def archive_of(kind: str, folder: Path, out: Path) -> Path:
    files = files_in(folder)
    if kind == "parquet":
        return write_parquet(out / "x.parquet", [(Path(name).name, content) for name, content in sorted(files.items())])
    if kind.startswith("tar"):
        formats = {"tar": tarfile.GNU_FORMAT, "tar pax": tarfile.PAX_FORMAT, "tar ustar": tarfile.USTAR_FORMAT}
        return write_tar(out / "x.tar", {f"./{name}": content for name, content in reversed(files.items())}, formats[kind])
    return write_zip(out / "x.zip", files, zipfile.ZIP_STORED if kind == "zip stored" else zipfile.ZIP_DEFLATED)


def arrays(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_in(folder).items() if name.endswith(".npy")}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("kind", ["tar", "tar pax", "tar ustar", "zip", "zip stored"])
def test_an_archive_gives_the_files_of_its_folder(tmp_path, sounds, kind, workers):
    archive = archive_of(kind, sounds, tmp_path)
    assert convert([str(sounds), str(tmp_path / "from_folder"), "--suffix", "all"]) == 0
    assert convert([str(archive), str(tmp_path / "from_archive"), "--workers", workers]) == 0
    assert arrays(tmp_path / "from_folder") == arrays(tmp_path / "from_archive") != {}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_parquet_rows_give_the_files_of_a_folder(tmp_path, workers):
    for i in range(11):
        write(tmp_path / f"sounds/{i:02d}.wav", 1600 + i, seed=i)
    archive = archive_of("parquet", tmp_path / "sounds", tmp_path)
    assert convert([str(tmp_path / "sounds"), str(tmp_path / "from_folder")]) == 0
    assert convert([str(archive), str(tmp_path / "from_archive"), "--workers", workers]) == 0
    assert arrays(tmp_path / "from_folder") == arrays(tmp_path / "from_archive") != {}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("program", ["convert", "pack"])
def test_a_pack_of_an_archive_is_that_of_its_folder_to_the_byte(tmp_path, sounds, kind, program):
    archive = archive_of(kind, sounds, tmp_path)
    flags = ["--chunk_clips", "2", "--dtype", "float32"]
    assert convert([str(sounds), "--suffix", "all", "--pack", str(tmp_path / "folder.pack"), *flags]) == 0
    run, flag = (convert, "--pack") if program == "convert" else (pack, "--out")
    assert run([str(archive), flag, str(tmp_path / "archive.pack"), *flags]) == 0
    assert files_in(tmp_path / "folder.pack") == files_in(tmp_path / "archive.pack")


def test_several_archives_give_a_folder_each(tmp_path):
    for shard in ("000", "001"):
        for name in ("a", "b"):
            write(tmp_path / f"sounds/{shard}/{name}.wav", 1600, seed=int(shard))
        write_tar(tmp_path / f"shards/{shard}.tar", files_in(tmp_path / "sounds" / shard) | {"a.json": b"{}"})
    assert convert([str(tmp_path / "shards/*.tar"), str(tmp_path / "out"), "--csv", str(tmp_path / "list.csv")]) == 0
    assert convert([str(tmp_path / "sounds"), str(tmp_path / "from_folder")]) == 0
    assert arrays(tmp_path / "out") == arrays(tmp_path / "from_folder")
    assert (tmp_path / "list.csv").read_text().split()[1:] == [f"out/{s}/{n}.npy" for s in ("000", "001") for n in "ab"]


def test_what_cannot_be_read_is_named_and_the_rest_is_converted(tmp_path):
    good = write(tmp_path / "good.wav").read_bytes()
    files = [("bad.wav", b"no audio" * 9), ("good.wav", good), ("good.wav", good), ("../out.wav", good), ("/abs.wav", good)]
    archive = write_tar(tmp_path / "x.tar", [*files, ("sub/../../up.wav", good), ("note.txt", b"hello")])
    report = convert_wav(archive, tmp_path / "out/lms")
    assert targets(tmp_path) == {"out/lms/good.npy"}
    failed = (tmp_path / "out/lms/failed.csv").read_text()
    for words in ("bad.wav cannot be read as audio", "has the name of another", "leads out of its archive"):
        assert words in failed
    assert failed.count("leads out") == 3
    assert "6 files: 1 converted, 0 were there already, 5 failed" in str(report)


@pytest.mark.parametrize("cut", [700, 5000, 9000, 9216])
def test_of_a_tar_that_is_cut_short_what_is_whole_is_converted(tmp_path, cut, caplog):
    files = {f"{i}.wav": write(tmp_path / f"{i}.wav", seed=i).read_bytes() for i in range(4)}  # 512 + 3584 bytes each
    archive = write_tar(tmp_path / "x.tar", files)
    archive.write_bytes(archive.read_bytes()[:cut])
    whole = cut // 4096
    status = convert([str(archive), str(tmp_path / "out")])
    assert targets(tmp_path) == {f"out/{i}.npy" for i in range(whole)}
    assert status == (1 if whole else 2)
    assert "cut short" in (tmp_path / "out/failed.csv").read_text() if whole else "x.tar" in caplog.text


def test_a_tar_with_a_damaged_header_is_read_up_to_it(tmp_path):
    archive = write_tar(tmp_path / "x.tar", {f"{i}.wav": write(tmp_path / f"{i}.wav", seed=i).read_bytes() for i in range(3)})
    content = bytearray(archive.read_bytes())
    content[4096 : 4096 + 200] = bytes(range(1, 201))
    archive.write_bytes(content)
    assert convert([str(archive), "--pack", str(tmp_path / "x.pack")]) == 1
    assert "x.tar is damaged or cut short at byte 4096" in (tmp_path / "x.pack/failed.csv").read_text()


def test_a_damaged_member_of_a_zip_fails_alone(tmp_path):
    files = {f"{i}.wav": write(tmp_path / f"{i}.wav", seed=i).read_bytes() for i in range(3)}
    archive = write_zip(tmp_path / "x.zip", files, zipfile.ZIP_STORED)
    content = archive.read_bytes()
    place = content.index(files["1.wav"]) + 1000
    archive.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert convert([str(archive), str(tmp_path / "out")]) == 1
    assert targets(tmp_path) == {"out/0.npy", "out/2.npy"}
    assert "1.wav is damaged: its size or checksum" in (tmp_path / "out/failed.csv").read_text()


def test_a_zip_does_not_unpack_more_than_its_directory_says(tmp_path):
    bomb = write_zip(tmp_path / "x.zip", {"a.wav": bytes(1 << 26), "b.wav": write(tmp_path / "b.wav").read_bytes()})
    content = bytearray(bomb.read_bytes())
    (directory,) = struct.unpack_from("<L", content, content.rindex(b"PK\x05\x06") + 16)
    struct.pack_into("<LL", content, directory + 16, zlib.crc32(b""), len(content) // 2)
    struct.pack_into("<L", content, directory + 24, 1000)
    bomb.write_bytes(content)
    assert convert([str(bomb), str(tmp_path / "out")]) == 1
    assert "a.wav is damaged" in (tmp_path / "out/failed.csv").read_text()
    assert targets(tmp_path) == {"out/b.npy"}


def test_members_that_say_to_be_huge_are_left_out_unread(tmp_path):
    archive = write_tar(tmp_path / "x.tar", {"good.wav": write(tmp_path / "good.wav").read_bytes()})
    header = tarfile.TarInfo("huge.wav")
    header.size = 1 << 40
    archive.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + archive.read_bytes())
    assert convert([str(archive), str(tmp_path / "out")]) == 2
    sparse = tmp_path / "y.tar"
    good = tmp_path / "x.tar"
    with sparse.open("wb") as file:  # 2 GiB of a hole, then a whole tar
        header.size = 1 << 31
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.seek(1 << 31, os.SEEK_CUR)
        file.write(good.read_bytes()[512:])
    assert convert([str(sparse), str(tmp_path / "out")]) == 1
    assert "huge.wav has 2048 MiB; at most 1024" in (tmp_path / "out/failed.csv").read_text()
    assert targets(tmp_path) == {"out/good.npy"}


def test_links_and_long_headers_of_a_tar_are_not_followed(tmp_path):
    secret = write(tmp_path / "secret.wav")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        archive.add(secret, "good.wav")
    assert convert([str(tmp_path / "x.tar"), str(tmp_path / "out")]) == 1
    assert "link.wav is a link" in (tmp_path / "out/failed.csv").read_text()
    assert targets(tmp_path) == {"out/good.npy"}


def test_rows_of_parquet_without_bytes_or_names(tmp_path):
    content = write(tmp_path / "a.wav").read_bytes()
    rows = [(None, content), ("/home/me/../x/a.wav", content), ("a.wav", content), ("b.wav", None), ("c.wav", b"no audio" * 9)]
    assert convert([str(write_parquet(tmp_path / "x.parquet", rows)), str(tmp_path / "out")]) == 1
    assert targets(tmp_path) == {"out/00000000.npy", "out/a.npy"}
    failed = (tmp_path / "out/failed.csv").read_text()
    assert "b.wav has no audio bytes in its row" in failed and "c.wav cannot be read as audio" in failed
    assert "has the name of another" in failed


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("column", "words"), [(1, "is in a damaged row group"), (2, "row group 1 is damaged")])
def test_a_damaged_row_group_leaves_the_others(tmp_path, workers, column, words):
    rows = [(f"{i}.wav", write(tmp_path / f"{i}.wav", seed=i).read_bytes()) for i in range(6)]
    archive = write_parquet(tmp_path / "x.parquet", rows, group=2)
    chunk = pq.read_metadata(archive).row_group(1).column(column)
    assert chunk.path_in_schema == ("", "audio.bytes", "audio.path")[column]
    place = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    content = bytearray(archive.read_bytes())
    content[place : place + 20] = b"\xff" * 20
    archive.write_bytes(content)
    report = convert_wav(archive, tmp_path / "out", workers=workers)
    assert targets(tmp_path) == {f"out/{i}.npy" for i in (0, 1, 4, 5)}
    assert report.failed and all(words in reason for reason in report.failed.values())


def refused(caplog, words: str, *arguments: object) -> None:
    caplog.clear()
    assert convert([*map(str, arguments)]) == 2
    assert words in caplog.text and len(caplog.text.strip().splitlines()) == 1


def test_archives_that_cannot_be_used_are_refused_in_one_line(tmp_path, caplog):
    out = tmp_path / "out"
    (tmp_path / "text.tar").write_text("no tar" * 1000)
    (tmp_path / "empty.tar").touch()
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "text.parquet").write_text("no parquet")
    refused(caplog, "text.tar: no tar", tmp_path / "text.tar", out)
    refused(caplog, "empty.tar: no tar", tmp_path / "empty.tar", out)
    refused(caplog, "text.zip: no zip archive", tmp_path / "text.zip", out)
    refused(caplog, "text.parquet: no parquet file", tmp_path / "text.parquet", out)
    refused(caplog, "no archive", tmp_path / "*.tgz", out)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(write(tmp_path / "a.wav"), "a.wav")
    refused(caplog, "compressed by gzip", tmp_path / "x.tar.gz", out)
    refused(caplog, "there is no file with the suffix", write_tar(tmp_path / "t.tar", {"a.txt": b""}), out)
    pq.write_table(pa.table({"id": [1], "image": [b""]}), tmp_path / "i.parquet")
    refused(caplog, "no column of audio bytes in it (its columns: id, image)", tmp_path / "i.parquet", out)
    whole = write_parquet(tmp_path / "y.parquet", [("a.wav", b"x" * 3000)]).read_bytes()
    (tmp_path / "y.parquet").write_bytes(whole[:-500])
    refused(caplog, "y.parquet: no parquet file, or damaged", tmp_path / "y.parquet", out)


def test_one_broken_archive_of_several_is_left_out(tmp_path):
    write_tar(tmp_path / "1.tar", {"a.wav": write(tmp_path / "a.wav").read_bytes()})
    (tmp_path / "2.tar").write_text("no tar" * 1000)
    assert convert([str(tmp_path / "?.tar"), str(tmp_path / "out")]) == 1
    assert targets(tmp_path) == {"out/1/a.npy"}
    assert "2.tar: no tar" in (tmp_path / "out/failed.csv").read_text()


def test_a_run_on_an_archive_continues(tmp_path, sounds):
    archive = archive_of("zip", sounds, tmp_path)
    convert_wav(archive, tmp_path / "out")
    (tmp_path / "out/a.npy").unlink()
    assert "5 files: 1 converted, 4 were there already, 0 failed" in str(convert_wav(archive, tmp_path / "out"))


def test_bytes_and_open_files_are_decoded_as_their_file(sounds):
    for path in sorted(sounds.rglob("*.*")):
        expected = load_audio(path, 16000)
        assert np.array_equal(load_audio(path.read_bytes(), 16000, path.name), expected)
        with path.open("rb") as file:
            assert np.array_equal(load_audio(file, 16000), expected)
            assert not file.closed


def test_messages_about_bytes_name_them(tmp_path):
    with pytest.raises(ValueError, match="clip 7 cannot be read as audio"):
        open_audio(b"no audio" * 20, 16000, "clip 7")
    with pytest.raises(ValueError, match="the audio is empty"):
        open_audio(b"", 16000)


@pytest.mark.usefixtures("small_workplace")
def test_training_on_a_pack_of_tars_is_training_on_the_files(tmp_path):
    for i in range(24):
        write(tmp_path / f"sounds/{i % 3}/{i:02d}.wav", 8000 + 500 * i, seed=i)
    shards = [write_tar(tmp_path / f"{k}.tar", files_in(tmp_path / f"sounds/{k}")) for k in range(3)]
    convert_wav(tmp_path / "sounds", "data/lms", csv="data/list.csv", min_length=None)
    convert_wav(tmp_path / "?.tar", pack="tars.pack", dtype="float32", chunk_clips=7, min_length=None)
    assert run(M2D, "--csv_main data/list.csv --output_dir files") == 0
    for shard in shards:
        shard.unlink()
    assert run(M2D, "--csv_main tars.pack --output_dir tars") == 0
    assert digest(Path("files/last.pth")) == digest(Path("tars/last.pth"))


def sharded(source: Path, count: int, *flags: str) -> list[int]:
    """Convert in shards, the last one first; returns the exit statuses."""
    return [convert([str(source), *flags, "--shard", f"{number}/{count}"]) for number in range(count, 0, -1)]


@pytest.mark.parametrize("count", [2, 5])
def test_shards_and_a_last_run_leave_what_one_run_does(tmp_path, count):
    for i in range(7):
        write(tmp_path / f"sounds/{i}.wav", seed=i)
    (tmp_path / "sounds/2.wav").write_bytes(b"no audio" * 9)
    archive = write_tar(tmp_path / "x.tar", files_in(tmp_path / "sounds"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert convert([str(archive), str(whole / "lms"), "--csv", str(whole / "list.csv")]) == 1
    assert sorted(sharded(archive, count, str(parts / "lms"))) == [*[0] * (count - 1), 1]
    assert {path.name.startswith("failed-") for path in (parts / "lms").glob("*.csv")} == {True}
    assert len(targets(parts)) == 6
    assert convert([str(archive), str(parts / "lms"), "--csv", str(parts / "list.csv")]) == 1
    assert files_in(parts) == files_in(whole)


@pytest.mark.parametrize("count", [2, 5])
def test_shards_of_a_pack_leave_what_one_run_does(tmp_path, count):
    files = [(f"{i}.wav", write(tmp_path / f"{i}.wav", seed=i).read_bytes()) for i in range(7)]
    archive = write_tar(tmp_path / "x.tar", [*files[:6], ("6.wav", b"no audio" * 9), files[0]])
    flags = ["--chunk_clips", "2", "--pack"]
    assert convert([str(archive), *flags, str(tmp_path / "whole.pack")]) == 1
    statuses = sharded(archive, count, *flags, str(tmp_path / "parts.pack"))
    assert sorted(statuses) == [*[0] * (count - 2), 1, 1]  # the damaged file, and the one that is there twice
    assert convert([str(archive), *flags, str(tmp_path / "parts.pack")]) == 1
    assert files_in(tmp_path / "parts.pack") == files_in(tmp_path / "whole.pack")


def test_a_shard_writes_no_list(tmp_path, caplog):
    flags = [str(write(tmp_path / "s/a.wav").parent), str(tmp_path / "out"), "--csv", str(tmp_path / "l.csv"), "--shard", "1/2"]
    refused(caplog, "--csv lists the files of all shards", *flags)


def test_a_pack_of_an_archive_that_has_changed_is_made_again(tmp_path):
    def packed(seed: int) -> bytes:
        write_tar(tmp_path / "x.tar", {"a.wav": write(tmp_path / "a.wav", seed=seed).read_bytes()})
        convert_wav(tmp_path / "x.tar", pack=tmp_path / "x.pack")
        return (tmp_path / "x.pack/chunk-00000.frames.npy").read_bytes()

    first = packed(0)
    for path in (tmp_path / "x.pack").iterdir():
        os.utime(path, ns=(0, 0))
    assert packed(1) != first


@pytest.mark.parametrize("program", ["convert", "pack"])
def test_a_worker_that_dies_stops_the_run_in_one_line(tmp_path, sounds, caplog, monkeypatch, program):
    def dies(*arguments, **options):
        raise RuntimeError("a worker process died")

    monkeypatch.setattr("m2d.data.convert_folder.convert_all", dies)
    run, flag = (convert, "--pack") if program == "convert" else (pack, "--out")
    assert run([str(archive_of("tar", sounds, tmp_path)), flag, str(tmp_path / "x.pack")]) == 1
    assert "a worker process died" in caplog.text


def test_programs_that_take_no_archives_say_which_do(tmp_path, sounds, caplog, capsys):
    archive = archive_of("tar", sounds, tmp_path)
    assert check([str(archive)]) == 2 and "an archive, no list" in caplog.text
    with pytest.raises(ValueError, match="archives are read by m2d convert and m2d pack"):
        list_clips([archive])
    assert run(M2D, f"--csv_main {archive} --output_dir {tmp_path / 'run'}") == 2
    assert f"{archive}: an archive, no list; m2d pack {archive} --out" in capsys.readouterr().out
