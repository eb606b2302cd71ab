"""A labelled development set of real sound, from Debian packages: what training is judged by here.

    python benchmarks/real_sound.py OUT

downloads and unpacks (apt-get download, dpkg-deb: nothing is installed, no root needed), and writes 16-kHz WAVs and lists:

    OUT/audio/<task>/<label>/<group>--<name>.wav    every clip of a task
    OUT/audio/other/<source>/<name>.wav             more sound of the same sources, without a label
    OUT/<task>.csv                                  file_name,label,group; names start from OUT/audio
    OUT/licences/<package>                          the packages' own copyright files

    task         label                      group               clips come from
    drums        kind of drum               author of the kit   hydrogen-drumkits, sonic-pi-samples
    language     language of half a second  prompt              asterisk-core-sounds-{en,es,fr,it,ru}-wav (8 kHz)
    instruments  family of General MIDI     program             fluidsynth with fluid-soundfont-gm, single notes
    words        word spoken                voice               espeak-ng: words and what they are backwards (tap, pat)
    numbers      language of a number       voice               espeak-ng, every clip another number

A group is never to be split between fitting and judging. In `language` the same prompts are spoken in every language; each
language has one speaker (en and es the same one), so it is as much a task of telling recordings apart; whole prompts are
told apart by their average spectrum alone (97 %), hence the half second. `instruments`, `words` and `numbers` are rendered
here from the recordings and voices of others (apt-get install espeak-ng fluidsynth).

Licences: hydrogen-drumkits GPL-2+, CC-BY-SA-3.0 and CC-BY-3.0 by kit; sonic-pi-samples CC0; asterisk-core-sounds
CC-BY-SA-3.0 (en, es, fr) and CC-BY-3.0 (it, ru); fluid-soundfont-gm MIT; espeak-ng GPL-3+.

The same OUT comes out of the same packages every time; what has been made is kept.
"""

import argparse
import csv
import hashlib
import io
import random
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from write_midi import TICKS_PER_QUARTER, TICKS_PER_SECOND, variable_length

RATE = 16000
LONGEST = 8.0  # seconds of a clip
LANGUAGES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}
SPEECH = [f"asterisk-core-sounds-{language}-wav" for language in LANGUAGES]
PACKAGES = ["hydrogen-drumkits", "sonic-pi-samples", "fluid-soundfont-gm", *SPEECH]
PROGRAMS = ("espeak-ng", "fluidsynth", "apt-get", "dpkg-deb")

LABELLED_PROMPTS = 150
PROMPT_SECONDS = 0.5  # from the middle of a labelled prompt
LEAST_GROUPS = 4  # of a label

#: The first pattern that a drum's name matches says its kind.
DRUMS = {
    "stick": r"stick|rim ?click|sidestick",
    "clap": r"clap",
    "cowbell": r"cowbell|agogo",
    "kick": r"kick|bass ?drum|^bd_|drum_bass",
    "snare": r"snare|^sn_",
    "tom": r"tom",
    "hihat_open": r"(hat|hi hat|hi-hat|hh).*(op|semi)|open hh|ohh|cymbal_open",
    "hihat_closed": r"hat|hi-hat|closed hh|pedal hh|closed|pedal",
    "ride": r"ride(?!.*crash)",
    "crash": r"crash|splash|china|cymbal",
}
#: Kits of one author may share recordings.
AUTHORS = {
    "BJA_Pacific": "bja",
    "ColomboAcousticDrumkit": "colombo",
    "ElectricEmpireKit": "artemio",
    "HardElectro1": "artemio",
    "VariBreaks": "artemio",
    "ForzeeStereo": "forzee",
    "Gimme A Hand 1.0": "macarthur",
    "The Black Pearl 1.0": "macarthur",
    "Millo-Drums_v.1": "millo",
    "Millo_MultiLayered2": "millo",
    "Millo_MultiLayered3": "millo",
}
FAMILIES = "piano mallets organ guitar bass strings ensemble brass reed pipe lead pad".split()
PROGRAMS_PER_FAMILY = 8
NOTES = 8  # of a program
NOTE_SECONDS = 2.0
KEYS = (40, 84)
WORDS = """tap pat tip pit top pot net ten nap pan mad dam pal lap team meat cat tack back cab deal lead keep peak light tile
name main not ton pin nip got tog time might""".split()
WORD_VOICES = 30
SPOKEN = "en-us de fr-fr es it pt-br sv pl ru tr fi cmn".split()
VOICES = """Adam Alex Alicia Andrea Andy Annie Antonio Auntie Belinda Benjamin Boris Caleb David Denis Diogo Ed Edward Gene
Gustave Henrique Hugo Iven Jacky John Kaukovalta Lee Linda Marcelo Marco Mario Max Michael Michel Miguel Mike Nguyen Pablo
Paul Pedro Quincy Rob Robert Steph Tweaky Zac anika norbert sandro shelby travis victor""".split()
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")


