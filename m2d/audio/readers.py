"""The two decoders: libsndfile for what it reads, FFmpeg (PyAV, an extra) for other formats. Both give mono blocks."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import numpy as np
import soundfile

from .containers.view import FileView

# Small blocks stay in the second-level cache through decoding, mixing and resampling. Without these, there is nothing to keep.
_SMALL_BLOCK = 1 << 16
_LARGE_BLOCK = 1 << 20
# The power of a spectrum of larger samples overflows single precision.
_BEYOND_ANY_SCALE = 1e15


class FfmpegFormat(NamedTuple):
    """A format that FFmpeg reads: the bytes `magic` at `place` identify it.

    `name`: FFmpeg's. `words`: ours. `is_sndfiles`: libsndfile reads it too, but not with every codec.
    """

    place: int
    magic: bytes
    name: str
    words: str
    is_sndfiles: bool = False


_FFMPEG_FORMATS = (
    FfmpegFormat(4, b"ftyp", "mov", "MPEG-4"),
    FfmpegFormat(0, b"\x1a\x45\xdf\xa3", "matroska", "WebM or Matroska"),
    FfmpegFormat(0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "Windows Media"),
    FfmpegFormat(0, b"\xff\xf1", "aac", "AAC"),
    FfmpegFormat(0, b"\xff\xf9", "aac", "AAC"),
    FfmpegFormat(0, b"wvpk", "wv", "WavPack"),
    FfmpegFormat(0, b"TTA1", "tta", "True Audio"),
    FfmpegFormat(0, b"MAC ", "ape", "Monkey's Audio"),
    FfmpegFormat(0, b"#!AMR", "amr", "AMR"),
    FfmpegFormat(0, b"\x0b\x77", "ac3", "AC-3"),
    FfmpegFormat(0, b"caff", "caf", "CAF", is_sndfiles=True),
    FfmpegFormat(0, b"OggS", "ogg", "Ogg", is_sndfiles=True),
    FfmpegFormat(8, b"WAVE", "wav", "WAV", is_sndfiles=True),
    FfmpegFormat(8, b"AIFC", "aiff", "AIFF", is_sndfiles=True),
)
_UNKNOWN_LENGTH = 1 << 36  # samples: more than any header can state; libsndfile puts its largest number
_WITHOUT_LENGTH = ("aac", "ac3", "amr")  # FFmpeg guesses it
_SCALES = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "s64": 2.0**-63, "flt": 1.0, "dbl": 1.0}


class Reader(Protocol):
    """A decoder at the beginning of a file.

    Attributes:
        peak: the largest sample so far, where samples may be beyond full scale.
        damaged: packets of the file that could not be decoded so far.
    """

    peak: float
    damaged: int

    @property
    def promised_seconds(self) -> float:
        """How long the file is by its header; 0: it does not say."""
        ...

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Sampling rates, and the mean of the channels as float32 `[samples]`, never empty.

        Raises:
            ValueError: the file is damaged, or holds samples that are no numbers: words that follow its name.
        """
        ...

    def close(self) -> None:
        """Free what the decoder holds."""
        ...


def ffmpeg_format(head: bytes) -> FfmpegFormat | None:
    """The format that a file's first 12 bytes identify; None: none that FFmpeg should read."""
    return next((known for known in _FFMPEG_FORMATS if head.startswith(known.magic, known.place)), None)


def has_ffmpeg() -> bool:
    """Whether PyAV is installed."""
    return find_spec("av") is not None


class _SoundFile(soundfile.SoundFile):
    """soundfile's, but not seeking after each block, which decodes parts of FLAC and MP3 twice."""

    def seekable(self) -> bool:
        return False


