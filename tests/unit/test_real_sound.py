"""benchmarks/real_sound.py: kinds of drums, notes, and the lists it writes."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def real_sound(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import real_sound

    return real_sound


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Pearl Side Stick", "stick"),
        ("Kick 1", "kick"),
        ("BassDrum", "kick"),
        ("Snare Rimshot (Pearl)", "snare"),
        ("Floor Tom", "tom"),
        ("Hi-Hat Semiopen (Paiste)", "hihat_open"),
        ("Hat Op Dirty", "hihat_open"),
        ("Side OHH", "hihat_open"),
        ("Closed HH", "hihat_closed"),
        ("Pedal HH", "hihat_closed"),
        ("Ride Jazz", "ride"),
        ("Zildjian Splash Choke", "crash"),
        ("Agogo Low", "cowbell"),
        ("FX", ""),
    ],
)
def test_a_drums_name_says_its_kind(real_sound, name, kind):
    assert real_sound.kind_of_drum(name) == kind


def test_the_midi_file_states_the_length_of_its_track(real_sound):
    data = real_sound.notes_file(40, [(60, 100, 1.0), (64, 90, 0.3)])
    assert data[:4] == b"MThd" and data[14:18] == b"MTrk"
    assert int.from_bytes(data[18:22], "big") == len(data) - 22
    assert data.count(b"\x90") == 2 and data.endswith(b"\xff\x2f\x00")


def test_a_task_lists_labels_of_enough_groups_and_each_content_once(real_sound, tmp_path):
    rng = np.random.default_rng(0)
    sounds = [rng.uniform(-0.5, 0.5, (8000, 2)) for _ in range(6)]
    clips = [real_sound.Clip("hum", f"speaker {n % 4}", f"take {n}", sounds[n], 8000) for n in range(5)]
    clips += [real_sound.Clip("hum", "speaker 0", "the same again", sounds[0], 8000)]
    clips += [real_sound.Clip("rare", "speaker 0", "take 9", sounds[5], 8000)]
    clips += [real_sound.Clip("hum", "speaker 1", "silence", np.zeros(8000), 8000)]
    real_sound.write_task(tmp_path, "voices", iter(clips))

    rows = list(csv.DictReader((tmp_path / "voices.csv").open()))
    assert [row["label"] for row in rows] == ["hum"] * 5
    assert {row["group"] for row in rows} == {f"speaker {n}" for n in range(4)}
    info = soundfile.info(tmp_path / "audio" / rows[0]["file_name"])
    assert (info.samplerate, info.channels, info.frames) == (16000, 1, 16000)
