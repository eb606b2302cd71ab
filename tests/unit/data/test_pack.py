"""Packs: the same samples as from the files, written whole or not at all."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import LENGTHS, pack, verify

from m2d.cli.pack import main
from m2d.data.dataset import AudioDataset
from m2d.data.label_dataset import LIST_COLUMNS, ASDataset
from m2d.data.loader import BatchLoader
from m2d.data.norm_stats import cached_stats, measure_stats
from m2d.data.open import open_features, open_store
from m2d.data.pack import writer as pack_writer
from m2d.data.pack.format import PackInfo, array_header, chunk_path, missing_chunks, read_info
from m2d.data.pack.store import PackFeatureStore, PackStore
from m2d.data.pack.writer import pack_clip, start_pack, write_chunk
from m2d.data.sampler import EpochSampler
from m2d.data.speech_dataset import SpeechDataset
from m2d.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def batches(data, epochs=2, batch_size=4):
    plan = EpochSampler(len(data), batch_size, seed=data.seed)
    return [data.__getitems__(keys) for epoch in range(epochs) for keys in plan.batches(epoch)]


def assert_same(mine, theirs, names=None):
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        a, b = a.tensors(), b.tensors()
        assert a.keys() == b.keys()
        for name in names or a:
            assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("chunk_clips", [3, 100])
def test_a_float32_pack_gives_the_batches_of_its_files_to_the_bit(make_list, tmp_path, sort, chunk_clips):
    csv = make_list(LENGTHS)
    assert pack(csv, tmp_path / "x.pack", "--dtype", "float32", "--chunk_clips", chunk_clips) == 0
    stores = [open_store(path, tmp_path, sort=sort) for path in (csv, tmp_path / "x.pack")]
    assert [stores[1].name(i) for i in range(len(LENGTHS))] == [stores[0].name(i) for i in range(len(LENGTHS))]
    files, packed = (batches(AudioDataset(store, 20, seed=5, noise=store, min_ds_size=25)) for store in stores)
    assert_same(packed, files)


def test_statistics_of_a_float32_pack_are_those_of_its_files_to_the_bit(make_list, tmp_path):
    csv = make_list(LENGTHS)
    pack(csv, tmp_path / "x.pack", "--dtype", "float32", "--chunk_clips", 4)
    files, packed = open_store(csv, tmp_path), open_store(tmp_path / "x.pack", tmp_path)
    assert cached_stats(packed, 20) == measure_stats(files, 20)
    assert measure_stats(packed, 20, repeat=True) == measure_stats(files, 20, repeat=True)
    assert (tmp_path / "x.pack.stats.json").is_file()


def test_a_float16_pack_is_the_rounded_files(make_list, tmp_path):
    csv = make_list(LENGTHS)
    pack(csv, tmp_path / "x.pack")
    files, packed = (batches(AudioDataset(open_store(p, tmp_path), 20, seed=5)) for p in (csv, tmp_path / "x.pack"))
    for a, b in zip(files, packed, strict=True):
        assert b.clean.dtype == torch.float16
        assert torch.equal(a.clean.half(), b.clean)
        assert (a.clean - b.clean.float()).abs().max() <= 0.0079
    assert_same(packed, files, ("index", "position"))


def test_labels_and_weights_come_along(make_list, tmp_path):
    csv = make_list(LENGTHS)
    pack(csv, tmp_path / "x.pack", "--dtype", "float32", "--chunk_clips", 4)
    files, packed = (
        ASDataset(open_store(path, tmp_path, sort=False, columns=LIST_COLUMNS, optional=("weight",)), 20, seed=1)
        for path in (csv, tmp_path / "x.pack")
    )
    assert packed.classes == files.classes == ["c0", "c1", "c2"]
    assert np.array_equal(packed.weights, files.weights)
    assert_same(batches(packed), batches(files))


@pytest.mark.parametrize("patch_frames", [2, 4, 8])
def test_speech_packs_give_the_batches_of_their_files(make_list, tmp_path, patch_frames):
    csv = make_list([40, 52, 61, 16, 33, 70, 48], kind="npz")
    pack(csv, tmp_path / "x.pack", "--dtype", "float32", "--chunk_clips", 3)
    pack(csv, tmp_path / "half.pack", "--chunk_clips", 3)
    files, packed, half = (
        SpeechDataset(open_features(path, tmp_path, patch_frames=patch_frames), 32, seed=2)
        for path in (csv, tmp_path / "x.pack", tmp_path / "half.pack")
    )
    assert packed.target_width == 6
    assert_same(batches(packed), batches(files))
    assert measure_stats(packed.clips, 32) == measure_stats(files.clips, 32)
    for a, b in zip(batches(half), batches(files), strict=True):
        assert a.target.dtype == torch.float32
        torch.testing.assert_close(a.target, b.target, rtol=0, atol=2e-3)


def test_a_pack_is_read_by_threads_and_after_pickling(make_list, tmp_path):
    csv = make_list(LENGTHS * 4)
    pack(csv, tmp_path / "x.pack", "--chunk_clips", 5)
    data = AudioDataset(open_store(tmp_path / "x.pack", tmp_path), 20, seed=0)
    expected = batches(data)
    copy = pickle.loads(pickle.dumps(data))
    assert_same(batches(copy), expected)
    pickle.loads(pickle.dumps(data)).clips.files.close()
    assert_same(batches(data), expected)  # its files are still its own
    data = AudioDataset(open_store(tmp_path / "x.pack", tmp_path), 20, seed=0)
    loader = BatchLoader(data, workers=4)
    plan = EpochSampler(len(data), 4)
    assert_same(list(loader.batches(keys for epoch in range(2) for keys in plan.batches(epoch))), expected)
    loader.close()


def test_chunks_are_plain_numpy_arrays(make_list, tmp_path):
    csv = make_list(LENGTHS)
    pack(csv, tmp_path / "x.pack", "--dtype", "float32", "--chunk_clips", 4)
    frames = np.load(chunk_path(tmp_path / "x.pack", 1, "frames.npy"), mmap_mode="r")
    assert frames.shape == (sum(LENGTHS[4:8]), 80) and frames.dtype == np.float32
    name = csv.read_text().splitlines()[5].split(",")[0]
    assert np.array_equal(frames[:21], np.load(tmp_path / name)[0].T)


@settings(deadline=None)
@given(rows=st.integers(0, 10**15), width=st.integers(1, 10**6), dtype=st.sampled_from(["float16", "float32"]))
def test_headers_are_what_numpy_reads(tmp_path_factory, rows, width, dtype):
    header = array_header((rows, width), dtype)
    path = tmp_path_factory.getbasetemp() / "header"
    path.write_bytes(header)
    with path.open("rb") as stream:
        assert np.lib.format.read_magic(stream) == (1, 0)
        assert np.lib.format.read_array_header_1_0(stream) == ((rows, width), False, np.dtype(dtype))
        assert stream.tell() == len(header) == 128


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_an_interrupted_run_goes_on_with_the_chunks_that_lack(make_list, tmp_path, monkeypatch):
    csv, out = make_list(LENGTHS), tmp_path / "x.pack"
    assert pack(csv, tmp_path / "whole.pack", "--chunk_clips", 3) == 0
    reads = []
    import m2d.cli.pack as tool

    def read_until_killed(store, i, dtype, read=tool.read_clip):
        reads.append(i)
        if i == 7 and out.exists() and len(missing_chunks(out, read_info(out))) == 2:
            raise KeyboardInterrupt
        return read(store, i, dtype)

    with monkeypatch.context() as patch:
        patch.setattr("m2d.cli.pack.read_clip", read_until_killed)
        assert pack(csv, out, "--chunk_clips", 3) == 130
    assert missing_chunks(out, read_info(out)) == [2, 3]
    assert not [name for name in files_of(out) if name.endswith(".m2d-tmp")]
    with pytest.raises(ValueError, match="2 of its 4 chunks are not there"):
        open_store(out, tmp_path)
    del reads[:]
    monkeypatch.setattr("m2d.cli.pack.read_clip", lambda s, i, d, read=tool.read_clip: reads.append(i) or read(s, i, d))
    assert pack(csv, out, "--chunk_clips", 3) == 0
    assert sorted(reads) == list(range(6, 11))
    assert files_of(out).keys() == files_of(tmp_path / "whole.pack").keys()
    assert [v for k, v in sorted(files_of(out).items()) if k.endswith(".npy")] == [
        v for k, v in sorted(files_of(tmp_path / "whole.pack").items()) if k.endswith(".npy")
    ]


def test_shards_make_the_same_pack(make_list, tmp_path):
    csv = make_list(LENGTHS)
    pack(csv, tmp_path / "whole.pack", "--chunk_clips", 2)
    missing = []
    for shard in ("2/3", "3/3", "1/3"):
        assert pack(csv, tmp_path / "shared.pack", "--chunk_clips", 2, "--shard", shard) == 0
        missing.append(missing_chunks(tmp_path / "shared.pack", read_info(tmp_path / "shared.pack")))
    assert missing == [[0, 2, 3, 5], [0, 3], []]
    assert main(["--verify", str(tmp_path / "shared.pack")]) == 0
    whole, shared = (
        batches(AudioDataset(open_store(tmp_path / name, tmp_path), 20, 0)) for name in ("whole.pack", "shared.pack")
    )
    assert_same(shared, whole)


def test_a_bad_clip_is_named_and_its_chunk_not_written(make_list, tmp_path, caplog):
    csv = make_list(LENGTHS)
    name = csv.read_text().splitlines()[5].split(",")[0]
    lms = np.load(tmp_path / name)
    lms[0, 3, 2] = np.nan
    np.save(tmp_path / name, lms)
    assert pack(csv, tmp_path / "x.pack", "--chunk_clips", 3) == 2
    assert f"clips.csv row 6: {name}: NaN or infinite values in it (as float16)" in caplog.text
    assert missing_chunks(tmp_path / "x.pack", read_info(tmp_path / "x.pack")) == [1, 2, 3]
    caplog.clear()
    np.save(tmp_path / name, np.full((1, 80, 21), 1e6, np.float32))
    assert pack(csv, tmp_path / "x.pack", "--chunk_clips", 3) == 2
    assert "NaN or infinite values in it (as float16)" in caplog.text
    (tmp_path / name).unlink()
    assert pack(csv, tmp_path / "x.pack", "--chunk_clips", 3) == 2
    assert f"row 6: {name}" in caplog.text


def test_another_list_or_other_settings_are_not_mixed_in(make_list, tmp_path, caplog):
    csv, out = make_list(LENGTHS), tmp_path / "x.pack"
    assert pack(csv, out) == 0
    assert pack(csv, out, "--dtype", "float32") == 2
    assert "dtype float16, now float32" in caplog.text and "give another name" in caplog.text
    assert pack(make_list(LENGTHS[:5]), out) == 2
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("x")
    assert pack(csv, tmp_path / "folder") == 2
    assert "folder is there and is no pack" in caplog.text
    assert pack(csv, csv) == 2


def test_a_pack_that_cannot_be_written_is_refused_before_the_work(make_list, tmp_path, caplog):
    make_list(LENGTHS)
    (tmp_path / "file").touch()
    assert pack(tmp_path / "missing.csv", tmp_path / "file" / "x.pack") == 2
    assert "x.pack cannot be written" in caplog.text and "file is not a folder" in caplog.text


def test_too_many_chunks_are_refused(make_list, tmp_path, caplog):
    csv = make_list([5] * 300)
    assert pack(csv, tmp_path / "x.pack", "--chunk_clips", 1) == 2
    assert "300 chunks of 1 clips, at most 256: --chunk_clips 2 or more" in caplog.text
    assert not (tmp_path / "x.pack").exists()


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["a.csv"],
        ["--verify", "x.pack", "a.csv", "--out", "y.pack"],
        ["a.csv", "--out", "x", "--shard", "0/3"],
        ["a.csv", "--out", "x", "--shard", "4/3"],
        ["a.csv", "--out", "x", "--shard", "half"],
        ["a.csv", "--out", "x", "--chunk_clips", "0"],
        ["a.csv", "--out", "x", "--dtype", "int8"],
    ],
)
def test_command_lines_that_make_no_sense_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert ": error: " in message and message.count("\n") == 1


def test_missing_inputs_are_one_line(tmp_path, caplog):
    assert main([str(tmp_path / "no.csv"), "--out", str(tmp_path / "x.pack")]) == 2
    assert "no.csv: no such list" in caplog.text
    assert verify(tmp_path) == 2
    assert not (tmp_path / "x.pack").exists()


def test_rows_of_another_shape_are_refused(tmp_path):
    info = PackInfo("x", 2, 2, "float16", 80, 0, ("file_name",))
    start_pack(tmp_path / "x.pack", info)
    with pytest.raises(ValueError, match="expected"), write_chunk(tmp_path / "x.pack", info, 0) as chunk:
        chunk.add(pack_clip(np.zeros((64, 5)), "float16"), {"file_name": "a"})
    with pytest.raises(ValueError, match="expected"), write_chunk(tmp_path / "x.pack", info, 0) as chunk:
        chunk.add(pack_clip(np.zeros((80, 5)), "float32"), {"file_name": "a"})
    assert [path.name for path in (tmp_path / "x.pack").iterdir()] == ["pack.json"]


def test_clips_that_could_not_be_converted_may_lack(tmp_path):
    """A converter that packs as it goes leaves a chunk's bad clips out."""
    info = PackInfo("x", 5, 3, "float32", 80, 0, ("file_name",))
    start_pack(tmp_path / "x.pack", info)
    for chunk, clips in enumerate(([0, 2], [4])):
        with write_chunk(tmp_path / "x.pack", info, chunk) as writer:
            for i in clips:
                writer.add(pack_clip(np.full((80, 4 + i), i), "float32"), {"file_name": f"{i}.wav"})
    store = open_store(tmp_path / "x.pack", ".")
    assert isinstance(store, PackStore) and not isinstance(store, PackFeatureStore)
    assert [store.name(i) for i in range(len(store))] == ["0.wav", "2.wav", "4.wav"]
    assert store.read_crops(np.arange(3), np.zeros(3), 4)[:, 0, 0].tolist() == [0, 2, 4]


