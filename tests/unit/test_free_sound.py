"""benchmarks/free_sound.py and its kin: labels, parts that continue, lists, and what is synthesised."""

import csv
import random
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import soundfile

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def free_sound(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import free_sound

    return free_sound


@pytest.fixture
def free_instruments(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import free_instruments

    return free_instruments


@pytest.fixture
def free_synthesis(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import free_synthesis

    return free_synthesis


@pytest.mark.parametrize(
    ("path", "labels"),
    [
        ("tuxpaint/stamps/animals/dog_desc_fr.ogg", ("speech_fr",)),
        ("tuxpaint/stamps/animals/dog_desc_pt_BR.ogg", ("speech_pt_BR",)),
        ("tuxpaint/stamps/animals/dog_desc.ogg", ("speech_en",)),
        ("tuxpaint/stamps/animals/dog.ogg", ("tuxpaint_stamps_animals",)),
        ("klettres/nds/alpha/x.ogg", ("speech_nds",)),
        ("games/fillets-ng/sound/cellar/cs/1.ogg", ("speech_cs",)),
        ("gcin-voice/ogg/ㄊㄢ3/5.ogg", ("speech_cmn", "gcin_speaker_5", "tone_3", "bopomofo_ㄊ", "bopomofo_ㄢ")),
    ],
)
def test_labels_of_a_recording(free_sound, path, labels):
    assert free_sound.labels_of(Path(path)) == labels


def a_sound(free_sound, number, seconds=0.5, labels=("hum",), seed=None):
    samples = np.random.default_rng(number if seed is None else seed).uniform(-0.5, 0.5, int(seconds * 16000))
    return free_sound.Sound(f"take {number}", labels, f"speaker {number}", samples, 16000)


def test_a_part_has_each_content_once_and_is_kept(free_sound, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "audio").mkdir()
    sounds = [a_sound(free_sound, 0), a_sound(free_sound, 1, seconds=9.0), a_sound(free_sound, 2, seed=0)]
    silence = free_sound.Sound("silence", ("hum",), "nobody", np.zeros(8000), 16000)
    free_sound.Writer(tmp_path).write("hums", iter([*sounds, silence]))

    def never():
        raise AssertionError("a complete part is made again")
        yield

    writer = free_sound.Writer(tmp_path)
    writer.write("hums", never())
    assert [(row["group"], row["seconds"]) for row in writer.rows] == [("speaker 0", "0.50"), ("speaker 1", "5.00")]
    info = soundfile.info(tmp_path / "audio" / writer.rows[1]["file_name"])
    assert (info.samplerate, info.channels, info.frames) == (16000, 1, 80000)
    writer.write("more", iter([a_sound(free_sound, 7, seed=0), a_sound(free_sound, 8)]))
    assert [row["group"] for row in writer.rows] == ["speaker 0", "speaker 1", "speaker 8"]


def test_the_labelled_list_leaves_out_rare_labels_and_weighs_them(free_sound, tmp_path):
    common, rare = {"file_name": "p/1.wav", "label": "a,b", "part": "p"}, {"file_name": "p/2.wav", "label": "c", "part": "p"}
    middle = {"file_name": "p/3.wav", "label": "b,c", "part": "p"}
    rows = free_sound.labelled([common] * 40 + [middle] * 8 + [{**rare, "label": "d"}])
    assert {row["file_name"] for row in rows} == {"lms/p/1.npy", "lms/p/3.npy"}
    weights = {row["file_name"]: float(row["weight"]) for row in rows}
    rarer = (1000 / 148 + 1000 / 108) / (1000 / 140 + 1000 / 148)
    assert weights["lms/p/3.npy"] / weights["lms/p/1.npy"] == pytest.approx(rarer ** (1 / 1.5), rel=1e-4)


def test_kinds_of_parts_have_their_shares_of_the_weights(free_sound):
    def clips(part, count):
        return [{"file_name": f"{part}/{n}.wav", "label": part, "part": part, "group": ""} for n in range(count)]

    rows = free_sound.labelled([*clips("stk", 10), *clips("opl3", 30), *clips("numpy", 200), *clips("gcin-voice", 9)])
    totals = dict.fromkeys(free_sound.SHARES, 0.0)
    for row in rows:
        totals[free_sound.kind_of(Path(row["file_name"]).parts[1])] += float(row["weight"])
    shares = {kind: share for kind, (share, _) in free_sound.SHARES.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert totals == pytest.approx({**{kind: 1e5 * share for kind, share in shares.items()}, "speech": 0.0}, rel=1e-4)


def test_recordings_of_one_package_and_language_are_a_label_and_so_is_who_speaks(free_sound):
    group = "games/fillets-ng/sound/atlantis/nl/sp-v-nonsense"
    row = {"file_name": "f/1.wav", "label": "speech_nl", "part": "fillets-ng-data", "group": group}
    kept = free_sound.labelled([row] * free_sound.LEAST_CLIPS)
    assert kept[0]["label"] == "speech_nl,fillets-ng-data_speech_nl,fillets_nl_v"


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (("0001-FM Thrumpet", "Brass"), "brass"),
        (("0033-Wah Bass", "Bass"), "bass"),
        (("0002-Soft Vibes", "Collection"), "mallets"),
        (("0005-Choir Pad1", "Choir and Voice"), "ensemble"),
        (("0007-Steel", "Guitar"), "guitar"),
    ],
)
def test_family_of_a_patch(free_instruments, names, family):
    assert free_instruments.patch_family(*names) == (f"family_{family}",)


def test_families_of_programs_are_those_of_general_midi(free_instruments):
    assert [free_instruments.family_of(program) for program in (0, 40, 73, 127)] == [
        ("family_piano",),
        ("family_strings",),
        ("family_pipe",),
        (),
    ]
    assert free_instruments.patch_family("0010-Crash 7", "Misc") == ()


def test_a_song_for_lmms_has_the_patch_and_the_notes(free_instruments):
    instrument = ElementTree.fromstring("<INSTRUMENT><INFO/></INSTRUMENT>")
    song = free_instruments.lmms_song(instrument, [(0.5, 1.0, 69, 127), (1.0, 2.5, 57, 64)])
    assert song.find(".//PART/INSTRUMENT/INFO") is not None
    notes = [{name: int(value) for name, value in note.attrib.items()} for note in song.iter("note")]
    assert [(note["pos"], note["len"], note["key"]) for note in notes] == [(48, 48, 57), (96, 144, 45)]
    assert notes[0]["vol"] == 100 and int(song.find(".//pattern").get("len")) >= 240


@pytest.mark.skipif(shutil.which("stk-demo") is None, reason="stk is not installed")
def test_a_model_plays_a_note(free_instruments):
    samples, rate = free_instruments.by_stk("Plucked", (0.0, 0.5, 60, 100), random.Random(1))
    assert rate == 22050 and len(samples) > 0.5 * rate and 0.05 < np.abs(samples).max() <= 1


def test_sources_state_a_licence_and_share_no_package_with_the_tasks(free_sound):
    import real_sound

    assert not set(free_sound.SOURCES) & set(real_sound.PACKAGES)
    assert all(source.licence for source in free_sound.SOURCES.values())


def test_computed_sounds_and_effects_depend_on_their_number_alone(free_synthesis, tmp_path):
    first, again = ([*free_synthesis.computed(tmp_path, 0.01)] for _ in range(2))
    assert len(first) == 30
    assert {label for sound in first for label in sound.labels} <= {f"kind_{kind}" for kind in free_synthesis.KINDS}
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.samples, b.samples)
        assert np.isfinite(a.samples).all() and 0.01 < np.abs(a.samples).max() <= 1
    rows = []
    for n, sound in enumerate(first):
        soundfile.write(tmp_path / f"{n}.wav", sound.samples, sound.rate)
        rows.append({"file_name": f"{n}.wav", "label": ",".join(sound.labels), "group": sound.group})
    changed = [*free_synthesis.effects(tmp_path, rows, 0.005)]
    assert len(changed) == 20
    for sound, same in zip(changed, free_synthesis.effects(tmp_path, rows, 0.005), strict=True):
        np.testing.assert_array_equal(sound.samples, same.samples)
        assert np.isfinite(sound.samples).all() and np.abs(sound.samples).max() <= 1


def test_notes_of_a_phrase_come_in_order_with_their_ends(free_synthesis):
    notes = free_synthesis.melody(random.Random(3), range(40, 80))
    assert all(begin < end and 40 <= key < 80 for begin, end, key, _ in notes)
    data = free_synthesis.midi_file(12, 0, notes)
    assert int.from_bytes(data[18:22], "big") == len(data) - 22 and data[22:25] == bytes([0, 0xC0, 12])


def test_invented_words_are_none_of_the_tasks(free_synthesis):
    rng = random.Random(0)
    assert not {free_synthesis.word(rng, 1) for _ in range(20000)} & set(free_synthesis.WORDS)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_speech_is_by_voices_that_no_task_uses_and_names_its_phonemes(free_synthesis, tmp_path):
    variants = free_synthesis.free_variants()
    taken = {voice.lower() for voice in free_synthesis.VOICES}
    assert "f2" in variants and not {name.lower() for name in variants} & (taken | {"gene2", "steph3", "aunty"})
    samples, rate, phonemes = free_synthesis.speak("en-us+f2", "keep", random.Random(0))
    assert rate > 8000 and len(samples) > 0.1 * rate
    assert phonemes[0] == "k" and phonemes[-1] == "p"


def test_the_lists_are_written(free_sound, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "audio").mkdir()
    writer = free_sound.Writer(tmp_path)
    writer.write("numpy", (a_sound(free_sound, n) for n in range(free_sound.LEAST_CLIPS)))
    free_sound.write_lists(tmp_path, writer.rows)
    sizes = list(csv.DictReader((tmp_path / "sizes.csv").open()))
    assert [(row["part"], row["clips"]) for row in sizes] == [("numpy", str(free_sound.LEAST_CLIPS))]
    labelled = list(csv.DictReader((tmp_path / "labelled.csv").open()))
    assert labelled[0]["file_name"].startswith("lms/numpy/00000_") and labelled[0]["label"] == "hum"
