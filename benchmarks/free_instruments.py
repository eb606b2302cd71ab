"""Instruments that benchmarks/free_sound.py plays beside free_synthesis.py's: another sound font, patches, models.

    fluidsynth      OPL-3_FM_128M.sf2 (opl3-soundfont): a chip's frequency modulation
    timidity        freepats: recorded instruments
    lmms            the patches of zynaddsubfx-data, by its ZynAddSubFX
    stk-demo        the Synthesis ToolKit's models of strings, pipes, reeds, bars

Families are those of General MIDI, as the task `instruments` has them: it is judged by instruments that are none of these.
"""

import gzip
import os
import random
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from free_synthesis import (
    DRUM_KEYS,
    GAP,
    PROGRAMS,
    Note,
    Sound,
    cut,
    drum_clips,
    laid_out,
    melody,
    midi_file,
    rendered,
    scaled,
    single_note,
    trimmed,
)
from real_sound import FAMILIES, PROGRAMS_PER_FAMILY
from write_midi import DRUM_CHANNEL

NOTES, PHRASES = 14, 6  # of a program
PATCH_NOTES = 11  # of a patch, and a phrase
MODEL_NOTES = 60  # of a model
KEYS = range(33, 93)
MODEL_RATE = 22050

#: The first pattern that a patch's name, or else its bank, matches says its family.
PATCH_FAMILIES = {
    "bass": r"bass",
    "guitar": r"guitar|mandolin|banjo|sitar",
    "organ": r"organ|accord|harmonium",
    "mallets": r"xylo|vibra|vibes|marimb|bell|glock|chime|celesta|music ?box|kalimba",
    "piano": r"piano|rhodes|clav|harpsi|wurl",
    "ensemble": r"choir|voice|vox|aah|ahh|ooh|ohh|ensemble|string sect",
    "strings": r"string|violin|viola|cello|harp|pizz",
    "brass": r"brass|brazz|trump|thrump|tromb|horn|tuba",
    "reed": r"reed|sax|oboe|clarin|bassoon",
    "pipe": r"flute|whistle|pipe|wind|ocarina|recorder",
    "lead": r"lead|solo|saw|square",
    "pad": r"pad|sweep|soft|fantasia|ethereal",
}
#: The instruments of stk-demo, and their families.
MODELS = {
    "Clarinet": "reed",
    "BlowHole": "reed",
    "Saxofony": "reed",
    "Flute": "pipe",
    "Recorder": "pipe",
    "Whistle": "pipe",
    "BlowBotl": "pipe",
    "PercFlut": "pipe",
    "Brass": "brass",
    "Bowed": "strings",
    "Plucked": "guitar",
    "StifKarp": "guitar",
    "Mandolin": "guitar",
    "HevyMetl": "guitar",
    "Sitar": "",
    "Rhodey": "piano",
    "Wurley": "piano",
    "TubeBell": "mallets",
    "ModalBar": "mallets",
    "BeeThree": "organ",
    "FMVoices": "ensemble",
    "VoicForm": "ensemble",
    "Moog": "lead",
    "Simple": "",
    "Drummer": "",
    "Shakers": "",
    "Mesh2D": "",
    "Resonate": "",
}
CONTROLLERS = (1, 2, 4, 11, 16)  # what they do depends on the model: pressure, vibrato, material


def family_of(program: int) -> tuple[str, ...]:
    """The label of a program's family; none for effects and percussion."""
    number = program // PROGRAMS_PER_FAMILY
    return (f"family_{FAMILIES[number]}",) if number < len(FAMILIES) else ()


def program_clips(program: int, name: str, scale: float) -> list[tuple[tuple[str, ...], list[Note]]]:
    """Labels with notes of a General MIDI program, as an instrument called `name` plays it."""
    rng = random.Random(f"{name} {program}")
    clips = [[single_note(rng, KEYS)] for _ in range(scaled(NOTES, scale))]
    clips += [melody(rng, range(36, 84)) for _ in range(scaled(PHRASES, scale))]
    labels = (f"program_{program}", f"{name}_{program}", *family_of(program))
    return [(labels, clip) for clip in clips]


