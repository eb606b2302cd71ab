"""Reading audio files: against librosa, and what is said about files that cannot be read."""

import errno
import os
import re
import socket
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from audio_files import bad_file, sound, write

from m2d.audio import listing
from m2d.audio.decode import load_audio, open_audio
from m2d.audio.listing import find_audio


@pytest.mark.parametrize(
    ("name", "rate", "channels", "options"),
    [
        ("mono16.wav", 16000, 1, {"subtype": "PCM_16"}),
        ("stereo16.wav", 44100, 2, {"subtype": "PCM_16"}),
        ("six.wav", 48000, 6, {"subtype": "PCM_16"}),
        ("stereo24.wav", 44100, 2, {"subtype": "PCM_24"}),
        ("byte.wav", 8000, 1, {"subtype": "PCM_U8"}),
        ("float.wav", 22050, 2, {"subtype": "FLOAT"}),
        ("a.flac", 44100, 2, {}),
        ("a.ogg", 44100, 1, {}),
        ("a.mp3", 44100, 2, {}),
    ],
)
def test_decoding_mixing_and_resampling_are_those_of_librosa(tmp_path, name, rate, channels, options):
    path = write(tmp_path / name, 3 * rate // 2, rate, channels, **options)
    waveform = load_audio(path, 16000)
    expected, _ = librosa.load(path, sr=16000)
    assert waveform.dtype == np.float32
    assert waveform.shape == expected.shape
    np.testing.assert_allclose(waveform, expected, atol=1e-6)


def test_opposite_channels_cancel(tmp_path):
    wave = sound(1600)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], axis=1), 16000, subtype="FLOAT")
    assert not load_audio(tmp_path / "a.wav", 16000).any()


def test_full_scale_16_bit_is_one(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([-32768, 16384], np.int16), 16000)
    assert load_audio(tmp_path / "a.wav", 16000).tolist() == [-1.0, 0.5]


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("empty", ValueError, "is empty"),
        ("text", ValueError, "cannot be read as audio"),
        ("torn flac", ValueError, "cannot be read as audio"),
        ("no samples", ValueError, "holds no samples"),
        ("folder", IsADirectoryError, "cannot be opened"),
        ("missing", FileNotFoundError, "cannot be opened: No such file"),
    ],
)
def test_unreadable_audio_is_named_with_the_reason(tmp_path, kind, error, message):
    path = bad_file(tmp_path, kind)
    with pytest.raises(error, match=f"{re.escape(str(path))} {message}"):
        load_audio(path, 16000)


def test_what_a_torn_wav_holds_counts_with_a_warning(tmp_path, caplog):
    path = write(tmp_path / "a.wav", 1600)
    path.write_bytes(path.read_bytes()[:-2000])
    assert load_audio(path, 16000).shape == (600,)
    assert "a.wav is cut short: 1200 of the 3200 bytes" in caplog.text


def test_a_stream_of_unknown_length_is_not_called_torn(tmp_path, caplog):
    path = write(tmp_path / "a.wav", 1600)
    path.write_bytes(path.read_bytes().replace((3200).to_bytes(4, "little"), b"\xff\xff\xff\x7f"))
    assert load_audio(path, 16000).shape == (1600,)
    assert not caplog.text


