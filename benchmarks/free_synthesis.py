"""What benchmarks/free_sound.py synthesises: speech (espeak-ng), music (fluidsynth), noises and tones (numpy), and effects.

Each clip depends on its part and number alone.
"""

import io
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from real_sound import RATE, VOICES, WORDS
from scipy import signal
from write_midi import DRUM_CHANNEL, SCALE, TICKS_PER_QUARTER, TICKS_PER_SECOND, variable_length

SOUNDFONT = "TimGM6mb.sf2"
SPOKEN = 3000  # clips of espeak-ng, and as many again with effects
MORE_SPOKEN = 7000
NOTES, PHRASES = 14, 18  # of each General MIDI program
PROGRAMS = 128
DRUM_KEYS = range(27, 88)
DRUM_KITS = (0, 8, 16, 24, 25, 32, 40, 48)
HITS, LOOPS = 4, 20  # hits of each key, and loops, of each kit
COMPUTED = 3000  # clips of numpy
EFFECTS = 4000  # clips made of other clips


class Sound(NamedTuple):
    """A sound on its way into a part.

    group: sounds that share a recording, voice or program have one.
    samples: `[frames]` or `[frames, channels]`.
    """

    name: str
    labels: tuple[str, ...]
    group: str
    samples: np.ndarray
    rate: int


# ---------------------------------------------------------------- speech

ONSETS = "p b t d k g m n f v s z l r h w y ch sh th st tr pl br kl gr fr sk".split()
VOWELS = "a e i o u ai ei ou ee oo aa".split()
CODAS = ["", "", *"p b t d k g m n f v s z l r ng ch sh st nd lk mp".split()]


def speech(_: Path, scale: float, begin: int = 0, count: int = SPOKEN) -> Iterator[Sound]:
    """Invented words, phrases of them and numbers, in every language by every voice that no task uses.

    Labels are the language, the voice's variant, and the phonemes; of a single word, the first and the last one too.
    """
    languages, variants = spoken_languages(), free_variants()
    for n in range(begin, begin + scaled(count, scale)):
        rng = random.Random(f"speech {n}")
        language = rng.choice(("en-us", "en-gb", rng.choice(languages), rng.choice(languages), rng.choice(languages)))
        variant = rng.choice(variants)
        make_text = rng.choice((word, word, phrase, number))
        text = make_text(rng)
        samples, rate, phonemes = speak(f"{language}+{variant}", text, rng)
        labels = [f"speech_{language}", f"voice_{variant}", *sorted({f"phone_{p}" for p in phonemes})]
        if make_text is word and phonemes:
            labels += [f"first_{phonemes[0]}", f"last_{phonemes[-1]}"]
        yield Sound(f"{n}_{language}_{variant}_{text}", tuple(labels), f"espeak {language} {variant}", samples, rate)


def spoken_languages() -> list[str]:
    listed = subprocess.run(["espeak-ng", "--voices"], check=True, capture_output=True, text=True).stdout
    return sorted({name for line in listed.splitlines()[1:] if (name := line.split()[1]).islower()})  # not chr-US-Qaaa-x-west


def free_variants() -> list[str]:
    """The variants of espeak-ng's voices that are no kin of a task's (Gene2 is one of Gene)."""
    listed = subprocess.run(["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True).stdout
    names = sorted(set(re.findall(r"!v/(\S+)\s*$", listed, re.MULTILINE)))
    return [name for name in names if not any(kin(name.lower(), voice.lower()) for voice in VOICES)]


def kin(name: str, voice: str) -> bool:
    return voice in name or (name == "aunty" and voice == "auntie")


def word(rng: random.Random, syllables: int = 1) -> str:
    """An invented word that is none of the tasks' words."""
    while True:
        made = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables)) + rng.choice(CODAS)
        if made not in WORDS:
            return made


def phrase(rng: random.Random) -> str:
    return " ".join(word(rng, rng.randint(1, 3)) for _ in range(rng.randint(2, 6)))


