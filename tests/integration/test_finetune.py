"""`m2d finetune`: learns, resumes exactly, and writes checkpoints that the other programs read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import write_checkpoint
from small_runs import ROOT, environment

from m2d.checkpoint.weights import read_weights
from m2d.cli import finetune
from m2d.cli.finetune import main
from m2d.finetune import training
from m2d.inference import tag
from m2d.inference.runtime import RuntimeM2D
from m2d.report.runs import read_run
from m2d.run.folder import FINETUNE_LOCK
from m2d.train.monitoring import trackers

FAST = "--epochs 6 --warmup_epochs 1 --batch_size 8 --optim adamw --lr 2e-3 --training_mask 0.3 --mixup 0.1 --no-rrc".split()
FAST += "--workers 1 --device cpu".split()


def tone(pitch: float, seconds: float, seed: int) -> np.ndarray:
    t = np.arange(int(16000 * seconds)) / 16000
    return 0.3 * np.sin(2 * np.pi * pitch * t) + 0.01 * np.random.default_rng(seed).normal(size=len(t))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    return str(write_checkpoint(tmp_path_factory.mktemp("weights"), size=(80, 64)))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for name, pitch in (("low", 250), ("high", 2500)):
        (folder / name).mkdir()
        for i in range(15):
            soundfile.write(folder / name / f"{i}.wav", tone(pitch * (1 + i / 60), 0.5 + i / 20, i), 16000)
    return folder


@pytest.fixture(scope="module")
def classifier(sounds, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "classifier"
    assert main([str(sounds), "--weights", weights, "--out", str(out), *FAST]) == 0
    return out


def test_classes_are_learned_and_drawn(classifier):
    entries = [json.loads(line) for line in (classifier / "log.txt").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert max(entry["accuracy"] for entry in entries) == 1 and entries[-1]["train_loss"] < entries[0]["train_loss"]
    assert all((classifier / name).stat().st_size > 5000 for name in ("learning_curve.png", "confusion.png"))


def test_the_checkpoint_names_new_sounds_in_the_other_programs(classifier, sounds, tmp_path, capsys):
    soundfile.write(tmp_path / "new.wav", tone(2600, 1.5, 99), 16000)
    checkpoint = classifier / "checkpoint-best.pth"
    read = read_weights(checkpoint)
    assert read.classes == ["high", "low"] and read.single_label
    runtime = RuntimeM2D(weight_file=checkpoint, num_classes=2)
    waveform = torch.from_numpy(tone(2600, 1.5, 99).astype(np.float32))[None]
    assert runtime(waveform).argmax().item() == 0
    assert RuntimeM2D(weight_file=checkpoint).encode(waveform).shape[-1] == runtime.backbone.embed_dim * 5
    assert tag.main([str(tmp_path / "new.wav"), "--weights", str(checkpoint), "--device", "cpu"]) == 0
    assert "high" in capsys.readouterr().out.splitlines()[1]


def test_a_killed_run_resumes_to_the_same_weights(classifier, sounds, weights, tmp_path, monkeypatch):
    out = tmp_path / "killed"
    epochs, train_epoch = [], training.FineTuning._train_epoch

    def killed_in_the_fourth(run, epoch):
        epochs.append(epoch)
        if epochs == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return train_epoch(run, epoch)

    monkeypatch.setattr(training.FineTuning, "_train_epoch", killed_in_the_fourth)
    command = [str(sounds), "--weights", weights, "--out", str(out), *FAST]
    assert main(command) == 130
    assert main(command) == 0 and epochs == [0, 1, 2, 3, 3, 4, 5]
    expected, found = (torch.load(folder / "last.pth", weights_only=True)["model"] for folder in (classifier, out))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_another_run_in_the_same_folder_is_refused(classifier, sounds, weights, caplog):
    assert main([str(sounds), "--weights", weights, "--out", str(classifier), *FAST, "--seed", "1"]) == 2
    assert "other settings (seed): give another --out" in caplog.messages[-1]


def test_a_run_is_not_resumed_with_other_labels(sounds, weights, tmp_path, caplog):
    rows = [(path, path.parent.name) for path in sorted(sounds.glob("*/*.wav"))]
    listed, out = tmp_path / "list.csv", tmp_path / "out"
    command = [str(listed), "--weights", weights, "--out", str(out), *FAST, "--epochs", "1"]
    listed.write_text("\n".join(["file_name,label", *(f"{path},{label}" for path, label in rows)]))
    assert main(command) == 0
    swapped = {"low": "high", "high": "low"}
    listed.write_text("\n".join(["file_name,label", *(f"{path},{swapped[label]}" for path, label in rows)]))
    assert main(command) == 2
    assert "the data: files, labels, groups or splits" in caplog.messages[-1]


def test_several_labels_and_early_stop(sounds, weights, tmp_path):
    lines = ["file_name,label,split"]
    for path in sorted(sounds.glob("*/*.wav")):
        i = int(path.stem)
        labels = f"{path.parent.name};{'short' if i < 8 else 'long'}"
        lines.append(f"{path},{labels},{'val' if i % 3 == 0 else 'train'}")
    (tmp_path / "list.csv").write_text("\n".join(lines).replace(",val", ",test"))
    out = tmp_path / "out"
    flags = [*FAST, "--epochs", "40", "--patience", "2", "--balanced", "--layer_decay", "0.8", "--weight_decay", "0.01"]
    assert main([str(tmp_path / "list.csv"), "--weights", weights, "--out", str(out), *flags]) == 0
    entries = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    best = max(range(len(entries)), key=lambda i: entries[i]["map"])
    assert len(entries) < 40 and len(entries) == best + 3
    assert read_weights(out / "checkpoint-best.pth").classes == ["high", "long", "low", "short"]


def test_sound_events_in_time(weights, tmp_path):
    """Recordings of noise with a high and a low tone at random times: the classifier tells the time steps."""
    rng, lines = np.random.default_rng(0), ["file_name,onset,offset,label"]
    for i in range(12):
        waveform = 0.02 * rng.normal(size=3 * 16000)
        for name, pitch in (("low", 300), ("high", 3000)):
            onset = float(rng.uniform(0, 2))
            waveform[int(onset * 16000) :][:12800] += 0.3 * np.sin(2 * np.pi * pitch * np.arange(12800) / 16000)
            lines.append(f"{i}.wav,{onset:.3f},{onset + 0.8:.3f},{name}")
        soundfile.write(tmp_path / f"{i}.wav", waveform, 16000)
    (tmp_path / "events.csv").write_text("\n".join(lines))
    flags = [f for f in FAST if f not in ("--training_mask", "0.3")] + ["--epochs", "12", "--mixup", "0"]
    out = tmp_path / "out"
    assert main([str(tmp_path / "events.csv"), "--weights", weights, "--out", str(out), *flags]) == 0
    entries = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert max(entry["map"] for entry in entries) > 0.8
    assert read_weights(out / "checkpoint-best.pth").events
    runtime = RuntimeM2D(weight_file=out / "checkpoint-best.pth", num_classes=2)
    logits, times = runtime.forward_frames(torch.from_numpy(soundfile.read(tmp_path / "0.wav", dtype="float32")[0])[None])
    assert logits.shape[:2] == times.shape and logits.shape[2] == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--training_mask", "1"], "--training_mask 1.0: from 0 to below 1"),
        (["--layer_decay", "0"], "--layer_decay 0.0: above 0"),
        (["--lr", "-0.001"], "--lr is a number above 0"),
        (["--lr", "inf"], "--lr is a number above 0"),
        (["--mixup", "nan"], "--mixup is a number of at least 0"),
        (["--weight_decay", "-1"], "--weight_decay is a number of at least 0"),
        (["--weights", "none.pth"], "none.pth"),
    ],
)
def test_mistakes_are_one_line(sounds, weights, tmp_path, more, message, caplog):
    assert main([str(sounds), "--weights", weights, "--out", str(tmp_path / "out"), *FAST, *more]) == 2
    assert message in caplog.messages[-1] and "\n" not in caplog.messages[-1]


def test_a_folder_that_another_process_fine_tunes_in_is_refused(sounds, weights, tmp_path, caplog):
    out = tmp_path / "out"
    command = [str(sounds), "--weights", weights, "--out", str(out), *FAST, "--epochs", "1"]
    assert main(command) == 0 and not (out / FINETUNE_LOCK).exists() and not read_run(out).is_running
    hold = "import sys; from m2d.utils.own_files.lock import hold_lock; from pathlib import Path\n"
    hold += "lock = hold_lock(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    holder = [sys.executable, "-c", hold, str(out / FINETUNE_LOCK)]
    with subprocess.Popen(holder, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert main(command) == 2 and f"finetune.lock is held by process {other.pid}" in caplog.messages[-1]
        assert read_run(out).is_running
        other.stdin.close()
    assert main(command) == 0


def test_two_processes_train_together(sounds, weights, tmp_path):
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "m2d.cli.finetune"]
    command += [str(sounds), "--weights", weights, "--out", str(out), *FAST, "--epochs", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2]


def test_checkpoints_of_other_programs_are_not_replaced(sounds, weights, tmp_path, caplog):
    for name in ("checkpoint-best.pth", "last.pth"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(Path(weights).read_bytes())
        assert main([str(sounds), "--weights", weights, "--out", str(folder), *FAST]) == 2
        assert f"{name} was not written by m2d finetune" in caplog.text
        assert main([str(sounds), "--weights", str(folder / name), "--out", str(folder), *FAST]) == 2
        assert "is an input" in caplog.text and (folder / name).read_bytes() == Path(weights).read_bytes()
        caplog.clear()


def test_logs_and_pictures_of_others_are_not_replaced(sounds, weights, tmp_path, caplog):
    for name in ("log.txt", "learning_curve.png", "confusion.png"):
        (tmp_path / name).write_text("mine")
        assert main([str(sounds), "--weights", weights, "--out", str(tmp_path), *FAST]) == 2
        assert f"{name} was not written by m2d finetune" in caplog.messages[-1]
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_an_epoch_that_was_killed_before_its_checkpoint_is_logged_once(sounds, weights, tmp_path, monkeypatch):
    save = training.FineTuning.save

    def killed(run, name):
        if name == "last.pth" and run.progress.epoch == 2:
            raise KeyboardInterrupt
        save(run, name)

    command = [str(sounds), "--weights", weights, "--out", str(tmp_path / "out"), *FAST, "--epochs", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(training.FineTuning, "save", killed)
        assert main(command) == 130
    assert main(command) == 0
    entries = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]


def test_a_clip_that_cannot_be_read_is_left_out(sounds, weights, tmp_path, caplog):
    rows = [(path, path.parent.name) for path in sorted(sounds.glob("*/*.wav"))]
    for i in range(4):
        (tmp_path / f"{i}.wav").write_text("no audio")
    listed = tmp_path / "list.csv"
    command = [str(listed), "--weights", weights, "--out", str(tmp_path / "out"), *FAST, "--epochs", "1"]
    lines = ["file_name,label", *(f"{path},{label}" for path, label in rows)]
    listed.write_text("\n".join([*lines, *(f"{i}.wav,low" for i in range(4))]))
    assert main(command) == 2 and "4 of 34 clips cannot be read" in caplog.messages[-1]
    assert not (tmp_path / "out").exists()
    listed.write_text("\n".join([*lines, "0.wav,low"]))
    caplog.set_level("INFO")
    assert main(command) == 0
    assert sum(message.startswith(f"left out: {tmp_path / '0.wav'}") for message in caplog.messages) == 1 + 1
    assert "24 clips to train on, 6 to validate by" in caplog.text


def test_events_outside_of_their_recording_are_refused(weights, tmp_path, caplog):
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", tone(300, 2.0, i), 16000)
    listed = tmp_path / "events.csv"
    command = [str(listed), "--weights", weights, "--out", str(tmp_path / "out"), *FAST[:-2], "--epochs", "1"]
    command = [word for word in command if word not in ("--training_mask", "0.3")]
    rows = [f"{i}.wav,0.2,{1.0 + i},{name}" for i in range(4) for name in ("a", "b")]
    listed.write_text("\n".join(["file_name,onset,offset,label", *rows]))
    assert main(command) == 0
    assert "4 events beyond the end of a recording" in caplog.text
    listed.write_text("\n".join(["file_name,onset,offset,label", *rows, "3.wav,2.0,2.005,a"]))  # as m2d tag --events rounds it
    assert main([*command[:-1], "2"]) == 2 and "other settings" in caplog.messages[-1]
    listed.write_text("\n".join(["file_name,onset,offset,label", *rows, "3.wav,2.5,3.0,a"]))
    assert main(command) == 2
    assert "3.wav ends at 2.00 s, and an event begins at 2.50 s" in caplog.messages[-1]


def test_figures_go_to_the_trackers_and_those_of_a_resumed_run_to_the_same_one(sounds, weights, tmp_path, monkeypatch):
    opened, sent = [], []

    class Session:
        def __init__(self, name, run_id, settings, folder):
            opened.append((name, run_id, settings["weights"]))

        def log(self, x, values):
            sent.append((x, dict(values)))

        def close(self):
            pass

    monkeypatch.setitem(trackers.SESSIONS, "wandb", Session)
    monkeypatch.setattr(finetune, "check_trackers", lambda names: None)
    command = [str(sounds), "--weights", weights, "--out", str(tmp_path / "run"), *FAST, "--epochs", "2"]
    assert main([*command, "--tracker", "wandb"]) == 0
    assert main([*command, "--tracker", "wandb"]) == 0  # finished: nothing is sent twice
    assert opened == [("run", opened[0][1], weights)] * 2
    for line in map(json.loads, (tmp_path / "run/log.txt").read_text().splitlines()):
        x = 1000 * line.pop("epoch")
        assert (x, {f"epoch/{name}": value for name, value in line.items()}) in sent
        assert (x, {name: line[name] for name in ("train_loss", "accuracy", "macro_f1")}) in sent
    assert len(sent) == 4 and not list((tmp_path / "run").glob("events.out.tfevents*"))


def test_tensorboard_gets_the_figures_by_default(classifier):
    assert len(list(classifier.glob("events.out.tfevents*"))) == 1


def test_small_steps_take_a_lower_rate_and_few_clips_adamw():
    assert [training.default_peak("sgd", clips) for clips in (16, 64, 512)] == [0.125, 0.5, 0.5]
    assert training.default_peak("adamw", 16) == 5e-4
    assert [training.default_optimizer(clips) for clips in (20, 999, 1000)] == ["adamw", "adamw", "sgd"]


def test_a_loss_far_above_guessing_is_told(classifier, sounds, weights, tmp_path, caplog, monkeypatch):
    """Noise in place of a model that diverges: logits of random signs, far from 0."""
    monkeypatch.setattr(training.ClipClassifier, "forward", lambda model, lms: 50 * torch.randn(len(lms), 2, requires_grad=True))
    assert main([str(sounds), "--weights", weights, "--out", str(tmp_path / "run"), *FAST, "--epochs", "2", "--lr", "3"]) == 0
    (line,) = [message for message in caplog.messages if message.startswith("the loss of")]  # of two epochs
    assert (
        line.startswith("the loss of epoch 1, ") and "far above that of guessing, 0.69: lower --lr (it is 3)" in line
    )  # and once alone


def test_a_folder_that_takes_no_files_is_refused_before_any_work(weights, sounds, caplog):
    assert main([str(sounds), "--weights", weights, "--out", "/proc/run", *FAST]) == 2
    (line,) = [record.message for record in caplog.records]
    assert "cannot be written: /proc takes no files" in line
