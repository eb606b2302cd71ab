"""`m2d report` of runs of every program, from lists and packs, whatever state they are in."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import write_checkpoint
from small_runs import AS, CLAP, M2D, MAE, SPEECH, make_clip, run, write_data

from m2d.cli import main as cli
from m2d.report.clips import open_dataset, samples_seen
from m2d.report.runs import read_run


def report(*words):
    return cli.main(["report", *map(str, words), "--device", "cpu"])


def page_data(path):
    text = Path(path).read_text()
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def trained(program, more=""):
    flags = write_data(program)
    assert run(program, f"{flags} --output_dir run {more}") == 0


@pytest.mark.parametrize("program", [M2D, MAE, AS, SPEECH, CLAP])
def test_a_run_of_every_program(program, small_workplace):
    trained(program, "--feature_eval_freq 1")
    assert report("run") == 0
    data = page_data("run/report.html")
    (found,) = data["runs"]
    assert found["state"] == "finished" and found["notes"] == []
    titles = [chart["title"] for chart in data["charts"]]
    assert {"Loss", "Directions used (RankMe)", "Learning rate", "Speed"} <= set(titles)
    assert ("Offline loss" in titles) == (program in (AS, SPEECH, CLAP))
    assert ("EMA decay of the target" in titles) == (program != MAE)
    for chart in data["charts"]:
        assert all(each["x"][-1] == 2 for each in chart["series"]), chart["title"]
    assert len(found["seen"]["items"]) == 3 and ("rebuilt" in found["seen"]["items"][0]) == (program == MAE)
    assert found["learned"]["count"] == 48 and len(found["learned"]["map"]["names"]) == 48
    assert len(found["learned"]["near"]["queries"]) == 5
    assert bool(found["learned"]["probe"]) == (program == AS)
    changed = {row["name"] for row in data["settings"] if row["changed"]}
    assert "epochs" in changed and "output_dir" not in changed and "weight_decay" not in changed


@pytest.mark.parametrize("program", [M2D, SPEECH])
def test_a_run_from_a_pack(program, small_workplace):
    listed = write_data(program).split()[1]
    assert cli.main(["pack", listed, "--out", "pack", "--data_path", "data"]) == 0
    assert run(program, "--csv_main pack --output_dir run") == 0
    for path in Path("data").rglob("*.np?"):
        path.unlink()
    assert report("run") == 0
    (found,) = page_data("run/report.html")["runs"]
    assert found["notes"] == [] and found["learned"]["count"] == 48 and len(found["seen"]["items"]) == 3


def test_the_figures_are_those_of_the_log(small_workplace):
    trained(M2D, "--epochs 3")
    assert report("run") == 0
    loss = page_data("run/report.html")["charts"][0]
    rows = [json.loads(line) for line in Path("run/log.txt").read_text().splitlines()]
    assert loss["series"][0]["x"] == [1, 2, 3]
    assert loss["series"][0]["y"] == pytest.approx([row["train_loss"] for row in rows], rel=1e-5)


def test_what_the_encoder_sees_is_what_training_gave_it(small_workplace):
    """The mask of the page's first sample hides the share that the run hides, and the crop is one of its clip."""
    trained(M2D)
    dataset, settings = open_dataset(read_run("run"), None, None)
    (first, *_) = samples_seen(dataset, settings, 1, 4, None)
    clip = np.load(Path("data") / first.name)[0]
    assert any(np.array_equal(first.clip, clip[:, start : start + 32]) for start in range(9))
    assert first.hidden.shape == (5, 2) and first.hidden.sum() == 7
    again = samples_seen(dataset, settings, 1, 2, None)
    assert np.array_equal(again[0].clip, first.clip) and again[0].name == first.name


