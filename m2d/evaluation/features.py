"""One vector per clip, of an encoder or of the log-mel's statistics, kept on disk by the clips' content."""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..audio.decode import load_audio
from ..audio.logmel import PRESETS, NumpyLogMel
from ..checkpoint.spec import ModelSpec
from ..inference.runtime import RuntimeM2D
from ..utils.atomic_file import write_npz
from ..utils.errors import UserError
from ..utils.names import shown
from ..utils.parallel import Progress, map_ahead
from ..utils.read_file import ZIP_ERRORS, open_npz

logger = logging.getLogger("m2d")

#: What is taken of a clip's time steps: statistics over time, joined to one vector; `layers` takes them of the middle block too.
POOLINGS = {
    "mean": ("mean",),
    "mean_std": ("mean", "std"),
    "mean_max": ("mean", "max"),
    "layers": ("mean", "std"),
}
_FRAMES_PER_BATCH = 1 << 14
_MOST_WAITING = 512  # clips of lengths too rare to fill a batch


def pool(steps: torch.Tensor, pooling: str) -> torch.Tensor:
    """Statistics over the time steps `[B, T, D]`: `[B, D]` times the number of statistics."""
    statistics = {
        "mean": lambda: steps.mean(dim=1),
        "std": lambda: steps.std(dim=1, correction=0),
        "max": lambda: steps.amax(dim=1),
    }
    return torch.cat([statistics[name]() for name in POOLINGS[pooling]], dim=1)


