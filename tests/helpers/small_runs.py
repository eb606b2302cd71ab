"""Pre-training runs small enough for tests: models of two blocks, lists of made-up clips.

As a program, `python small_runs.py train_audio FLAGS…` runs a training program with those models.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from m2d.data.dataset import AudioDataset
from m2d.models import registry as models_mae
from m2d.train import programs
from m2d.train import setup as setup_run
from m2d.train.config import Settings, make_parser
from m2d.train.distributed.launch import Launch, exit_process
from m2d.train.pretrain import main
from m2d.train.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]

ENCODER = dict(embed_dim=48, depth=2, num_heads=2)
DECODER = dict(decoder_embed_dim=32, decoder_num_heads=2)
PROGRAMS = M2D, MAE, AS, SPEECH, CLAP, CLAP_ONLY = (
    "train_audio",
    "mae_train_audio",
    "audioset.train_as",
    "speech.train_speech",
    "clap.train_clap",
    "clap.clap_only",
)
LIST = "--csv_main data/files_main.csv"
#: Model and sizes of each program's runs: 5 x 2 patches, for speech 1 x 8.
SETTINGS = {
    "train_audio": "--model m2d_vit_tiny --input_size 80x32",
    "mae_train_audio": "--model msm_mae_vit_tiny --input_size 80x32",
    "audioset.train_as": "--model m2d_as_vit_tiny --input_size 80x32",
    "speech.train_speech": "--model m2d_s_vit_tiny --input_size 80x32 --noise_ratio 0.",
    "clap.train_clap": "--model m2d_clap_vit_tiny --input_size 80x32 --text_encoder made_up --file_caption data/captions.npz",
    "clap.clap_only": "--model m2d_clap_vit_tiny --input_size 80x36 --text_encoder bert --base_model base/last.pth",
}
COMMON = "--device cpu --num_workers 0 --warmup_epochs 1 --feature_eval_freq 0 --blr 0.05"


def small_builders() -> dict:
    """Builders under the `_tiny` names, of two blocks and 48 wide."""
    table = {}
    for family, model_class in models_mae.FAMILIES.items():
        decoder = DECODER | (dict(decoder_depth=1) if family == "msm_mae" else {})
        table[f"{family}_vit_tiny"] = models_mae.Builder(model_class, {**ENCODER, **decoder})
        table[f"{family}_vit_tiny_encoder_only"] = models_mae.Builder(models_mae.M2DEncoderViT, ENCODER)
    return table


def program_of(program: str) -> programs.Program:
    """A training program, by its script's module name."""
    return dict(zip(PROGRAMS, programs.PROGRAMS.values(), strict=True))[program]


def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of a program's flags."""
    found = program_of(program)
    return make_parser(found.prog, found.description, found.defaults, found.without)


def settings_of(program: str, flags: Sequence[str]) -> Settings:
    """The settings that a program makes of flags."""
    return Settings.from_args(parser_of(program).parse_args(flags))


def flags_of(program: str, more: str = "") -> list[str]:
    """A small run's flags, with more of them after."""
    epochs = "" if "--epochs" in more else "--epochs 2"
    batch = "" if "--batch_size" in more else "--batch_size 8"
    repeated = "--min_ds_size 0" if program in (M2D, MAE) else ""
    depth = "--decoder_depth 1" if program != CLAP_ONLY else ""
    return f"{SETTINGS[program]} {depth} {COMMON} {epochs} {batch} {repeated} {more}".split()


def run(program: str, more: str = "") -> int:
    """A small run in this process and its working folder; returns the exit status."""
    return main(program_of(program), flags_of(program, more))


def command(program: str, more: str = "", processes: int = 1, agent: str = "") -> list[str]:
    """The command that does the same in processes of its own."""
    python = [sys.executable]
    if processes > 1 or agent:
        agent = agent or "--standalone"
        python += ["-m", "torch.distributed.run", *agent.split(), f"--nproc_per_node={processes}"]
    return [*python, str(Path(__file__).resolve()), program, *flags_of(program, more)]