def number(rng: random.Random) -> str:
    return str(rng.randint(0, 99999))


def speak(voice: str, text: str, rng: random.Random) -> tuple[np.ndarray, int, list[str]]:
    """Samples, their rate, and phonemes by espeak-ng's names, without stress and length."""
    how = ["-v", voice, "-p", str(rng.randint(5, 95)), "-s", str(rng.randint(90, 260)), "-a", str(rng.randint(40, 160))]
    with tempfile.NamedTemporaryFile("r") as phonemes:
        command = ["espeak-ng", *how, "--sep= ", "-x", f"--phonout={phonemes.name}", "--stdout", text]
        spoken = subprocess.run(command, check=True, capture_output=True)
        found = [re.sub(r"[^A-Za-z0-9@&^]", "", symbol) for symbol in phonemes.read().split()]
    return *soundfile.read(io.BytesIO(spoken.stdout)), [symbol for symbol in found if symbol]


# ---------------------------------------------------------------- music

Note = tuple[float, float, int, int]  # begin and end in seconds, key, velocity


def music(soundfont: Path, scale: float) -> Iterator[Sound]:
    """Single notes and phrases of each General MIDI program; the label is the program."""
    for program in range(PROGRAMS):
        rng = random.Random(f"music {program}")
        clips = [[single_note(rng, range(33, 93))] for _ in range(scaled(NOTES, scale))]
        clips += [melody(rng, range(36, 84)) for _ in range(scaled(PHRASES, scale))]
        yield from rendered(soundfont, program, 0, [((f"program_{program}",), clip) for clip in clips])


def drums(soundfont: Path, scale: float) -> Iterator[Sound]:
    """Hits of each key of each drum kit, labelled by key, and loops."""
    for kit in DRUM_KITS:
        yield from rendered(soundfont, kit, DRUM_CHANNEL, drum_clips(random.Random(f"drums {kit}"), DRUM_KEYS, scale))


def drum_clips(rng: random.Random, keys: Sequence[int], scale: float) -> "list[tuple[tuple[str, ...], list[Note]]]":
    """Labels with notes: hits of each key, and loops of a few."""
    hits = [((f"drum_{key}",), [single_note(rng, [key])]) for key in keys for _ in range(scaled(HITS, scale))]
    sets = [rng.sample(keys, rng.randint(2, 6)) for _ in range(scaled(LOOPS, scale))]
    return hits + [(("drum_loop",), melody(rng, keys)) for keys in sets]


def scaled(count: int, scale: float) -> int:
    return max(1, int(count * scale))


def single_note(rng: random.Random, keys) -> Note:
    return 0.0, rng.uniform(0.1, 1.5), rng.choice(keys), rng.randint(30, 125)


def melody(rng: random.Random, keys) -> list[Note]:
    """Two to four seconds of notes or chords of one scale (of drums: any of the keys), at one tempo."""
    step, root, voices = rng.choice((0.1, 0.15, 0.2, 0.3, 0.45)), rng.randint(0, 11), rng.choice((1, 1, 1, 2, 3))
    fitting = [key for key in keys if len(keys) < 10 or (key - root) % 12 in SCALE]
    now, notes, end = 0.0, [], rng.uniform(2, 4)
    while now < end:
        length = step * rng.choice((1, 1, 2, 3))
        if rng.random() > 0.15:
            notes += [(now, now + 0.9 * length, rng.choice(fitting), rng.randint(50, 120)) for _ in range(voices)]
        now += length
    return notes or [(0.0, 1.0, rng.choice(fitting), 90)]


GAP = 1.5  # seconds after a clip's last note, for it to die away


