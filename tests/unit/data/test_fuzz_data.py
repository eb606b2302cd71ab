"""Lists, clips, packs and statistics with changed bytes: the project's errors, or clips; never a crash, bounded memory."""

import itertools
import json
import shutil

import numpy as np
import pytest
from fuzz import BUDGETS, changed, json_values, run_fuzz
from hypothesis import strategies as st

from m2d.data import npy
from m2d.data.clip_list import read_list
from m2d.data.feature_store import NpzStore
from m2d.data.file_store import NpyStore
from m2d.data.norm_stats import cached_stats
from m2d.data.pack.format import PackInfo
from m2d.data.pack.store import PackFeatureStore, PackStore
from m2d.data.pack.writer import pack_clip, start_pack, write_chunk
from m2d.utils.errors import FileError

FRAMES, MELS, WIDTH = 8, 4, 3


def read_all(store):
    clips = np.arange(len(store))
    crops = store.read_crops(clips, np.full(len(clips), 0.7), FRAMES)
    assert crops.shape == (len(clips), MELS, FRAMES)
    if hasattr(store, "read_with_features"):
        features = store.read_with_features(clips, np.full(len(clips), 0.7), FRAMES)[1]
        assert features.shape[:2] == (len(clips), FRAMES // 2)
    for column in store.columns.values():
        list(column)


@BUDGETS
@pytest.mark.parametrize("kind", ["npy", "fortran", "large", "npz"])
def test_clips(tmp_path, monkeypatch, kind, examples):
    path = tmp_path / f"a.{'npz' if kind == 'npz' else 'npy'}"
    lms = np.arange(MELS * 20, dtype=np.float32).reshape(1, MELS, 20)
    if kind == "npz":
        np.savez(path, lms, np.zeros((1, 10, WIDTH), np.float16), 9)
    else:
        np.save(path, np.asfortranarray(lms) if kind == "fortran" else lms)
        monkeypatch.setattr(npy, "_WHOLE", 0 if kind == "large" else npy._WHOLE)
    (tmp_path / "l.csv").write_text(f"file_name\n{path.name}\n")
    clips = read_list(tmp_path / "l.csv")

    def use(data):
        path.write_bytes(data)
        store = (NpzStore if kind == "npz" else NpyStore)(clips, tmp_path, MELS)
        read_all(store)
        store.read_whole(0)

    run_fuzz(changed(path.read_bytes()), use, (FileError,), examples)


@BUDGETS
def test_lists(tmp_path, examples):
    path = tmp_path / "l.csv"
    good = 'file_name,label,weight\na/b.npy,"x,y",1.5\n"c ""d"".npy",x,2\nü;\t.npy,z,0\n'.encode() * 3

    def use(data):
        path.write_bytes(data)
        clips = read_list(path, optional=("label", "weight")).sort()
        assert len(clips) and all(clips.where(i) for i in range(len(clips))) and clips.digest()
        list(itertools.chain.from_iterable(clips.columns.values()))

    run_fuzz(st.one_of(changed(good), st.binary(max_size=200)), use, (FileError,), examples)


@pytest.fixture(scope="module")
def good_pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "good.pack"
    info = PackInfo("0" * 64, 5, 3, "float32", MELS, WIDTH, ("file_name", "label"))
    rng = np.random.default_rng(0)
    start_pack(folder, info)
    for chunk in range(info.chunks):
        with write_chunk(folder, info, chunk) as writer:
            for i in info.clips_in(chunk):
                clip = pack_clip(rng.normal(size=(MELS, 10 + i)), "float32", np.zeros((5 + i, WIDTH), np.float32), 5)
                writer.add(clip, {"file_name": f"ä/{i}.npz", "label": "a,b"})
    return folder


def use_pack(folder):
    for store in (PackStore(folder, MELS, optional=("label",)), PackFeatureStore(folder, MELS)):
        read_all(store)


@BUDGETS
@pytest.mark.parametrize("part", ["pack.json", "chunk-00000.index.npz", "chunk-00001.frames.npy"])
def test_files_of_a_pack(good_pack, tmp_path, part, examples):
    folder = shutil.copytree(good_pack, tmp_path / "x.pack")

    def use(data):
        (folder / part).write_bytes(data)
        use_pack(folder)

    run_fuzz(changed((good_pack / part).read_bytes()), use, (FileError,), examples)


@BUDGETS
def test_values_of_a_pack_json(good_pack, tmp_path, examples):
    folder = shutil.copytree(good_pack, tmp_path / "x.pack")
    good = json.loads((folder / "pack.json").read_text())

    def use(change):
        (folder / "pack.json").write_text(json.dumps(good | change))
        use_pack(folder)

    run_fuzz(st.dictionaries(st.sampled_from(sorted(good)), json_values(), min_size=1, max_size=2), use, (FileError,), examples)


@BUDGETS
def test_arrays_of_an_index(good_pack, tmp_path, examples):
    """Whole .npz files whose arrays hold any numbers."""
    folder = shutil.copytree(good_pack, tmp_path / "x.pack")
    path = folder / "chunk-00000.index.npz"
    with np.load(path) as index:
        good = dict(index)
    dtypes = st.sampled_from(["i8", "u8", "i4", "u1", "f8", "?", "U2"])
    numbers = st.lists(st.sampled_from([0, 1, 3, 5, 10, 12, 24, 255, 2**31, 2**62, -1, -5, -(2**63)]), max_size=30)
    arrays = st.builds(lambda values, dtype: np.array(values, "i8").astype(dtype), numbers, dtypes)
    same_length = st.sampled_from(sorted(good)).flatmap(
        lambda name: st.tuples(st.just(name), st.permutations(range(len(good[name]))).map(lambda order: good[name][order]))
    )
    changes = st.one_of(st.tuples(st.sampled_from(sorted(good)), arrays), same_length)

    def use(change):
        np.savez(path, **good | dict([change]))
        use_pack(folder)

    run_fuzz(changes, use, (FileError,), examples)


@BUDGETS
def test_statistics(good_pack, tmp_path, examples):
    folder = shutil.copytree(good_pack, tmp_path / "x.pack")
    store = PackStore(folder, MELS)
    measured = cached_stats(store, FRAMES)
    path = folder.with_name("x.pack.stats.json")
    good = path.read_bytes()

    def use(data):
        path.write_bytes(data)
        mean, std = cached_stats(store, FRAMES)
        assert np.isfinite(mean) and std > 0

    inputs = st.one_of(changed(good), json_values().map(lambda value: json.dumps(value).encode()))
    run_fuzz(inputs, use, (), examples)
    path.unlink()
    assert cached_stats(store, FRAMES) == measured