def environment(**more: str) -> dict[str, str]:
    """The environment of such a command."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


def launch(program: str, more: str = "", processes: int = 1, agent: str = "", **options) -> subprocess.Popen:
    """Start a small run in processes of its own."""
    piped = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
    return subprocess.Popen(command(program, more, processes, agent), **{**piped, **options})


class Forked:
    """A small run in processes forked from this one, so that nothing is imported again.

    Args:
        program, more: as for `run`; several texts of flags are one for each rank.
        processes: ranks of the run, talking by gloo.
        out: file that rank 0's output goes to; the others' go to `{out}.1`, …
    """

    def __init__(self, program: str, more: str | Sequence[str] = "", processes: int = 1, out: str = "said.txt"):
        flags = [more] * processes if isinstance(more, str) else more
        context, port, self.out = multiprocessing.get_context("fork"), free_port(), Path(out)
        self.ranks = [context.Process(target=_rank, args=(program, flags[r], r, processes, port, out)) for r in range(processes)]
        for rank in self.ranks:
            rank.start()

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit status of each rank (negative: the signal that ended it)."""
        for rank in self.ranks:
            rank.join(seconds)
            if rank.exitcode is None:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"still running after {seconds} s: {self.said()}")
        return [rank.exitcode for rank in self.ranks]

    def alive(self) -> bool:
        """Whether a rank is still running."""
        return any(rank.is_alive() for rank in self.ranks)

    def signal(self, number: int) -> None:
        """Send a signal to all ranks."""
        for rank in self.ranks:
            if rank.is_alive():
                os.kill(rank.pid, number)

    def said(self, rank: int = 0) -> str:
        """What a rank has said so far."""
        path = Path(f"{self.out}.{rank}" if rank else self.out)
        return path.read_text() if path.exists() else ""

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something holds, while the run is under way."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or not self.alive() and not condition():
                raise TimeoutError(f"not seen: {self.said()}")
            time.sleep(0.005)