@pytest.mark.parametrize(("rate", "target"), [(44100, 16000), (48000, 16000), (22050, 32000), (8000, 16000), (1000, 16000)])
@pytest.mark.parametrize("samples", [1, 2, 441, 1000, 16384, 16385, 353024 // 8, 40001])
def test_resampling_gives_the_ceiling_of_samples_times_the_ratio(tmp_path, rate, target, samples):
    path = write(tmp_path / "a.wav", samples, rate, 2)
    waveform = load_audio(path, target)
    assert len(waveform) == -(-samples * target // rate)
    np.testing.assert_allclose(waveform, librosa.load(path, sr=target)[0], atol=1e-6)


def test_the_missing_sample_of_the_published_converter_is_zero(tmp_path):
    path = write(tmp_path / "a.wav", 353024, 44100, 2)
    waveform = load_audio(path, 16000)
    assert len(waveform) == 128082
    assert waveform[-1] == 0 != waveform[-2]


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (16000, 2), (44100, 1), (44100, 2)])
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_blocks_are_the_whole_file_bit_by_bit_and_small(tmp_path, rate, channels, suffix):
    path = write(tmp_path / f"a.{suffix}", 1_200_000, rate, channels)
    with open_audio(path, 16000) as stream:
        blocks = list(stream)
    assert len(blocks) > 1
    assert all(0 < len(block) <= 1 << 20 and block.dtype == np.float32 for block in blocks)
    assert (np.concatenate(blocks) == load_audio(path, 16000)).all()
    assert not stream.warnings


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    for value in (np.nan, np.inf, -np.inf, 1e30):
        soundfile.write(tmp_path / "a.wav", np.array([0.1, value], np.float32), 16000, subtype="FLOAT")
        with pytest.raises(ValueError, match=r"a\.wav holds NaN, infinity or samples beyond any scale"):
            load_audio(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize(("peak", "warned"), [(0.9, False), (4.0, False), (-9000.0, True)])
def test_float_audio_in_another_scale_is_read_with_a_warning(tmp_path, peak, warned):
    soundfile.write(tmp_path / "a.wav", np.array([0.1, peak, 0.2], np.float32), 16000, subtype="FLOAT")
    with open_audio(tmp_path / "a.wav", 16000) as stream:
        assert np.concatenate(list(stream)).tolist() == np.array([0.1, peak, 0.2], np.float32).tolist()
    assert stream.warnings == ([f"{tmp_path}/a.wav is beyond full scale: its peak is 9000, full scale is 1"] if warned else [])


@pytest.mark.parametrize("suffix", ["wav", "aiff", "w64"])
@pytest.mark.parametrize("rate", [1, 999, 768001, 2_000_000_000])
def test_rates_that_no_recorder_has_are_damage(tmp_path, suffix, rate):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(100), rate)
    with pytest.raises(ValueError, match=rf"a\.{suffix} has a damaged header: a sampling rate of \d+ Hz"):
        load_audio(path, 16000)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.wav"))
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    for name in ("pipe.wav", "socket.wav", "device.wav"):
        with pytest.raises(ValueError, match=f"{name} is not a regular file"):
            load_audio(tmp_path / name, 16000)


def test_formats_that_the_name_alone_tells(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.gsm", "w", 8000, 1, format="RAW", subtype="GSM610") as file:
        file.write(sound(8000))
    assert 16000 <= len(load_audio(tmp_path / "a.gsm", 16000)) < 16000 + 640
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"a\.raw cannot be read as audio: Format not recognised"):
        load_audio(tmp_path / "a.raw", 16000)


def test_names_are_shown_without_what_a_terminal_obeys(tmp_path):
    path = tmp_path / "red\x1b[31m\r\nünï.wav"
    path.touch()
    with pytest.raises(ValueError, match=re.escape(r"red\x1b[31m\r\nünï.wav is empty")):
        load_audio(path, 16000)
    with pytest.raises(FileNotFoundError, match=re.escape(r"caf\xe9.wav cannot be opened")):
        load_audio(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"), 16000)


def test_audio_is_found_in_any_case_sorted_and_through_links(tmp_path):
    for name in ("z.wav", "B.WAV", "a.flac", "sub/a.wav", "a.wav.txt", ".wav"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "l.Wav").touch()
    (tmp_path / "src" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "src" / "sub" / "loop").symlink_to(tmp_path / "src")
    found = [path.relative_to(tmp_path / "src").as_posix() for path in find_audio(tmp_path / "src", [".wav"])]
    assert found == ["B.WAV", "link/l.Wav", "sub/a.wav", "z.wav"]


def test_the_quickstart_looks_for_the_same_suffixes():
    script = (Path(__file__).parents[3] / "quickstart.sh").read_text()
    named = re.search(r'^SUFFIXES="(.*?)"', script, re.MULTILINE | re.DOTALL)[1].split()
    assert [f".{name}" for name in named] == [*listing.SNDFILE_SUFFIXES, *listing.FFMPEG_SUFFIXES]


def test_a_folder_that_cannot_be_read_is_named_with_what_to_do(tmp_path, monkeypatch):
    write(tmp_path / "src/a.wav")
    (tmp_path / "src/locked").mkdir()
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match=r"src/locked cannot be read: Permission denied\. Make it readable, or move it"):
        listing.find_audio(tmp_path / "src", [".wav"])