def frequency_modulated(soundfont: Path, scale: float) -> Iterator[Sound]:
    """The 128 programs and the drums of a sound font."""
    for program in range(PROGRAMS):
        yield from rendered(soundfont, program, 0, program_clips(program, "opl3", scale))
    yield from rendered(soundfont, 0, DRUM_CHANNEL, drum_clips(random.Random("opl3 drums"), DRUM_KEYS, scale))


# ---------------------------------------------------------------- recorded patches


def patches(folder: Path, scale: float) -> Iterator[Sound]:
    """The programs and drums that freepats has."""
    programs = sorted(int(path.name[:3]) for path in (folder / "Tone_000").glob("*.pat"))
    keys = sorted(int(path.name[:3]) for path in (folder / "Drum_000").glob("*.pat"))
    with tempfile.TemporaryDirectory() as work:
        config = Path(work, "freepats.cfg")
        lines = ["drumset 0"] + [f"{int(p.name[:3])} {p}" for p in sorted((folder / "Drum_000").glob("*.pat"))]
        lines += ["bank 0"] + [f"{int(p.name[:3])} {p}" for p in sorted((folder / "Tone_000").glob("*.pat"))]
        config.write_text("\n".join(lines) + "\n")
        for program in programs:
            yield from by_timidity(config, program, 0, program_clips(program, "freepats", scale))
        yield from by_timidity(config, 0, DRUM_CHANNEL, drum_clips(random.Random("freepats drums"), keys, scale))


def by_timidity(config: Path, program: int, channel: int, clips: list) -> Iterator[Sound]:
    begins, notes = laid_out(clips)
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder, "notes.mid"), Path(folder, "notes.wav")
        midi.write_bytes(midi_file(program, channel, notes))
        how = ["-c", config, "-Ow", "-s", "32000", "-EFreverb=0", "-EFchorus=0", "-EFdelay=0", "--quiet=2"]
        subprocess.run(["timidity", *how, "-o", wav, midi], check=True, capture_output=True)
        yield from cut(clips, begins, *soundfile.read(wav, dtype="float32"), f"freepats {program}")


# ---------------------------------------------------------------- ZynAddSubFX

TICKS = 96  # of LMMS in a second, at 120 beats a minute


def zyn_patches(banks: Path, scale: float, chosen: slice = slice(None)) -> Iterator[Sound]:
    """Notes of each patch of the chosen banks; labels are its bank, its family and itself."""
    for path in (path for bank in sorted(banks.iterdir())[chosen] for path in sorted(bank.glob("*.xiz"))):
        name = f"{path.parent.name}/{path.stem}"
        rng = random.Random(f"zyn {name}")
        clips = [[single_note(rng, KEYS)] for _ in range(scaled(PATCH_NOTES, scale))] + [melody(rng, range(36, 84))]
        bank, patch = (re.sub(r"[^A-Za-z0-9]+", "_", part) for part in (path.parent.name, name))
        labels = (f"zyn_{patch}", f"zynbank_{bank}", *patch_family(path.stem, path.parent.name))
        instrument = ElementTree.fromstring(uncompressed(path)).find("INSTRUMENT")
        if instrument is not None:
            yield from by_lmms(instrument, [(labels, clip) for clip in clips], f"zyn {name}")


def patch_family(*names: str) -> tuple[str, ...]:
    """The label of the family that the first of these names tells."""
    for name in names:
        for family, pattern in PATCH_FAMILIES.items():
            if re.search(pattern, name.lower()):
                return (f"family_{family}",)
    return ()


def uncompressed(path: Path) -> bytes:
    data = path.read_bytes()
    return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).strip()


