"""Reading audio files: decode, mix to mono, resample. Free of torch, as is `logmel`."""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

logger = logging.getLogger("m2d")

# Small blocks stay in the second-level cache through decoding, mixing and resampling. But soundfile seeks after each
# block, which costs little in uncompressed files only, and without mixing and resampling there is nothing to keep.
_SMALL_BLOCK = 1 << 14
_LARGE_BLOCK = 1 << 20
_DATA_CHUNK_CUT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
# Programs that write to a pipe cannot know the length, and put a number near one of these limits.
_PLACEHOLDER_BYTES = 0x7FFF0000


def find_audio(folder: str | os.PathLike, suffixes: Iterable[str]) -> list[Path]:
    """Files below a folder whose names end in one of the suffixes, sorted by path.

    Upper and lower case count as the same. Linked folders are entered, once each.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    endings = tuple(suffix.lower() for suffix in suffixes)
    return [
        Path(path)
        for path in sorted(walk_files(folder))
        if path.lower().endswith(endings) and os.path.basename(path).lower() not in endings
    ]


def walk_files(folder: str | os.PathLike) -> Iterator[str]:
    """Paths of all files below a folder, in no order. Linked folders are entered, and no folder twice.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: the folder, or one below it, cannot be read.
    """
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise NotADirectoryError(f"{folder} is not a folder")
        raise FileNotFoundError(f"there is no folder {folder}")
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        yield from (os.path.join(parent, name) for name in names)


def _raise(error: OSError) -> None:
    raise type(error)(f"{error.filename} cannot be read: {error.strerror}")


def load_audio(path: str | os.PathLike, sample_rate: int) -> np.ndarray:
    """Decode an audio file, average its channels, resample it: float32 `[samples]`, full scale ±1.

    Any format that libsndfile reads (WAV, FLAC, Ogg, MP3, AIFF …); soxr's high quality resampling.
    Of a file that ends before its header says so, what is there counts.

    Raises:
        FileNotFoundError, PermissionError: the file cannot be opened.
        ValueError: it is no audio file, is damaged, or holds no samples.
    """
    try:
        with soundfile.SoundFile(path) as file:
            _warn_if_cut(path, file)
            if file.samplerate != sample_rate:
                blocks = list(_resampled(_mono_blocks(file, _SMALL_BLOCK), file.samplerate, sample_rate))
            else:
                blocks = list(_mono_blocks(file, _SMALL_BLOCK if file.channels > 1 else _LARGE_BLOCK))
    except soundfile.LibsndfileError as error:
        raise _explained(path, error.error_string) from None
    except TypeError:
        raise ValueError(f"{path} has no header that tells its format") from None
    if not sum(map(len, blocks)):
        raise ValueError(f"{path} holds no samples")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _mono_blocks(file: soundfile.SoundFile, length: int) -> Iterator[np.ndarray]:
    if file.format in ("MP3", "OGG", "FLAC"):
        length = _LARGE_BLOCK
    # libsndfile reads 16-bit samples as integers five times as fast as it converts them.
    is_int16 = file.subtype == "PCM_16"
    scale = np.float32((2.0**-15 if is_int16 else 1.0) / file.channels)
    buffer = np.empty((length, file.channels), dtype=np.int16 if is_int16 else np.float32)
    while len(block := file.read(out=buffer)):
        mono = np.multiply(block[:, 0], scale, dtype=np.float32)
        for channel in range(1, file.channels):
            mono += np.multiply(block[:, channel], scale, dtype=np.float32)
        yield mono


def _resampled(blocks: Iterator[np.ndarray], old_rate: int, new_rate: int) -> Iterator[np.ndarray]:
    stream = soxr.ResampleStream(old_rate, new_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _warn_if_cut(path: str | os.PathLike, file: soundfile.SoundFile) -> None:
    cut = _DATA_CHUNK_CUT.search(file.extra_info) if file.format in ("WAV", "WAVEX") else None
    if cut and int(cut[2]) < int(cut[1]) < _PLACEHOLDER_BYTES:
        logger.warning("%s is cut short: %s of the %s bytes that its header promises are there", path, cut[2], cut[1])


def _explained(path: str | os.PathLike, reason: str) -> Exception:
    """What libsndfile's error means: it tells a missing file and an unreadable one from a damaged one poorly."""
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        return type(error)(f"{path} cannot be opened: {error.strerror}")
    return ValueError(f"{path} is empty (0 bytes)" if empty else f"{path} cannot be read as audio: {reason.rstrip('.')}")
