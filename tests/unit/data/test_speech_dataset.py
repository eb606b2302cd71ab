"""M2D-S: crops and features of the same time, from .npz files."""

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.data.clip_list import read_list
from m2d.data.feature_store import NpzStore, aligned_start
from m2d.data.norm_stats import measure_stats
from m2d.data.open import open_features, open_store
from m2d.data.sampler import SampleKey
from m2d.data.speech_dataset import SpeechDataset
from m2d.data.store import SILENCE

LAST = float(np.nextafter(1, 0))
WIDTH = 6


def ramps(frames, features, width=WIDTH):
    """Log-mel frame t has the value t in every band; feature k the value 2k + 0.5, the mean of its two frames."""
    lms = np.tile(np.arange(frames, dtype=np.float32), (80, 1))[None]
    times = 2 * np.arange(features, dtype=np.float32) + 0.5
    return lms, np.repeat(times[None, :, None], width, axis=2)


@pytest.fixture
def make_store(tmp_path):
    """A store of clips given as the arguments of numpy.savez."""

    def make(*clips, patch_frames=4, save=np.savez):
        names = [f"{i}.npz" for i in range(len(clips))]
        for name, arrays in zip(names, clips, strict=True):
            save(tmp_path / name, *arrays)
        (tmp_path / "speech.csv").write_text("file_name\n" + "\n".join(names) + "\n")
        return NpzStore(read_list(tmp_path / "speech.csv"), tmp_path, patch_frames=patch_frames)

    return make


def sample(store, input_frames, u, i=0):
    data = SpeechDataset(store, input_frames, seed=0)
    arrays = data.read(np.array([i]), np.array([u]))
    return arrays["clean"][0], arrays["target"][0]


@settings(deadline=None, max_examples=60)
@given(
    patch_frames=st.sampled_from([2, 4, 6, 8, 16]),
    patches=st.integers(1, 12),
    extra=st.integers(0, 60),
    padding=st.integers(0, 10),
    u=st.floats(0, 1, exclude_max=True),
)
def test_patches_and_targets_tell_the_same_time(tmp_path_factory, patch_frames, patches, extra, padding, u):
    """The mean of a patch's frames, which tell their time, is its target."""
    folder = tmp_path_factory.mktemp("speech")
    frames = patch_frames * patches
    valid = frames // 2 + extra
    np.savez(folder / "a.npz", *ramps(2 * (valid + padding) + 3, valid + padding), valid)
    (folder / "s.csv").write_text("file_name\na.npz\n")
    store = NpzStore(read_list(folder / "s.csv"), folder, patch_frames=patch_frames)
    clean, target = sample(store, frames, u)
    assert clean.shape == (80, frames) and target.shape == (patches, WIDTH)
    start = int(clean[0, 0])
    assert start % patch_frames == 0
    assert start + frames <= 2 * valid
    np.testing.assert_allclose(clean[0].reshape(patches, patch_frames).mean(axis=1), target[:, 0], rtol=1e-6)
    assert np.ptp(clean, axis=0).max() == 0 and np.ptp(target, axis=1).max() == 0


@pytest.mark.parametrize(
    ("valid", "frames", "patch_frames", "starts"),
    [
        (104, 208, 4, [0]),
        (107, 208, 4, [0]),
        (108, 208, 4, [0, 4, 8]),
        (120, 208, 4, list(range(0, 33, 4))),
        (106, 208, 2, [0, 2, 4]),
        (50, 208, 4, [0]),
        (0, 208, 4, [0]),
        (106, 212, 4, [0]),
        (120, 208, 16, [0, 16]),
    ],
)
def test_all_starts_of_the_usable_length(valid, frames, patch_frames, starts):
    """max(valid, crop / 2) features, rounded down to a multiple of the patch's frame count, bound the crop."""
    u = [(k + 0.5) / len(starts) for k in range(len(starts))]
    assert [aligned_start(place, valid, frames, patch_frames) for place in u] == starts
    assert aligned_start(0.0, valid, frames, patch_frames) == 0
    assert aligned_start(LAST, valid, frames, patch_frames) == starts[-1]


def test_padding_is_not_cropped_into(make_store):
    """A clip of 2 s in 7 s: 100 of 349 features are its own."""
    store = make_store((*ramps(701, 349), 100), patch_frames=2)
    for u in (0.0, 0.5, LAST):
        clean, _ = sample(store, 80, u)
        assert clean[0, -1] < 200
    clean, target = sample(store, 208, LAST)
    assert clean[0].tolist() == list(range(208)) and len(target) == 104


