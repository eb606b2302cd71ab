"""The data set of an M2D-S run: log-mel spectrograms and a speech model's features of LibriSpeech, one .npz per clip.

    python speech/extract_offline_ls960.py /your/LibriSpeech

Every `train*/**/*.flac` gives `arr_0`, the log-mel spectrogram float32 `[1, 80, frames]` (a frame each 10 ms);
`arr_1`, the teacher's features float32 `[1, T50, width]` (one each 20 ms); and `arr_2`, the number of features that
belong to the clip and not to its padding (M2D-S: Niizumi et al., Interspeech 2023, section 2.2).

A clip shorter than --min_seconds is padded with zeros at its end. The teacher's input is the padded clip with mean 0
and variance 1, as Wav2Vec2Processor of facebook/wav2vec2-base-960h makes it. Only clips of the same length are encoded
together: HuBERT-base normalises over time and knows no mask, so padding within a batch would change its features.
Clips that are there already are skipped, so a run that was stopped continues when it is started again.
"""

import argparse
import json
import logging
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.audio.decode import load_audio
from m2d.audio.listing import find_audio
from m2d.audio.logmel import PRESETS, NumpyLogMel
from m2d.utils import atomic_file
from m2d.utils.device import pick_device
from m2d.utils.errors import UserError, first_line
from m2d.utils.outputs import OVERWRITE_HELP, check_outputs, lists_only
from m2d.utils.parallel import Progress, map_ahead, usable_cores
from m2d.utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")

SAMPLE_RATE = 16000
SAMPLES_PER_FEATURE = 320  # 50 Hz: two log-mel frames
SETTINGS_FILE = "settings.json"
LIST_COLUMNS = ("file_name",)


class Teacher:
    """A layer of a Hugging Face speech model (HuBERT, wav2vec 2.0, WavLM): waveforms to features at 50 Hz.

    Args:
        name: a model of the Hugging Face hub or a local folder.
        layer: which output, 1 for the first transformer block; 0 is the blocks' input.
        device: where it runs.

    Raises:
        OSError, ValueError: transformers is missing, the model cannot be loaded, or does not fit.
    """

    def __init__(self, name: str, layer: int, device: torch.device):
        try:
            from transformers import AutoModel
        except ImportError as error:
            raise UserError(f"the teacher needs Hugging Face transformers ({error}): pip install transformers") from error
        try:
            self.model = AutoModel.from_pretrained(name, trust_remote_code=False)
        except pickle.UnpicklingError as error:
            raise UserError(f"--teacher {name}: its weights run code when they are loaded: refused") from error
        except (OSError, ValueError) as error:
            raise OSError(
                f"--teacher {name}: {first_line(error)} Without network, give the folder of a downloaded model"
            ) from error
        config = self.model.config
        stride = getattr(config, "inputs_to_logits_ratio", None)
        if stride != SAMPLES_PER_FEATURE:
            raise ValueError(f"--teacher {name}: a feature each {stride} samples; M2D-S takes one each {SAMPLES_PER_FEATURE}")
        blocks = self.model.encoder.layers
        if not 0 <= layer <= len(blocks):
            raise ValueError(f"--layer {layer}: {name} has {len(blocks)} layers")
        # Later blocks are not needed. A stable-layer-norm encoder normalises its last output: one more block keeps
        # the wanted one as it is inside the whole model.
        self.model.encoder.layers = blocks[: max(1, layer + bool(getattr(config, "do_stable_layer_norm", False)))]
        self.layer, self.device = layer, device
        self.model.eval().to(device)

    @torch.inference_mode()
    def __call__(self, waveforms: np.ndarray) -> np.ndarray:
        """Standardised waveforms float32 `[B, samples]` at 16 kHz to features float32 `[B, T50, width]`."""
        batch = torch.from_numpy(waveforms).to(self.device)
        return self.model(batch, output_hidden_states=True).hidden_states[self.layer].float().cpu().numpy()


class Clip(NamedTuple):
    """One clip, ready for the teacher."""

    source: Path
    waveform: np.ndarray  # standardised and padded, [samples]
    lms: np.ndarray  # [80, frames] of the padded waveform
    samples: int  # before padding


