"""Crops out of .npy files: the right values from any layout, and errors that name file and row."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.data.clip_list import read_list
from m2d.data.file_store import NpyStore
from m2d.data.npy import Scratch, read_columns, read_header
from m2d.data.open import open_store
from m2d.data.store import SILENCE


@pytest.fixture
def make_store(tmp_path):
    """Write arrays as .npy files and their list; give the store."""

    def make(arrays, n_mels=80, sort=True):
        for name, array in arrays.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / name, array)
        csv = tmp_path / "clips.csv"
        csv.write_text("file_name\n" + "\n".join(arrays) + "\n")
        clips = read_list(csv)
        return NpyStore(clips.sort() if sort else clips, tmp_path, n_mels)

    return make


def ramp(frames, n_mels=80, dtype=np.float32):
    """A clip whose value tells band and frame: 1000 * band + frame."""
    return (1000 * np.arange(n_mels)[:, None] + np.arange(frames)).astype(dtype)[None]


def starts_of(crops):
    return crops[:, 0, 0].astype(int).tolist()


def test_crop_starts_map_evenly_from_u(make_store):
    store = make_store({"a.npy": ramp(13)})
    u = (np.arange(9) + 0.5) / 9
    crops = store.read_crops(np.zeros(9, np.int64), u, frames=5)
    assert crops.dtype == np.float32 and crops.shape == (9, 80, 5)
    assert starts_of(crops) == list(range(9))
    for start, crop in enumerate(crops):
        assert np.array_equal(crop, ramp(13)[0, :, start : start + 5])


def test_first_and_last_start_are_both_reached(make_store):
    store = make_store({"a.npy": ramp(13)})
    crops = store.read_crops(np.zeros(2, np.int64), np.array([0.0, np.nextafter(1, 0)]), frames=5)
    assert starts_of(crops) == [0, 8]


def test_clip_as_long_as_the_crop(make_store):
    store = make_store({"a.npy": ramp(5)})
    assert np.array_equal(store.read_crops(np.array([0]), np.array([0.9]), 5)[0], ramp(5)[0])


def test_short_clip_ends_in_silence(make_store):
    store = make_store({"a.npy": ramp(3)})
    (crop,) = store.read_crops(np.array([0]), np.array([0.9]), frames=8, repeat=False)
    assert np.array_equal(crop[:, :3], ramp(3)[0])
    assert np.all(crop[:, 3:] == np.float32(np.log(np.finfo(np.float32).eps)))


@pytest.mark.parametrize("frames", [4, 5, 6, 7, 12, 20])
def test_short_noise_is_repeated(make_store, frames):
    store = make_store({"a.npy": ramp(3)})
    (crop,) = store.read_crops(np.array([0]), np.array([0.9]), frames=frames, repeat=True)
    assert np.array_equal(crop, np.tile(ramp(3)[0], 7)[:, :frames])


def test_silence_is_the_log_of_eps():
    assert pytest.approx(-15.942385, abs=1e-6) == SILENCE


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(["<f4", "<f2", "<f8", ">f4"]),
    fortran=st.booleans(),
    clip=st.integers(1, 60),
    crop=st.integers(1, 80),
    u=st.floats(0, 1, exclude_max=True),
    whole=st.booleans(),
)
def test_any_layout_gives_the_values_that_numpy_loads(tmp_path_factory, monkeypatch_whole, dtype, fortran, clip, crop, u, whole):
    """Also with every file taken for a large one, which is read row by row."""
    monkeypatch_whole(1 << 20 if whole else 0)
    folder = tmp_path_factory.mktemp("layouts")
    array = np.random.default_rng(clip).normal(size=(1, 80, clip)).astype(dtype)
    np.save(folder / "a.npy", np.asfortranarray(array) if fortran else array)
    (folder / "x.csv").write_text("file_name\na.npy\n")
    store = NpyStore(read_list(folder / "x.csv"), folder)
    (out,) = store.read_crops(np.array([0]), np.array([u]), crop)
    start = int(u * (clip - crop + 1)) if clip > crop else 0
    expected = np.load(folder / "a.npy")[0, :, start : start + crop].astype(np.float32)
    assert np.array_equal(out[:, : expected.shape[1]], expected)
    assert np.all(out[:, expected.shape[1] :] == np.float32(SILENCE))


@pytest.fixture(scope="module")
def monkeypatch_whole():
    with pytest.MonkeyPatch.context() as patch:
        yield lambda size: patch.setattr("m2d.data.npy._WHOLE", size)


def test_header_version_2_and_long_headers(tmp_path):
    array = ramp(9)
    with open(tmp_path / "a.npy", "wb") as f:
        np.lib.format.write_array(f, array, version=(2, 0))
    fd = os.open(tmp_path / "a.npy", os.O_RDONLY)
    header = read_header(fd)
    out = np.empty((80, 4), np.float32)
    read_columns(fd, header, 2, out, Scratch())
    os.close(fd)
    assert header.shape == (1, 80, 9) and np.array_equal(out, array[0, :, 2:6])


def test_long_clip_crop(make_store):
    """Beyond the size that is read whole."""
    store = make_store({"long.npy": ramp(9000)})
    crops = store.read_crops(np.zeros(3, np.int64), np.array([0, 0.5, 0.999999]), 208)
    for start, crop in zip((0, 4396, 8792), crops, strict=True):
        assert np.array_equal(crop, ramp(9000)[0, :, start : start + 208])


def test_batch_of_different_clips_in_any_order(make_store):
    arrays = {f"{i}.npy": ramp(20 + i) + i for i in range(5)}
    store = make_store(arrays)
    crops = store.read_crops(np.array([4, 0, 4, 2]), np.zeros(4), 6)
    assert [int(c[0, 0]) for c in crops] == [4, 0, 4, 2]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((80, 30), np.float32), r"shape \(80, 30\), expected \(1, 80, frames\)"),
        (
            np.zeros((1, 64, 30), np.float32),
            r"shape \(1, 64, 30\), expected \(1, 80, frames\): 64 mel bands where the model takes 80",
        ),
        (np.zeros((2, 80, 30), np.float32), r"shape \(2, 80, 30\), expected"),
        (np.zeros((1, 80, 0), np.float32), "no frame in it"),
        (np.zeros((1, 80, 30), np.int16), "values of type int16, expected float32"),
        (np.zeros((1, 80, 30), np.complex64), "values of type complex64, expected float32"),
        (np.array([None]), "values of type object"),
    ],
)
def test_wrong_arrays_name_file_and_row(make_store, array, message):
    store = make_store({"z.npy": ramp(30), "a/bad.npy": array}, sort=True)
    with pytest.raises(ValueError, match=r"clips\.csv row 3: a/bad\.npy: .*" + message):
        store.read_crops(np.array([1, 0]), np.zeros(2), 10)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_header_only(path):
    path.write_bytes(path.read_bytes()[:128])


def damage_half_header(path):
    path.write_bytes(path.read_bytes()[:40])


def damage_empty(path):
    path.write_bytes(b"")


def damage_header_text(path):
    path.write_bytes(path.read_bytes().replace(b"{'descr'", b"{(descr'"))


def damage_other_format(path):
    path.write_bytes(b"RIFF" + bytes(500))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_cut, r"truncated: 9727 bytes, but shape \(1, 80, 30\) of float32 takes 9728"),
        (damage_header_only, "truncated: 128 bytes"),
        (damage_half_header, "truncated within its header"),
        (damage_empty, "an empty file"),
        (damage_header_text, "an invalid .npy header"),
        (damage_other_format, "not a .npy file"),
    ],
)
def test_damaged_files_name_file_and_row(make_store, tmp_path, damage, message):
    store = make_store({"a.npy": ramp(30), "b.npy": ramp(30)})
    damage(tmp_path / "b.npy")
    with pytest.raises(ValueError, match=r"clips\.csv row 3: b\.npy: " + message):
        store.read_crops(np.array([0, 1]), np.zeros(2), 10)


def test_missing_file_names_row_and_folder(make_store, tmp_path):
    store = make_store({"a.npy": ramp(30), "b.npy": ramp(30)})
    (tmp_path / "b.npy").unlink()
    with pytest.raises(FileNotFoundError, match=rf"clips\.csv row 3: b\.npy: no such file under {tmp_path} \(--data_path\)"):
        store.read_crops(np.array([1]), np.zeros(1), 10)


def test_folder_in_place_of_a_file(make_store, tmp_path):
    store = make_store({"a.npy": ramp(30)})
    (tmp_path / "a.npy").unlink()
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(ValueError, match=r"row 2: a\.npy"):
        store.read_crops(np.array([0]), np.zeros(1), 10)


def test_check_present_lists_the_first_missing_and_counts(make_store, tmp_path):
    store = make_store({f"{i:02d}.npy": ramp(3) for i in range(20)})
    store.check_present()
    for i in range(4, 12):
        (tmp_path / f"{i:02d}.npy").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        store.check_present()
    text = str(caught.value)
    assert "8 of the 20 files looked at" in text and "row 6: 04.npy" in text and "row 10: 08.npy" in text
    assert "09.npy" not in text and "--data_path" in text
    with pytest.raises(FileNotFoundError, match="2 of the 5 files looked at"):
        store.check_present(limit=5)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by /proc")
def test_no_file_stays_open(make_store):
    store = make_store({"a.npy": ramp(30), "b.npy": np.zeros((3, 3), np.float32)})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        store.read_crops(np.array([0]), np.zeros(1), 10)
        with pytest.raises(ValueError):
            store.read_crops(np.array([1]), np.zeros(1), 10)
    assert len(os.listdir("/proc/self/fd")) == before


def test_open_store_sorts_checks_and_names(tmp_path):
    for name in ("b.npy", "a.npy"):
        np.save(tmp_path / name, ramp(10))
    csv = tmp_path / "x.csv"
    csv.write_text("file_name\nb.npy\na.npy\n")
    store = open_store(csv, tmp_path)
    assert [store.name(i) for i in range(len(store))] == ["a.npy", "b.npy"]
    assert store.where(0) == f"{csv} row 3: a.npy"
    assert open_store(csv, tmp_path, sort=False).name(0) == "b.npy"
    with pytest.raises(FileNotFoundError, match="2 of the 2 files"):
        open_store(csv, tmp_path / "elsewhere")


def test_fingerprint_changes_with_files_and_list(make_store, tmp_path):
    store = make_store({"a.npy": ramp(10), "b.npy": ramp(10)})
    first = store.fingerprint(np.array([0, 1]))
    assert store.fingerprint(np.array([0, 1])) == first
    np.save(tmp_path / "b.npy", ramp(11))
    changed = store.fingerprint(np.array([0, 1]))
    (tmp_path / "b.npy").unlink()
    assert len({first, changed, store.fingerprint(np.array([0, 1])), store.fingerprint(np.array([0]))}) == 4
