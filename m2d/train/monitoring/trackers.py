"""Where a run's figures go beside log.txt: TensorBoard (by `run.log`), Weights & Biases, trackio.

The figures of a resumed run go to the same run of the tracker. A tracker's own state is `trackers.json` in the run's folder: the
run's id, and the last step that each tracker has got whole. Steps are 1000 x epochs; a resumed run computes the steps behind its
checkpoint again, to the same values, and these are not sent twice.
"""

import importlib
import importlib.util
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from ...utils.atomic_file import write_bytes
from ...utils.errors import UserError
from ...utils.read_file import read_json

STATE = "trackers.json"
PROJECT = "m2d"


class Session(Protocol):
    """An open run of a tracking service."""

    def log(self, x: int, values: Mapping[str, float]) -> None:
        """Send figures at step x."""
        ...

    def close(self) -> None:
        """End: what is waiting is sent."""
        ...


class WandbSession:
    """A run of Weights & Biases; `WANDB_PROJECT` names the project (m2d), `WANDB_MODE=offline` keeps it in the run's folder."""

    def __init__(self, name: str, run_id: str, settings: Mapping[str, object], folder: Path):
        wandb = importlib.import_module("wandb")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(
            project=project,
            name=name,
            id=run_id,
            resume="allow",
            config=dict(settings),
            dir=str(folder),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="epochs")

    def log(self, x: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "epochs": x / 1000}, step=x)

    def close(self) -> None:
        self._run.finish()


class TrackioSession:
    """A run of trackio, kept on this machine; `TRACKIO_PROJECT` names the project (m2d)."""

    def __init__(self, name: str, run_id: str, settings: Mapping[str, object], folder: Path):
        self._trackio = importlib.import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._trackio.init(project=project, name=f"{name}-{run_id}", config=dict(settings), resume="allow", embed=False)

    def log(self, x: int, values: Mapping[str, float]) -> None:
        self._trackio.log({**values, "epochs": x / 1000}, step=x)

    def close(self) -> None:
        self._trackio.finish()


SESSIONS: Mapping[str, Callable[[str, str, Mapping[str, object], Path], Session]] = {
    "wandb": WandbSession,
    "trackio": TrackioSession,
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        UserError: names the package to install.
    """
    for name in names:
        if name in SESSIONS and importlib.util.find_spec(name) is None:
            raise UserError(f"--tracker {name}: {name} is not installed: pip install 'm2d-audio[{name}]'")


class _State(msgspec.Struct):
    """What trackers.json holds: the run's id at all trackers, and the last step that each has got."""

    id: str
    steps: dict[str, int] = {}


class Tracker:
    """One tracker of a run.

    Args:
        name: of SESSIONS.
        settings: of the run.
        folder: the run's.

    Raises:
        UserError: it cannot be opened: not logged in, no connection.
    """

    def __init__(self, name: str, settings: Mapping[str, object], folder: Path):
        self.name, self._path = name, folder / STATE
        state = self._read()
        self._done, self._current = state.steps.get(name, -1), -1
        try:
            self._session = SESSIONS[name](folder.absolute().name, state.id, settings, folder)
        except Exception as error:  # of whatever kind a service's package has
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"--tracker {name} cannot be opened: {reason[:300]}") from error
        self._write(state)

    def log(self, x: int, values: Mapping[str, float]) -> None:
        """Send figures at step x = 1000 · epochs, unless an earlier start of the run has sent those of this step.

        Steps come in order, and one may come in several parts. Whatever fails is raised.
        """
        if x <= self._done:
            return
        if x > self._current:
            self._record(self._current)
            self._current = x
        self._session.log(x, values)

    def close(self) -> None:
        """Send what is waiting; whatever fails is raised."""
        self._session.close()

    def _record(self, step: int) -> None:
        """All figures of a step are sent."""
        if step > 0:
            state = self._read()
            state.steps[self.name] = step
            self._write(state)

    def _read(self) -> _State:
        if self._path.exists():
            return read_json(self._path, _State, "a training run")
        return _State(secrets.token_hex(4))

    def _write(self, state: _State) -> None:
        write_bytes(self._path, msgspec.json.encode(state))


def open_trackers(names: Sequence[str], settings: Mapping[str, object], folder: Path) -> list[Tracker]:
    """The trackers of a run beside TensorBoard.

    Raises:
        UserError: one cannot be opened.
    """
    return [Tracker(name, settings, folder) for name in names if name in SESSIONS]