def by_lmms(instrument: ElementTree.Element, clips: list, group: str) -> Iterator[Sound]:
    begins, notes = laid_out(clips)
    with tempfile.TemporaryDirectory() as folder:
        song, wav = Path(folder, "notes.mmp"), Path(folder, "notes.wav")
        ElementTree.ElementTree(lmms_song(instrument, notes)).write(song, encoding="utf-8", xml_declaration=True)
        surroundings = dict(os.environ, QT_QPA_PLATFORM="offscreen", HOME=folder)
        command = ["lmms", "--allowroot", "render", song, "-o", wav, "-f", "wav", "-s", "44100"]
        if status := subprocess.run(command, capture_output=True, env=surroundings).returncode:
            print(f"left out: {group}: lmms ended with {status}", file=sys.stderr)
            return
        yield from cut(clips, begins, *soundfile.read(wav, dtype="float32"), group)


def lmms_song(instrument: ElementTree.Element, notes: list[Note]) -> ElementTree.Element:
    """An LMMS project with one track, on which ZynAddSubFX plays notes by an INSTRUMENT of a patch."""
    make = ElementTree.SubElement
    project = ElementTree.Element("lmms-project", version="1.0", creator="LMMS", creatorversion="1.2.2", type="song")
    make(project, "head", timesig_numerator="4", timesig_denominator="4", bpm="120", mastervol="100", masterpitch="0")
    tracks = make(make(project, "song"), "trackcontainer", type="song")
    track = make(tracks, "track", type="0", name="notes", muted="0", solo="0")
    settings = make(track, "instrumenttrack", vol="100", pan="0", pitch="0", fxch="0", basenote="57", pitchrange="1")
    plugin = make(make(settings, "instrument", name="zynaddsubfx"), "zynaddsubfx", modifiedcontrollers="")
    data = make(plugin, "ZynAddSubFX-data", {"version-major": "2", "version-minor": "4"})
    part = make(make(data, "MASTER"), "PART", id="0")
    make(part, "par_bool", name="enabled", value="yes")
    part.append(instrument)
    length = str(int((max(end for _, end, _, _ in notes) + GAP) * TICKS / 192 + 1) * 192)
    pattern = make(track, "pattern", type="1", pos="0", len=length, steps="16", name="", muted="0")
    for begin, end, key, velocity in notes:
        begin_tick, ticks = int(begin * TICKS), max(1, int((end - begin) * TICKS))
        place = {"pos": str(begin_tick), "len": str(ticks), "key": str(key - 12), "vol": str(velocity * 100 // 127)}
        make(pattern, "note", place, pan="0")
    return project


# ---------------------------------------------------------------- models


def models(_: Path, scale: float) -> Iterator[Sound]:
    """Single notes of the Synthesis ToolKit's instruments, with controllers at random; the clock seeds its noise."""
    for model, family in MODELS.items():
        labels = (f"stk_{model}", *([f"family_{family}"] if family else []))
        for n in range(scaled(MODEL_NOTES, scale)):
            rng = random.Random(f"stk {model} {n}")
            samples, rate = by_stk(model, single_note(rng, range(36, 89)), rng)
            yield Sound(f"{model}_{n}", labels, f"stk {model}", trimmed(samples), rate)


def by_stk(model: str, note: Note, rng: random.Random) -> tuple[np.ndarray, int]:
    begin, end, key, velocity = note
    lines = [f"ControlChange 0.0 1 {number} {rng.randint(0, 127)}" for number in CONTROLLERS if rng.random() < 0.6]
    lines += [f"NoteOn {begin} 1 {key} {velocity}", f"NoteOff {end} 1 {key} 64", "NoteOff 0.7 1 0 64"]
    with tempfile.TemporaryDirectory() as folder:
        score, wav = Path(folder, "notes.ski"), Path(folder, "notes.wav")
        score.write_text("\n".join(lines) + "\n")
        command = ["stk-demo", model, "-ow", wav, "-s", str(MODEL_RATE), "-if", score]
        subprocess.run(command, check=True, capture_output=True)
        samples, rate = soundfile.read(wav, dtype="float32")
    return samples / max(np.abs(samples).max(), 1e-3) * rng.uniform(0.1, 0.9), rate
