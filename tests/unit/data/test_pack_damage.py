"""Packs that are damaged: found by their checksums and sizes, named, refused; and what is missing from a pack."""

import json
import logging

import pytest
from packs import LENGTHS, pack, verify

from m2d.data.open import open_features, open_store
from m2d.data.pack.format import chunk_path


@pytest.fixture
def packed(make_list, tmp_path):
    csv = make_list([40, 52, 61, 16, 33], kind="npz")
    assert pack(csv, tmp_path / "x.pack", "--chunk_clips", 2) == 0
    return tmp_path / "x.pack"


def test_a_whole_pack_verifies(packed, caplog):
    caplog.set_level(logging.INFO)
    assert verify(packed) == 0
    assert "x.pack: whole" in caplog.text


@pytest.mark.parametrize("part", ["frames.npy", "features.npy"])
@pytest.mark.parametrize("where", [0.001, 0.3, 0.9999])
def test_a_flipped_byte_is_found(packed, caplog, part, where):
    path = chunk_path(packed, 1, part)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    assert verify(packed) == 1
    assert str(path) in caplog.text and "damaged in 1 places" in caplog.text


def test_the_damaged_clip_is_named(packed, caplog, tmp_path):
    path = chunk_path(packed, 1, "frames.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 128
    path.write_bytes(data)
    assert verify(packed) == 1
    name = (tmp_path / "clips.csv").read_text().splitlines()[4].split(",")[0]
    assert f"{path}: {name}" in caplog.text


def test_a_flipped_byte_of_an_index_is_found(packed, caplog):
    path = chunk_path(packed, 0, "index.npz")
    data = bytearray(path.read_bytes())
    place = data.find(b"\x28\x00\x00\x00\x00\x00\x00\x00")  # the first clip's length, 40
    data[place] ^= 1
    path.write_bytes(data)
    assert verify(packed) == 1
    assert "index.npz: damaged" in caplog.text
    with pytest.raises(ValueError, match=r"chunk-00000\.index\.npz: damaged.*pack the list again"):
        open_features(packed, ".")


@pytest.mark.parametrize("part", ["frames.npy", "features.npy"])
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_pack_cut_short_or_longer_is_refused_at_once(packed, caplog, part, change):
    path = chunk_path(packed, 2, part)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"chunk-00002\.{part}: \d+ bytes, its index says \d+: cut short"):
        open_features(packed, ".")
    assert verify(packed) == 1
    path.unlink()
    with pytest.raises(ValueError, match=r"0 bytes, its index says"):
        open_features(packed, ".")
    assert verify(packed) == 1


def test_a_missing_chunk_is_refused_and_written_again(packed, tmp_path, caplog):
    chunk_path(packed, 1, "index.npz").unlink()
    with pytest.raises(ValueError, match=r"1 of its 3 chunks are not there \(the first is 1\): run m2d pack again"):
        open_store(packed, ".")
    assert verify(packed) == 1
    assert pack(tmp_path / "clips.csv", packed, "--chunk_clips", 2) == 0
    assert verify(packed) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: "{", r"pack\.json: not what m2d pack writes"),
        (lambda info: "[]", r"pack\.json: not what"),
        (lambda info: json.dumps(info | {"version": 2}), "a pack of version 2; this program reads version 1"),
        (lambda info: json.dumps(info | {"format": "zip"}), "not what"),
        (lambda info: json.dumps(info | {"more": 1}), "not what"),
    ],
)
def test_an_unreadable_pack_json_is_refused(packed, change, message):
    path = packed / "pack.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        open_store(packed, ".")


def test_what_is_missing_from_a_pack_is_reported(make_list, tmp_path):
    csv = make_list(LENGTHS)
    csv.write_text("\n".join(line.split(",")[0] for line in csv.read_text().splitlines()))
    pack(csv, tmp_path / "x.pack")
    with pytest.raises(ValueError, match=r"no column label \(its columns: file_name\): pack a list that has it"):
        open_store(tmp_path / "x.pack", ".", columns=("file_name", "label"))
    with pytest.raises(ValueError, match=r"x\.pack: no features in it: pack a list of \.npz files"):
        open_features(tmp_path / "x.pack", ".")
    with pytest.raises(ValueError, match=r"x\.pack: 80 mel bands where the model takes 64"):
        open_store(tmp_path / "x.pack", ".", n_mels=64)


def test_where_names_the_clip(make_list, tmp_path):
    csv = make_list(LENGTHS)
    pack(csv, tmp_path / "x.pack", "--chunk_clips", 3)
    names = [line.split(",")[0] for line in csv.read_text().splitlines()[1:]]
    store = open_store(tmp_path / "x.pack", ".")
    for i, name in enumerate(sorted(names)):
        assert store.where(i) == f"{tmp_path / 'x.pack'} clip {names.index(name) + 1}: {name}"
    assert open_store(tmp_path / "x.pack", ".", sort=False).where(4).endswith(f"x.pack clip 5: {names[4]}")
