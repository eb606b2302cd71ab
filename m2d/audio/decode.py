"""Reading audio files: decode, mix to mono, resample. Free of torch, as is `logmel`."""

import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter

import numpy as np
import soundfile
import soxr

from ..utils.names import shown

logger = logging.getLogger("m2d")

#: Sampling rates in Hz that a file may have; a header with another is damaged.
RATES = (1_000, 768_000)
#: Float samples above this are in another scale, such as that of 16-bit integers.
BEYOND_FULL_SCALE = 10.0
# The power of a spectrum of larger samples overflows single precision.
_BEYOND_ANY_SCALE = 1e15
# Small blocks stay in the second-level cache through decoding, mixing and resampling. Without these, there is nothing to keep.
_SMALL_BLOCK = 1 << 14
_LARGE_BLOCK = 1 << 20
_DATA_CHUNK_CUT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
# Programs that write to a pipe cannot know the length, and put a number near one of these limits.
_PLACEHOLDER_BYTES = 0x7FFF0000


def load_audio(path: str | os.PathLike, sample_rate: int) -> np.ndarray:
    """Decode an audio file, average its channels, resample it: float32 `[samples]`, full scale ±1.

    What is wrong with a file that can be read is logged as a warning.

    Raises:
        As `open_audio` and iterating over it.
    """
    with open_audio(path, sample_rate) as stream:
        blocks = list(stream)
    for warning in stream.warnings:
        logger.warning("%s", warning)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def open_audio(path: str | os.PathLike, sample_rate: int) -> "AudioStream":
    """Open an audio file for decoding block by block, in bounded memory however long it is.

        with open_audio("day.flac", 16000) as stream:
            for block in stream:  # float32 [samples], mono, at 16 kHz
                ...
        for warning in stream.warnings:
            logger.warning("%s", warning)

    Any format that libsndfile reads (WAV, FLAC, Ogg, MP3, AIFF …); soxr's high quality resampling.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no regular file, no audio file, or its header is damaged.
    """
    return AudioStream(path, sample_rate)


class AudioStream:
    """The blocks of `open_audio`: iterate once, within a `with` block.

    Blocks are float32 `[samples]`, mono, never empty, of at most a million samples before resampling. One after the other
    they are, bit by bit, what `load_audio` returns: ceil(samples · new rate / old rate) samples, full scale ±1.

    Attributes:
        sample_rate: of the blocks, in Hz.
        warnings: complete after the iteration. A line, with the file's name, for each thing that is wrong with a file
            that could be read all the same: cut short, beyond full scale.

    Raises:
        ValueError: while iterating. The file is damaged, holds no samples, or some that are NaN, infinite or beyond any scale.
    """

    def __init__(self, path: str | os.PathLike, sample_rate: int):
        self.sample_rate = sample_rate
        self.warnings: list[str] = []
        self._name = shown(path)
        self._peak = 0.0
        _check_regular(path, self._name)
        with self._explained(path):
            self._file = _Reader(path)
        try:
            self._check_header()
        except ValueError:
            self._file.close()
            raise

    def __enter__(self) -> "AudioStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        samples = 0
        for old_rate, blocks in groupby(self._mono_blocks(), key=itemgetter(0)):
            for block in _resampled((block for _, block in blocks), old_rate, self.sample_rate):
                samples += len(block)
                if len(block):
                    yield block
        if not samples:
            raise ValueError(f"{self._name} holds no samples")
        if self._peak > BEYOND_FULL_SCALE:
            self.warnings.append(f"{self._name} is beyond full scale: its peak is {self._peak:.5g}, full scale is 1")

    def _check_header(self) -> None:
        file = self._file
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise ValueError(
                f"{self._name} has a damaged header: a sampling rate of {file.samplerate} Hz, "
                f"which is not between {RATES[0]} and {RATES[1]}"
            )
        cut = _DATA_CHUNK_CUT.search(file.extra_info) if file.format in ("WAV", "WAVEX") else None
        if cut and int(cut[2]) < int(cut[1]) < _PLACEHOLDER_BYTES:
            self.warnings.append(f"{self._name} is cut short: {cut[2]} of the {cut[1]} bytes that its header promises are there")

    def _mono_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Sampling rates and blocks."""
        file = self._file
        nothing_to_do = file.channels == 1 and file.samplerate == self.sample_rate
        length = _LARGE_BLOCK if nothing_to_do else max(1, _SMALL_BLOCK // max(1, file.channels // 2))
        # libsndfile reads 16-bit samples as integers five times as fast as it converts them.
        is_int16 = file.subtype == "PCM_16"
        scale = np.float32((2.0**-15 if is_int16 else 1.0) / file.channels)
        buffer = np.empty((length, file.channels), dtype=np.int16 if is_int16 else np.float32)
        while len(block := self._read_into(buffer)):
            if file.subtype in ("FLOAT", "DOUBLE"):
                self._look_at_peak(block)
            mono = np.multiply(block[:, 0], scale, dtype=np.float32)
            for channel in range(1, file.channels):
                mono += np.multiply(block[:, channel], scale, dtype=np.float32)
            yield file.samplerate, mono

    def _read_into(self, buffer: np.ndarray) -> np.ndarray:
        with self._explained(self._file.name):
            return self._file.read(out=buffer)

    def _look_at_peak(self, block: np.ndarray) -> None:
        peak = max(float(block.max()), -float(block.min()))
        if not peak < _BEYOND_ANY_SCALE:
            raise ValueError(f"{self._name} holds NaN, infinity or samples beyond any scale")
        self._peak = max(self._peak, peak)

    @contextmanager
    def _explained(self, path: str | os.PathLike) -> Iterator[None]:
        try:
            yield
        except soundfile.LibsndfileError as error:
            empty = os.stat(path).st_size == 0
            reason = "is empty (0 bytes)" if empty else f"cannot be read as audio: {error.error_string.rstrip('.')}"
            raise ValueError(f"{self._name} {reason}") from None
        except TypeError:
            raise ValueError(f"{self._name} has no header that tells its format") from None


class _Reader(soundfile.SoundFile):
    """soundfile's, but not seeking after each block, which decodes parts of FLAC and MP3 twice."""

    def seekable(self) -> bool:
        return False


def _check_regular(path: str | os.PathLike, name: str) -> None:
    """Raise where a path cannot be opened, or opening it may wait for ever."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            with open(path, "rb"):
                return
    except OSError as error:
        raise type(error)(f"{name} cannot be opened: {error.strerror}") from None
    raise ValueError(f"{name} is not a regular file but a pipe, a socket or a device")


def _resampled(blocks: Iterator[np.ndarray], old_rate: int, new_rate: int) -> Iterator[np.ndarray]:
    """ceil(samples · new rate / old rate) samples; where the resampler gives one less, the last is zero."""
    if old_rate == new_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(old_rate, new_rate, 1, dtype="float32", quality="HQ")
    taken = given = 0
    for block in blocks:
        resampled = stream.resample_chunk(block)
        taken, given = taken + len(block), given + len(resampled)
        yield resampled
    rest = stream.resample_chunk(np.empty(0, np.float32), last=True)
    missing = max(0, -(-taken * new_rate // old_rate) - given)
    yield np.pad(rest, (0, max(0, missing - len(rest))))[:missing]