def rendered(soundfont: Path, program: int, channel: int, clips: list[tuple[tuple[str, ...], list[Note]]]) -> Iterator[Sound]:
    """Labels with notes, rendered by fluidsynth as one MIDI file and cut."""
    begins, notes = laid_out(clips)
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder, "notes.mid"), Path(folder, "notes.wav")
        midi.write_bytes(midi_file(program, channel, notes))
        how = ["-q", "-n", "-i", "-R", "0", "-C", "0", "-g", "0.6", "-r", "32000"]
        subprocess.run(["fluidsynth", *how, "-F", wav, soundfont, midi], check=True, stdout=subprocess.DEVNULL)
        yield from cut(clips, begins, *soundfile.read(wav, dtype="float32"), f"{soundfont.stem} {program}")


def laid_out(clips: list[tuple[tuple[str, ...], list[Note]]]) -> tuple[list[float], list[Note]]:
    """Where each clip begins when they are played one after the other, GAP apart, with the end; and all notes."""
    begins, now, notes = [], 0.0, []
    for _, clip in clips:
        begins.append(now)
        notes += [(now + begin, now + end, key, velocity) for begin, end, key, velocity in clip]
        now += max(end for _, end, _, _ in clip) + GAP
    return [*begins, now], notes


def cut(clips: list, begins: list[float], sound: np.ndarray, rate: int, group: str) -> Iterator[Sound]:
    """The clips of what laid_out made, each without the silence at its end."""
    for n, ((labels, _), begin, end) in enumerate(zip(clips, begins[:-1], begins[1:], strict=True)):
        samples = trimmed(sound[int(begin * rate) : int(end * rate)])
        yield Sound(f"{labels[0]}_{n}", labels, group, samples, rate)


def trimmed(sound: np.ndarray) -> np.ndarray:
    """Without the silence at the end."""
    heard = np.flatnonzero(np.abs(sound.reshape(len(sound), -1)).max(axis=1) > 1e-3)
    return sound[: heard[-1] + 1] if len(heard) else sound[:0]


def midi_file(program: int, channel: int, notes: list[Note]) -> bytes:
    """A file of one track (Standard MIDI Files 1.0, format 0)."""
    events = []
    for begin, end, key, velocity in notes:
        events += [(begin, 1, bytes([0x90 | channel, key, velocity])), (end, 0, bytes([0x80 | channel, key, 0]))]
    track, now = b"\x00" + bytes([0xC0 | channel, program]), 0
    for seconds, _, message in sorted(events):
        tick = int(seconds * TICKS_PER_SECOND)
        track += variable_length(tick - now) + message
        now = tick
    track += variable_length(int(GAP * TICKS_PER_SECOND)) + b"\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4, "big") + bytes([0, 0, 0, 1]) + TICKS_PER_QUARTER.to_bytes(2, "big")
    return header + b"MTrk" + len(track).to_bytes(4, "big") + track


# ---------------------------------------------------------------- noises and tones

Rng = np.random.Generator


def envelope(rng: Rng, length: int) -> np.ndarray:
    """A rise, and a decay or a sustained level, of random lengths."""
    times = np.arange(length) / RATE
    rise = 1 - np.exp(-times / 10 ** rng.uniform(-3, -0.7))
    return rise * np.exp(-times / 10 ** rng.uniform(-1.5, 1.2))


def band(rng: Rng) -> np.ndarray:
    """Second-order sections of a band-pass of random place and width."""
    centre, width = 10 ** rng.uniform(2, 3.8), 2 ** rng.uniform(0.1, 3)
    low, high = centre / width, min(centre * width, 0.49 * RATE)
    return signal.butter(2, (min(low, 0.9 * high), high), "bandpass", fs=RATE, output="sos")


def noise(rng: Rng, length: int) -> np.ndarray:
    shaped = signal.sosfilt(band(rng), rng.standard_normal(length))
    return shaped * (1 + rng.uniform(0, 1) * np.sin(2 * np.pi * 10 ** rng.uniform(-0.3, 1.7) * np.arange(length) / RATE))


