"""Packs from elsewhere: whatever is in their files, reading them ends in one error that names the file, or in clips."""

import io
import json
import os
import zipfile

import numpy as np
import pytest

from m2d.data.norm_stats import cached_stats
from m2d.data.pack.format import PackInfo, chunk_path, info_path, read_info
from m2d.data.pack.from_audio import _read_reasons
from m2d.data.pack.index import read_index
from m2d.data.pack.store import PackFeatureStore, PackStore
from m2d.data.pack.writer import pack_clip, start_pack, write_chunk
from m2d.utils.errors import FileError

CLIPS, CHUNK, WIDTH = 5, 3, 6


@pytest.fixture
def packed(tmp_path):
    """A pack of five clips with features in two chunks."""
    rng = np.random.default_rng(0)
    info = PackInfo("0" * 64, CLIPS, CHUNK, "float32", 80, WIDTH, ("file_name", "label"))
    folder = tmp_path / "x.pack"
    start_pack(folder, info)
    for chunk in range(info.chunks):
        with write_chunk(folder, info, chunk) as writer:
            for i in range(chunk * CHUNK, min((chunk + 1) * CHUNK, CLIPS)):
                lms = rng.normal(-7, 4, (80, 20 + i)).astype(np.float32)
                clip = pack_clip(lms, "float32", rng.normal(size=(10, WIDTH)).astype(np.float32), 8)
                writer.add(clip, {"file_name": f"{i}.npz", "label": "a,b"})
    return folder


def use(folder):
    """Open a pack in both ways and read all of its clips."""
    for store in (PackStore(folder, optional=("label",)), PackFeatureStore(folder)):
        clips = np.arange(len(store))
        store.read_crops(clips, np.full(len(clips), 0.7), 16)
        for column in store.columns.values():
            assert all(isinstance(text, str) for text in column)
        assert store.where(0)
    store.read_with_features(clips, np.full(len(clips), 0.7), 16)


def test_the_pack_itself_is_read(packed):
    use(packed)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "O"},
        {"dtype": "float64"},
        {"clips": -1},
        {"clips": 10**15},
        {"clips": "5"},
        {"clips": 2.5},
        {"clips": None},
        {"clips": True},
        {"chunk_clips": 0},
        {"chunk_clips": -3},
        {"chunk_clips": 1e300},
        {"chunk_clips": 10**30},
        {"n_mels": 0},
        {"n_mels": -80},
        {"n_mels": [80]},
        {"n_mels": 10**12},
        {"feature_width": -1},
        {"feature_width": 10**15},
        {"columns": []},
        {"columns": "file_name"},
        {"columns": ["label"]},
        {"columns": [1, 2]},
        {"columns": ["file_name", "file_name"]},
        {"columns": ["file_name", "nothing"]},
        {"columns": {"file_name": 1}},
        {"list_digest": 5},
        {"made_from": {}},
        {"version": 2},
        {"version": "1"},
        {"format": "zip"},
    ],
)
def test_settings_of_a_pack_are_checked(packed, change):
    path = info_path(packed)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileError) as caught:
        use(packed)
    assert str(packed) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "5", "null", "{", "\xff\xfe", "[" * 100_000, '{"format": "m2d-pack"}', " " * 2**21]
)
def test_a_pack_json_of_something_else(packed, text):
    info_path(packed).write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=r"pack\.json"):
        read_info(packed)


def index_of(folder, chunk=0):
    with np.load(chunk_path(folder, chunk, "index.npz")) as index:
        return dict(index)


