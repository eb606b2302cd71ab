"""Synthesise a small labelled set of sounds: ten classes that a listener tells apart at once.

    python -m util.make_sample_audio DEST [--clips 60] [--seed 0]

writes DEST/<class>/<class>_NN.wav, mono, 16 kHz, 2 to 3 s. A clip depends on (seed, class, number) alone.
Classes share pitch ranges and tempi, and every clip has an equaliser, a gain and background noise of its own, so that its
average spectrum says only a part: what differs is how the sound moves in time.
"""

import sys
import wave
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from m2d.utils.atomic_file import open_atomic
from m2d.utils.outputs import OVERWRITE_HELP, check_outputs
from m2d.utils.program import ArgumentParser, run_program

SAMPLE_RATE = 16000
SECONDS = (2.0, 3.0)

Rng = np.random.Generator


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("dest", type=Path, metavar="DEST", help="the folder to write to")
    parser.add_argument("--clips", type=int, default=60, help="clips per class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    if args.clips < 1:
        parser.error("--clips must be at least 1")

    def work() -> None:
        check_outputs([path for path, _, _ in planned(args.dest, args.clips)], (), args.overwrite)
        write_sample_audio(args.dest, args.clips, args.seed)
        print(f"{len(CLASSES) * args.clips} clips of {len(CLASSES)} classes in {args.dest}")

    return run_program(work)


def planned(dest: Path, clips: int) -> list[tuple[Path, str, int]]:
    """The files of `clips` clips of every class, with class and number."""
    return [(dest / name / f"{name}_{number:02d}.wav", name, number) for name in CLASSES for number in range(clips)]


def write_sample_audio(dest: Path, clips: int = 60, seed: int = 0) -> None:
    """Write `clips` wav files of every class below `dest`, over what is there."""
    for path, name, number in planned(Path(dest), clips):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_wav(path, make_clip(name, number, seed))


def make_clip(name: str, number: int, seed: int = 0) -> np.ndarray:
    """Clip `number` of a class: float64 `[samples]` within -1 and 1."""
    rng = np.random.default_rng([seed, list(CLASSES).index(name), number])
    samples = int(rng.uniform(*SECONDS) * SAMPLE_RATE)
    return _record(CLASSES[name](rng, samples), rng)


# ---------------------------------------------------------------- the room, the microphone, the recorder


def _record(x: np.ndarray, rng: Rng) -> np.ndarray:
    """The sound through a random equaliser, with coloured noise at 10 to 20 dB below it, at a level of -30 to -36 dB."""
    x = _equalise(x, rng)
    noise = _equalise(rng.standard_normal(len(x)), rng)
    x = x / _rms(x) + noise / _rms(noise) * _decibel(-rng.uniform(10, 20))
    x *= _decibel(-rng.uniform(30, 36))
    return x / max(1, np.abs(x).max())


def _equalise(x: np.ndarray, rng: Rng) -> np.ndarray:
    """A tilt of up to 1 dB an octave and four bumps or dips of up to 3 dB."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(x), 1 / SAMPLE_RATE), 50) / 1000)
    gain = rng.uniform(-1, 1) * octaves
    for _ in range(4):
        gain += rng.uniform(-3, 3) * np.exp(-(((octaves - rng.uniform(-3, 3)) / rng.uniform(0.2, 0.8)) ** 2))
    return np.fft.irfft(np.fft.rfft(x) * _decibel(gain), len(x))


def _rms(x: np.ndarray) -> float:
    return np.sqrt(np.mean(x**2)) + 1e-9


def _decibel(x):
    return 10 ** (x / 20)


def _write_wav(path: Path, x: np.ndarray) -> None:
    with open_atomic(path, durable=False) as file, wave.open(file, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(SAMPLE_RATE)
        f.writeframes(np.round(x * 32767).astype("<i2").tobytes())


# ---------------------------------------------------------------- building blocks


def _onsets(rng: Rng, samples: int, interval: tuple[float, float], jitter: float) -> list[int]:
    """Sample indices of events that start within half an interval and come every `interval` seconds or so."""
    step = rng.uniform(*interval)
    at, onsets = rng.uniform(0, 0.5) * step, []
    while at < samples / SAMPLE_RATE - 0.1:
        onsets.append(int(at * SAMPLE_RATE))
        at += step * (1 + jitter * rng.uniform(-1, 1))
    return onsets


def _sequence(samples: int, onsets: list[int], sound: Callable[[], np.ndarray]) -> np.ndarray:
    """One call of `sound` at every onset, added up."""
    out = np.zeros(samples)
    for at in onsets:
        x = sound()[: samples - at]
        out[at : at + len(x)] += x
    return out


def _seconds(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _harmonics(f0: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Harmonics 1, 2, … of a pitch curve f0 in Hz, none above the Nyquist frequency."""
    phase = 2 * np.pi * np.cumsum(f0) / SAMPLE_RATE
    return sum(a * np.sin(k * phase) * (k * f0 < SAMPLE_RATE / 2) for k, a in enumerate(strength, start=1))


def _tone_colour(rng: Rng, count: int = 10) -> np.ndarray:
    """Random strengths of harmonics that fall by 3 to 9 dB an octave."""
    return rng.uniform(0.2, 1, count) * np.arange(1, count + 1) ** -rng.uniform(0.5, 1.5)


def _fade(n: int, attack: float, release: float) -> np.ndarray:
    """Linear rise and fall of the given seconds, at most a half of n samples each."""
    t = np.arange(n)
    rise, fall = (np.clip(s * SAMPLE_RATE, 1, n / 2) for s in (attack, release))
    return np.minimum(1, np.minimum(t / rise, (n - 1 - t) / fall))


def _pitch(rng: Rng) -> float:
    """A pitch in Hz between 150 and 900, each octave equally likely."""
    return 150 * 6 ** rng.uniform()


def _bell_curve(n: int, centre: float, width: float) -> np.ndarray:
    """Gain over the frequencies of an n-sample FFT: a resonance at `centre` Hz, `width` Hz wide."""
    return 1 / (1 + ((np.fft.rfftfreq(n, 1 / SAMPLE_RATE) - centre) / width) ** 2)


def _filter(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return np.fft.irfft(np.fft.rfft(x) * gain, len(x))


# ---------------------------------------------------------------- the classes


def _speech(rng: Rng, samples: int) -> np.ndarray:
    """Syllables: a consonant of noise, then a voice whose formants glide from one vowel to the next."""
    pitch = rng.uniform(90, 260)

    def vowel(n: int) -> np.ndarray:
        formants = zip(rng.uniform((250, 800, 2200), (850, 2300, 3200)), (80, 120, 200), (1, 0.6, 0.3), strict=True)
        return sum(level * _bell_curve(n, centre, width) for centre, width, level in formants)

    def syllable() -> np.ndarray:
        t = _seconds(rng.uniform(0.12, 0.3))
        f0 = pitch * rng.uniform(0.85, 1.2) * 2 ** (rng.uniform(-0.4, 0.2) * t / t[-1])
        voice = _harmonics(f0, np.ones(30) / 30)
        glide = t / t[-1]
        voice = (1 - glide) * _filter(voice, vowel(len(t))) + glide * _filter(voice, vowel(len(t)))
        consonant = _filter(rng.standard_normal(int(rng.uniform(0.03, 0.09) * SAMPLE_RATE)), 1)
        consonant = _filter(consonant, _bell_curve(len(consonant), rng.uniform(1500, 6000), 1000))
        voice = voice / _rms(voice) * _fade(len(t), 0.02, 0.05)
        consonant = consonant / _rms(consonant) * _fade(len(consonant), 0.01, 0.01) * rng.uniform(0, 0.7)
        return np.concatenate([consonant, voice]) * rng.uniform(0.5, 1)

    return _sequence(samples, _onsets(rng, samples, (0.18, 0.35), 0.4), syllable)


def _plucked(rng: Rng, samples: int) -> np.ndarray:
    """A string plucked again and again (Karplus and Strong, Computer Music Journal, 1983)."""
    pitch, brightness = _pitch(rng), rng.uniform(0.3, 0.7)

    def note() -> np.ndarray:
        period = round(SAMPLE_RATE / (pitch * 2 ** (rng.integers(-5, 8) / 12)))
        loss = 0.5 ** (period / SAMPLE_RATE / rng.uniform(0.05, 0.3))
        cycles = [rng.uniform(-1, 1, period)]
        for _ in range(SAMPLE_RATE // period):
            last = cycles[-1]
            cycles.append(loss * ((1 - brightness / 2) * last + brightness / 2 * np.roll(last, 1)))
        return np.concatenate(cycles)

    return _sequence(samples, _onsets(rng, samples, (0.2, 0.6), 0.3), note)


def _bell(rng: Rng, samples: int) -> np.ndarray:
    """A bar struck now and then: partials that are no harmonics, the higher the sooner gone."""
    pitch, ratios = _pitch(rng), np.array([1, 2.76, 5.4, 8.93]) * rng.uniform(0.9, 1.1, 4)
    levels, ring = rng.uniform(0.2, 1, 4), rng.uniform(0.15, 0.6)

    def stroke() -> np.ndarray:
        t, note = _seconds(1.5), pitch * 2 ** (rng.integers(-5, 8) / 12)
        partials = [(a, note * r, ring / r**0.5) for a, r in zip(levels, ratios, strict=True) if note * r < SAMPLE_RATE / 2]
        return sum(a * np.sin(2 * np.pi * f * t) * np.exp(-t / decay) for a, f, decay in partials) * rng.uniform(0.5, 1)

    return _sequence(samples, _onsets(rng, samples, (0.3, 0.9), 0.3), stroke)


def _bowed(rng: Rng, samples: int) -> np.ndarray:
    """Notes that swell and fade, with vibrato."""
    pitch, colour, rate, depth = _pitch(rng), _tone_colour(rng), rng.uniform(4.5, 7.5), rng.uniform(0.01, 0.04)

    def note() -> np.ndarray:
        t = _seconds(rng.uniform(0.5, 1.2))
        f0 = pitch * 2 ** (rng.integers(-5, 8) / 12) * (1 + depth * np.sin(2 * np.pi * (rate * t + rng.uniform())))
        return _harmonics(f0, colour) * _fade(len(t), rng.uniform(0.15, 0.4), 0.15)

    return _sequence(samples, _onsets(rng, samples, (0.5, 1.1), 0.2), note)


def _glide(rng: Rng, samples: int, direction: int) -> np.ndarray:
    colour, pitch, octaves = _tone_colour(rng), _pitch(rng), rng.uniform(0.7, 2)
    seconds = rng.uniform(0.2, 0.8)

    def sweep() -> np.ndarray:
        t = _seconds(seconds * rng.uniform(0.8, 1.2))
        f0 = pitch * 2 ** (direction * octaves * (t / t[-1] - 0.5))
        return _harmonics(f0, colour) * _fade(len(t), 0.03, 0.03)

    return _sequence(samples, _onsets(rng, samples, (seconds, 1.6 * seconds), 0.2), sweep)


def _rising(rng: Rng, samples: int) -> np.ndarray:
    """Sweeps upwards."""
    return _glide(rng, samples, 1)


def _falling(rng: Rng, samples: int) -> np.ndarray:
    """The same sweeps downwards."""
    return _glide(rng, samples, -1)


def _bird(rng: Rng, samples: int) -> np.ndarray:
    """Trills: short runs of very fast chirps up and down."""
    pitch, colour, rate = rng.uniform(900, 3000), _tone_colour(rng, 3), rng.uniform(12, 30)

    def trill() -> np.ndarray:
        t = _seconds(rng.uniform(0.15, 0.6))
        wave_form = np.sin(2 * np.pi * (rate * t + rng.uniform()))
        f0 = pitch * 2 ** (rng.uniform(0.2, 0.5) * wave_form + rng.uniform(-0.3, 0.3) * t / t[-1])
        return _harmonics(f0, colour) * (0.6 + 0.4 * wave_form) * _fade(len(t), 0.02, 0.05)

    return _sequence(samples, _onsets(rng, samples, (0.3, 0.8), 0.5), trill)


def _rain(rng: Rng, samples: int) -> np.ndarray:
    """Drops at random times, each a short burst of noise in a band of its own."""
    drops = rng.uniform(0, samples - 1, int(rng.uniform(15, 50) * samples / SAMPLE_RATE))
    return _sequence(samples, [int(at) for at in drops], lambda: _burst(rng, rng.uniform(500, 6000)))


def _clock(rng: Rng, samples: int) -> np.ndarray:
    """The same bursts in strict time, two kinds alternating."""
    kinds = [_burst(rng, rng.uniform(500, 6000)) for _ in range(2)]
    onsets = _onsets(rng, samples, (0.1, 0.35), 0.0)
    return _sequence(samples, onsets[::2], lambda: kinds[0]) + _sequence(samples, onsets[1::2], lambda: kinds[1])


def _burst(rng: Rng, centre: float) -> np.ndarray:
    t = _seconds(0.06)
    burst = _filter(rng.standard_normal(len(t)), _bell_curve(len(t), centre, centre / 4)) * np.exp(-t / rng.uniform(0.005, 0.02))
    return burst / np.abs(burst).max() * rng.uniform(0.3, 1)


def _engine(rng: Rng, samples: int) -> np.ndarray:
    """A train of 20 to 60 pulses a second through the resonances of a body, revving up and down."""
    t = np.arange(samples) / SAMPLE_RATE
    rate = rng.uniform(25, 50) * 2 ** (rng.uniform(0.1, 0.5) * np.sin(2 * np.pi * (rng.uniform(0.2, 0.8) * t + rng.uniform())))
    cylinders = rng.uniform(0.4, 1, 4)
    turn = np.cumsum(rate) / SAMPLE_RATE
    pulses = np.exp(-(turn % 1) * rng.uniform(4, 12)) * cylinders[turn.astype(int) % 4] * rng.standard_normal(samples)
    body = sum(_bell_curve(samples, rng.uniform(150, 4000), rng.uniform(100, 800)) for _ in range(4))
    return _filter(pulses, body)


CLASSES: dict[str, Callable[[Rng, int], np.ndarray]] = {
    "bell": _bell,
    "bird": _bird,
    "bowed": _bowed,
    "clock": _clock,
    "engine": _engine,
    "falling": _falling,
    "plucked": _plucked,
    "rain": _rain,
    "rising": _rising,
    "speech": _speech,
}


if __name__ == "__main__":
    sys.exit(main())