def standardise(waveform: np.ndarray) -> np.ndarray:
    """Mean 0, variance 1 (1e-7 under the root), as Wav2Vec2Processor does."""
    return ((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)).astype(np.float32)


def read_clip(source: Path, min_samples: int, to_lms: NumpyLogMel) -> Clip:
    """Read, pad and standardise a clip, and compute its log-mel spectrogram.

    Raises:
        OSError, ValueError: it cannot be read, or holds values that are not finite.
    """
    waveform = load_audio(source, SAMPLE_RATE)
    if not np.isfinite(waveform).all():
        raise ValueError(f"{source}: some samples are not finite")
    padded = np.pad(waveform, (0, max(0, min_samples - len(waveform))))
    return Clip(source, standardise(padded), to_lms(padded), len(waveform))


def write_clip(path: Path, clip: Clip, features: np.ndarray) -> None:
    """Write a clip's .npz; it gets its name when it is whole."""
    valid = len(features) * clip.samples // len(clip.waveform)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_file.write_npz(path, clip.lms[None], features[None], valid)


def is_whole(path: Path) -> bool:
    """Whether a clip's .npz is there, with its three arrays."""
    try:
        with zipfile.ZipFile(path) as members:
            return {"arr_0.npy", "arr_1.npy", "arr_2.npy"} <= set(members.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def duration(source: Path) -> float:
    """Length of a file in seconds, from its header; 0 where it cannot be read (reading it gives the reason)."""
    try:
        return soundfile.info(str(source)).duration
    except (OSError, RuntimeError):
        return 0.0


def same_length_batches(clips: Iterable[Clip], batch_size: int) -> Iterator[list[Clip]]:
    """Consecutive clips of one length each, at most `batch_size` together."""
    batch: list[Clip] = []
    for clip in clips:
        if batch and (len(batch) == batch_size or len(clip.waveform) != len(batch[0].waveform)):
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch


def find_sources(src: Path) -> list[Path]:
    """LibriSpeech's training clips under a folder, sorted."""
    folders = sorted(folder for folder in src.glob("train*") if folder.is_dir())
    sources = [path for folder in folders for path in find_audio(folder, [".flac"])]
    if not sources:
        raise FileNotFoundError(f"{src}: no train*/**/*.flac under it. Give the folder that holds train-clean-100 and so on")
    return sources


def claim(dest: Path, settings: dict) -> None:
    """Keep the settings with the features, and refuse to mix features of other settings with them."""
    path = dest / SETTINGS_FILE
    if path.exists():
        before = _read_settings(path)
        differ = [f"{key} {before.get(key)} (now {value})" for key, value in settings.items() if before.get(key) != value]
        if differ:
            raise ValueError(f"{dest} holds features of other settings: {', '.join(differ)}. Give another --dest")
    dest.mkdir(parents=True, exist_ok=True)
    atomic_file.write_text(path, json.dumps(settings, indent=1))


def _read_settings(path: Path) -> dict:
    try:
        settings = json.loads(path.read_text())
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{path} does not hold the settings of the features there: remove it if they are the ones given now")
    return settings


def extract(
    jobs: dict[Path, Path], teacher: Callable[[np.ndarray], np.ndarray], min_samples: int, batch_size: int, workers: int
) -> int:
    """Write the .npz of each source, jobs[source]. Returns the number of sources that could not be read.

    The longest clips come first, so that a batch too large for the memory is found at once. Threads read and write
    while the teacher computes.
    """
    to_lms, failed = NumpyLogMel(PRESETS["16k"]), 0

    def read(source: Path) -> Clip | Exception:
        try:
            return read_clip(source, min_samples, to_lms)
        except (OSError, ValueError) as error:
            return error

    def readable(results: Iterable[Clip | Exception]) -> Iterator[Clip]:
        nonlocal failed
        for result in results:
            if isinstance(result, Clip):
                yield result
            else:
                failed += 1
                logger.warning("skipped: %s", result)

    def encoded(clips: Iterable[Clip]) -> Iterator[tuple[Path, Clip, np.ndarray]]:
        for batch in same_length_batches(clips, batch_size):
            features = teacher(np.stack([clip.waveform for clip in batch]))
            yield from ((jobs[clip.source], clip, each) for clip, each in zip(batch, features, strict=True))

    with (
        Progress(len(jobs), "clip") as progress,
        ThreadPoolExecutor(workers) as readers,
        ThreadPoolExecutor(max(1, workers // 2)) as writers,
    ):
        durations = dict(zip(jobs, readers.map(duration, jobs), strict=True))
        ordered = sorted(jobs, key=durations.__getitem__, reverse=True)
        clips = readable(map_ahead(readers, read, ordered, 2 * batch_size))
        for _ in map_ahead(writers, lambda job: write_clip(*job), encoded(clips), 4 * batch_size):
            progress.update()
    return failed


def names_in_list(paths: Iterable[Path], dest: Path, dest_csv: Path) -> tuple[Path, list[str]]:
    """Clips as a list names them: relative to the list's folder or, where they lie elsewhere, to dest's parent."""
    inside = dest.resolve().is_relative_to(dest_csv.parent.resolve())
    base = dest_csv.parent if inside else dest.parent
    return base, [path.resolve().relative_to(base.resolve()).as_posix() for path in paths]


def write_csv(paths: list[Path], dest: Path, dest_csv: Path) -> Path:
    """List the clips that are there. Returns the folder that the names are relative to: training's --data_path."""
    base, names = names_in_list(paths, dest, dest_csv)
    dest_csv.parent.mkdir(parents=True, exist_ok=True)
    atomic_file.write_csv(dest_csv, LIST_COLUMNS, ((name,) for name in names))
    return base


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("src", type=Path, help="LibriSpeech's folder, which holds train-clean-100, train-clean-360, …")
    parser.add_argument(
        "--dest", "--out", type=Path, default=Path("data/ls960_hybrid7s_hubaseL9"), help="folder for the .npz files"
    )
    parser.add_argument("--dest_csv", type=Path, default=Path("data/files_ls960_hybrid.csv"), help="the list to write")
    parser.add_argument("--min_seconds", type=float, default=7, help="shorter clips are padded to this length")
    parser.add_argument("--teacher", default="facebook/hubert-base-ls960", help="a model of the hub, or a local folder")
    parser.add_argument("--layer", type=int, default=9, help="which of its layers")
    parser.add_argument("--batch_size", type=int, default=16, help="clips encoded together, where as many are of one length")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu; auto: the first that there is")
    parser.add_argument("--workers", type=int, default=min(8, usable_cores()), help="threads that read")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    if args.batch_size < 1 or args.workers < 1 or args.min_seconds <= 0:
        parser.error("--batch_size, --workers and --min_seconds must be above 0")
    return args


def run(args: argparse.Namespace) -> int:
    """Extract what is missing and write the list; returns the exit status: 1 where clips could not be read."""
    jobs = {}
    for source in find_sources(args.src):
        jobs[source] = (args.dest / source.relative_to(args.src)).with_suffix(".npz")
    missing = {source: path for source, path in jobs.items() if not is_whole(path)}
    logger.info("%d clips, %d of them done before", len(jobs), len(jobs) - len(missing))
    failed = 0

    def is_own(path: Path) -> bool:
        return lists_only(path, LIST_COLUMNS, {(name,) for name in names_in_list(jobs.values(), args.dest, path)[1]})

    check_outputs([args.dest_csv], (), args.overwrite, is_own)
    claim(args.dest, {"teacher": args.teacher, "layer": args.layer, "min_seconds": args.min_seconds})
    if missing:
        teacher = Teacher(args.teacher, args.layer, pick_device(args.device))
        failed = extract(missing, teacher, round(args.min_seconds * SAMPLE_RATE), args.batch_size, args.workers)
    there = [path for path in jobs.values() if is_whole(path)]
    if not there:
        raise ValueError(f"{args.src}: none of the {len(jobs)} clips could be read")
    base = write_csv(there, args.dest, args.dest_csv)
    logger.info("%s: %d clips. Train with --csv_main %s --data_path %s", args.dest_csv, len(there), args.dest_csv, base)
    if failed:
        logger.error("%d clips could not be read: see above", failed)
    return int(failed > 0)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(argv)
    return run_program(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