def test_a_run_without_a_finished_epoch(small_workplace, capsys):
    trained(M2D)
    for path in Path("run").iterdir():
        if path.name != "run.json":
            path.unlink()
    assert report("run") == 0
    (found,) = page_data("run/report.html")["runs"]
    assert found["state"] == "stopped" and len(found["seen"]["items"]) == 3 and found["learned"] is None
    assert "no checkpoint yet" in found["notes"][0]
    assert report("run", "--out", "x.png") == 0 and Path("x.png").stat().st_size > 1000


def test_a_torn_checkpoint_and_a_torn_log(small_workplace):
    trained(M2D)
    for name in ("last.pth", "log.txt"):
        os.truncate(Path("run") / name, Path(f"run/{name}").stat().st_size - 20)
    assert report("run") == 0
    (found,) = page_data("run/report.html")["runs"]
    assert found["learned"]["count"] == 48 and found["facts"][0][1] == "1 of 2"


def test_short_first_clips(small_workplace):
    trained(M2D)
    np.save("data/main_lms/000.npy", make_clip(np.random.default_rng(0), 3))
    assert report("run") == 0
    assert page_data("run/report.html")["runs"][0]["notes"] == []
    assert report("run", "--out", "learned.png") == 0


def test_clips_that_are_gone_leave_the_curves(small_workplace, capsys):
    trained(M2D)
    Path("data/files_main.csv").unlink()
    assert report("run") == 0
    data = page_data("run/report.html")
    assert data["charts"] and data["runs"][0]["learned"] is None
    assert "files_main.csv: no such list" in data["runs"][0]["notes"][0]
    assert report("run", "--csv", "data/files_main.csv") == 2


def test_from_another_folder_the_list_is_found(small_workplace, monkeypatch):
    trained(M2D)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert report("../run") == 0
    assert page_data("../run/report.html")["runs"][0]["notes"] == []


def test_several_runs_side_by_side(small_workplace):
    trained(M2D)
    assert run(MAE, "--csv_main data/files_main.csv --output_dir other/run --epochs 1") == 0
    assert report("run", "other/run", "run/checkpoint-2.pth", "--clips", 0) == 0
    data = page_data("report.html")
    assert len({each["name"] for each in data["runs"]}) == 3
    assert [each["run"] for each in data["charts"][0]["series"]] == [0, 1, 2]
    row = next(row for row in data["settings"] if row["name"] == "model")
    assert row["values"] == ["m2d_vit_tiny", "msm_mae_vit_tiny", "m2d_vit_tiny"] and row["differs"]


def test_sounds_of_neighbours_and_classes_by_folders(small_workplace):
    rng, names = np.random.default_rng(0), []
    for i in range(36):
        name = f"{'abc'[i % 3]}/{i}"
        for folder in ("audio", "data/lms"):
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(f"audio/{name}.wav", rng.normal(size=8000) / 9, 16000)
        np.save(f"data/lms/{name}.npy", make_clip(rng, 40))
        names.append(f"lms/{name}.npy")
    Path("data/l.csv").write_text("\n".join(["file_name", *names]) + "\n")
    assert run(M2D, "--csv_main data/l.csv --output_dir run") == 0
    assert report("run", "--audio", "audio") == 0
    learned = page_data("run/report.html")["runs"][0]["learned"]
    assert learned["probe"][0][0] == "trained encoder" and learned["map"]["groups"] == ["a", "b", "c"]
    assert all(clip["sound"].startswith("data:audio/mpeg;base64,") for clip in learned["near"]["clips"].values())