def test_targets_of_narrow_patches_are_the_features_themselves(make_store):
    lms, features = ramps(701, 349)
    features = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    clean, target = sample(make_store((lms, features, 349), patch_frames=2), 208, 0.5)
    start = int(clean[0, 0]) // 2
    assert start > 0 and np.array_equal(target, features[0, start : start + 104])


def test_targets_of_wider_patches_are_means(make_store):
    lms, features = ramps(701, 349)
    features = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    clean, target = sample(make_store((lms, features, 349), patch_frames=8), 208, 0.5)
    start = int(clean[0, 0]) // 2
    expected = features[0, start : start + 104].reshape(26, 4, WIDTH).mean(axis=1)
    np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-6)


def test_a_clip_shorter_than_the_crop_ends_in_silence_and_zeros(make_store):
    lms, features = ramps(50, 24)
    clean, target = sample(make_store((lms, features, 24), patch_frames=4), 80, 0.7)
    assert clean[0, :50].tolist() == list(range(50)) and np.all(clean[:, 50:] == np.float32(SILENCE))
    assert target[:12, 0].tolist() == [4 * k + 1.5 for k in range(12)] and np.all(target[12:] == 0)


def test_batches_with_noise(make_store, tmp_path):
    store = make_store(*[(*ramps(300, 149), 149) for _ in range(3)])
    np.save(tmp_path / "noise.npy", np.full((1, 80, 7), 5, np.float32))
    (tmp_path / "noise.csv").write_text("file_name\nnoise.npy\n")
    data = SpeechDataset(store, 208, seed=3, noise=open_store(tmp_path / "noise.csv", tmp_path))
    batch = data.__getitems__([SampleKey(1, p, p % 3) for p in range(5)])
    assert {name: tuple(value.shape) for name, value in batch.tensors().items()} == {
        "clean": (5, 1, 80, 208),
        "noise": (5, 1, 80, 208),
        "target": (5, 52, WIDTH),
        "position": (5,),
        "index": (5,),
    }
    assert len(data) == 3 and data.target_width == WIDTH
    assert batch.target.dtype == torch.float32 and torch.all(batch.noise == 5)
    starts = batch.clean[:, 0, 0, 0]
    assert len(set(starts.tolist())) > 1
    torch.testing.assert_close(batch.target[:, 0, 0], starts + 1.5)


def test_statistics_leave_the_padding_out(make_store):
    lms, features = ramps(701, 349)
    lms[:, :, 200:] = 1e6
    mean, std = measure_stats(make_store((lms, features, 100)), 80)
    assert 0 < mean < 200 and std < 200


def test_a_count_beyond_the_features_there_are(make_store):
    clean, target = sample(make_store((*ramps(300, 149), 500)), 208, LAST)
    assert clean[0, -1] < 298 and np.all(target > 0)


def test_half_precision_and_scalar_shapes_are_read(make_store):
    lms, features = ramps(300, 149)
    for valid in (np.int64(149), np.array([149]), np.int32(149), 149):
        clean, target = sample(make_store((lms.astype(np.float16), features.astype(np.float16), valid)), 208, 0.0)
        assert clean.dtype == np.float32 and target.dtype == np.float32
        assert clean[0].tolist() == list(range(208)) and target[0, 0] == 1.5


def test_members_in_another_order_and_more_of_them(make_store, tmp_path):
    """Found by the archive's directory, also where that is long."""
    store = make_store((*ramps(300, 149), 149))
    lms, features = ramps(300, 149)
    more = {f"note_{i}": np.arange(3) for i in range(20)}
    np.savez(tmp_path / "0.npz", **more, arr_2=149, arr_1=features, arr_0=lms)
    clean, target = sample(store, 208, 0.0)
    assert clean[0].tolist() == list(range(208)) and target[0, 0] == 1.5


def test_whole_clips(make_store):
    lms, features = ramps(301, 149)
    clip, its_features, valid = make_store((lms, features, 120)).read_whole(0)
    assert np.array_equal(clip, lms[0]) and np.array_equal(its_features, features[0]) and valid == 120


