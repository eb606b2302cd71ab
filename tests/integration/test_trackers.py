"""--tracker: the figures of log.txt go to each tracker, and a resumed run continues in the same run of it.

The services are stand-ins with the calls of the real packages; with those installed, the last tests use them offline.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from small_runs import M2D, log_lines, run, write_list

from m2d.train.monitoring import trackers

FLAGS = "--csv_main data/files_main.csv --output_dir out --feature_eval_freq 1"


class Service:
    """What a service has got: the opened runs, and rows of (run id or name, step, values)."""

    def __init__(self):
        self.opened, self.rows, self.closed, self.fails = [], [], 0, False

    def open(self, key, **options):
        self.opened.append((key, options))
        return key

    def log(self, key, values, step):
        if self.fails:
            raise RuntimeError("no connection")
        self.rows.append((key, step, values))

    def close(self):
        self.closed += 1

    def figures(self):
        """Values by (step, name); a step that comes again has the same ones."""
        found = {}
        for _, step, values in self.rows:
            for name, value in values.items():
                assert found.setdefault((step, name), value) == value
        return found


def stand_in(monkeypatch, name, module):
    module.__spec__ = SimpleNamespace(name=name)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch):
    service, module = Service(), ModuleType("wandb")

    def init(*, project, name, id, resume, config, dir, settings):
        assert project == "m2d" and name == "out" and resume == "allow" and Path(dir) == Path("out")
        key = service.open(id, config=config)
        log = lambda values, step: service.log(key, values, step)  # noqa: E731
        return SimpleNamespace(log=log, finish=service.close, define_metric=lambda *_, **__: None)

    module.init, module.Settings = init, lambda **options: options
    stand_in(monkeypatch, "wandb", module)
    return service


@pytest.fixture
def trackio(monkeypatch):
    service, module, opened = Service(), ModuleType("trackio"), []

    def init(*, project, name, config, resume, embed):
        assert project == "m2d" and name.startswith("out-") and resume == "allow" and embed is False
        opened.append(service.open(name, config=config))

    module.init, module.log = init, lambda values, step: service.log(opened[-1], values, step)
    module.finish = service.close
    stand_in(monkeypatch, "trackio", module)
    return service


def check_figures(service, folder="out"):
    figures = service.figures()
    for line in log_lines(Path(folder)):
        for name, value in line.items():
            if name != "epoch":
                assert figures[1000 * line["epoch"], f"epoch/{name}"] == value
    assert {"lr", "ema_decay", "train_loss", "train_rankme"} <= {name for _, name in figures}


def test_all_figures_go_to_each(wandb, trackio, small_workplace):
    write_list()
    assert run(M2D, f"{FLAGS} --tracker wandb,trackio,tensorboard") == 0
    for service in (wandb, trackio):
        check_figures(service)
        ((_, options),) = service.opened
        assert service.closed == 1 and options["config"]["epochs"] == 2
    assert list(Path("out").glob("events.out.tfevents*"))


def test_a_resumed_run_is_the_same_run_of_the_tracker(wandb, trackio, small_workplace):
    write_list()
    assert run(M2D, f"{FLAGS} --tracker wandb,trackio --epochs 4 --stop_at 2") == 0
    sent = len(wandb.rows)
    assert run(M2D, f"{FLAGS} --tracker wandb,trackio --epochs 4 --auto_resume") == 0
    for service in (wandb, trackio):
        assert len(service.opened) == 2 and len({key for key, _ in service.opened}) == 1
        check_figures(service)
        assert len(service.rows) == 2 * sent


def test_steps_that_are_computed_again_are_not_sent_again(wandb, small_workplace):
    """The checkpoint of epoch 3 is lost: the run continues from epoch 2, and only what was not sent comes again."""
    write_list()
    assert run(M2D, f"{FLAGS} --tracker wandb --epochs 4 --stop_at 3 --save_freq 1") == 0
    for name in ("last.pth", "checkpoint-3.pth"):
        Path("out", name).unlink()
    before = list(wandb.rows)
    assert run(M2D, f"{FLAGS} --tracker wandb --epochs 4 --auto_resume --save_freq 1") == 0
    check_figures(wandb)
    assert {step for _, step, _ in wandb.rows[len(before) :]} == {3000, 4000}


def test_without_tensorboard_there_are_no_event_files(wandb, small_workplace, capsys):
    write_list()
    assert run(M2D, f"{FLAGS} --tracker wandb --epochs 1") == 0
    assert not list(Path("out").glob("events*")) and "TensorBoard" not in capsys.readouterr().out


def test_by_default_there_is_no_other_tracker(small_workplace):
    write_list()
    assert run(M2D, f"{FLAGS} --epochs 1") == 0
    assert not Path("out/trackers.json").exists() and list(Path("out").glob("events*"))


def test_a_tracker_that_fails_ends_no_run(wandb, small_workplace, capsys):
    write_list()
    wandb.fails = True
    assert run(M2D, f"{FLAGS} --tracker wandb") == 0
    assert "--tracker wandb failed, training continues: no connection" in capsys.readouterr().out
    assert len(log_lines(Path("out"))) == 2


def test_a_tracker_that_cannot_be_opened(small_workplace, monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("api_key not configured\n(no-tty)")

    write_list()
    monkeypatch.setitem(trackers.SESSIONS, "wandb", refuse)
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    monkeypatch.setattr("m2d.train.checks.check_trackers", lambda names: None)
    assert run(M2D, f"{FLAGS} --tracker wandb") == 2
    assert "--tracker wandb cannot be opened: api_key not configured (no-tty)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--tracker wandb", "--tracker wandb: wandb is not installed: pip install 'm2d-audio[wandb]'"),
        ("--tracker trackio --log_dir x", "--log_dir has no effect without tensorboard in --tracker"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(flags, said, small_workplace, monkeypatch, capsys):
    write_list()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    assert run(M2D, f"{FLAGS} {flags}") == 2
    assert said in capsys.readouterr().out and not Path("out").exists()


def test_an_unknown_tracker(small_workplace, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(M2D, f"{FLAGS} --tracker wandbb")
    assert stopped.value.code == 2
    assert "'wandbb' is no tracker: choose from tensorboard, wandb, trackio" in capsys.readouterr().err


# ---------------------------------------------------------------- the real packages


def test_wandb_offline(small_workplace, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_list()
    assert run(M2D, f"{FLAGS} --tracker wandb --epochs 4 --stop_at 2") == 0
    assert run(M2D, f"{FLAGS} --tracker wandb --epochs 4 --auto_resume") == 0
    assert wandb.run is None
    folders = list(Path("out/wandb").glob("offline-run-*"))
    assert len(folders) == 2 and len({folder.name.rpartition("-")[2] for folder in folders}) == 1


def test_trackio_on_this_machine(small_workplace, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(small_workplace / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    write_list()
    assert run(M2D, f"{FLAGS} --tracker trackio --epochs 4 --stop_at 2") == 0
    assert run(M2D, f"{FLAGS} --tracker trackio --epochs 4 --auto_resume") == 0
    (name,) = SQLiteStorage.get_runs("m2d")
    rows = SQLiteStorage.get_logs("m2d", name)
    losses = {row["step"]: row["epoch/train_loss"] for row in rows if "epoch/train_loss" in row}
    assert losses == {1000 * line["epoch"]: pytest.approx(line["train_loss"]) for line in log_lines(Path("out"))}
    assert json.loads(Path("out/trackers.json").read_text())["id"] in name
