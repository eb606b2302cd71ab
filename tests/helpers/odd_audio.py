"""A folder of audio files as people have them: many formats, odd names, damage of every kind."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from audio_files import sound, write

FFMPEG_FILES = Path(__file__).parents[1] / "data" / "ffmpeg"
#: Suffix of what soundfile writes, and its options.
FORMATS = {
    **{f"{subtype.lower()}.wav": {"subtype": subtype} for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")},
    **{f"{subtype.lower()}.wav": {"subtype": subtype} for subtype in ("ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")},
    **{f"{kind}.{kind}": {} for kind in ("flac", "ogg", "mp3", "aiff", "au", "caf", "w64")},
    "opus.opus": {"format": "OGG", "subtype": "OPUS"},
    "flac_24.flac": {"subtype": "PCM_24"},
    "rf64.wav": {"format": "RF64"},
    "extensible.wav": {"format": "WAVEX"},
    "au_alaw.au": {"subtype": "ALAW"},
    "sphere.sph": {"format": "NIST"},
    "creative.voc": {"format": "VOC"},
}
NAMES = (
    *("a b", "a,b", 'a"b', "a'b", "a;b", "#x", "x#2", "[x]", "(1)", "{x}", "$x", "$(x)", "`x`", "a&b", "a|b", "~x", "%41"),
    *("None", "True", "1e3", "0x10", "-x", "--help", "x=1", "100%", "..x", "x.", "x.wav", "CON", "*", "?", "<x>", "x" * 200),
    *("ünïcode", "名前", "e\u0301", "\u202ertl", "🎵", "a\tb", "a\nb", "a\rb", "\x1b[31mred", "a\\b"),
)


@dataclass
class OddFolder:
    """`seconds` of each file that can be read; `refused`: what is said of each other one; `warned`: of some that are read."""

    path: Path
    seconds: dict[str, float]
    refused: dict[str, str]
    warned: dict[str, str]


def joined(path: Path, *parts: Path) -> None:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


def make_odd_folder(path: Path) -> OddFolder:
    """Write the folder. Each good file holds half a second unless something is put together."""
    odd = OddFolder(path, {}, {}, {})
    path.mkdir()
    for i, (name, options) in enumerate(FORMATS.items()):
        rate = (16000, 48000)[i % 2]
        write(path / "formats" / name, rate // 2, rate, 1 if name == "creative.voc" else 1 + i % 3 % 2, **options)
        odd.seconds[f"formats/{name}"] = 0.5
    for name in NAMES:
        write(path / "names" / f"{name}.wav", 8000)
        odd.seconds[f"names/{name}.wav"] = 0.5
    for file in FFMPEG_FILES.glob("tone.*"):
        (path / "ffmpeg").mkdir(exist_ok=True)
        shutil.copy(file, path / "ffmpeg" / f"{file.suffix[1:]}{file.suffix}")
        odd.seconds[f"ffmpeg/{file.suffix[1:]}{file.suffix}"] = 0.6
    _put_together(odd)
    _warned(odd)
    _refused(odd)
    return odd


def _put_together(odd: OddFolder) -> None:
    folder = odd.path / "joined"
    folder.mkdir()
    formats = odd.path / "formats"
    for kind in ("ogg", "mp3", "flac"):
        joined(folder / f"three_{kind}.{kind}", *[formats / f"{kind}.{kind}"] * 3)
        odd.seconds[f"joined/three_{kind}.{kind}"] = 1.5
    joined(folder / "codecs.ogg", formats / "ogg.ogg", formats / "opus.opus", formats / "ogg.ogg")
    odd.seconds["joined/codecs.ogg"] = 1.5
    other = write(folder / "other.mp3", 11025, 22050, 1)
    joined(folder / "rates.mp3", formats / "mp3.mp3", other)
    odd.seconds |= {"joined/other.mp3": 0.5, "joined/rates.mp3": 1.0}
    noise = np.concatenate([sound(20 * 44100), np.full(5 * 44100, 0.001, np.float32)])
    soundfile.write(folder / "tagless.mp3", noise, 44100, format="MP3", bitrate_mode="VARIABLE")
    content = (folder / "tagless.mp3").read_bytes()
    (folder / "tagless.mp3").write_bytes(content[content.find(content[:2], 150) :])
    odd.seconds["joined/tagless.mp3"] = 25.0
    flac = bytearray((formats / "flac.flac").read_bytes())
    flac[21], flac[22:26] = flac[21] & 0xF0, bytes(4)
    (folder / "unknown_length.flac").write_bytes(flac)
    odd.seconds["joined/unknown_length.flac"] = 0.5
    wav = write(folder / "killed.wav", 8000).read_bytes()
    (folder / "killed.wav").write_bytes(wav[:40] + bytes(4) + wav[44:])
    (folder / "two_chunks.wav").write_bytes(wav + wav[36:])
    odd.seconds |= {"joined/killed.wav": 0.5, "joined/two_chunks.wav": 1.0}


def _warned(odd: OddFolder) -> None:
    folder = odd.path / "warned"
    wav = write(folder / "cut.wav", 16000).read_bytes()
    (folder / "cut.wav").write_bytes(wav[: 44 + 16000])
    (folder / "behind.wav").write_bytes(wav[:40] + (16000).to_bytes(4, "little") + wav[44:])
    loud = 9000 * sound(8000)
    soundfile.write(folder / "loud.wav", loud, 16000, subtype="FLOAT")
    odd.seconds |= dict.fromkeys(["warned/cut.wav", "warned/behind.wav", "warned/loud.wav"], 0.5)
    odd.warned = {
        "warned/cut.wav": "is cut short",
        "warned/behind.wav": "has 0.5 s more than its header says",
        "warned/loud.wav": "is beyond full scale",
    }


def _refused(odd: OddFolder) -> None:
    folder = odd.path / "refused"
    wav = write(folder / "rate.wav", 800).read_bytes()
    (folder / "rate.wav").write_bytes(wav[:24] + (1).to_bytes(4, "little") + wav[28:])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not audio\n" * 50)
    (folder / "page.mp3").write_text("<html>404</html>")
    (folder / "few_bytes.mp3").write_bytes((odd.path / "formats/mp3.mp3").read_bytes()[:100])
    flac = (odd.path / "formats/flac.flac").read_bytes()
    (folder / "torn.flac").write_bytes(flac[: len(flac) // 2])
    soundfile.write(folder / "no_samples.wav", np.zeros(0), 16000)
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("huge", 1e30)):
        soundfile.write(folder / f"{name}.wav", np.array([0.1, value] * 400, np.float32), 16000, subtype="FLOAT")
    (folder / "cut.m4a").write_bytes((FFMPEG_FILES / "tone.m4a").read_bytes()[:3000])
    shutil.copy(FFMPEG_FILES / "silent_film.mp4", folder)
    os.mkfifo(folder / "pipe.wav")
    (folder / "device.wav").symlink_to("/dev/zero")
    (folder / "broken_link.wav").symlink_to("nowhere")
    odd.refused = {
        "rate.wav": "a sampling rate of 1 Hz",
        "empty.wav": "is empty",
        "text.wav": "cannot be read as audio",
        "page.mp3": "cannot be read as audio",
        "few_bytes.mp3": "cannot be read as audio: Format not recognised",
        "torn.flac": "cannot be read as audio",
        "no_samples.wav": "holds no samples",
        "nan.wav": "holds NaN",
        "infinite.wav": "holds NaN, infinity",
        "huge.wav": "beyond any scale",
        "cut.m4a": "cannot be read as audio",
        "silent_film.mp4": "holds no sound",
        "pipe.wav": "is not a regular file",
        "device.wav": "is not a regular file",
        "broken_link.wav": "cannot be opened",
    }
    odd.refused = {f"refused/{name}": reason for name, reason in odd.refused.items()}
