"""Lists, .npy and .npz files from elsewhere: one line that names the file and row, never a crash, a wait or a traceback."""

import os
import socket
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from m2d.data.clip_list import read_list
from m2d.data.dataset import AudioDataset
from m2d.data.feature_store import NpzStore
from m2d.data.file_store import NpyStore
from m2d.data.sampler import SampleKey
from m2d.utils.errors import FileError

FRAMES = 16


def store_of(folder, kind=NpyStore):
    suffix = "npy" if kind is NpyStore else "npz"
    names = sorted(path.name for path in folder.glob(f"*.{suffix}"))
    (folder / "clips.csv").write_text("file_name\n" + "\n".join(names) + "\n")
    return kind(read_list(folder / "clips.csv"), folder)


def npy(shape="(1, 80, 20)", descr="'<f4'", order="False", data=bytes(4 * 80 * 20)):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


BAD_NPY = {
    "overflow": npy("(1, 80, 1" + "0" * 400 + ")"),
    "memory": npy(descr="'" + "(" * 90 + "'"),
    "nested": b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000,
    "huge": npy("(1, 80, 1000000000000000)"),
    "wraps around": npy("(1, 80, 2305843009213693952)"),
    "negative": npy("(1, 80, -20)"),
    "text as shape": npy("'abc'"),
    "float as shape": npy("(1, 80, 20.0)"),
    "objects": npy(descr="'|O'"),
    "structure": npy(descr="[('a', '<f4')]"),
    "unknown type": npy(descr="'<q9'"),
    "complex": npy(descr="'<c8'"),
    "code": npy(descr="__import__('os').system('true')"),
    "header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(200),
    "format 9": b"\x93NUMPY\x09\x00" + npy()[8:],
    "a short one": npy(data=bytes(100)),
    "empty": b"",
    "magic alone": b"\x93NUMPY",
}


