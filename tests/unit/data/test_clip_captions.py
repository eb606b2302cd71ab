"""Captions: files of texts and embeddings, which captions a clip has, which one is drawn, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from small_runs import write_list

from m2d.data.captions.dataset import CaptionDataset, ClipCaptions
from m2d.data.captions.store import ARRAYS, open_captions, read_texts
from m2d.data.captions.writer import read_pickled, write_embeddings
from m2d.data.clip_list import TextColumn
from m2d.data.open import open_store
from m2d.data.sampler import SampleKey
from m2d.utils.errors import FileError, UserError

RNG = np.random.default_rng(0)
#: Captions of three ids; each value tells its caption.
CONTENT = {"-2nkOBtIn-M": np.full((3, 4), [[1], [2], [3]]), "002": np.full((1, 4), 4.0), "b": np.full(4, 5.0)}
CONTENT = {name: array.astype(np.float16) for name, array in CONTENT.items()}


def write_content(path, content=CONTENT):
    """A file of one array per id."""
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)
    else:
        save_file(content, path)
    return path


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["ids.npz", "ids.safetensors", "arrays.npz", "arrays.safetensors"])
def test_files_of_all_layouts_hold_the_same(workplace, kind):
    path = workplace / kind
    if kind.startswith("ids"):
        write_content(path)
    else:
        write_embeddings(path, read_pickled(write_content(workplace / "published.npy")), {"text_encoder": "A"})
    (captions,) = open_captions(str(path))
    found = {name: captions.take(np.arange(*captions.offsets[i : i + 2])) for i, name in enumerate(captions.ids)}
    assert found.keys() == CONTENT.keys() and captions.width == 4
    for name, array in CONTENT.items():
        np.testing.assert_array_equal(found[name], np.atleast_2d(array).astype(np.float32))
    if kind == "arrays.safetensors":
        assert isinstance(captions._values, np.memmap)
        assert load_file(path)["embeddings"].dtype == np.float16  # as safetensors itself reads it


def test_texts_of_an_id_are_joined_over_rows_and_columns(workplace):
    (workplace / "c.csv").write_text(
        'caption_1,file_name,caption_2\na dog,x/one.wav,a cat\nrain,two.wav,\na dog, y/one.wav ," wind, far "\n'
    )
    captions = read_texts(workplace / "c.csv")
    found = {name: captions.take(np.arange(*captions.offsets[i : i + 2])) for i, name in enumerate(captions.ids)}
    assert found == {"one": ["a dog", "a cat", "wind, far"], "two": ["rain"]}
    (workplace / "y.csv").write_text("audiocap_id,youtube_id,start_time,caption\n7,ab.c,10,a drum\n")
    assert list(read_texts(workplace / "y.csv").ids) == ["ab.c"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file_name,caption\na.wav,x\nb.wav,\n", "row 3.*no caption"),
        ("file_name,text\na.wav,x\n", "--columns"),
        ("name,caption\na.wav,x\n", "no column file_name"),
        ("file_name;caption\na.wav;x\n", "separated by .;.: save it as a CSV with commas"),
        ("file_name,caption\n", "empty"),
    ],
)
def test_lists_of_captions_that_cannot_be_used(workplace, text, told):
    (workplace / "c.csv").write_text(text)
    with pytest.raises(FileError, match=told):
        read_texts(workplace / "c.csv")


def test_a_clip_has_the_captions_of_its_stem_else_of_its_first_11_characters(workplace):
    names = ["yt/-2nkOBtIn-M_000030.npy", "002.npy", "x/002.wav.npy", "-2nkOBtIn-Mb.npy", "c.npy", "-2nkOBtIn-M.npy"]
    first = write_content(workplace / "a.npz")
    more = {"-2nkOBtIn-Mb": np.full(4, 9, np.float16), "002": np.full((2, 4), [[7], [8]], np.float16)}
    files = open_captions(f"{first}, {write_content(workplace / 'b.npz', more)}")
    clips = ClipCaptions(TextColumn.of(names), files)
    assert clips.counts.tolist() == [3, 3, 0, 4, 0, 3]
    values, owner = clips.all_of(np.array([0, 1, 3]))
    assert values[:, 0].tolist() == [1, 2, 3, 4, 7, 8, 1, 2, 3, 9]
    assert owner.tolist() == [0] * 3 + [1] * 3 + [2] * 4
    drawn = clips.draw(np.array([1, 1, 1, 3]), np.array([0.0, 0.34, 0.99, 0.8]))
    assert drawn[:, 0].tolist() == [4, 7, 8, 9]
    clips.keep(np.array([3, 1]))
    assert clips.draw(np.array([0, 1]), np.array([0.99, 0.0]))[:, 0].tolist() == [9, 4]


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=3), data=st.data())
def test_captions_of_several_files_are_all_found_once(tmp_path_factory, counts, data):
    folder, ids = tmp_path_factory.mktemp("files"), ["a", "b", "c", "d"]
    wanted = {name: [] for name in ids}
    for n, file_counts in enumerate(counts):
        content = {}
        for name, count in zip(ids, file_counts, strict=True):
            if count:
                content[name] = RNG.standard_normal((count, 2)).astype(np.float16)
                wanted[name] += content[name].tolist()
        np.savez(folder / f"{n}.npz", **(content or {"other": np.zeros(2, np.float16)}))
    clips = ClipCaptions(TextColumn.of(ids), open_captions(",".join(str(folder / f"{n}.npz") for n in range(len(counts)))))
    assert clips.counts.tolist() == [len(wanted[name]) for name in ids]
    chosen = np.array(data.draw(st.lists(st.integers(0, 3), max_size=6)), dtype=np.int64)
    values, owner = clips.all_of(chosen)
    assert values.tolist() == [value for clip in chosen for value in wanted[ids[clip]]]
    assert owner.tolist() == [n for n, clip in enumerate(chosen) for _ in wanted[ids[clip]]]


def open_dataset(captions, missing="error", **options):
    files = open_captions(str(captions))
    return CaptionDataset(open_store("data/files_main.csv", "data"), files, 16, missing=missing, **{"seed": 3, **options})


def test_captions_are_drawn_by_seed_epoch_and_position(workplace):
    write_list(clips=4)
    content = {f"{i:03d}": np.arange(6, dtype=np.float16)[:, None] + 10 * np.ones((1, 2), np.float16) * i for i in range(4)}
    path = write_content(workplace / "c.npz", content)
    data = open_dataset(path)
    assert data.target_width == 2 and "file_caption" in data.digests
    keys = [SampleKey(5, position, position % 4) for position in range(200)]
    batch = data.__getitems__(keys)
    drawn = batch.target[:, 0]
    assert torch.equal(drawn // 10, batch.index.float())
    assert all(len(set(drawn[batch.index == i].tolist())) == 6 for i in range(4))
    again = torch.cat([data.__getitems__(keys[i : i + 7]).target for i in range(0, 200, 7)])
    assert torch.equal(again, batch.target)
    others = [open_dataset(path, seed=4).__getitems__(keys), data.__getitems__([key._replace(epoch=6) for key in keys])]
    assert all((other.target != batch.target).any() for other in others)


def test_a_replaced_clip_brings_its_own_caption(workplace):
    write_list(clips=4)
    (workplace / "data/main_lms/001.npy").write_bytes(b"damaged")
    data = open_dataset(write_content(workplace / "c.npz", {f"{i:03d}": np.full(2, i, np.float16) for i in range(4)}))
    data.skip_bad_files = True
    batch = data.__getitems__([SampleKey(0, i, i) for i in range(4)])
    assert batch.target[:, 0].tolist() == [0, 2, 2, 3] and batch.skipped == 1


def test_texts_come_as_they_are(workplace):
    write_list(clips=2)
    (workplace / "c.csv").write_text("file_name,caption\n000.wav,a dog\n001.wav,rain\n")
    data = open_dataset(workplace / "c.csv")
    batch = data.__getitems__([SampleKey(0, 0, 1), SampleKey(0, 1, 0)])
    assert batch.texts == ["rain", "a dog"] and batch.target is None and data.target_width is None


@pytest.mark.parametrize("packed", [False, True])
def test_clips_without_captions_are_an_error_or_left_out(workplace, packed, caplog):
    write_list(clips=4)
    path = write_content(workplace / "c.npz", {"000": np.zeros(2, np.float16), "003": np.ones(2, np.float16)})
    source = "data/files_main.csv"
    if packed:
        from m2d.cli.pack import main

        assert main([source, "--data_path", "data", "--out", "main.pack"]) == 0
        source = "main.pack"
    with pytest.raises(UserError, match="2 of the 4 clips.*001.npy.*--missing_captions skip"):
        CaptionDataset(open_store(source, "data"), open_captions(str(path)), 16, seed=0)
    caplog.set_level("INFO")
    data = CaptionDataset(open_store(source, "data"), open_captions(str(path)), 16, seed=0, missing="skip")
    assert "2 of 4 clips have no caption" in caplog.text and "2 clips with 2 captions" in caplog.text
    assert [data.clips.name(i) for i in range(len(data))] == ["main_lms/000.npy", "main_lms/003.npy"]
    batch = data.__getitems__([SampleKey(0, 0, 1)])
    assert batch.target.tolist() == [[1, 1]]
    np.testing.assert_allclose(batch.clean.std(), np.load("data/main_lms/003.npy").std(), rtol=0.3)
    with pytest.raises(UserError, match="none of the 4 clips"):
        other = write_content(workplace / "o.npz", {"x": np.zeros(2, np.float16)})
        CaptionDataset(open_store(source, "data"), open_captions(str(other)), 16, seed=0, missing="skip")


def arrays(**changed):
    """A file of two ids with three captions, with changes."""
    ids = TextColumn.of(["a", "b"])
    whole = {
        "embeddings": np.zeros((3, 2), np.float16),
        "offsets": np.array([0, 1, 3]),
        "ids": ids.blob,
        "id_offsets": ids.offsets,
    }
    return whole | changed


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (arrays(ids=TextColumn.of(["a", "a"]).blob), "1 ids are repeated, such as a"),
        (arrays(offsets=np.array([0, 1, 2])), "offsets that do not fit"),
        (arrays(offsets=np.array([0, 0, 3])), "offsets that do not fit"),
        (arrays(embeddings=np.zeros(3, np.float16)), "expected float16"),
        (arrays(embeddings=np.zeros((3, 2), np.int64)), "expected float16"),
        (arrays(id_offsets=np.array([0, 1, 9])), "ids"),
        ({"a": np.zeros(2, np.float16), "b": np.zeros(3, np.float16)}, r"b is float16"),
        ({"a": np.array([1, np.nan], np.float32)}, "NaN"),
        ({"a": np.array([1e6], np.float32)}, "too large"),
        ({"a": np.zeros(2, np.int64)}, "a is int64"),
        ({}, "no caption"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_of_embeddings_that_cannot_be_used(workplace, content, told, suffix):
    assert set(arrays()) == set(ARRAYS)
    with pytest.raises(FileError, match=told):
        open_captions(str(write_content(workplace / f"c{suffix}", content)))


def test_files_that_are_none(workplace):
    for name in ("c.npz", "c.safetensors"):
        (workplace / name).write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
        with pytest.raises(FileError, match="cannot be read"):
            open_captions(str(workplace / name))
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_captions("missing.npz")
    with pytest.raises(FileError, match="m2d captions --from_npy"):
        open_captions(str(write_content(workplace / "p.npy")))
    (workplace / "c.csv").write_text("file_name,caption\na,b\n")
    with pytest.raises(UserError, match="holds texts"):
        open_captions(f"{write_content(workplace / 'a.npz')},c.csv")
    with pytest.raises(UserError, match="names no file"):
        open_captions(" , ")


# ---------------------------------------------------------------- published pickles


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        import os

        return os.system, ("touch was_run",)


@pytest.mark.parametrize(
    "content",
    [
        {"a": Runs()},
        {"a": [1.0, 2.0]},
        {"a": "text"},
        {3: np.zeros(2, np.float16)},
        {"a": np.array([Runs(), None], dtype=object)},
        {"a": torch.zeros(2)},
        ["a"],
        {},
    ],
)
def test_pickles_of_anything_but_arrays_are_refused(workplace, content):
    np.save(workplace / "p.npy", np.array(content, dtype=object) if isinstance(content, dict) else content, allow_pickle=True)
    with pytest.raises(FileError, match="p.npy"):
        read_pickled(workplace / "p.npy")
    assert not (workplace / "was_run").exists()


def test_damaged_pickles_are_refused(workplace):
    whole = write_content(workplace / "p.npy").read_bytes()
    rng = np.random.default_rng(0)
    for n in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        (workplace / "d.npy").write_bytes(damaged if n % 2 else whole[: rng.integers(len(whole))])
        try:
            read_pickled(workplace / "d.npy")
        except FileError as error:
            assert "d.npy" in str(error)


def test_an_array_under_the_name_of_an_npz_is_refused(workplace):
    with open(workplace / "a.npz", "wb") as file:
        np.save(file, np.ones((2, 3), np.float32))
    with pytest.raises(FileError, match="one array, not an .npz"):
        open_captions(str(workplace / "a.npz"))
