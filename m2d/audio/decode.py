"""Reading audio files: decode, mix to mono, resample. Free of torch, as is `logmel`."""

import io
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
import soundfile
import soxr

from ..utils.names import shown
from .containers.layout import read_layout
from .containers.mpeg import behind_id3
from .containers.view import FileView, Part
from .readers import FfmpegReader, Reader, SndfileReader, ffmpeg_format, has_ffmpeg

logger = logging.getLogger("m2d")

#: An audio file: its path, its bytes, or an open file that can seek.
Audio: TypeAlias = str | os.PathLike | bytes | BinaryIO
#: Sampling rates in Hz that a file may have; a header with another is damaged.
RATES = (1_000, 768_000)
#: Float samples above this are in another scale, such as that of 16-bit integers.
BEYOND_FULL_SCALE = 10.0
_TOLD_BY_NAME = (".gsm", ".vox")  # formats without a header
# What encoders say of their delay and padding, and rounding, may take so much of the promised length away.
_SECONDS_OF_TOLERANCE = 0.5


def load_audio(audio: Audio, sample_rate: int, name: str = "") -> np.ndarray:
    """Decode an audio file, average its channels, resample it: float32 `[samples]`, full scale ±1.

    What is wrong with a file that can be read is logged as a warning.

    Raises:
        As `open_audio` and iterating over it.
    """
    waveform, warnings, _ = read_audio(audio, sample_rate, name)
    for warning in warnings:
        logger.warning("%s", warning)
    return waveform


class DecodedAudio(NamedTuple):
    """A file's waveform, float32 `[samples]`; `warnings` and `seconds_left_out` as of `AudioStream`."""

    waveform: np.ndarray
    warnings: list[str]
    seconds_left_out: float


@dataclass
class WarningCount:
    """How many files something is wrong with that were read all the same, and seconds of their sound that are left out."""

    files: int = 0
    seconds_left_out: float = 0.0

    def add(self, warnings: Sequence[str], seconds_left_out: float) -> None:
        """Count a file, given what `AudioStream` says of it."""
        self.files += bool(warnings)
        self.seconds_left_out += seconds_left_out

    def __str__(self) -> str:
        """What follows the counts of a closing line; empty where there were no warnings."""
        left_out = f", {self.seconds_left_out:.1f} s of sound left out" if self.seconds_left_out else ""
        return f", {self.files} with warnings{left_out}" if self.files else ""


def read_audio(audio: Audio, sample_rate: int, name: str = "") -> DecodedAudio:
    """As `load_audio`, but what is wrong with the file is returned.

    Raises:
        As `open_audio` and iterating over it.
    """
    with open_audio(audio, sample_rate, name) as stream:
        blocks = list(stream)
    return DecodedAudio(joined(blocks), stream.warnings, stream.seconds_left_out)


