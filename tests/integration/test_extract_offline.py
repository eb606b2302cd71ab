"""LibriSpeech to .npz with a teacher's features: against a direct computation, and what happens when things go wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2d.audio.logmel_torch import PRESETS, nnaudio_mel
from speech import extract_offline_ls960 as ex

transformers = pytest.importorskip("transformers")

SIZES = dict(hidden_size=24, num_attention_heads=2, intermediate_size=32, conv_dim=(16,) * 7, num_conv_pos_embedding_groups=2)


def save_teacher(folder: Path, seed: int = 0, **changes) -> Path:
    """A small HuBERT with random weights, saved as Hugging Face saves models."""
    torch.manual_seed(seed)
    config = transformers.HubertConfig(**{**SIZES, "num_hidden_layers": 4, **changes})
    transformers.HubertModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


def write_clip(path: Path, samples: int, rate: int = 16000) -> np.ndarray:
    rng = np.random.default_rng(samples)
    tone = np.sin(np.arange(samples) * rng.uniform(0.02, 0.2)) * np.linspace(0.1, 0.6, samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone + 0.02 * rng.standard_normal(samples) + 0.1, rate, subtype="PCM_16")
    return soundfile.read(path, dtype="float32")[0]


CLIPS = {  # 1 s is the least: two shorter clips, three of one length, one longer
    "train-clean-100/19/198/19-198-0000.flac": 9_111,
    "train-clean-100/19/198/19-198-0001.flac": 17_920,
    "train-clean-100/26/1/26-1-0000.flac": 17_920,
    "train-other-500/8/1/8-1-0000.flac": 15_999,
    "train-other-500/8/1/8-1-0001.FLAC": 17_920,
    "train-other-500/8/1/8-1-0002.flac": 23_457,
}


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "Libri Speech"
    for name, samples in CLIPS.items():
        write_clip(folder / name, samples)
    write_clip(folder / "dev-clean/1/1/1-1-0000.flac", 16_000)
    return folder


def run(corpus: Path, teacher: Path, *flags, dest: str = "data/hybrid", csv: str = "data/files.csv") -> int:
    base = ["--dest", corpus.parent / dest, "--dest_csv", corpus.parent / csv, "--teacher", teacher, "--layer", 2]
    small = ["--min_seconds", 1, "--batch_size", 2, "--workers", 3, "--device", "cpu"]
    return ex.main([str(each) for each in [corpus, *base, *small, *flags]])


def arrays(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[f"arr_{i}"] for i in range(3)]


def test_against_a_direct_computation_clip_by_clip(corpus, teacher):
    assert run(corpus, teacher) == 0
    model = transformers.HubertModel.from_pretrained(teacher).eval()
    processor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    mel = nnaudio_mel(PRESETS["16k"])
    table = pd.read_csv(corpus.parent / "data/files.csv")
    assert list(table) == ["file_name"]
    assert list(table["file_name"]) == sorted("hybrid/" + str(Path(name).with_suffix(".npz")) for name in CLIPS)
    for name, samples in CLIPS.items():
        waveform = soundfile.read(corpus / name, dtype="float32")[0]
        padded = np.pad(waveform, (0, max(0, 16_000 - samples)))
        with torch.inference_mode():
            values = processor(padded, sampling_rate=16_000, return_tensors="pt").input_values
            expected = model(values, output_hidden_states=True).hidden_states[2].numpy()
            lms = torch.log(mel(torch.from_numpy(padded)[None]) + torch.finfo(torch.float32).eps).numpy()
        lms_got, features, valid = arrays((corpus.parent / "data/hybrid" / name).with_suffix(".npz"))
        assert lms_got.dtype == features.dtype == np.float32
        assert features.shape == expected.shape and lms_got.shape == lms.shape
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(lms_got, lms, atol=2e-3)
        assert valid == expected.shape[1] * samples // len(padded)


def test_shapes_of_seven_seconds(tmp_path, teacher):
    corpus = tmp_path / "LibriSpeech"
    write_clip(corpus / "train-clean-100/1/1/1-1-0000.flac", 4 * 16_000)
    assert run(corpus, teacher, "--min_seconds", "7") == 0
    lms, features, valid = arrays(tmp_path / "data/hybrid/train-clean-100/1/1/1-1-0000.npz")
    assert lms.shape == (1, 80, 701) and features.shape == (1, 349, 24) and valid.shape == ()
    assert valid == 349 * 4 // 7


def test_padding_within_a_batch_would_change_the_features(teacher):
    """Why clips of different lengths are not encoded together."""
    model = ex.Teacher(str(teacher), 2, torch.device("cpu"))
    clip = ex.standardise(np.random.default_rng(0).standard_normal(16_000).astype(np.float32))
    alone, padded = model(clip[None]), model(np.pad(clip, (0, 16_000))[None])
    assert np.abs(padded[0, :20] - alone[0, :20]).max() > 0.01


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 3, 4])
def test_a_layer_is_the_same_as_inside_the_whole_model(tmp_path, stable, layer):
    folder = save_teacher(tmp_path / "t", do_stable_layer_norm=stable, feat_extract_norm="layer" if stable else "group")
    waveforms = np.random.default_rng(1).standard_normal((2, 8_000)).astype(np.float32)
    with torch.inference_mode():
        whole = transformers.HubertModel.from_pretrained(folder).eval()
        expected = whole(torch.from_numpy(waveforms), output_hidden_states=True).hidden_states
    assert len(expected) == 5
    got = ex.Teacher(str(folder), layer, torch.device("cpu"))(waveforms)
    np.testing.assert_allclose(got, expected[layer].numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_done_is_skipped_and_what_is_torn_is_made_again(corpus, teacher, caplog):
    caplog.set_level("INFO")
    assert run(corpus, teacher) == 0
    folder = corpus.parent / "data/hybrid"
    paths = sorted(folder.rglob("*.npz"))
    times = [path.stat().st_mtime_ns for path in paths]
    torn, before = paths[1], arrays(paths[1])
    torn.write_bytes(torn.read_bytes()[:5000])
    (corpus.parent / "data/files.csv").unlink()
    assert run(corpus, teacher) == 0
    assert "6 clips, 5 of them done before" in caplog.text
    for array, array_before in zip(arrays(torn), before, strict=True):
        np.testing.assert_allclose(array, array_before, atol=1e-5)
    changed = [path for path, at in zip(paths, times, strict=True) if path.stat().st_mtime_ns != at]
    assert changed == [torn]
    assert len(pd.read_csv(corpus.parent / "data/files.csv")) == 6
    assert sorted(path.name for path in folder.iterdir()) == ["settings.json", "train-clean-100", "train-other-500"]


def test_a_finished_set_needs_no_teacher(corpus, teacher, tmp_path):
    copy = shutil.copytree(teacher, tmp_path / "copy")
    assert run(corpus, copy) == 0
    shutil.rmtree(copy)
    assert run(corpus, copy) == 0


def test_features_of_other_settings_are_not_mixed(corpus, teacher, caplog):
    assert run(corpus, teacher) == 0
    assert run(corpus, teacher, "--layer", "3") == 2
    assert "layer 2 (now 3)" in caplog.text and "--dest" in caplog.text
    assert json.loads((corpus.parent / "data/hybrid/settings.json").read_text())["layer"] == 2


def test_a_destination_outside_the_lists_folder(corpus, teacher, caplog):
    caplog.set_level("INFO")
    assert run(corpus, teacher, dest="big disk/hybrid") == 0
    names = pd.read_csv(corpus.parent / "data/files.csv")["file_name"]
    assert all((corpus.parent / "big disk" / name).is_file() for name in names)
    assert f"--data_path {corpus.parent / 'big disk'}" in caplog.text


def test_clips_that_cannot_be_read_are_named_and_left_out(corpus, teacher, caplog):
    bad = corpus / "train-clean-100/19/198/19-198-0001.flac"
    bad.write_bytes(b"not audio")
    (corpus / "train-other-500/8/1/8-1-0000.flac").write_bytes(b"")
    assert run(corpus, teacher) == 1
    assert str(bad) in caplog.text and "8-1-0000.flac" in caplog.text and "2 clips could not be read" in caplog.text
    assert len(pd.read_csv(corpus.parent / "data/files.csv")) == 4


def test_nothing_readable_leaves_no_list(tmp_path, teacher, caplog):
    corpus = tmp_path / "corpus"
    (corpus / "train").mkdir(parents=True)
    (corpus / "train/a.flac").write_bytes(b"x")
    assert run(corpus, teacher) == 2
    assert "none of the 1 clips" in caplog.text and not (tmp_path / "data/files.csv").exists()


def test_another_sampling_rate(tmp_path, teacher):
    corpus = tmp_path / "corpus"
    write_clip(corpus / "train/a.flac", 2 * 44_100, rate=44_100)
    assert run(corpus, teacher) == 0
    lms, features, valid = arrays(tmp_path / "data/hybrid/train/a.npz")
    assert lms.shape[2] == 201 and features.shape[1] == 99 and valid == 99


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layer", "5"), "has 4 layers"),
        (("--teacher", "/no/such/model"), "--teacher /no/such/model"),
        (("--device", "cuda"), "no such CUDA device"),
    ],
)
def test_wrong_flags_are_named(corpus, teacher, caplog, flags, message):
    if flags == ("--device", "cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert run(corpus, teacher, *flags) == 2
    assert message in caplog.text
    assert not (corpus.parent / "data/files.csv").exists()


def test_a_teacher_of_another_rate_is_refused(corpus, tmp_path, caplog):
    fast = save_teacher(tmp_path / "fast", conv_dim=(16,) * 3, conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3))
    assert run(corpus, fast) == 2
    assert "a feature each 20 samples" in caplog.text


def test_without_transformers(corpus, teacher, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run(corpus, teacher) == 2
    assert "pip install transformers" in caplog.text


def test_a_folder_without_training_clips(tmp_path, teacher, caplog):
    (tmp_path / "corpus").mkdir()
    assert run(tmp_path / "corpus", teacher) == 2
    assert "train-clean-100" in caplog.text


@given(st.lists(st.integers(1, 3), max_size=30), st.integers(1, 4))
def test_batches_hold_clips_of_one_length_in_order(lengths, batch_size):
    clips = [ex.Clip(Path(str(i)), np.zeros(length), np.zeros(0), length) for i, length in enumerate(lengths)]
    batches = list(ex.same_length_batches(clips, batch_size))
    assert [clip.source for batch in batches for clip in batch] == [clip.source for clip in clips]
    assert all(1 <= len(batch) <= batch_size and len({clip.samples for clip in batch}) == 1 for batch in batches)
    joins = zip(batches, batches[1:], strict=False)
    assert all(len(a) == batch_size or a[0].samples != b[0].samples for a, b in joins)


def marker_code(marker: Path) -> str:
    return f"from pathlib import Path; Path({str(marker)!r}).touch()\n"


def test_code_of_a_teachers_folder_is_not_run(corpus, tmp_path, caplog):
    """A model of its own class: Hugging Face would ask at the terminal, and run it after a `y`."""
    folder, marker = tmp_path / "teacher", tmp_path / "marker"
    folder.mkdir()
    (folder / "evil.py").write_text(marker_code(marker))
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    command = [
        sys.executable,
        ex.__file__,
        corpus,
        "--dest",
        tmp_path / "out",
        "--dest_csv",
        tmp_path / "x.csv",
        "--teacher",
        folder,
    ]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, input="y\ny\ny\n")
    assert done.returncode == 2 and not marker.exists() and "[y/N]" not in done.stdout + done.stderr
    assert str(folder) in done.stderr and len(done.stderr.strip().splitlines()) <= 2


def test_code_beside_a_known_model_is_not_run(teacher, tmp_path):
    folder, marker = tmp_path / "known", tmp_path / "marker"
    shutil.copytree(teacher, folder)
    (folder / "evil.py").write_text(marker_code(marker))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}})
    )
    assert ex.Teacher(str(folder), 2, torch.device("cpu")).model.config.model_type == "hubert" and not marker.exists()


def test_code_in_a_teachers_weights_is_not_run(teacher, tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (marker_code(tmp_path / "marker"),)

    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(teacher / "config.json", folder)
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="run code when they are loaded"):
        ex.Teacher(str(folder), 2, torch.device("cpu"))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_settings_that_cannot_be_read_are_named(corpus, teacher, caplog, text):
    dest = corpus.parent / "data/hybrid"
    dest.mkdir(parents=True)
    (dest / "settings.json").write_text(text)
    assert run(corpus, teacher) == 2 and f"{dest}/settings.json does not hold the settings" in caplog.text


def test_a_list_that_was_there_is_not_replaced(corpus, teacher, caplog):
    (corpus.parent / "data").mkdir()
    (corpus.parent / "data/files.csv").write_text("file_name,label\nmine.npz,1\n")
    assert run(corpus, teacher) == 2 and "files.csv is there already" in caplog.text
    assert [path.name for path in (corpus.parent / "data").iterdir()] == ["files.csv"]


def test_as_a_script_from_another_folder(corpus, teacher, tmp_path):
    flags = ["--teacher", teacher, "--layer", "2", "--min_seconds", "1", "--device", "cpu"]
    command = [sys.executable, ex.__file__, corpus, *flags]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = pd.read_csv(tmp_path / "data/files_ls960_hybrid.csv")["file_name"]
    assert names[0] == "ls960_hybrid7s_hubaseL9/train-clean-100/19/198/19-198-0000.npz" and len(names) == 6