class EncoderFeatures:
    """Features of an encoder: the statistics over time of its outputs, with `layers` those of its middle block as well.

    Args:
        runtime: the model, in evaluation, on its device.
        pooling: a name of POOLINGS.
        key: identifies this encoder in the cache.
    """

    def __init__(self, runtime: RuntimeM2D, pooling: str, key: str):
        self.runtime, self.pooling, self.key = runtime, pooling, f"{key}-{pooling}"
        self.rate = runtime.cfg.sr

    @torch.no_grad()
    def of(self, lms: torch.Tensor) -> torch.Tensor:
        """Log-mel clips of one length, `[B, 1, n_mels, frames]`: float32 `[B, width]` on the CPU."""
        device = self.runtime.backbone.norm_stats.device
        x = self.runtime.normalize_batch(lms.to(device))
        layers = self.runtime.encode_lms(x, return_layers=self.pooling == "layers", average_per_time_frame=True)
        if self.pooling == "layers":
            layers = [layers[len(layers) // 2 - 1], layers[-1]]
        else:
            layers = [layers]
        return torch.cat([pool(steps.float(), self.pooling) for steps in layers], dim=1).cpu()


class LogMelFeatures:
    """Mean and standard deviation over time of each mel band: a baseline without an encoder."""

    def __init__(self, rate: str):
        self.rate, self.key = rate, f"logmel-{rate}"

    def of(self, lms: torch.Tensor) -> torch.Tensor:
        """Log-mel clips of one length, `[B, 1, n_mels, frames]`: `[B, 2 · n_mels]`."""
        return pool(lms[:, 0].transpose(1, 2), "mean_std")


def untrained(trained: RuntimeM2D, seed: int = 0) -> RuntimeM2D:
    """The same encoder with random weights, and the same statistics to normalise by."""
    cfg = trained.cfg
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        runtime = RuntimeM2D(weight_file=f"{ModelSpec(cfg.input_size, cfg.patch_size, cfg.sr, cfg.model)}-random")
    runtime.cfg.mean, runtime.cfg.std = cfg.mean, cfg.std
    return runtime.to(trained.backbone.norm_stats.device)


class FeatureSource(Protocol):
    """What makes features of log-mel clips.

    Attributes:
        rate: the sampling rate that it takes, by the name of a preset.
        key: identifies the source in the cache.
    """

    rate: str
    key: str

    def of(self, lms: torch.Tensor) -> torch.Tensor:
        """Log-mel clips of one length, `[B, 1, n_mels, frames]`: float32 `[B, width]` on the CPU."""
        ...


def clip_features(
    source: FeatureSource, paths: Sequence[Path], cache: Path | None = None, workers: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """The features of clips, audio or log-mel `.npy`.

    Args:
        source: what makes them.
        paths: the clips.
        cache: folder where features are kept by the clips' content; none: nowhere.
        workers: threads that read and decode.

    Returns:
        float32 `[N, width]`, and bool `[N]`: which clips could be read. Those that could not are logged; their rows are 0.

    Raises:
        UserError: no clip can be read, or the encoder's outputs are not finite.
    """
    to_lms = NumpyLogMel(PRESETS[source.rate])
    store = FeatureCache(cache, source.key)
    with ThreadPoolExecutor(workers) as threads:
        digests = list(map_ahead(threads, _digest, paths))
        first = {digest: i for i, digest in reversed(list(enumerate(digests))) if digest is not None and digest not in store}
        wanted = sorted(first.values())
        with Progress(len(wanted), "clip") as progress:
            loaded = map_ahead(threads, lambda i: _load(i, paths[i], to_lms), wanted, ahead=4 * workers)
            for rows, lms in _batches(loaded):
                features = source.of(torch.stack(lms)).numpy()
                for row, values in zip(rows, features, strict=True):
                    if not np.isfinite(values).all():
                        raise UserError(f"the encoder's output for {shown(paths[row])} is not finite: is the checkpoint damaged?")
                    store[digests[row]] = values
                progress.update(len(rows))
    store.save()
    readable = np.array([digest in store if digest is not None else False for digest in digests])
    if not readable.any():
        raise UserError(f"none of the {len(paths)} clips can be read")
    width = len(store[digests[int(readable.argmax())]])
    found = [store[digest] if ok else np.zeros(width, np.float32) for digest, ok in zip(digests, readable, strict=True)]
    return np.stack(found), readable


def _digest(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read(), digest_size=16).hexdigest()
    except OSError as error:
        logger.error("left out: %s: %s", shown(path), error.strerror)
        return None


def _load(row: int, path: Path, to_lms: NumpyLogMel) -> tuple[int, np.ndarray | None]:
    """Row, and log-mel `[1, n_mels, frames]`; none where the clip cannot be read."""
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
            if values.ndim != 3 or len(values) != 1 or not np.isfinite(values).all():
                raise ValueError(f"{shown(path)}: expected a finite log-mel [1, mel bands, frames], got {list(values.shape)}")
            return row, values.astype(np.float32)
        return row, to_lms(load_audio(path, to_lms.front_end.sample_rate))[None]
    except (OSError, ValueError, MemoryError) as error:
        logger.error("left out: %s", str(error) or f"{shown(path)}: too large for this machine's memory")
        return row, None


def _batches(loaded: Iterable[tuple[int, np.ndarray | None]]) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """Rows and log-mels `[1, n_mels, frames]` of clips of one length, a batch at a time."""
    waiting: dict[int, tuple[list[int], list[torch.Tensor]]] = {}
    for row, values in loaded:
        if values is None:
            continue
        frames = values.shape[-1]
        rows, batch = waiting.setdefault(frames, ([], []))
        rows.append(row)
        batch.append(torch.from_numpy(values))
        if len(rows) * frames >= _FRAMES_PER_BATCH:
            yield waiting.pop(frames)
        elif sum(len(rows) for rows, _ in waiting.values()) > _MOST_WAITING:
            yield waiting.pop(max(waiting, key=lambda f: len(waiting[f][0])))
    yield from waiting.values()


class FeatureCache:
    """Features by the content of their clips, in one file per source.

    Args:
        folder: where; none: in memory alone.
        key: the source.
    """

    def __init__(self, folder: Path | None, key: str):
        self._path = None if folder is None else folder / f"{key}.npz"
        self._rows: dict[str, np.ndarray] = {}
        self._saved = 0
        if self._path is not None and self._path.exists():
            try:
                with open_npz(self._path) as stored:
                    self._rows = dict(zip(stored["digests"].tolist(), stored["features"], strict=True))
            except (KeyError, *ZIP_ERRORS) as error:
                logger.warning("%s cannot be read and is made again: %s", shown(self._path), error)
        self._saved = len(self._rows)

    def __contains__(self, digest: str) -> bool:
        return digest in self._rows

    def __getitem__(self, digest: str) -> np.ndarray:
        return self._rows[digest]

    def __setitem__(self, digest: str, features: np.ndarray) -> None:
        self._rows[digest] = features

    def save(self) -> None:
        """Write what is new."""
        if self._path is None or len(self._rows) == self._saved:
            return
        os.makedirs(self._path.parent, exist_ok=True)
        write_npz(self._path, digests=np.array(list(self._rows)), features=np.stack(list(self._rows.values())))
        self._saved = len(self._rows)


def weights_key(runtime: RuntimeM2D) -> str:
    """A digest of an encoder's weights and of what it normalises by, whatever file they came from."""
    digest = hashlib.blake2b(f"{runtime.cfg.mean} {runtime.cfg.std} {runtime.cfg.sr}".encode(), digest_size=12)
    for name, tensor in runtime.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