def test_the_module_runs_by_itself(make_list, tmp_path):
    csv = make_list(LENGTHS)
    command = [sys.executable, "-m", "util.pack_lms", str(csv), "--data_path", str(tmp_path), "--out", str(tmp_path / "x.pack")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "11 clips written, 1 of 1 chunks there" in done.stderr


def test_a_packer_that_another_one_overtakes_says_so_and_leaves_its_files(tmp_path):
    info = PackInfo("x", 1, 1, "float32", 80, 0, ("file_name",))
    start_pack(tmp_path, info)
    clip = pack_clip(np.full((80, 9), -7, np.float32), "float32")
    with (
        pytest.raises(UserError, match="has written chunk 0 meanwhile: give each process a --shard"),
        write_chunk(tmp_path, info, 0) as slow,
    ):
        with write_chunk(tmp_path, info, 0) as fast:
            fast.add(clip, {"file_name": "fast.npy"})
        before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("chunk")}
        slow.add(clip, {"file_name": "slow.npy"})
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != "pack.json"} == before


def pack_info(digest: str) -> PackInfo:
    return PackInfo(digest, 1, 1, "float32", 80, 0, ("file_name",))


def test_a_pack_that_a_killed_packer_began_is_continued(tmp_path):
    """It was killed while it wrote pack.json."""
    (tmp_path / f".pack.json.{'0' * 16}.m2d-tmp").touch()
    start_pack(tmp_path, pack_info("x"))
    assert read_info(tmp_path) == pack_info("x")


@pytest.mark.parametrize("moment", ["before the folder is looked at", "before pack.json is written"])
def test_two_packers_that_start_at_once_agree_on_one_list(tmp_path, monkeypatch, moment):
    """The other one writes its pack.json at the worst moments: of the same list, both pack; of another list, one is refused."""
    owner, name = (Path, "iterdir") if moment == "before the folder is looked at" else (pack_writer, "write_text")
    usual = getattr(owner, name)

    def late(*args, **options):
        monkeypatch.setattr(owner, name, usual)
        start_pack(folder, pack_info("first"))
        return usual(*args, **options)

    for digest in ("first", "second"):
        folder = tmp_path / digest
        folder.mkdir()
        (folder / f".pack.json.{'0' * 16}.m2d-tmp").touch()  # the other one is about to write it
        monkeypatch.setattr(owner, name, late)
        if digest == "first":
            start_pack(folder, pack_info(digest))
        else:
            with pytest.raises(UserError, match="another list"):
                start_pack(folder, pack_info(digest))
        assert read_info(folder) == pack_info("first")
