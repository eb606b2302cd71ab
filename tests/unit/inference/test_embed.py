"""`python -m m2d.embed` on real audio files of all sorts."""

import csv
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import write_checkpoint
from recordings import ROOT, melody, run_module

from m2d.audio import listing
from m2d.audio.decode import load_audio
from m2d.inference import clips as audio_clips
from m2d.inference import embed
from m2d.inference.results import PartialResults
from m2d.inference.runtime import RuntimeM2D
from m2d.models import vit


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# ---------------------------------------------------------------- embed


@torch.no_grad()
def test_clips_of_all_sorts_have_the_runtimes_embeddings(weights, recordings, tmp_path):
    out = tmp_path / "new" / "embeddings.npz"
    arguments = [str(recordings), "--weights", str(weights), "--out", str(out), "--batch_size", "4", "--device", "cpu"]
    assert embed.main(arguments) == 0
    with np.load(out) as saved:
        files, embeddings = list(saved["files"]), saved["embeddings"]
    assert len(files) == 10 and embeddings.shape == (10, 960) and embeddings.dtype == np.float32
    runtime = RuntimeM2D(weight_file=weights)
    for path, row in zip(files, embeddings, strict=True):
        expected = runtime.get_scene_embeddings(torch.from_numpy(load_audio(path, 16000))[None])[0]
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-4)
    by_name = dict(zip((Path(path).name for path in files), embeddings, strict=True))
    for rate in (16000, 44100, 48000):
        assert cosine(by_name["16000.wav"], by_name[f"{rate}-stereo.flac"]) > 0.97
        assert cosine(by_name["16000.wav"], by_name[f"{rate}.wav"]) > 0.97
    with embed.table_of(out).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file_name"] for row in rows] == files and [row["row"] for row in rows] == [str(i) for i in range(10)]
    assert {Path(row["file_name"]).name: row["seconds"] for row in rows}["short.wav"] == "0.3"


def test_embeddings_in_bfloat16_are_near_those_in_single_precision(weights, recordings, tmp_path):
    found = {}
    for name, flags in {"single": [], "half": ["--bf16"]}.items():
        out = tmp_path / f"{name}.npz"
        arguments = [str(recordings / "16000.wav"), "--weights", str(weights), "--out", str(out), "--device", "cpu"]
        assert embed.main(arguments + flags) == 0
        with np.load(out) as saved:
            found[name] = saved["embeddings"][0]
    assert found["half"].dtype == np.float32 and not np.array_equal(found["half"], found["single"])
    assert 0.999 < cosine(found["half"], found["single"])