LMS, FEATURES = ramps(300, 149)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((LMS,), r"no arr_1, arr_2 in it \(it holds arr_0\.npy\).*extract_offline"),
        ((LMS, FEATURES), "no arr_2 in it"),
        ((LMS[0], FEATURES, 149), r"arr_0: shape \(80, 300\), expected \(1, 80, frames\)"),
        ((LMS[:, :64], FEATURES, 149), "arr_0: shape .*64 mel bands where the model takes 80"),
        ((LMS, FEATURES[0], 149), r"arr_1: float32 of shape \(149, 6\), expected float32 \(1, features, width\)"),
        ((LMS, FEATURES[:, :0], 149), r"arr_1: float32 of shape \(1, 0, 6\)"),
        ((LMS, FEATURES.astype(int), 149), "arr_1: int64"),
        ((LMS, FEATURES[..., :5], 149), "arr_1: features of width 5, the list's first clip has 6"),
        ((LMS, FEATURES, [149, 3]), r"arr_2: int64 of shape \(2,\), expected one integer"),
        ((LMS, FEATURES, 149.0), r"arr_2: float64 of shape \(\), expected one integer"),
    ],
)
def test_wrong_files_name_file_and_row(make_store, arrays, message):
    store = make_store((LMS, FEATURES, 149), arrays)
    for read in (
        lambda: store.read_with_features(np.array([1]), np.zeros(1), 208),
        lambda: store.read_crops(np.array([1]), np.zeros(1), 208),
    ):
        with pytest.raises(ValueError, match=r"speech\.csv row 3: 1\.npz: " + message):
            read()


def test_compressed_files_are_refused(make_store):
    store = make_store((LMS, FEATURES, 149), save=np.savez_compressed)
    with pytest.raises(ValueError, match=r"row 2: 0\.npz: arr_0 is compressed: write it by numpy\.savez"):
        store.read_with_features(np.array([0]), np.zeros(1), 208)


@pytest.mark.parametrize("kept", [0, 10, 3000, -1])
def test_truncated_files_are_refused(make_store, tmp_path, kept):
    store = make_store((LMS, FEATURES, 149), (LMS, FEATURES, 149))
    path = tmp_path / "1.npz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"row 3: 1\.npz: (not a whole \.npz file|an empty file)"):
        store.read_with_features(np.array([1]), np.zeros(1), 208)


def test_other_files_are_refused(make_store, tmp_path):
    store = make_store((LMS, FEATURES, 149))
    np.save(tmp_path / "0.npz.npy", LMS)
    (tmp_path / "0.npz.npy").replace(tmp_path / "0.npz")
    with pytest.raises(ValueError, match=r"row 2: 0\.npz: not a whole \.npz file"):
        store.read_with_features(np.array([0]), np.zeros(1), 208)
    with zipfile.ZipFile(tmp_path / "0.npz", "w") as archive:
        array = io.BytesIO()
        np.save(array, LMS)
        archive.writestr("arr_0.npy", array.getvalue()[:50])
        archive.writestr("arr_1.npy", b"")
        archive.writestr("arr_2.npy", b"")
    with pytest.raises(ValueError, match=r"row 2: 0\.npz: "):
        store.read_with_features(np.array([0]), np.zeros(1), 208)


@pytest.mark.parametrize(
    ("input_frames", "patch_frames", "message"),
    [
        (207, 4, r"--input_size 207 frames is no multiple of the patch's 4 \(--patch_size\): 204 or 208 would be"),
        (209, 2, "209 frames is no multiple"),
        (206, 4, "204 or 208"),
        (208, 1, "--patch_size: patches of 1 frames; speech patches span an even number"),
        (210, 3, "patches of 3 frames"),
    ],
)
def test_sizes_that_cannot_be_aligned_are_refused_at_once(make_store, input_frames, patch_frames, message):
    with pytest.raises(ValueError, match=message):
        SpeechDataset(make_store((LMS, FEATURES, 149), patch_frames=patch_frames), input_frames, seed=0)


def test_open_pairs_sorts_and_checks(make_store, tmp_path):
    make_store((LMS, FEATURES, 149), (LMS, FEATURES, 149))
    (tmp_path / "speech.csv").write_text("file_name\n1.npz\n0.npz\n")
    store = open_features(tmp_path / "speech.csv", tmp_path, patch_frames=2)
    assert (store.name(0), store.patch_frames, store.feature_width) == ("0.npz", 2, WIDTH)
    (tmp_path / "0.npz").unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 2 files"):
        open_features(tmp_path / "speech.csv", tmp_path)