def test_released_weights_look_at_a_folder_of_sounds(small_workplace):
    trained(M2D)
    Path("sounds").mkdir()
    for i in range(6):
        soundfile.write(f"sounds/{i}.wav", np.sin(np.arange(9000) / (i + 2)), 16000)
    Path("weights/x").mkdir(parents=True)
    saved = torch.load("run/last.pth", weights_only=True)
    args = {name: saved["args"][name] for name in ("model", "input_size", "patch_size", "sr")}
    torch.save({"model": saved["model"], "args": args}, "weights/x/checkpoint-1.pth")
    assert report("weights/x/checkpoint-1.pth") == 0
    assert "--audio FOLDER" in page_data("weights/x/report.html")["runs"][0]["notes"][0]
    assert report("weights/x/checkpoint-1.pth", "--audio", "sounds") == 0
    learned = page_data("weights/x/report.html")["runs"][0]["learned"]
    assert learned["count"] == 6 and all(clip["sound"] for clip in learned["near"]["clips"].values())
    assert report("weights/x/checkpoint-1.pth", "--audio", "sounds", "--no_sound") == 0
    learned = page_data("weights/x/report.html")["runs"][0]["learned"]
    assert not any(clip["sound"] for clip in learned["near"]["clips"].values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none"], "there is no run or checkpoint none"),
        (["data"], "data holds no run"),
        (["run", "--out", "run/x.txt"], "a name that ends in .html"),
        (["run", "--out", "run/run.json"], "a name that ends in .html"),
        (["run", "--out", "mine.html"], "is there already"),
        (["run", "run", "--out", "x.png"], "a picture shows one run"),
        (["run", "--clips", "-1"], "--clips is 0 or more"),
        (["run", "--audio", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_errors_are_one_line(words, said, small_workplace, caplog):
    write_data(M2D)
    Path("run").mkdir()
    Path("run/run.json").write_text(
        json.dumps({"starts": [], "settings": {"model": "m2d_vit_tiny", "csv_main": "data/files_main.csv"}})
    )
    Path("mine.html").write_text("mine")
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert report(*words) == 2
    (error,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert said in error and "\n" not in error


@pytest.mark.parametrize("settings", [{"csv_main": 3}, {"csv_main": "data/files_main.csv", "epochs": "many"}, {"model": 5}])
def test_settings_of_any_kind_are_no_traceback(settings, small_workplace):
    Path("run").mkdir()
    Path("run/run.json").write_text(json.dumps({"starts": [{"command": 3, "folder": []}], "settings": settings}))
    assert report("run") == 0


@pytest.mark.parametrize("kind", ["folder", "list", "events"])
def test_a_fine_tuning_run(kind, small_workplace):
    for name, pitch in (("low", 0.1), ("high", 0.9)):
        Path(f"sounds/{name}").mkdir(parents=True)
        for i in range(12):
            soundfile.write(f"sounds/{name}/{i}.wav", np.sin(np.arange(8000) * pitch), 16000)
    files = [f"{name}/{i}.wav" for name in ("low", "high") for i in range(12)]
    Path("sounds/list.csv").write_text("file_name,label\n" + "".join(f"{file},{file[:3]}\n" for file in files))
    rows = "".join(f"{file},0.1,0.3,{file[:3]}\n{file},0.3,0.4,low\n" for file in files)
    Path("sounds/events.csv").write_text("file_name,onset,offset,label\n" + rows)
    source = {"folder": "sounds", "list": "sounds/list.csv", "events": "sounds/events.csv"}[kind]
    weights = write_checkpoint(Path("weights"), size=(80, 64))
    flags = "--epochs 2 --warmup_epochs 1 --batch_size 8 --optim adamw --workers 1 --device cpu --mixup 0".split()
    assert cli.main(["finetune", source, "--weights", str(weights), "--out", "out", *flags]) == 0
    assert report("out") == 0
    data = page_data("out/report.html")
    (found,) = data["runs"]
    assert found["state"] == "finished" and found["notes"] == [] and found["learned"]["count"] == 24
    assert {"Loss", "Validation"} <= {chart["title"] for chart in data["charts"]}
    assert bool(found["confusion"]) == (kind != "events") and found["learned"]["probe"] == []
    assert "epochs" in {row["name"] for row in data["settings"] if row["changed"]}
    assert all(clip["sound"] for clip in found["learned"]["near"]["clips"].values())
