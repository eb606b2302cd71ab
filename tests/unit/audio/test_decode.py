"""Reading audio files: against librosa, and what is said about files that cannot be read."""

import re

import librosa
import numpy as np
import pytest
import soundfile
from audio_files import bad_file, sound, write

from m2d.audio.decode import find_audio, load_audio


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