def _rank(program: str, more: str, rank: int, processes: int, port: int, out: str) -> None:
    torch.set_num_threads(1)  # rebuilds torch's thread pool, which a fork breaks: loader threads would race to do it
    if processes > 1:
        launched = dict(RANK=rank, WORLD_SIZE=processes, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        os.environ.update({name: str(value) for name, value in launched.items()})
    with open(f"{out}.{rank}" if rank else out, "w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os._exit(_status(program, more))


def _status(program: str, more: str) -> int:
    try:
        return run(program, more)
    except BaseException:
        traceback.print_exc()
        return 1


def run_ranks(program: str, more: str | Sequence[str] = "", processes: int = 2) -> tuple[list[int], list[str]]:
    """A small run in forked processes: exit status and output of each."""
    forked = Forked(program, more, processes)
    return forked.wait(), [forked.said(rank) for rank in range(processes)]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# ---------------------------------------------------------------- data


def make_clip(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A log-mel `[1, 80, frames]` with structure: two harmonic bands, a rhythm, and a little noise."""
    mels, time = np.arange(80)[:, None], np.arange(frames)[None]
    centre, period, phase = rng.uniform(10, 60), rng.uniform(6, 20), rng.uniform(0, 6)
    bands = np.exp(-(((mels - centre) / 5) ** 2)) + 0.6 * np.exp(-(((mels - centre - 15) / 4) ** 2))
    clip = -9 + 6 * bands * (1 + 0.8 * np.sin(2 * np.pi * time / period + phase)) + 0.3 * rng.standard_normal((80, frames))
    return clip.astype(np.float32)[None]


def write_list(name: str = "main", clips: int = 48, frames: int = 40, seed: int = 0, **columns: list[str]) -> Path:
    """A list `data/files_{name}.csv` of clips in `data/{name}_lms/`, below the working folder."""
    rng = np.random.default_rng(seed)
    folder = Path("data") / f"{name}_lms"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(clips):
        np.save(folder / f"{i:03d}.npy", make_clip(rng, frames))
        rows.append(",".join([f"{name}_lms/{i:03d}.npy", *(f'"{values[i % len(values)]}"' for values in columns.values())]))
    path = Path("data") / f"files_{name}.csv"
    path.write_text("\n".join([",".join(["file_name", *columns]), *rows]) + "\n")
    return path


def write_pairs(name: str = "speech", clips: int = 48, frames: int = 40, width: int = 12, seed: int = 0) -> Path:
    """A list `data/files_{name}.csv` of log-mels with features, below the working folder."""
    rng = np.random.default_rng(seed)
    folder = Path("data") / name
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(clips):
        clip = make_clip(rng, frames)
        features = clip[0].reshape(80, frames // 2, 2).mean(2).T @ rng.standard_normal((80, width)).astype(np.float32)
        np.savez(folder / f"{i:03d}.npz", clip, features[None].astype(np.float32), np.int64(frames // 2))
    path = Path("data") / f"files_{name}.csv"
    path.write_text("\n".join(["file_name", *(f"{name}/{i:03d}.npz" for i in range(clips))]) + "\n")
    return path


def write_captions(clips: int = 48, name: str = "captions", width: int = 12, seed: int = 0) -> Path:
    """Captions `data/{name}.npz` of the clips of `write_list`, one to three of each: a random projection of the clip's mean."""
    rng = np.random.default_rng(seed)
    projection, content = rng.standard_normal((80, width)), {}
    for i in range(clips):
        mean = np.load(f"data/main_lms/{i:03d}.npy")[0].mean(axis=1)
        captions = np.stack([(mean - mean.mean()) @ projection + 0.1 * rng.standard_normal(width) for _ in range(1 + i % 3)])
        content[f"{i:03d}"] = captions.astype(np.float16)
    np.savez(Path("data") / f"{name}.npz", **content)
    return Path("data") / f"{name}.npz"


def write_data(program: str) -> str:
    """The lists of a program's small run; returns the flags that name them."""
    if program == "speech.train_speech":
        return f"--csv_main {write_pairs()}"
    if program == "audioset.train_as":
        return f"--csv_main {write_list(label=['/m/a', '/m/b', '/m/a,/m/c'], weight=['1.5', '0.5'])}"
    flags = f"--csv_main {write_list()}"
    if program == CLAP:
        write_captions()
    return flags


# ---------------------------------------------------------------- what a run left


def load(path: Path) -> dict:
    """A checkpoint, as anybody may load it."""
    return torch.load(path, weights_only=True)


def digest(path: Path) -> str:
    """A hash of a checkpoint's weights and optimizer state."""
    saved, state = load(path), hashlib.sha256()
    for name, tensor in saved["model"].items():
        state.update(name.encode() + tensor.numpy().tobytes())
    for number, moments in sorted(saved["optimizer"]["state"].items()):
        state.update(f"{number}".encode() + b"".join(moments[key].numpy().tobytes() for key in sorted(moments)))
    return state.hexdigest()


def log_lines(folder: Path) -> list[dict]:
    """log.txt, one dict an epoch."""
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def trained(flags: str = "", program: str = M2D, out: str = "out") -> dict:
    """A run's last checkpoint."""
    assert run(program, f"--output_dir {out} {flags}") == 0
    return load(Path(out) / "last.pth")


def trainer_of(flags: str, program: str = M2D) -> tuple[Trainer, AudioDataset]:
    """A trainer as a run makes it, and its data."""
    settings = settings_of(program, flags_of(program, flags))
    launch = Launch(0, 1, 0, torch.device("cpu"))
    data = setup_run.open_data(program_of(program), settings, launch).train
    sampler = setup_run.make_sampler(settings, data, launch)
    return setup_run.make_trainer(settings, data, sampler, *setup_run.normalisation(settings, data, launch), launch), data


def step_losses(text: str) -> list[str]:
    """The losses in a run's progress lines, as they are printed."""
    return re.findall(r"step \d+/\d+  loss (\S+)", text)


def install() -> None:
    """Put the small models in place of the tiny ones, in this process."""
    models_mae.BUILDERS.update(small_builders())
    torch.set_num_threads(1)


def same_log(first, second):
    """Whether two runs logged the same, to the last digits of sums that were taken in other groups."""
    lines = [log_lines(Path(folder)) for folder in (first, second)]
    assert len(lines[0]) == len(lines[1])
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, rel=1e-12)


if __name__ == "__main__":
    install()
    exit_process(main(program_of(sys.argv[1]), sys.argv[2:]))