class Clip(NamedTuple):
    """A sound on its way into a task (label "": into none)."""

    label: str
    group: str
    name: str
    sound: np.ndarray
    rate: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    out = parser.parse_args().out
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return fail(f"{', '.join(missing)} missing (Debian, Ubuntu: apt-get install espeak-ng fluidsynth)")
    try:
        build(out)
    except subprocess.CalledProcessError as error:
        return fail(f"{' '.join(map(str, error.cmd))} failed: {(error.stderr or b'').decode().strip()}")
    return 0


def fail(message: str, program: str = "real_sound.py") -> int:
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2


def build(out: Path) -> None:
    """Write what is missing of all tasks, and print their sizes."""
    share = unpack(out / "packages", PACKAGES) / "usr/share"
    (out / "licences").mkdir(exist_ok=True)
    for package in PACKAGES:
        shutil.copyfile(share / "doc" / package / "copyright", out / "licences" / package)
    tasks = {
        "drums": lambda: drums(share),
        "language": lambda: languages(share / "asterisk/sounds"),
        "instruments": lambda: instruments(share / "sounds/sf2/FluidR3_GM.sf2"),
        "words": words,
        "numbers": numbers,
    }
    for task, clips in tasks.items():
        if not (out / f"{task}.csv").exists():
            write_task(out, task, clips())
        rows = list(csv.DictReader((out / f"{task}.csv").open()))
        labels, groups = ({row[column] for row in rows} for column in ("label", "group"))
        print(f"{task}: {len(rows)} clips, {len(labels)} labels, {len(groups)} groups", flush=True)