def tone(rng: Rng, length: int) -> np.ndarray:
    """Harmonics with vibrato, or inharmonic partials with decays of their own (a bell)."""
    times, base = np.arange(length) / RATE, 10 ** rng.uniform(1.8, 3.3)
    count, bell = rng.integers(1, 16), rng.random() < 0.4
    vibrato = rng.uniform(0, 0.02) * np.sin(2 * np.pi * rng.uniform(2, 9) * times) / rng.uniform(2, 9)
    total = np.zeros(length)
    for partial in range(1, count + 1):
        ratio = partial * (rng.uniform(0.8, 1.5) if bell else 1)
        if base * ratio < RATE / 2:
            decay = np.exp(-times * ratio * rng.uniform(0, 3)) if bell else 1
            level = rng.uniform(0.2, 1) / partial ** rng.uniform(0, 1.5)
            total += level * decay * np.sin(2 * np.pi * base * ratio * (times + vibrato) + rng.uniform(0, 6.28))
    return total


def sweep(rng: Rng, length: int) -> np.ndarray:
    """A tone that glides, once or over and over."""
    times, ends = np.arange(length) / RATE, 10 ** rng.uniform(1.8, 3.8, 2)
    place = (times * 10 ** rng.uniform(-0.5, 1.2)) % 1
    phase = 2 * np.pi * np.cumsum(ends[0] * (ends[1] / ends[0]) ** place) / RATE
    return signal.square(phase, 0.3) if rng.random() < 0.3 else np.sin(phase)


def pulses(rng: Rng, length: int) -> np.ndarray:
    """Impulses at one rate or at random, each ringing in a band: clicks, rattles, engines, rain."""
    rate = 10 ** rng.uniform(0.3, 2.3)
    if rng.random() < 0.5:
        train = (rng.random(length) < rate / RATE) * rng.uniform(0.2, 1, length)
    else:
        train = np.diff(np.floor(np.arange(length + 1) * rate / RATE))
    return signal.sosfilt(band(rng), train * 10)


def frequency_modulation(rng: Rng, length: int) -> np.ndarray:
    times, carrier = np.arange(length) / RATE, 10 ** rng.uniform(1.8, 3.3)
    index = rng.uniform(0, 8) * np.exp(-times * rng.uniform(0, 5))
    return np.sin(2 * np.pi * carrier * times + index * np.sin(2 * np.pi * carrier * rng.choice([0.5, 1, 1.41, 2, 3.5]) * times))


def pluck(rng: Rng, length: int) -> np.ndarray:
    """A plucked string (Karplus and Strong, 1983)."""
    period = int(RATE / 10 ** rng.uniform(1.8, 3))
    burst = np.zeros(length)
    burst[:period] = rng.uniform(-1, 1, min(period, length))
    loop = np.zeros(period + 2)
    loop[0], loop[period], loop[period + 1] = 1, -0.499, -0.499
    return signal.lfilter([1], loop, burst)


KINDS: dict[str, Callable[[Rng, int], np.ndarray]] = {
    "noise": noise,
    "tone": tone,
    "sweep": sweep,
    "pulses": pulses,
    "fm": frequency_modulation,
    "pluck": pluck,
}


def computed(_: Path, scale: float) -> Iterator[Sound]:
    """Noises and tones of each kind, some of two kinds one after the other or at once."""
    for n in range(scaled(COMPUTED, scale)):
        rng = np.random.default_rng([1, n])
        kinds = [list(KINDS)[i] for i in rng.integers(len(KINDS), size=rng.choice([1, 1, 2]))]
        length = int(rng.uniform(0.4, 3) * RATE)
        layers = [KINDS[kind](rng, length) * envelope(rng, length) for kind in kinds]
        layers = [layer / max(np.abs(layer).max(), 1e-9) * rng.uniform(0.3, 1) for layer in layers]
        samples = np.concatenate(layers) if rng.random() < 0.5 else np.sum(layers, axis=0)
        samples *= 10 ** rng.uniform(-1.5, -0.1) / max(np.abs(samples).max(), 1e-9)
        yield Sound(f"{n}_{'_'.join(kinds)}", tuple(f"kind_{kind}" for kind in kinds), f"numpy {n}", samples, RATE)