def test_where_compiling_fails_files_are_embedded_as_without(weights, recordings, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler.\nAnd more of it")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(vit, "compiled_block", lambda **_: fail)
    found = []
    for name, flags in {"plain": [], "compiled": ["--compile"]}.items():
        out = tmp_path / f"{name}.npz"
        arguments = [str(recordings / "16000.wav"), "--weights", str(weights), "--out", str(out), "--device", "cpu"]
        assert embed.main(arguments + flags) == 0
        with np.load(out) as saved:
            found.append(saved["embeddings"])
    assert np.array_equal(*found)
    assert "not compiled, running as it is: RuntimeError: Failed to find C compiler." in caplog.messages


def test_compiled_code_serves_the_check_of_the_model_too(weights, tmp_path, monkeypatch):
    """In another precision, or for one clip alone, it would be compiled again."""
    kinds = set()

    def note(block, x, mlp_out, first):
        kinds.add((torch.is_autocast_enabled("cpu"), len(x) > 1))
        return block._from_pair(x, mlp_out, first)

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(vit, "compiled_block", lambda **_: note)
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", melody(2.07, 16000), 16000)
    arguments = [str(tmp_path), "--weights", str(weights), "--out", str(tmp_path / "e.npz"), "--batch_size", "2"]
    assert embed.main([*arguments, "--device", "cpu", "--compile", "--bf16"]) == 0
    assert kinds == {(True, True)}


@pytest.mark.parametrize(
    "flags, device, expected",
    [
        ([], "cpu", False),
        ([], "cuda", True),
        (["--precision", "fp32"], "cuda", False),
        (["--precision", "bf16"], "cpu", True),
        (["--bf16"], "cpu", True),
    ],
)
def test_bfloat16_is_the_default_on_cuda_alone(flags, device, expected):
    args = embed.parse_args(["x.wav", "--weights", "w.pth", "--out", "e.npz", *flags])
    assert embed.uses_bf16(args.precision, torch.device(device)) is expected


def test_a_number_that_is_not_finite_stays_so_in_a_mean(weights):
    embeddings = torch.ones(3, 4, 2)
    embeddings[0, 1, 1], embeddings[1, 0, 0], embeddings[1, 1, 0] = float("nan"), float("inf"), -float("inf")
    condensed = embed.ClipMeans.condense(None, embeddings)
    assert condensed.isfinite().all(dim=1).tolist() == [False, False, True]


@torch.no_grad()
def test_time_steps_of_all_clips_one_after_the_other(weights, recordings, tmp_path):
    out = tmp_path / "frames.npz"
    files = [recordings / name for name in ("long.ogg", "short.wav", "44100.wav")]
    arguments = [*map(str, files), "--weights", str(weights), "--out", str(out), "--level", "frame", "--batch_size", "3"]
    assert embed.main([*arguments, "--device", "cpu"]) == 0
    runtime = RuntimeM2D(weight_file=weights)
    with np.load(out) as saved, embed.table_of(out).open() as names:
        assert list(saved["files"]) == [str(path) for path in files]
        for i, (path, row) in enumerate(zip(files, csv.DictReader(names), strict=True)):
            features, _ = runtime.get_timestamp_embeddings(torch.from_numpy(load_audio(path, 16000))[None])
            belongs = saved["file_index"] == i
            np.testing.assert_allclose(saved["embeddings"][belongs], features[0], rtol=1e-3, atol=1e-4)
            starts = 160.0 * np.arange(len(features[0]))
            starts[13:] += 10 * (208 - 13 * 16) * (np.arange(13, len(starts)) // 13)
            np.testing.assert_allclose(saved["times_ms"][belongs], starts)
            assert np.flatnonzero(belongs)[0] == int(row["row"]) and belongs.sum() == int(row["rows"])


def test_flat_models_and_lists_of_names(weights, recordings, tmp_path):
    listed = recordings / "list.csv"
    listed.write_text("file_name,label\nshort.wav,a\nmore/8000-stereo.flac,b\n")
    assert audio_clips.list_clips([listed]) == [recordings / "short.wav", recordings / "more" / "8000-stereo.flac"]
    runtime = RuntimeM2D(weight_file=weights, flat_features=True)
    embed.embed(audio_clips.list_clips([listed]), runtime, tmp_path / "e.npz", per_frame=True)
    with np.load(tmp_path / "e.npz") as saved:
        assert saved["embeddings"].shape == (2 + 16, 192)
    listed.unlink()


def test_a_file_that_cannot_be_read_is_left_out(weights, recordings, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"junk")
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan, np.float32), 16000, subtype="FLOAT")
    files = [tmp_path / "bad.wav", recordings / "short.wav", tmp_path / "nan.wav"]
    done = run_module("embed", *files, "--weights", weights, "--out", tmp_path / "e.npz", "--device", "cpu")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "left out: " in done.stderr and "bad.wav" in done.stderr and re.search(r"nan.wav holds .*NaN", done.stderr)
    with np.load(tmp_path / "e.npz") as saved:
        assert list(saved["files"]) == [str(recordings / "short.wav")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.wav", "--out", "{tmp}/e.npz"], "there is no file or folder none.wav"),
        (["{tmp}", "--out", "{tmp}/e.npz"], "no audio files in it"),
        (["{tmp}/bad.wav", "--out", "{tmp}/e.npz"], "none of the 1 files could be read: nothing is written"),
        (["{audio}/short.wav", "--out", "{tmp}/e.npy"], "expected a name that ends in .npz"),
        (["{audio}/short.wav", "--out", "{tmp}/e.npz", "--batch_size", "0"], "are at least 1"),
        (["{tmp}/list.csv", "--out", "{tmp}/e.npz"], "no column file_name (its columns: name)"),
    ],
)
def test_mistakes_end_in_a_line(weights, recordings, tmp_path, arguments, words, caplog):
    (tmp_path / "bad.wav").write_bytes(b"junk")
    if arguments[0] == "{tmp}":
        (tmp_path / "bad.wav").unlink()
    (tmp_path / "list.csv").write_text("name\na.wav\n")
    filled = [argument.format(tmp=tmp_path, audio=recordings) for argument in arguments]
    assert embed.main([*filled, "--weights", str(weights), "--device", "cpu"]) == 2
    assert words in caplog.text and not (tmp_path / "e.npz").exists()


