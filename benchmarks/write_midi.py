"""Write a short random melody or chord sequence as a MIDI file: python benchmarks/write_midi.py OUT.mid PROGRAM SEED.

PROGRAM is the General MIDI instrument, 0 to 127, or "drums".
"""

import random
import struct
import sys
from pathlib import Path

TICKS_PER_QUARTER = 96
TICKS_PER_SECOND = 2 * TICKS_PER_QUARTER  # 120 quarters a minute, MIDI's default
DRUM_CHANNEL = 9
SCALE = (0, 2, 4, 7, 9)


def notes(seed: int, drums: bool, seconds: float) -> list[tuple[int, int, int, int]]:
    """(start tick, end tick, key, velocity) of each note."""
    rng = random.Random(seed)
    step = rng.choice((0.125, 0.2, 0.25, 0.4, 0.5))
    root, chord_size = rng.randint(42, 66), rng.choice((1, 1, 1, 2, 3))
    out, at = [], rng.uniform(0, 0.3)
    while at < seconds:
        length = step * rng.choice((1, 1, 2, 3))
        for _ in range(chord_size):
            key = rng.randint(35, 59) if drums else root + 12 * rng.randint(0, 1) + rng.choice(SCALE)
            out.append((int(at * TICKS_PER_SECOND), int((at + 0.9 * length) * TICKS_PER_SECOND), key, rng.randint(60, 120)))
        at += length
    return out


def variable_length(value: int) -> bytes:
    """A number as MIDI writes times: seven bits a byte, the highest first, all but the last marked."""
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def midi_file(program: str, seed: int) -> bytes:
    """A file of one track (Standard MIDI Files 1.0, format 0)."""
    drums = program == "drums"
    channel = DRUM_CHANNEL if drums else 0
    seconds = random.Random(-seed - 1).uniform(1.5, 5)
    events = []
    for start, end, key, velocity in notes(seed, drums, seconds):
        events += [(start, 1, bytes([0x90 | channel, key, velocity])), (end, 0, bytes([0x80 | channel, key, 0]))]
    track = b"" if drums else b"\x00" + bytes([0xC0 | channel, int(program)])
    now = 0
    for tick, _, message in sorted(events):
        track += variable_length(tick - now) + message
        now = tick
    track += b"\x00\xff\x2f\x00"  # end of track
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS_PER_QUARTER) + b"MTrk" + struct.pack(">I", len(track)) + track


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    Path(sys.argv[1]).write_bytes(midi_file(sys.argv[2], int(sys.argv[3])))
