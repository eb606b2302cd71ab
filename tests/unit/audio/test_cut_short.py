"""Files that end before their header says so, or of which a decoder gives a part: what is there is read, with a warning."""

import struct

import numpy as np
import pytest
import soundfile
from audio_files import sound, write

from m2d.audio.decode import read_audio

#: Suffix, and soundfile's options.
WITH_LENGTH = {
    "aiff": [{"subtype": "PCM_16"}, {"subtype": "PCM_24"}, {"subtype": "FLOAT"}, {"subtype": "IMA_ADPCM"}],
    "au": [{"subtype": "PCM_16"}, {"subtype": "ULAW"}, {"endian": "LITTLE"}],
    "caf": [{"subtype": "PCM_16"}, {"subtype": "FLOAT"}],
    "sph": [{"format": "NIST", "subtype": "PCM_16"}, {"format": "NIST", "subtype": "ULAW"}],
    "rf64": [{"format": "RF64", "subtype": "PCM_16"}, {"format": "RF64", "subtype": "PCM_24"}],
    "w64": [{"subtype": "PCM_16"}, {"subtype": "MS_ADPCM"}],
    "voc": [{"subtype": "PCM_16"}],
    "wav": [{"subtype": "PCM_16"}, {"format": "WAVEX", "subtype": "PCM_24"}, {"endian": "BIG"}],
}
CASES = [(suffix, options) for suffix, some in WITH_LENGTH.items() for options in some]


@pytest.mark.parametrize(("suffix", "options"), CASES)
def test_a_file_that_ends_before_its_header_says_so_is_read_with_a_warning(tmp_path, suffix, options):
    path = write(tmp_path / f"a.{suffix}", 32000, **options)
    whole, warnings, _ = read_audio(path, 16000)
    assert warnings == [] and len(whole) >= 32000
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    waveform, warnings, _ = read_audio(path, 16000)
    assert 12000 < len(waveform) < 20000
    np.testing.assert_array_equal(waveform[:10000], whole[:10000])
    assert len(warnings) == 1 and f"a.{suffix} is cut short" in warnings[0] and "bytes that its header promises" in warnings[0]


@pytest.mark.parametrize(
    ("suffix", "size"),
    [("au", b"\xff" * 4), ("caf", b"\xff" * 8), ("aiff", struct.pack(">I", 0x7FFFFFF7))],
)
def test_sizes_of_streams_that_were_written_to_a_pipe_promise_nothing(tmp_path, suffix, size):
    path = write(tmp_path / f"a.{suffix}", 16000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    place = 8 if suffix == "au" else content.find(b"data" if suffix == "caf" else b"SSND") + 4
    content[place : place + len(size)] = size
    path.write_bytes(content)
    waveform, warnings, _ = read_audio(path, 16000)
    assert len(waveform) == 16000 and warnings == []


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_without_its_last_page_may_be_cut_short(tmp_path, subtype):
    path = write(tmp_path / "a.ogg", 5 * 48000, 48000, format="OGG", subtype=subtype)
    content = path.read_bytes()
    for end in (len(content) // 2, len(content) - 1, content.rfind(b"OggS")):
        path.write_bytes(content[:end])
        _, warnings, _ = read_audio(path, 16000)
        assert len(warnings) == 1 and "a.ogg is cut short: its last page is missing" in warnings[0]


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_pages_that_are_missing_in_an_ogg_are_counted(tmp_path, suffix):
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    path = write(tmp_path / f"a.{suffix}", 10 * 48000, 48000, **options)
    content = path.read_bytes()
    path.write_bytes(content[: 4 * len(content) // 10] + content[6 * len(content) // 10 :])
    waveform, warnings, left_out = read_audio(path, 16000)
    assert 5 < len(waveform) / 16000 < 9 and len(warnings) == 1 and "s of it are left out" in warnings[0]
    assert left_out == pytest.approx(10 - len(waveform) / 16000, abs=0.1)


def test_an_mp3_at_whose_damage_the_decoder_stops_is_refused_or_named(tmp_path):
    path = write(tmp_path / "a.mp3", 20 * 44100, 44100)
    content = path.read_bytes()
    for seed in range(8):
        damage = np.random.default_rng(seed).bytes(len(content) // 5)
        path.write_bytes(content[: 2 * len(content) // 5] + damage + content[3 * len(content) // 5 :])
        try:
            waveform, warnings, left_out = read_audio(path, 16000)
        except ValueError as error:
            assert "a.mp3 cannot be read as audio" in str(error)
        else:
            assert len(warnings) == 1 and "s of it are left out" in warnings[0]
            assert left_out == pytest.approx(20 - len(waveform) / 16000, abs=0.1)


def test_a_flac_that_ends_between_two_of_its_frames_is_named(tmp_path):
    path = write(tmp_path / "a.flac", 10 * 16000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's number of samples: 30 s where there are 10
    content[22:26] = (30 * 16000).to_bytes(4, "big")
    path.write_bytes(content)
    waveform, warnings, left_out = read_audio(path, 16000)
    assert len(waveform) == 160000 and left_out == pytest.approx(20)
    assert warnings == [f"{path} is damaged: 20.0 s of it are left out"]


@pytest.mark.parametrize("bitrate_mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("behind", [b"", b"TAG" + b"x" * 125, b"APETAGEX" + bytes(200_000)])
def test_a_whole_mp3_is_not_called_damaged(tmp_path, bitrate_mode, behind):
    path = tmp_path / "a.mp3"
    with soundfile.SoundFile(path, "w", 44100, 1, format="MP3", bitrate_mode=bitrate_mode) as file:
        file.write(np.concatenate([sound(15 * 44100), np.zeros(5 * 44100, np.float32)]))
    content = path.read_bytes()
    tagless = content[content.find(content[:2], 150) :]
    for number, frames in enumerate((content, tagless)):
        path = tmp_path / f"{number}.mp3"
        path.write_bytes(frames + behind)
        waveform, warnings, _ = read_audio(path, 16000)
        assert warnings == [] and len(waveform) / 16000 == pytest.approx(20, abs=0.1)


#: What frames of MPEG audio begin with, again and again: samples of quiet sound may look like it.
LIKE_MPEG = b"\xff\xfb\x90\x00".ljust(417, b"\0")


@pytest.mark.parametrize("suffix", ["aiff", "flac", "ogg", "wav", "w64", "au", "caf"])
@pytest.mark.parametrize("front", [b"", b"ID3\x03\x00\x00\x00\x00\x00\x0a" + bytes(10)])
def test_other_formats_called_mp3_are_told_by_their_first_bytes(tmp_path, suffix, front):
    options = {} if suffix in ("ogg", "flac") else {"subtype": "PCM_16"}
    path = tmp_path / f"a.{suffix}"
    noise = sound(32000)
    if options:
        noise[8000:24000] = np.frombuffer((LIKE_MPEG * 100)[:32000], "<i2" if suffix in ("wav", "w64") else ">i2") / 32768
    soundfile.write(path, noise, 16000, **options)
    expected = read_audio(path, 16000).waveform
    called_mp3 = tmp_path / "b.mp3"
    called_mp3.write_bytes(front + path.read_bytes())
    try:
        waveform, warnings, _ = read_audio(called_mp3, 16000)
    except ValueError as error:  # libsndfile reads no format but FLAC behind an ID3 tag
        assert front and suffix != "flac" and "cannot be read as audio" in str(error)
    else:
        np.testing.assert_array_equal(waveform, expected)
        assert warnings == []