@pytest.mark.parametrize("content", BAD_NPY.values(), ids=BAD_NPY)
def test_npy_files_are_checked(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    store = store_of(tmp_path)
    for read in (lambda: store.read_crops(np.zeros(1, int), np.zeros(1), FRAMES), lambda: store.read_whole(0)):
        with pytest.raises(FileError, match=r"clips\.csv row 2: a\.npy") as caught:
            read()
        assert "\n" not in str(caught.value)


def members(**changes):
    content = {
        "arr_0.npy": npy(),
        "arr_1.npy": npy("(1, 10, 6)", data=bytes(240)),
        "arr_2.npy": npy("()", "'<i8'", data=(8).to_bytes(8, "little")),
    }
    return content | {f"{name}.npy": value for name, value in changes.items()}


def write_npz(path, content, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def test_an_npz_as_it_should_be(tmp_path):
    write_npz(tmp_path / "a.npz", members())
    crops, features = store_of(tmp_path, NpzStore).read_with_features(np.zeros(1, int), np.zeros(1), FRAMES)
    assert crops.shape == (1, 80, FRAMES) and features.shape == (1, FRAMES // 2, 6)


@pytest.mark.parametrize(
    "changes",
    [
        {"arr_0": npy(data=b"")},
        {"arr_0": npy("(1, 80, 1000000000000000)")},
        {"arr_0": npy("(1, 80, -20)")},
        {"arr_1": npy("(1, 10, 1000000000000000)")},
        {"arr_1": npy("(1, 10)")},
        {"arr_1": npy("(1, 1000000000000, 6)")},
        {"arr_1": npy("(1, 10, 6)", "'|O'")},
        {"arr_2": npy("()", "'<i8'", data=b"")},
        {"arr_2": npy("()", "'<i8'", data=(-5).to_bytes(8, "little", signed=True))},
        {"arr_2": npy("()", "'<f4'", data=bytes(4))},
        {"arr_2": npy("(2,)", "'<i8'", data=bytes(16))},
    ],
)
def test_arrays_of_an_npz_are_checked(tmp_path, changes):
    write_npz(tmp_path / "a.npz", members(**changes))
    assert_refused(tmp_path)


def assert_refused(folder):
    store = store_of(folder, NpzStore)
    for read in (store.read_crops, store.read_with_features):
        with pytest.raises(FileError, match=r"clips\.csv row 2: a\.npz") as caught:
            read(np.zeros(1, int), np.zeros(1), FRAMES)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileError, match=r"a\.npz"):
        store.read_whole(0)


def patched(path, pattern, offset, value):
    """Write bytes at an offset from the last place of a pattern in a file."""
    data = bytearray(path.read_bytes())
    at = data.rfind(pattern) + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("pattern", "offset", "value"),
    [
        (b"PK\x05\x06", 10, struct.pack("<H", 9)),  # more members than there are
        (b"PK\x05\x06", 12, struct.pack("<L", 2**32 - 1)),  # a directory longer than the file
        (b"PK\x01\x02", 42, struct.pack("<L", 2**32 - 2)),  # a member behind the end: struct.error
        (b"PK\x01\x02", 28, struct.pack("<H", 65535)),
        (b"PK\x01\x02", 10, struct.pack("<H", 8)),
        (b"PK\x01\x02", 46, b"\xff\xfe"),  # a name that is no UTF-8
    ],
)
def test_directories_of_an_npz_are_checked(tmp_path, pattern, offset, value):
    write_npz(tmp_path / "a.npz", members())
    patched(tmp_path / "a.npz", pattern, offset, value)
    assert_refused(tmp_path)


def test_bad_files_of_every_kind_are_skipped_on_request(tmp_path):
    for i, content in enumerate(BAD_NPY.values()):
        (tmp_path / f"{i:02d}.npy").write_bytes(content)
    os.mkfifo(tmp_path / "98.npy")
    (tmp_path / "99.npy").write_bytes(npy())
    store = store_of(tmp_path)
    data = AudioDataset(store, FRAMES, seed=0)
    data.skip_bad_files = True
    batch = data.__getitems__([SampleKey(0, 0, 0), SampleKey(0, 1, len(store) - 1)])
    assert batch.skipped == len(BAD_NPY) + 1 and (batch.clean == 0).all()


def test_pipes_sockets_devices_and_folders_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.npy")
    os.mkdir("folder.npy")
    os.symlink("/dev/zero", "zero.npy")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket.npy")
    store = store_of(tmp_path)
    for i in range(len(store)):
        with pytest.raises(FileError, match=store.name(i)):
            store.read_crops(np.array([i]), np.zeros(1), FRAMES)
    listener.close()


def test_a_clip_cut_while_a_list_is_in_use(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy())
    store = store_of(tmp_path)
    store.read_crops(np.zeros(1, int), np.zeros(1), FRAMES)
    os.truncate(tmp_path / "a.npy", 300)
    with pytest.raises(FileError, match="truncated"):
        store.read_crops(np.zeros(1, int), np.zeros(1), FRAMES)


LISTS = {
    "UTF-16": ("file_name,label\na.npy,x\n".encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": ("file_name,label\na.npy,x\n".encode("utf-16-be"), "UTF-8"),
    "UTF-32": ("file_name\na.npy\n".encode("utf-32"), "UTF-32"),
    "Latin-1": ("file_name\nä.npy\n".encode("latin-1"), "UTF-8"),
    "Latin-1 header": ("file_name,größe\na.npy,1\n".encode("latin-1"), "UTF-8"),
    "semicolons": (b"file_name;label\na.npy;x\n", "separated by ';'"),
    "tabs": (b"file_name\tlabel\na.npy\tx\n", "separated by tabs"),
    "the column twice": (b"file_name,file_name\na.npy,b.npy\n", "twice"),
    "ragged": (b"file_name\na.npy,b\n", "CSV"),
    "NULs": (bytes(100), "UTF-8"),
    "nothing": (b"", "CSV"),
}


@pytest.mark.parametrize(("content", "words"), LISTS.values(), ids=LISTS)
def test_lists_in_other_forms_say_what_to_do(tmp_path, content, words):
    path = tmp_path / "clips.csv"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"clips\.csv: ") as caught:
        read_list(path)
    assert words in str(caught.value) and "\n" not in str(caught.value) and "\0" not in str(caught.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_of_one_column_keeps_names_with_semicolons(tmp_path, mark):
    path = tmp_path / "clips.csv"
    path.write_bytes(mark + b"file_name\na;b.npy\nc\td.npy\n")
    assert list(read_list(path).names) == ["a;b.npy", "c\td.npy"]


def test_a_list_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "clips.csv")
    with pytest.raises((FileNotFoundError, FileError), match=r"clips\.csv"):
        read_list(tmp_path / "clips.csv")


def test_npy_reading_needs_no_torch():
    """The converter's packs are written with these modules, and it starts without torch."""
    code = "import sys, m2d.data.pack.index, m2d.data.npy, m2d.data.clip_list; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