class SndfileReader:
    """A `Reader` by libsndfile.

    Args:
        source: a path, a file's descriptor at its beginning (not closed), or a file.
        sample_rate: that the blocks are wanted at: where nothing is left to do, they are larger.

    Raises:
        soundfile.LibsndfileError: no format that it reads.
    """

    damaged = 0

    def __init__(self, source: str | int | FileView, sample_rate: int):
        self._file = _SoundFile(cast(Any, source), closefd=False)
        self._sample_rate = sample_rate
        self.peak = 0.0

    @property
    def rate(self) -> int:
        """The header's sampling rate."""
        return self._file.samplerate

    @property
    def promised_seconds(self) -> float:
        """As `Reader.promised_seconds`."""
        known = self._file.frames < _UNKNOWN_LENGTH
        return self._file.frames / self._file.samplerate if known else 0.0

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """As `Reader.blocks`."""
        file = self._file
        nothing_to_do = file.channels == 1 and file.samplerate == self._sample_rate
        length = _LARGE_BLOCK if nothing_to_do else 2 * _SMALL_BLOCK // max(2, file.channels)
        length = max(1, min(length, file.frames))  # fresh memory costs time
        # libsndfile reads 16-bit samples as integers five times as fast as it converts them.
        is_int16 = file.subtype == "PCM_16"
        scale = 2.0**-15 if is_int16 else 1.0
        buffer = np.empty((length, file.channels), dtype=np.int16 if is_int16 else np.float32)
        while len(block := self._read_into(buffer)):
            if file.subtype in ("FLOAT", "DOUBLE"):
                self.peak = max(self.peak, peak_of(block))
            yield file.samplerate, mean_of_channels(block.T, scale)

    def close(self) -> None:
        """As `Reader.close`."""
        self._file.close()

    def _read_into(self, buffer: np.ndarray) -> np.ndarray:
        try:
            return self._file.read(out=buffer)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"cannot be read as audio: {error.error_string.rstrip('.')}") from None


class FfmpegReader:
    """A `Reader` by FFmpeg.

    Args:
        file: the file.
        format_name: FFmpeg's name of its format. Not left to FFmpeg to find: some formats name other files, which it opens.

    Raises:
        ValueError: the file is damaged, or holds no sound.
    """

    def __init__(self, file: BinaryIO | FileView, format_name: str):
        import av
        from av.error import FFmpegError

        file.seek(0)
        self._error = FFmpegError
        try:
            self._container = av.open(file, "r", format=format_name, metadata_errors="ignore")
        except FFmpegError as error:
            raise ValueError(f"cannot be read as audio: {error.strerror}") from None
        if not self._container.streams.audio:
            self.close()
            raise ValueError("holds no sound")
        self.peak, self.damaged = 0.0, 0
        self.promised_seconds = self._find_promise()

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """As `Reader.blocks`."""
        for frame in self._frames():
            samples = frame.to_ndarray()
            if not frame.format.is_planar:
                samples = samples.reshape(-1, len(frame.layout.channels)).T
            kind = frame.format.name.removesuffix("p")
            if kind == "u8":
                samples = samples.astype(np.int16) - 128
            elif kind in ("flt", "dbl"):
                self.peak = max(self.peak, peak_of(samples))
            yield frame.sample_rate, mean_of_channels(samples, _SCALES[kind])

    def close(self) -> None:
        """As `Reader.close`."""
        self._container.close()

    def _find_promise(self) -> float:
        stream = self._container.streams.audio[0]
        if self._container.format.name in _WITHOUT_LENGTH:
            return 0.0
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        alone = len(self._container.streams) == 1  # a film may be longer than its sound
        return (self._container.duration or 0) / 1e6 if alone else 0.0

    def _frames(self) -> Iterator:
        """The decoded frames; packets that cannot be decoded are counted as damaged."""
        packets = self._container.demux(self._container.streams.audio[0])
        while True:
            try:
                packet = next(packets, None)
            except self._error as error:
                raise ValueError(f"cannot be read as audio: {error.strerror}") from None
            if packet is None:
                return
            try:
                frames = packet.decode()
            except self._error:
                self.damaged += 1
                continue
            yield from (frame for frame in frames if frame.samples)


def peak_of(block: np.ndarray) -> float:
    """The largest magnitude.

    Raises:
        ValueError: it is no number that a spectrum could be computed of: words that follow the file's name.
    """
    peak = max(float(block.max()), -float(block.min()))
    if not peak < _BEYOND_ANY_SCALE:
        raise ValueError("holds NaN, infinity or samples beyond any scale")
    return peak


def mean_of_channels(channels: np.ndarray, scale: float) -> np.ndarray:
    """Of `[channels, samples]` the scaled mean, float32 `[samples]`."""
    factor = np.float32(scale / len(channels))
    if len(channels) == 1:
        return np.multiply(channels[0], factor, dtype=np.float32)
    channels = channels.astype(np.float32, copy=False)
    mono = channels[0] + channels[1]
    for channel in channels[2:]:
        mono += channel
    mono *= factor
    return mono