# ---------------------------------------------------------------- what is there already


def run(weights, *arguments):
    return embed.main([*map(str, arguments), "--weights", str(weights), "--device", "cpu"])


def test_a_list_of_labels_beside_the_output_is_not_touched(weights, recordings, tmp_path):
    """The table of e.npz has another name than e.csv, which may be the list itself."""
    text = f"file_name,label\n{recordings}/short.wav,dog\n"
    (tmp_path / "e.csv").write_text(text)
    assert run(weights, tmp_path / "e.csv", "--out", tmp_path / "e.npz") == 0
    assert (tmp_path / "e.csv").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.csv", "e.files.csv", "e.npz"]


@pytest.mark.parametrize("name", ["e.npz", "e.files.csv"])
def test_what_is_there_is_replaced_on_request_alone(weights, recordings, tmp_path, name, caplog):
    (tmp_path / name).write_text("mine")
    arguments = [recordings / "short.wav", "--out", tmp_path / "e.npz"]
    assert run(weights, *arguments) == 2
    assert f"{tmp_path / name} is there already" in caplog.text and (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert run(weights, *arguments, "--overwrite") == 0 and (tmp_path / "e.npz").read_bytes().startswith(b"PK")


def test_an_output_is_never_an_input(weights, recordings, tmp_path, caplog):
    """By identity: here by a link of another name."""
    os.link(recordings / "short.wav", tmp_path / "e.npz")
    assert run(weights, recordings / "short.wav", "--out", tmp_path / "e.npz", "--overwrite") == 2
    assert "it is an input" in caplog.text
    (tmp_path / "f.files.csv").write_text(f"file_name\n{recordings}/short.wav\n")
    assert run(weights, tmp_path / "f.files.csv", "--out", tmp_path / "f.npz", "--overwrite") == 2
    assert "file_name" in (tmp_path / "f.files.csv").read_text()


def test_the_table_is_a_list_that_this_program_reads(weights, recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(recordings.parent)
    (tmp_path / "own.wav").write_bytes((recordings / "short.wav").read_bytes())
    relative = Path(recordings.name) / "16000.wav"
    assert run(weights, relative, tmp_path / "own.wav", "--out", tmp_path / "e.npz") == 0
    with embed.table_of(tmp_path / "e.npz").open() as file:
        assert [row["file_name"] for row in csv.DictReader(file)] == [str(recordings / "16000.wav"), "own.wav"]
    monkeypatch.chdir("/")
    assert run(weights, tmp_path / "e.files.csv", "--out", tmp_path / "again.npz") == 0
    with np.load(tmp_path / "e.npz") as first, np.load(tmp_path / "again.npz") as again:
        np.testing.assert_array_equal(first["embeddings"], again["embeddings"])


# ---------------------------------------------------------------- killed runs


def test_a_killed_run_is_continued_by_the_same_command(weights, tmp_path, caplog):
    """Killed after its first results: the second run does the rest, and the output is that of a run in one go."""
    caplog.set_level("INFO")
    for i in range(16):
        soundfile.write(tmp_path / f"{i:02d}.wav", melody(0.5 + i % 3, 16000) * (1 - i / 80), 16000)
    arguments = [tmp_path, "--level", "frame", "--batch_size", "1"]
    program = (
        "import sys; from m2d.inference import embed, results; results._FLUSH_SECONDS = 0; sys.exit(embed.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *map(str, [*arguments, "--out", tmp_path / "e.npz", "--weights", weights])]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    listed = tmp_path / "e.npz.partial" / "files.jsonl"
    while process.poll() is None and not (listed.exists() and listed.read_text().count("\n") >= 2):
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = listed.read_text().count("\n")
    assert 2 <= done < 16 and not (tmp_path / "e.npz").exists()
    with listed.open("a") as file:
        file.write('{"path": "cut by the ki')
    assert run(weights, *arguments, "--out", tmp_path / "e.npz") == 0
    assert f"continuing: {done} of 16 files are done" in caplog.text
    assert run(weights, *arguments, "--out", tmp_path / "whole.npz") == 0
    with np.load(tmp_path / "e.npz") as ours, np.load(tmp_path / "whole.npz") as whole:
        assert set(ours.files) == set(whole.files)
        np.testing.assert_allclose(ours["embeddings"], whole["embeddings"], rtol=1e-3, atol=1e-4)
        for name in ("files", "file_index", "times_ms"):
            np.testing.assert_array_equal(ours[name], whole[name])
    assert not (tmp_path / "e.npz.partial").exists()


def test_a_file_that_changed_meanwhile_is_embedded_again(weights, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", melody(1, 16000), 16000)
    soundfile.write(tmp_path / "b.wav", melody(1, 16000), 16000)
    encode = embed.encode_files

    def interrupted(*arguments):
        encode(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "encode_files", interrupted)
    assert run(weights, tmp_path, "--out", tmp_path / "e.npz") == 130
    soundfile.write(tmp_path / "b.wav", melody(2, 16000), 16000)
    monkeypatch.setattr(embed, "encode_files", encode)
    assert run(weights, tmp_path, "--out", tmp_path / "e.npz") == 0
    with np.load(tmp_path / "e.npz") as saved:
        expected = RuntimeM2D(weight_file=weights).get_scene_embeddings(torch.from_numpy(melody(2, 16000))[None])
        np.testing.assert_allclose(saved["embeddings"][1], expected[0].detach(), rtol=1e-2, atol=1e-2)
        assert list(saved["files"]) == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]


def test_results_of_other_settings_are_not_mixed_in(tmp_path):
    out = tmp_path / "e.npz"
    with PartialResults(out, {"weights": "a"}, 4) as kept:
        assert kept.todo([tmp_path]) == [tmp_path]
        kept.add(tmp_path, 1600, 11, [kept.append(np.ones((2, 4), np.float32))])
    with pytest.raises(ValueError, match="results of a run with other weights: .*--overwrite to start over"):
        PartialResults(out, {"weights": "b"}, 4)
    with PartialResults(out, {"weights": "a"}, 4) as kept:
        assert kept.todo([tmp_path]) == [] and list(kept.done) == [str(tmp_path)]
    with PartialResults(out, {"weights": "b"}, 4, start_over=True) as kept:
        assert kept.todo([tmp_path]) == [tmp_path]


def test_rows_that_never_reached_the_disk_are_not_counted_as_done(tmp_path):
    with PartialResults(tmp_path / "e.npz", {}, 4) as kept:
        kept.todo([tmp_path])
        kept.add(tmp_path, 1600, 11, [kept.append(np.ones((3, 4), np.float32))])
    rows = tmp_path / "e.npz.partial" / "rows.f32"
    rows.write_bytes(rows.read_bytes()[:-1])
    with PartialResults(tmp_path / "e.npz", {}, 4) as kept:
        assert kept.todo([tmp_path]) == [tmp_path]


# ---------------------------------------------------------------- memory


MEMORY = """
import sys
import torch
from m2d.inference import embed
from m2d.inference.runtime import RuntimeM2D

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith(name))

runtime = RuntimeM2D(weight_file=sys.argv[1])
with torch.no_grad():
    runtime.encode(torch.zeros(1, 16000))
del runtime
before = memory("VmRSS")
status = embed.main([*sys.argv[2:], "--weights", sys.argv[1], "--device", "cpu"])
print(status, memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("level", ["clip", "frame"])
def test_eight_hours_at_once_stay_in_the_memory_that_help_names(tmp_path, level):
    """Seven hours at 16 kHz and one in stereo at 44.1 kHz: 1,840 MB of waveforms at the model's rate."""
    weights = write_checkpoint(tmp_path / "weights", patch=(80, 16))
    hour = np.tile((melody(60, 16000) * 2**15).astype(np.int16), 60)
    soundfile.write(tmp_path / "0.wav", hour, 16000)
    stereo = np.tile((melody(60, 44100) * 2**15).astype(np.int16)[:, None], (60, 2))
    soundfile.write(tmp_path / "1.wav", stereo, 44100)
    for i in range(2, 8):
        os.link(tmp_path / "0.wav", tmp_path / f"{i}.wav")
    arguments = [tmp_path, "--out", tmp_path / "e.npz", "--level", level]
    command = [sys.executable, "-c", MEMORY, str(weights), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    status, used = map(int, done.stdout.split())
    named = int(re.search(r"up to (\d+) MB", embed.__doc__)[1])
    assert status == 0 and used < named == 300, (done.stdout, done.stderr)
    with np.load(tmp_path / "e.npz") as saved:
        assert len(saved["embeddings"]) == (8 if level == "clip" else 8 * 22501)


# ---------------------------------------------------------------- odd inputs


def test_names_that_are_not_utf_8_and_names_that_look_like_flags(weights, recordings, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"caf\xe9.wav")
    for name in (odd, "-dash.wav", "new\nline.wav"):
        Path(name).write_bytes((recordings / "short.wav").read_bytes())
    Path("bad\x1b[2J.wav").write_bytes(b"junk")
    arguments = ["--out", "e.npz", "--weights", str(weights), "--device", "cpu", "--", "-dash.wav", odd, "new\nline.wav"]
    assert embed.main([*arguments, "bad\x1b[2J.wav"]) == 1
    with np.load("e.npz") as saved:
        assert list(saved["files"]) == ["-dash.wav", odd, "new\nline.wav"]
    assert "left out: bad\\x1b[2J.wav" in caplog.text and "\x1b" not in caplog.text
    with Path("e.files.csv").open() as file:
        assert [row["file_name"] for row in csv.DictReader(file)] == ["-dash.wav", "caf\\udce9.wav", "new\nline.wav"]


def test_a_sample_beyond_any_scale_is_left_out_and_another_scale_is_said(weights, tmp_path, caplog):
    sound = melody(1, 16000)
    spiked = sound.copy()
    spiked[500] = 1e30
    for name, values in {"spiked": spiked, "integers": sound * 30_000, "good": sound}.items():
        soundfile.write(tmp_path / f"{name}.wav", values, 16000, subtype="FLOAT")
    assert run(weights, tmp_path, "--out", tmp_path / "e.npz") == 1
    assert "left out: " in caplog.text and "integers.wav is beyond full scale" in caplog.text
    with np.load(tmp_path / "e.npz") as saved:
        assert [Path(name).stem for name in saved["files"]] == ["good", "integers"]
        assert np.isfinite(saved["embeddings"]).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file_name\nshort.wav\n".encode("utf-16"), "list.csv"),
        (b"file_name;label\nshort.wav;dog\n", "list.csv"),
        (b"", "list.csv"),
    ],
)
def test_lists_of_other_kinds_end_in_a_line(weights, tmp_path, content, words, caplog):
    (tmp_path / "list.csv").write_bytes(content)
    assert run(weights, tmp_path / "list.csv", "--out", tmp_path / "e.npz") == 2
    assert words in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize(
    ("device", "words"), [("gpu", "--device gpu: unknown; choose auto, cuda, mps or cpu"), ("cuda:99", "no such CUDA device")]
)
def test_devices_that_are_not_there(weights, recordings, tmp_path, device, words, caplog):
    arguments = [str(recordings / "short.wav"), "--out", str(tmp_path / "e.npz"), "--weights", str(weights)]
    assert embed.main([*arguments, "--device", device]) == 2 and words in caplog.text


def test_flags_by_their_old_names_and_no_audio(weights, recordings, capsys):
    args = embed.parse_args(["a.wav", "--weights", "w", "--out", "e.npz", "--threads", "3", "b.wav", "--batch-size", "5"])
    assert args.audio == ["a.wav", "b.wav"] and (args.workers, args.batch_size) == (3, 5)
    with pytest.raises(SystemExit) as stopped:
        embed.parse_args(["--weights", "w", "--out", "e.npz"])
    assert stopped.value.code == 2 and "name files, folders, or lists" in capsys.readouterr().err


def test_formats_that_are_not_taken_are_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(listing, "has_ffmpeg", lambda: False)
    for name in ("a.m4a", "b.wma", "c.M4A"):
        (tmp_path / name).touch()
    told = "2 .m4a, 1 .wma not taken (PyAV reads these: pip install 'm2d-audio[av]')"
    with pytest.raises(ValueError, match=re.escape(f"no audio files in it ({told})")):
        audio_clips.list_clips([tmp_path])
    soundfile.write(tmp_path / "d.wav", melody(0.1, 16000), 16000)
    assert audio_clips.list_clips([tmp_path]) == [tmp_path / "d.wav"]
    assert caplog.messages == [f"{tmp_path}: {told}"]