BIG = 10**15
CHANGES = {
    "negative lengths": {"lengths": np.array([20, -5, 48])},
    "lengths as floats": {"lengths": np.array([20.0, 21, 22])},
    "lengths as objects": {"lengths": np.array([20, 21, 22], object)},
    "lengths in a square": {"lengths": np.array([[20, 21, 22]])},
    "more lengths than clips": {"lengths": np.array([20, 21, 22, 0])},
    "a huge length": {"lengths": np.array([20, 21, 2**62])},
    "lengths that overflow": {"lengths": np.array([2**62, 2**62, 2**62])},
    "descending offsets": {"file_name.offsets": np.array([0, 10, 5, 15])},
    "negative offsets": {"file_name.offsets": np.array([0, -5, 5, 15])},
    "offsets behind the blob": {"file_name.offsets": np.array([0, 5, 10, BIG])},
    "offsets that begin late": {"file_name.offsets": np.array([5, 5, 10, 15])},
    "offsets as int32": {"file_name.offsets": np.array([0, 5, 10, 15], np.int32)},
    "no offsets": {"file_name.offsets": np.zeros(0, np.int64)},
    "a column that is shorter": {"label.offsets": np.array([0, 3]), "label.blob": np.frombuffer(b"a,b", np.uint8)},
    "a blob that is no UTF-8": {"file_name.blob": np.full(15, 0xFF, np.uint8)},
    "a blob of wide values": {"file_name.blob": np.zeros(15, np.uint32)},
    "features of other lengths": {"feature_lengths": np.array([10, 10, -10])},
    "more valid features than there are": {"valid": np.array([8, 8, 11])},
    "negative valid features": {"valid": np.array([8, 8, -1])},
    "checksums as floats": {"crc": np.zeros(3)},
    "too few checksums": {"feature_crc": np.zeros(2, np.uint32)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_index_is_checked(packed, change):
    path = chunk_path(packed, 0, "index.npz")
    np.savez(path, **index_of(packed) | change)
    with pytest.raises(FileError) as caught:
        use(packed)
    assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "missing", ["lengths", "crc", "file_name.blob", "file_name.offsets", "label.blob", "valid", "feature_crc"]
)
def test_an_index_without_an_array(packed, missing):
    index = index_of(packed)
    del index[missing]
    np.savez(chunk_path(packed, 0, "index.npz"), **index)
    with pytest.raises(FileError, match=missing):
        use(packed)


def with_member(folder, name, content, method=zipfile.ZIP_STORED):
    """Put bytes in place of an index's array."""
    index = index_of(folder)
    with zipfile.ZipFile(chunk_path(folder, 0, "index.npz"), "w", method) as archive:
        for each, array in index.items():
            data = io.BytesIO()
            np.save(data, array)
            archive.writestr(f"{each}.npy", content if each == name else data.getvalue())


def header(shape, descr="<i8"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(f"{text:<117}\n").to_bytes(2, "little") + f"{text:<117}\n".encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        header((BIG,)) + bytes(24),
        header((2**63,)) + bytes(24),
        header((-3,)) + bytes(24),
        header((3,), "|O") + bytes(24),
        header((3,), [("a", "<i8")]) + bytes(24),
        header("()") + bytes(24),
        header("'x' * 10**9"),
        header((3,)) + bytes(23),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
    ],
)
def test_an_array_of_an_index_is_checked(packed, content):
    with_member(packed, "lengths", content)
    with pytest.raises(FileError, match=r"index\.npz"):
        use(packed)


def test_an_index_that_is_compressed_is_not_unpacked(packed):
    """It would cost 1,000 times its size in memory; the packer stores."""
    with_member(packed, "lengths", bytes(2**26), zipfile.ZIP_DEFLATED)
    with pytest.raises(FileError, match="compressed"):
        use(packed)


def test_a_chunk_cut_while_it_is_in_use(packed):
    store = PackStore(packed)
    store.read_crops(np.arange(3), np.zeros(3), 8)
    os.truncate(chunk_path(packed, 0, "frames.npy"), 500)
    with pytest.raises(FileError, match=r"chunk-00000\.frames\.npy: the file ended"):
        store.read_crops(np.arange(3), np.zeros(3), 8)


@pytest.mark.parametrize("part", ["pack.json", "chunk-00000.frames.npy", "chunk-00000.index.npz"])
def test_pipes_in_a_pack_are_not_waited_for(packed, part):
    (packed / part).unlink()
    os.mkfifo(packed / part)
    with pytest.raises((FileNotFoundError, FileError), match=str(packed)):
        use(packed)


def test_a_mapped_index_reads_as_before(packed):
    index = read_index(packed, read_info(packed), 0)
    assert {name: index[name].tolist() for name in index} == {name: each.tolist() for name, each in index_of(packed).items()}


def test_statistics_that_make_no_sense_are_measured_again(packed):
    store = PackStore(packed)
    measured = cached_stats(store, 16)
    path = packed.with_name("x.pack.stats.json")
    good = path.read_text()
    (key,) = json.loads(good)
    for mean, std in ((1.0, 0.0), (1.0, -2.0), ("1", 2.0), (1.0, None), (float("nan"), 2.0), (1.0, float("inf"))):
        path.write_text(json.dumps({key: json.loads(good)[key] | {"mean": mean, "std": std}}))
        assert cached_stats(store, 16) == measured
    for text in ("[" * 100_000, "[]", "{}", '{"a": 1}', ""):
        path.write_text(text)
        assert cached_stats(store, 16) == measured
    path.write_text(good)
    assert cached_stats(store, 16) == measured


@pytest.mark.parametrize("content", [b"", b"\0", b"file_name,reason\n" + b"x" * 200_000 + b",y\n", b"\xff\xfe", None])
def test_a_failed_csv_of_something_else_gives_no_reasons(tmp_path, content):
    if content is None:
        os.mkfifo(tmp_path / "failed.csv")
    else:
        (tmp_path / "failed.csv").write_bytes(content)
    assert _read_reasons(tmp_path / "failed.csv") == {}
