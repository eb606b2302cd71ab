"""Training on packs at addresses, by fsspec's file systems of memory and of local files, through a cache of bounded size."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from small_runs import M2D, SPEECH, digest, run, write_list, write_pairs

from m2d.cli.check import main as check
from m2d.cli.pack import main as pack_lms
from m2d.data.open import open_store
from m2d.utils import remote
from m2d.utils.cache import BlockCache
from m2d.utils.errors import FileError, UserError

pytestmark = pytest.mark.usefixtures("small_workplace", "block_cache")


def packed(csv: Path) -> Path:
    out = csv.with_suffix(".pack").absolute()
    assert pack_lms([str(csv), "--out", str(out), "--dtype", "float32", "--chunk_clips", "7"]) == 0
    return out


def uploaded(pack: Path) -> str:
    """The address of a copy in memory."""
    for path in pack.iterdir():
        fsspec.filesystem("memory").pipe(f"/bucket/{pack.name}/{path.name}", path.read_bytes())
    return f"memory://bucket/{pack.name}"


def weights_of(lists: str, out: str, program: str = M2D) -> str:
    assert run(program, f"--csv_main {lists} --output_dir {out}") == 0
    return digest(Path(out) / "last.pth")


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_remote_packs_is_the_run_on_local_ones(block_cache, monkeypatch, workers):
    monkeypatch.setenv("M2D_CACHE_GB", "0.0004")  # less than the packs have
    first, second = packed(write_list("a", clips=20)), packed(write_list("b", clips=28, seed=1))
    flags = f"--min_ds_size 0 --num_workers {workers}"
    expected = weights_of(f"{first}:2,{second} {flags}", "local")
    assert used(first) + used(second) > 400_000
    assert weights_of(f"{uploaded(first)}:2,{second} {flags}", "one") == expected
    assert weights_of(f"file://{first}:2,{uploaded(second)} {flags}", "both") == expected
    assert 0 < used(block_cache) <= 400_100  # and the file that counts


def test_a_run_on_remote_speech_is_the_run_on_local_speech():
    pack = packed(write_pairs("a", clips=24))
    flags = "--loss_off 0.5 --noise_ratio 0"
    assert weights_of(f"{uploaded(pack)} {flags}", "far", SPEECH) == weights_of(f"{pack} {flags}", "near", SPEECH)


def test_what_is_in_the_cache_is_not_fetched_again(monkeypatch):
    pack = packed(write_list("a", clips=20))
    address = uploaded(pack)
    clips, u = np.arange(20), np.linspace(0, 0.99, 20)
    expected = open_store(pack, "").read_crops(clips, u, 20)
    assert np.array_equal(open_store(address, "").read_crops(clips, u, 20), expected)
    monkeypatch.setattr(remote, "_ask", None)
    assert np.array_equal(open_store(address, "").read_crops(clips, u, 20), expected)


def test_a_pack_that_was_replaced_is_read_from_its_new_files():
    address = uploaded(packed(write_list("a", clips=20)))
    before = open_store(address, "")
    old = before.read_crops(np.arange(20), np.zeros(20), 20)
    other = packed(write_list("b", clips=20, seed=1))
    for path in other.iterdir():
        fsspec.filesystem("memory").pipe(f"/bucket/files_a.pack/{path.name}", path.read_bytes())
    after, clips = open_store(address, ""), np.arange(20)
    new = after.read_crops(clips, np.zeros(20), 20)
    assert np.array_equal(new, open_store(other, "").read_crops(clips, np.zeros(20), 20)) and not np.array_equal(new, old)
    assert after.fingerprint(np.arange(3)) != before.fingerprint(np.arange(3))


def test_a_block_of_the_cache_that_is_cut_short_is_fetched_again(block_cache):
    address = uploaded(packed(write_list("a", clips=20)))
    expected = open_store(address, "").read_crops(np.arange(20), np.zeros(20), 20)
    for path in block_cache.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(open_store(address, "").read_crops(np.arange(20), np.zeros(20), 20), expected)


def test_threads_and_stores_share_a_small_cache(block_cache, monkeypatch):
    monkeypatch.setenv("M2D_CACHE_GB", "0.00033")
    pack = packed(write_list("a", clips=40))
    stores = [open_store(uploaded(pack), ""), open_store(f"file://{pack}", "")]
    clips, u = np.arange(40), np.linspace(0, 0.99, 40)
    expected = open_store(pack, "").read_crops(clips, u, 20)
    with ThreadPoolExecutor(8) as pool:
        for crops in pool.map(lambda k: stores[k % 2].read_crops(clips, u, 20), range(24)):
            assert np.array_equal(crops, expected)
    assert used(block_cache) <= 330_100


def test_the_blocks_that_were_not_used_for_longest_are_removed_first(tmp_path):
    cache, out = BlockCache(tmp_path / "blocks", 1000), memoryview(bytearray(100))
    for k in range(10):
        cache.add(f"b{k}", bytes([k]) * 100)
    for k in range(10):
        os.utime(tmp_path / f"blocks/b{k}", (k, k))
    assert cache.read_into("b0", 100, 0, out) and bytes(out) == bytes(100)
    cache.add("new", bytes(100))
    assert {path.name for path in (tmp_path / "blocks").iterdir()} == {"size", "b0", "new", *(f"b{k}" for k in range(3, 10))}
    assert not cache.read_into("b1", 100, 0, out)


@pytest.mark.parametrize("content", [b"", b"no number", b"999999999", b"0"])
def test_a_wrong_count_is_put_right_when_blocks_are_removed(tmp_path, content):
    cache = BlockCache(tmp_path, 1000)
    (tmp_path / "size").write_bytes(content)
    for k in range(30):
        cache.add(f"b{k}", bytes(100))
    assert 500 <= used(tmp_path) <= 1010


def line_of(capsys, lists: str) -> str:
    assert run(M2D, f"--csv_main {lists} --output_dir no") == 2
    return capsys.readouterr().out.strip().splitlines()[-1]


def test_what_cannot_be_read_is_one_clear_line(capsys, monkeypatch):
    pack = packed(write_list("a", clips=20))
    address = uploaded(pack)
    files = fsspec.filesystem("memory")
    assert "memory://bucket/not_there.pack: no pack (a folder with a pack.json" in line_of(
        capsys, "memory://bucket/not_there.pack"
    )
    assert "unheard-of:// is no protocol that fsspec knows" in line_of(capsys, "unheard-of://bucket/files_a.pack")
    monkeypatch.setenv("M2D_CACHE_GB", "much")
    assert "M2D_CACHE_GB is 'much', expected a number of gigabytes" in line_of(capsys, address)
    monkeypatch.delenv("M2D_CACHE_GB")
    files.pipe("/bucket/files_a.pack/chunk-00001.frames.npy", (pack / "chunk-00001.frames.npy").read_bytes()[:-1])
    assert "memory://bucket/files_a.pack/chunk-00001.frames.npy: " in (line := line_of(capsys, address)) and "cut short" in line
    files.pipe("/bucket/files_a.pack/chunk-00001.index.npz", b"damaged")
    assert "memory://bucket/files_a.pack/chunk-00001.index.npz: damaged" in line_of(capsys, address)
    files.rm("/bucket/files_a.pack/chunk-00001.index.npz")
    assert "memory://bucket/files_a.pack: 1 of its 3 chunks are not there" in line_of(capsys, address)
    files.pipe("/bucket/files_a.pack/pack.json", json.dumps({"format": "other"}).encode())
    assert "memory://bucket/files_a.pack/pack.json: not what m2d pack writes" in line_of(capsys, address)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "pip install 'm2d-audio[remote]'" in line_of(capsys, address)


def test_a_file_that_changes_or_fails_during_a_run_stops_it(monkeypatch):
    pack = packed(write_list("a", clips=20))
    store = open_store(uploaded(pack), "")
    fsspec.filesystem("memory").pipe("/bucket/files_a.pack/chunk-00002.frames.npy", b"short")
    with pytest.raises(
        FileError, match=r"memory://bucket/files_a.pack/chunk-00002.frames.npy cannot be fetched \(.* bytes came of"
    ):
        store.read_crops(np.arange(20), np.zeros(20), 20)
    fsspec.filesystem("memory").rm("/bucket/files_a.pack", recursive=True)
    with pytest.raises(FileError, match=r"cannot be fetched \(FileNotFoundError"):
        store.read_crops(np.arange(20), np.zeros(20), 20)


def test_what_comes_short_is_asked_for_again(monkeypatch):
    pack = packed(write_list("a", clips=20))
    store, ask, asked = open_store(uploaded(pack), ""), remote._ask, []

    def unreliable(blocks):
        asked.append(len(blocks))
        answers = list(ask(blocks))
        return answers if len(asked) % 3 == 0 else [OSError("reset"), *answers[1:]]

    monkeypatch.setattr(remote, "_ask", unreliable)
    expected = open_store(pack, "").read_crops(np.arange(20), np.zeros(20), 20)
    assert np.array_equal(store.read_crops(np.arange(20), np.zeros(20), 20), expected)
    assert asked[1:3] == [1, 1]


def test_a_cache_that_cannot_be_written_is_named(block_cache):
    address = uploaded(packed(write_list("a", clips=20)))
    block_cache.parent.mkdir()
    block_cache.write_text("a file in its place")
    with pytest.raises(UserError, match="cache.*M2D_CACHE"):
        open_store(address, "")


@pytest.mark.parametrize("command", [check, lambda words: pack_lms(["--verify", *words])])
def test_a_pack_is_checked_where_it_is(block_cache, caplog, command):
    caplog.set_level("INFO")
    pack = packed(write_list("a", clips=20))
    address = uploaded(pack)
    assert command([address]) == 0 and f"{address}: whole" in caplog.text
    assert used(block_cache) < 50_000  # the indices alone: clips are read once, past the cache
    content, files = bytearray((pack / "chunk-00001.frames.npy").read_bytes()), fsspec.filesystem("memory")
    content[200] ^= 1
    files.pipe("/bucket/files_a.pack/chunk-00001.frames.npy", bytes(content))
    files.pipe("/bucket/files_a.pack/chunk-00000.frames.npy", (pack / "chunk-00000.frames.npy").read_bytes()[:-1])
    files.rm("/bucket/files_a.pack/chunk-00002.index.npz")
    assert command([address]) == 1
    for words in ("chunk-00002.index.npz: not there", "chunk-00000.frames.npy: ", "chunk-00001.frames.npy: ", "in 3 places"):
        assert f"{address}/{words}" in caplog.text or f"{address}: damaged {words}" in caplog.text
    files.pipe("/bucket/files_a.pack/chunk-00001.index.npz", b"damaged")
    assert command([address]) == 1 and f"{address}/chunk-00001.index.npz: damaged" in caplog.text
    assert command(["memory://bucket/none.pack"]) == 2 and "memory://bucket/none.pack: no pack" in caplog.text


def test_a_pack_is_checked_whole(capsys):
    pack = packed(write_list("a", clips=20))
    with pytest.raises(SystemExit):
        check([str(pack), "--sample", "3"])
    assert "--out and --sample are for lists" in capsys.readouterr().err