def joined(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks one after the other; a single one is not copied."""
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def open_audio(audio: Audio, sample_rate: int, name: str = "") -> "AudioStream":
    """Open an audio file for decoding block by block, in bounded memory however long it is.

        with open_audio("day.flac", 16000) as stream:
            for block in stream:  # float32 [samples], mono, at 16 kHz
                ...
        for warning in stream.warnings:
            logger.warning("%s", warning)

    Any format that libsndfile reads (WAV, FLAC, Ogg, MP3, AIFF …) and, where PyAV is installed, MPEG-4, AAC, Windows Media,
    WebM and others; soxr's high quality resampling. Files put one after the other, chained Ogg, and streams whose length
    their header does not give are read whole, changes of the rate or the channels included.

    Args:
        audio: a path; or the bytes of an audio file, or a file to read and to seek in, which is left open.
        sample_rate: of the blocks, in Hz.
        name: what messages call bytes or an open file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no regular file, no audio file, or its header is damaged.
    """
    return AudioStream(audio, sample_rate, name)


class AudioStream:
    """The blocks of `open_audio`: iterate once, within a `with` block.

    Blocks are float32 `[samples]`, mono, never empty, of at most a million samples before resampling. One after the other
    they are, bit by bit, what `load_audio` returns: ceil(samples · new rate / old rate) samples, full scale ±1.

    Attributes:
        sample_rate: of the blocks, in Hz.
        warnings: complete after the iteration. A line, with the file's name, for each thing that is wrong with a file
            that could be read all the same: cut short, beyond full scale.
        seconds_left_out: of the file's sound, where a warning reports some.

    Raises:
        ValueError: while iterating. The file is damaged, holds no samples, or some that are NaN, infinite or beyond any scale.
    """

    def __init__(self, audio: Audio, sample_rate: int, name: str = ""):
        self.sample_rate = sample_rate
        self.warnings: list[str] = []
        self.seconds_left_out = 0.0
        self._from_path = isinstance(audio, str | os.PathLike)
        self._path = os.fsdecode(audio) if isinstance(audio, str | os.PathLike) else name or "the audio"
        self._name = shown(self._path)
        self._file = _opened(audio, self._name)
        try:
            self._size = self._file.seek(0, os.SEEK_END)
            layout = read_layout(self._file, self._size, self._path)
            self._left_out(layout.warning, layout.seconds_left_out)
            self._parts = layout.parts or (None,)
            self._reader = self._open_part(self._parts[0])
        except BaseException:
            self._close_file()
            raise

    def __enter__(self) -> "AudioStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the decoder, and the file where it was opened by its path."""
        self._reader.close()
        self._close_file()

    def __iter__(self) -> Iterator[np.ndarray]:
        samples = 0
        for old_rate, blocks in groupby(self._mono_blocks(), key=itemgetter(0)):
            for block in _resampled(map(itemgetter(1), blocks), old_rate, self.sample_rate):
                samples += len(block)
                if len(block):
                    yield block
        if not samples:
            raise ValueError(f"{self._name} holds no samples")

    def _mono_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Sampling rates and blocks of all parts."""
        peak = damaged = 0
        for number, part in enumerate(self._parts):
            if number:
                self._reader.close()
                self._reader = self._open_part(part)
            samples = rate = 0
            try:
                for rate, block in self._reader.blocks():
                    _check_rate(rate)
                    samples += len(block)
                    yield rate, block
            except ValueError as error:
                raise self._named(error) from None
            if isinstance(self._source, FileView) and self._source.error:
                raise OSError(f"{self._name} cannot be read: {self._source.error.strerror}")
            if rate:
                promised = part.frames / rate if part and part.frames else self._reader.promised_seconds
                missing = promised - samples / rate
                if missing > _SECONDS_OF_TOLERANCE:
                    self._left_out(f"is damaged: {missing:.1f} s of it are left out", missing)
            peak, damaged = max(peak, self._reader.peak), damaged + self._reader.damaged
        if damaged:
            self._left_out(f"is damaged: {damaged} of its packets could not be decoded, and are left out", 0.0)
        if peak > BEYOND_FULL_SCALE:
            self._left_out(f"is beyond full scale: its peak is {peak:.5g}, full scale is 1", 0.0)

    def _left_out(self, warning: str, seconds: float) -> None:
        if warning:
            self.warnings.append(f"{self._name} {warning}")
        self.seconds_left_out += seconds

    def _close_file(self) -> None:
        if self._from_path:
            self._file.close()

    def _open_part(self, part: Part | None) -> Reader:
        """A decoder at the beginning of a part; None: of the file as it is."""
        if part is not None:
            self._source = FileView(self._file, part.pieces)
        else:
            self._source = self._file if self._from_path else self._whole()
        try:
            try:
                reader = self._by_libsndfile()
            except soundfile.LibsndfileError as error:
                return self._other_reader(error)
            _check_rate(reader.rate)
            return reader
        except ValueError as error:
            raise self._named(error) from None

    def _by_libsndfile(self) -> SndfileReader:
        if isinstance(self._source, FileView):
            return SndfileReader(self._source, self.sample_rate)
        descriptor = self._file.fileno()
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            return SndfileReader(descriptor, self.sample_rate)
        except soundfile.LibsndfileError:
            os.lseek(descriptor, position, os.SEEK_SET)  # where the buffered file takes it to be
            if self._path.endswith(_TOLD_BY_NAME):
                return SndfileReader(self._path, self.sample_rate)
            raise

    def _other_reader(self, error: soundfile.LibsndfileError) -> Reader:
        """What reads the source in place of libsndfile, which refused it."""
        self._source.seek(behind_id3(self._source, 0))
        head = self._source.read(12)
        if not head:
            raise ValueError("is empty (0 bytes)")
        other = ffmpeg_format(head)
        if other is not None and has_ffmpeg():
            if self._source is self._file:
                self._source = self._whole()
            return FfmpegReader(self._source, other.name)
        if other is not None and not other.is_sndfiles:
            raise ValueError(f"is {other.words}, which needs PyAV: pip install 'm2d-audio[av]'")
        hint = "; PyAV reads more formats: pip install 'm2d-audio[av]'" if other is not None else ""
        # libsndfile's words for an MP3 without a whole frame are about something else.
        reason = "Format not recognised" if "not a regular file" in error.error_string else error.error_string.rstrip(".")
        raise ValueError(f"cannot be read as audio: {reason}{hint}")

    def _whole(self) -> FileView:
        """The file as it is, in which a damaged header may seek anywhere."""
        return FileView(self._file, (range(self._size),))

    def _named(self, error: ValueError) -> ValueError:
        """With the file's name in front of the words of an error."""
        return ValueError(f"{self._name} {error}")


def _opened(audio: Audio, name: str) -> BinaryIO:
    if isinstance(audio, bytes):
        return io.BytesIO(audio)
    return _open_regular(audio, name) if isinstance(audio, str | os.PathLike) else audio


def _open_regular(path: str | os.PathLike, name: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # a folder's error is open's
            return open(path, "rb")
    except OSError as error:
        raise type(error)(f"{name} cannot be opened: {error.strerror}") from None
    raise ValueError(f"{name} is not a regular file but a pipe, a socket or a device")


def _check_rate(rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"has a damaged header: a sampling rate of {rate} Hz, which is not between {RATES[0]} and {RATES[1]}")


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