def unpack(folder: Path, packages: list[str]) -> Path:
    """Download Debian packages and unpack them below `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if not (folder / "usr/share/doc" / package / "copyright").exists():
            subprocess.run(["apt-get", "-qq", "download", package], cwd=folder, check=True, stderr=subprocess.PIPE)
            archive = next(folder.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=folder, check=True)
            archive.unlink()
    return folder


def write_task(out: Path, task: str, clips: Iterator[Clip]) -> None:
    """Write a task's clips, each content once, and last its list."""
    seen, rows = set(), []
    for clip in clips:
        sound = to_mono(clip.sound, clip.rate)
        content = hashlib.sha256(sound.tobytes()).digest()
        if content in seen or not np.abs(sound).max(initial=0) > 1e-3:
            continue
        seen.add(content)
        name = safe(clip.name) + ".wav"
        path = Path(task, clip.label, f"{safe(clip.group)}--{name}") if clip.label else Path("other", safe(clip.group), name)
        (out / "audio" / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(out / "audio" / path, sound, RATE, subtype="PCM_16")
        if clip.label:
            rows.append((path.as_posix(), clip.label, clip.group))
    groups = defaultdict(set)
    for _, label, group in rows:
        groups[label].add(group)
    with (out / f"{task}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "label", "group"))
        writer.writerows(sorted(row for row in rows if len(groups[row[1]]) >= LEAST_GROUPS))


def to_mono(sound: np.ndarray, rate: int) -> np.ndarray:
    """The first LONGEST seconds, mono, at RATE."""
    mono = sound.mean(axis=1) if sound.ndim == 2 else sound
    return soxr.resample(mono[: int(LONGEST * rate)].astype(np.float32), rate, RATE)


def safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_")


# ---------------------------------------------------------------- drums


def drums(share: Path) -> Iterator[Clip]:
    """Each sample of the kits and of Sonic Pi; those of a known kind and author are labelled."""
    for kit in sorted((share / "hydrogen/data/drumkits").iterdir()):
        names = instrument_names(kit / "drumkit.xml")
        for path in sorted(p for p in kit.iterdir() if p.suffix in (".wav", ".flac", ".aiff")):
            author = AUTHORS.get(kit.name)
            kind = kind_of_drum(names.get(path.name, "")) if author else ""
            yield Clip(kind, author if kind else kit.name, f"{kit.name}_{path.stem}", *soundfile.read(path))
    for path in sorted((share / "sonic-pi/samples").glob("*.flac")):
        drum = path.stem.startswith(("bd_", "sn_", "drum_")) or re.search("kick|snare", path.stem)
        kind = kind_of_drum(path.stem) if drum else ""
        yield Clip(kind, "sonic_pi", path.stem, *soundfile.read(path))


def instrument_names(drumkit: Path) -> dict[str, str]:
    """The instrument that a kit's file belongs to, by the file's name."""
    names = {}
    for instrument in ElementTree.parse(drumkit).iter():
        if instrument.tag.rpartition("}")[2] == "instrument":
            fields = [(field.tag.rpartition("}")[2], field.text or "") for field in instrument.iter()]
            name = next((text for tag, text in fields if tag == "name"), "")
            names.update((text, name) for tag, text in fields if tag == "filename")
    return names


def kind_of_drum(name: str) -> str:
    """The kind of a drum's name; "" for none of DRUMS."""
    return next((kind for kind, pattern in DRUMS.items() if re.search(pattern, name.lower())), "")


# ---------------------------------------------------------------- speech


def languages(sounds: Path) -> Iterator[Clip]:
    """Prompts; those that every language has, evenly spread ones, are labelled."""
    prompts = {
        language: {path.relative_to(sounds / folder).as_posix(): path for path in (sounds / folder).rglob("*.wav")}
        for language, folder in LANGUAGES.items()
    }
    common = sorted(name for name in set.intersection(*map(set, prompts.values())) if not re.search("silence|tone|beep", name))
    labelled = {common[i * len(common) // LABELLED_PROMPTS] for i in range(LABELLED_PROMPTS)}
    for language, paths in prompts.items():
        for name, path in sorted(paths.items()):
            prompt = name.removesuffix(".wav")
            sound, rate = soundfile.read(path)
            if name in labelled:
                half = int(PROMPT_SECONDS * rate) // 2
                middle = max(len(sound) // 2, half)
                yield Clip(language, prompt, language, sound[middle - half : middle + half], rate)
            elif not name.startswith("silence/"):
                yield Clip("", f"prompts_{language}", prompt, sound, rate)


def words() -> Iterator[Clip]:
    """Each word by each of the first voices."""
    for n, voice in enumerate(VOICES[:WORD_VOICES]):
        for word in WORDS:
            yield Clip(word, voice, word, *speak(f"{ACCENTS[n % len(ACCENTS)]}+{voice}", word))


def numbers() -> Iterator[Clip]:
    """A number of four digits in each language by each voice."""
    for voice in VOICES:
        for language in SPOKEN:
            number = random.Random(f"{voice} {language}").randint(1000, 9999)
            yield Clip(language, voice, str(number), *speak(f"{language}+{voice}", str(number)))


def speak(voice: str, text: str) -> tuple[np.ndarray, int]:
    """A voice ("language+variant") has a pitch and a speed of its own."""
    rng = random.Random(voice.partition("+")[2])
    how = ["-v", voice, "-p", str(rng.randint(25, 75)), "-s", str(rng.randint(120, 200))]
    spoken = subprocess.run(["espeak-ng", *how, "--stdout", text], check=True, capture_output=True)
    return soundfile.read(io.BytesIO(spoken.stdout))


# ---------------------------------------------------------------- instruments


def instruments(soundfont: Path) -> Iterator[Clip]:
    """NOTES single notes of each program, of any pitch and strength."""
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder, "notes.mid"), Path(folder, "notes.wav")
        for program in range(len(FAMILIES) * PROGRAMS_PER_FAMILY):
            rng = random.Random(program)
            notes = [(rng.randint(*KEYS), rng.randint(50, 120), rng.uniform(0.3, 1.5)) for _ in range(NOTES)]
            midi.write_bytes(notes_file(program, notes))
            quiet = ["-q", "-n", "-i", "-R", "0", "-C", "0", "-g", "0.6", "-r", "32000"]
            subprocess.run(["fluidsynth", *quiet, "-F", wav, soundfont, midi], check=True, stdout=subprocess.DEVNULL)
            sound, rate = soundfile.read(wav)
            family = FAMILIES[program // PROGRAMS_PER_FAMILY]
            for n, (key, _, _) in enumerate(notes):
                start = int(2 * n * NOTE_SECONDS * rate)
                yield Clip(family, str(program), f"{n}_key{key}", sound[start : start + int(NOTE_SECONDS * rate)], rate)


def notes_file(program: int, notes: list[tuple[int, int, float]]) -> bytes:
    """A MIDI file of notes (key, velocity, seconds), one every 2 · NOTE_SECONDS, so that each has died away."""
    track, now = bytes([0, 0xC0, program]), 0
    for n, (key, velocity, seconds) in enumerate(notes):
        start = int(2 * n * NOTE_SECONDS * TICKS_PER_SECOND)
        end = start + int(seconds * TICKS_PER_SECOND)
        track += variable_length(start - now) + bytes([0x90, key, velocity])
        track += variable_length(end - start) + bytes([0x80, key, 0])
        now = end
    track += variable_length(int(2 * NOTE_SECONDS * TICKS_PER_SECOND)) + b"\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4, "big") + bytes([0, 0, 0, 1]) + TICKS_PER_QUARTER.to_bytes(2, "big")
    return header + b"MTrk" + len(track).to_bytes(4, "big") + track


if __name__ == "__main__":
    sys.exit(main())