SYNTHESISED = {"espeak-ng": speech, "fluidsynth": music, "fluidsynth-drums": drums, "numpy": computed}

# ---------------------------------------------------------------- effects


def effects(audio: Path, originals: list[dict[str, str]], scale: float) -> Iterator[Sound]:
    """Clips with one to three effects; a third of them is mixed with another clip first.

    Labels are those of the clips; the group is the first one's.
    """
    for n in range(scaled(EFFECTS, scale)):
        rng = np.random.default_rng([2, n])
        picked = [originals[i] for i in rng.integers(len(originals), size=rng.choice([1, 1, 2]))]
        sounds = [soundfile.read(audio / row["file_name"])[0] for row in picked]
        samples = sounds[0] if len(sounds) == 1 else mixed(rng, *sounds)
        names = rng.choice(list(CHANGES), size=rng.integers(1, 4), replace=False)
        for name in names:
            samples = CHANGES[name](rng, samples)
        samples = samples * 10 ** rng.uniform(-1, -0.05) / max(np.abs(samples).max(), 1e-9)
        labels = tuple(dict.fromkeys(label for row in picked for label in row["label"].split(",")))
        yield Sound(f"{n}_{'_'.join(names)}", labels, picked[0]["group"], samples, RATE)


def mixed(rng: Rng, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two sounds at a random ratio of their levels, the second at a random place, cut to the first one's length."""
    ratio = 10 ** rng.uniform(-1.2, 0.3) * np.sqrt(np.mean(first**2) / max(np.mean(second**2), 1e-12))
    begin = rng.integers(0, max(1, len(first) // 2))
    added = np.zeros_like(first)
    part = second[: len(first) - begin]
    added[begin : begin + len(part)] = part
    return first + ratio * added


def reverberated(rng: Rng, x: np.ndarray) -> np.ndarray:
    """Convolved with noise that decays exponentially, as a room's echoes do."""
    length = int(RATE * rng.uniform(0.1, 1))
    room = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    room[0] = rng.uniform(1, 10)
    return signal.fftconvolve(x, room / np.sqrt(np.sum(room**2)))[: len(x)]


def telephone(rng: Rng, x: np.ndarray) -> np.ndarray:
    """At most 3.4 kHz, with or without what is below 300 Hz."""
    edges = (300, 3400) if rng.random() < 0.5 else (40, rng.uniform(3000, 3900))
    return signal.sosfilt(signal.butter(6, edges, "bandpass", fs=RATE, output="sos"), x)


def equalised(rng: Rng, x: np.ndarray) -> np.ndarray:
    return x + rng.uniform(-0.8, 4) * signal.sosfilt(band(rng), x)


def at_another_speed(rng: Rng, x: np.ndarray) -> np.ndarray:
    """Played faster or slower, with its pitch."""
    return signal.resample_poly(x, *[(3, 4), (4, 5), (5, 6), (6, 5), (5, 4), (4, 3)][rng.integers(6)])


def distorted(rng: Rng, x: np.ndarray) -> np.ndarray:
    gain = 10 ** rng.uniform(0, 1.3)
    return np.tanh(gain * x / max(np.abs(x).max(), 1e-9))


def in_noise(rng: Rng, x: np.ndarray) -> np.ndarray:
    level = 10 ** rng.uniform(-2.5, -0.7) * np.sqrt(np.mean(x**2))
    return x + level * signal.lfilter([1], [1, -rng.uniform(0, 0.95)], rng.standard_normal(len(x)))


CHANGES: dict[str, Callable[[Rng, np.ndarray], np.ndarray]] = {
    "reverberated": reverberated,
    "telephone": telephone,
    "equalised": equalised,
    "speed": at_another_speed,
    "distorted": distorted,
    "noise": in_noise,
}
