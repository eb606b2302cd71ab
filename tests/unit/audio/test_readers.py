"""Formats that libsndfile does not read: by PyAV where it is installed, otherwise named with what to install."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import sound

from m2d.audio import decode
from m2d.audio.decode import load_audio, open_audio

pytest.importorskip("av")

#: Written by ffmpeg from `aevalsrc=0.4*sin(600*PI*t)|0.2*sin(800*PI*t)`, 0.6 s, with the default codec of each or the one named.
FOLDER = Path(__file__).parents[2] / "data" / "ffmpeg"
#: Suffix: sampling rate, and samples that ffmpeg itself decodes.
LOSSY = {
    "m4a": (16000, 10240),
    "mp4": (16000, 10240),  # beside a film
    "aac": (16000, 11264),
    "wma": (16000, 9216),
    "webm": (48000, 28800),  # Opus
    "ac3": (32000, 19968),
}
LOSSLESS = dict.fromkeys(["mka", "ogg", "wv", "tta", "caf"], (16000, 9600))  # FLAC in the first two, ALAC in the last


def tone(rate):
    t = np.arange(int(0.6 * rate)) / rate
    return ((0.4 * np.sin(600 * np.pi * t) + 0.2 * np.sin(800 * np.pi * t)) / 2).astype(np.float32)


def copy(folder, name, to=None):
    return Path(shutil.copy(FOLDER / name, folder / (to or name)))


@pytest.mark.parametrize(("suffix", "rate", "samples"), [(suffix, *known) for suffix, known in (LOSSY | LOSSLESS).items()])
def test_other_formats_are_decoded_mixed_and_streamed(suffix, rate, samples):
    path = FOLDER / f"tone.{suffix}"
    with open_audio(path, rate) as stream:
        decoded = np.concatenate(list(stream))
    assert stream.warnings == [] and len(decoded) == samples
    expected = tone(rate)
    delays = range(1 if suffix in LOSSLESS else 2200)
    delay = max(delays, key=lambda n: decoded[n : n + 4000] @ expected[:4000])
    length = min(len(decoded) - delay, len(expected)) - 1000
    aligned, expected = decoded[delay:][1000:length], expected[1000:length]
    if suffix in LOSSLESS:
        np.testing.assert_allclose(aligned, expected, atol=1e-4)
    else:
        assert np.corrcoef(aligned, expected)[0, 1] > 0.95
    assert len(load_audio(path, 44100)) == -(-samples * 44100 // rate)


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = copy(tmp_path, "tone.m4a", "http:example.m4a")
    assert len(load_audio(path.name, 16000)) == 10240


@pytest.mark.parametrize("content", [b"#EXTM3U\n#EXTINF:1,\nother.m4a\n", b"ffconcat version 1.0\nfile other.m4a\n"])
def test_lists_of_other_files_are_not_followed(tmp_path, content):
    copy(tmp_path, "tone.m4a", "other.m4a")
    (tmp_path / "list.m4a").write_bytes(content)
    with pytest.raises(ValueError, match=r"list\.m4a cannot be read as audio: Format not recognised"):
        load_audio(tmp_path / "list.m4a", 16000)


def test_damaged_files_are_refused_by_name(tmp_path):
    path = copy(tmp_path, "tone.m4a")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"tone\.m4a cannot be read as audio"):
        load_audio(path, 16000)


@pytest.mark.parametrize("suffix", [*LOSSY, *LOSSLESS])
def test_files_damaged_anywhere_are_read_or_refused_by_name(tmp_path, suffix):
    whole = (FOLDER / f"tone.{suffix}").read_bytes()
    path = tmp_path / f"a.{suffix}"
    random = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        for place in random.integers(0, random.choice([200, len(whole)]), random.integers(1, 8)):
            content[place] = random.choice([0, 255, random.integers(256)])
        path.write_bytes(content[: random.choice([len(content), random.integers(1, len(content))])])
        try:
            load_audio(path, 16000)
        except ValueError as error:
            assert str(error).startswith(str(path))


def test_a_header_that_points_beyond_any_file_is_refused_by_name(tmp_path):
    path = copy(tmp_path, "tone.wma")
    content = bytearray(path.read_bytes())
    content[51] = 255  # the size of a part of the header
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tone\.wma cannot be read as audio: Invalid data"):
        load_audio(path, 16000)


def test_a_film_without_sound_is_refused_by_name():
    with pytest.raises(ValueError, match=r"silent_film\.mp4 holds no sound"):
        load_audio(FOLDER / "silent_film.mp4", 16000)


def test_packets_that_cannot_be_decoded_are_counted_in_a_warning(tmp_path):
    path = copy(tmp_path, "tone.mka")
    content = bytearray(path.read_bytes())
    content[12000:12060] = bytes(60)
    path.write_bytes(content)
    with open_audio(path, 16000) as stream:
        assert sum(map(len, stream)) == 9600 - 1152
    assert len(stream.warnings) == 1 and "packets could not be decoded" in stream.warnings[0]


def test_sound_that_the_header_promises_and_the_decoder_does_not_give_is_counted():
    with open_audio(FOLDER / "tone.webm", 48000) as stream:
        stream._reader.promised_seconds += 2
        assert sum(map(len, stream)) == 28800
    assert stream.warnings == [f"{FOLDER}/tone.webm is damaged: 2.0 s of it are left out"]
    assert stream.seconds_left_out == pytest.approx(2, abs=0.05)


def test_without_pyav_the_format_and_the_remedy_are_named(monkeypatch):
    monkeypatch.setattr(decode, "has_ffmpeg", lambda: False)
    for suffix, words in [("m4a", "MPEG-4"), ("wma", "Windows Media"), ("webm", "WebM or Matroska"), ("aac", "AAC")]:
        with pytest.raises(ValueError, match=rf"\.{suffix} is {words}, which needs PyAV: pip install 'm2d-audio\[av\]'"):
            load_audio(FOLDER / f"tone.{suffix}", 16000)
    for suffix in ("caf", "ogg"):
        with pytest.raises(ValueError, match=rf"\.{suffix} cannot be read as audio: .*; PyAV reads more formats: pip install"):
            load_audio(FOLDER / f"tone.{suffix}", 16000)


def test_what_libsndfile_reads_does_not_need_pyav(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "FfmpegReader", None)
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "caf", "au", "w64"):
        soundfile.write(tmp_path / f"a.{suffix}", sound(4000), 16000)
        assert len(load_audio(tmp_path / f"a.{suffix}", 16000)) == 4000
