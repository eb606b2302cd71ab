"""A broad set of freely licensed and synthesised sound to train on, from Debian packages and programs.

    apt-get install espeak-ng fluidsynth timidity lmms stk flite festival   # and free_voices.py's VOICE_PACKAGES
    python benchmarks/free_sound.py OUT

writes clips of at most 5 s, mono, 16 kHz, and lists:

    OUT/audio/<part>/<name>.wav     the clips; a part is a package, or a share of what is synthesised
    OUT/parts/<part>.csv            a part's clips, written when the part is complete: an interrupted run continues there
    OUT/all.csv                     file_name,label,group,part
    OUT/labelled.csv                file_name,label,weight for `m2d train as`: lms/<part>/<name>.npy, as wav_to_lms.py names them
    OUT/licences/<package>          the packages' own copyright files
    OUT/sizes.csv                   clips, hours and licence of each part

Labels are several per clip, separated by commas. Every clip depends on its part and number alone, but for those of stk-demo,
whose noise is seeded by the clock; each content is there once.

Nothing here is in benchmarks/real_sound.py, whose tasks judge encoders: other packages (none of its recordings or sound fonts,
nor kits of the same authors), other espeak-ng voices, and none of its words. Only packages whose sound is under one clearly
free licence, or several, are here (SOURCES); packages with any doubt are not. free_synthesis.py, free_instruments.py and
free_voices.py make what is not recorded; free_variants.py makes copies of all in other channels, levels and mixtures.
"""

import argparse
import csv
import hashlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from free_instruments import frequency_modulated, models, patches, zyn_patches
from free_synthesis import MORE_SPOKEN, SOUNDFONT, SPOKEN, SYNTHESISED, Sound, effects, speech
from free_voices import VOICE_PACKAGES, by_festival, by_flite
from real_sound import PROGRAMS, RATE, fail, safe, to_mono, unpack

LONGEST = 5.0  # seconds of a clip
MOST_PIECES = 40  # of one recording
QUIET = 1e-3  # the loudest sample of what counts as silence
SUFFIXES = (".wav", ".ogg", ".oga", ".flac", ".mp3", ".gsm")
LEAST_CLIPS = 8  # of a label, to be in labelled.csv
DOC = Path("/usr/share/doc")  # of installed packages
MADE_BY = (*PROGRAMS, "timidity", "lmms", "stk-demo", "flite", "festival")


class Source(NamedTuple):
    """A package: its licence, and patterns of its recordings' paths below usr/share."""

    licence: str
    patterns: tuple[str, ...]


SOURCES = {
    "asterisk-prompt-es-co": Source("GPL-2", ("asterisk/sounds/es/**/*",)),
    "asterisk-prompt-fr-armelle": Source("BSD-2-Clause (names protected)", ("asterisk/sounds/**/fr/**/*",)),
    "asterisk-moh-opsound-wav": Source("CC-BY-SA-3.0", ("asterisk/moh/*",)),
    "klettres-data": Source("GPL-2+", ("klettres/**/*",)),
    "ktuberling-data": Source("GPL-2+", ("ktuberling/sounds/**/*",)),
    "gcin-voice": Source("GPL-3 or LGPL-3; CC-BY-3.0", ("gcin-voice/**/*",)),
    "fillets-ng-data": Source("GPL-2", ("games/fillets-ng/**/*",)),
    "fillets-ng-data-cs": Source("GPL-2", ()),
    "fillets-ng-data-nl": Source("GPL-2", ()),
    "tuxpaint-stamps-default": Source("GPL-2", ("tuxpaint/**/*",)),
    "wesnoth-1.16-data": Source("GPL-2+", ("games/wesnoth/**/*",)),
    "sound-icons": Source("GPL-2+", ("sounds/sound-icons/**/*",)),
    "sound-theme-freedesktop": Source("CC-BY-SA-3.0; CC-BY-3.0; GPL-2+", ("sounds/freedesktop/**/*",)),
    "oxygen-sounds": Source("LGPL-3+", ("sounds/Oxygen*",)),
    "lomiri-sounds": Source("CC-BY-SA-3.0; CC-BY-3.0; CC-BY-4.0; CC0-1.0", ("sounds/lomiri/**/*",)),
    "timgm6mb-soundfont": Source("GPL-2", ()),
    "opl3-soundfont": Source("CC-BY-SA-4.0", ()),
    "freepats": Source("GPL-2+ with an exception for compositions", ()),
    "zynaddsubfx-data": Source("GPL-2+", ()),
}
PARTS = {
    "espeak-ng": "GPL-3+ (program)",
    "espeak-ng-more": "GPL-3+ (program)",
    "fluidsynth": "GPL-2 (sound font)",
    "fluidsynth-drums": "GPL-2 (sound font)",
    "numpy": "none: computed here",
    "opl3": "CC-BY-SA-4.0 (sound font)",
    "freepats": "GPL-2+ (patches)",
    "zynaddsubfx": "GPL-2+ (patches)",
    "zynaddsubfx-more": "GPL-2+ (patches)",
    "stk": "MIT-like (program and its waves)",
    "flite": "BSD-like (program and voices)",
    "festival": "free to use and distribute; GPL-2; LGPL (voices, by package)",
}
#: What share of the clips that are drawn by weight is to come from parts of each kind; a recorded package is of the first.
SHARES = {
    "recorded": (0.3, ()),
    "speech": (0.27, ("espeak-ng", "espeak-ng-more", "flite", "festival")),
    "music": (0.35, ("fluidsynth", "fluidsynth-drums", "opl3", "freepats", "zynaddsubfx", "zynaddsubfx-more", "stk")),
    "other": (0.08, ("numpy", "effects")),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--scale", type=float, default=1.0, help="how much is synthesised, against the default")
    args = parser.parse_args()
    missing = [program for program in MADE_BY if shutil.which(program) is None]
    if missing:
        packages = "espeak-ng fluidsynth timidity lmms stk flite festival"
        return fail(f"{', '.join(missing)} missing (Debian, Ubuntu: apt-get install {packages})", "free_sound.py")
    missing = [package for package in VOICE_PACKAGES if not (DOC / package).exists()]
    if missing:
        return fail(f"voices missing (Debian, Ubuntu: apt-get install {' '.join(missing)})", "free_sound.py")
    try:
        build(args.out, args.scale)
    except subprocess.CalledProcessError as error:
        return fail(f"{' '.join(map(str, error.cmd))} failed: {(error.stderr or b'').decode().strip()}", "free_sound.py")
    return 0


def build(out: Path, scale: float = 1.0) -> None:
    """Write what is missing of all parts, then the lists."""
    share = unpack(out / "packages", list(SOURCES)) / "usr/share"
    for folder in ("licences", "parts", "audio"):
        (out / folder).mkdir(exist_ok=True)
    for package in SOURCES:
        shutil.copyfile(share / "doc" / package / "copyright", out / "licences" / package)
    for package in VOICE_PACKAGES:
        shutil.copyfile(DOC / package / "copyright", out / "licences" / package)
    writer = Writer(out)
    for package, source in SOURCES.items():
        if source.patterns:
            writer.write(package, recordings(share, source.patterns))
    for part, make in SYNTHESISED.items():
        writer.write(part, make(share / "sounds/sf2" / SOUNDFONT, scale))
    originals = sorted(writer.rows, key=lambda row: row["file_name"])
    writer.write("effects", effects(out / "audio", originals, scale))
    writer.write("espeak-ng-more", speech(out, scale, begin=SPOKEN, count=MORE_SPOKEN))
    banks = share / "zynaddsubfx/banks"
    writer.write("opl3", frequency_modulated(share / "sounds/sf2/OPL-3_FM_128M.sf2", scale))
    writer.write("freepats", patches(share / "midi/freepats", scale))
    writer.write("zynaddsubfx", zyn_patches(banks, scale, slice(0, 16)))
    writer.write("zynaddsubfx-more", zyn_patches(banks, scale, slice(16, None)))
    writer.write("stk", models(out, scale))
    writer.write("flite", by_flite(out, scale))
    writer.write("festival", by_festival(out, scale))
    write_lists(out, writer.rows)


# ---------------------------------------------------------------- recordings


def recordings(share: Path, patterns: tuple[str, ...]) -> Iterator[Sound]:
    """Pieces of every recording that the patterns match."""
    for pattern in patterns:
        for path in sorted(p for p in share.glob(pattern) if p.suffix.lower() in SUFFIXES and not p.is_symlink()):
            raw = dict(samplerate=8000, channels=1, format="RAW", subtype="GSM610") if path.suffix == ".gsm" else {}
            try:
                sound, rate = soundfile.read(path, dtype="float32", **raw)
            except soundfile.LibsndfileError as error:
                print(f"left out: {path}: {error}", file=sys.stderr)
                continue
            name = path.relative_to(share).with_suffix("").as_posix()
            labels = labels_of(path.relative_to(share))
            length = int(LONGEST * rate)
            for n, begin in enumerate(range(0, max(1, len(sound) - length // 2), length)[:MOST_PIECES]):
                yield Sound(f"{name}_{n}", labels, name, sound[begin : begin + length], rate)


def labels_of(path: Path) -> tuple[str, ...]:
    """A recording's language, where names such as dog_desc_fr.ogg or cs/dog.ogg say it; else the folder it is in.

    Of a Mandarin syllable (gcin-voice/ogg/ㄊㄢ3/5.ogg) the speaker, the symbols and the tone too.
    """
    if path.parts[0] == "gcin-voice":
        symbols = path.parent.name
        tone = symbols[-1] if symbols[-1].isdigit() else "1"
        return ("speech_cmn", f"gcin_speaker_{path.stem}", f"tone_{tone}", *(f"bopomofo_{s}" for s in symbols.rstrip("12345")))
    marked = re.search(r"_desc(?:_([a-z]{2,3}(?:_[A-Z]{2})?))?$", path.stem)
    if marked:
        return (f"speech_{marked[1] or 'en'}",)
    language = next((part for part in path.parts[-2:-4:-1] if re.fullmatch(r"[a-z]{2}|nds|[a-z]{2}_[A-Z]{2}", part)), "")
    return (f"speech_{language}",) if language else (safe(path.parent.as_posix()),)


# ---------------------------------------------------------------- parts and lists

COLUMNS = ("file_name", "label", "group", "part", "seconds", "sha256")


class Writer:
    """Writes parts; a content that an earlier clip has is left out.

    Attributes:
        rows: the clips of all parts so far, as their lists have them.
    """

    def __init__(self, out: Path):
        self.out, self.rows, self._contents = out, [], set()

    def write(self, part: str, sounds: Iterator[Sound]) -> None:
        """Write a part's clips and, last, its list; keep a part that is complete."""
        path = self.out / "parts" / f"{part}.csv"
        if not path.exists():
            rows = [row for n, sound in enumerate(sounds) if (row := self._write_clip(part, n, sound))]
            write_csv(path.with_suffix(".tmp"), rows, COLUMNS)
            path.with_suffix(".tmp").rename(path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._contents.update(row["sha256"] for row in rows)
        self.rows += rows
        print(f"{part}: {len(rows)} clips, {sum(float(row['seconds']) for row in rows) / 3600:.2f} hours", flush=True)

    def _write_clip(self, part: str, number: int, clip: Sound) -> dict[str, str] | None:
        sound = to_mono(clip.samples, clip.rate)[: int(LONGEST * RATE)]
        content = hashlib.sha256(sound.tobytes()).hexdigest()[:32]
        if content in self._contents or not np.abs(sound).max(initial=0) > QUIET:
            return None
        self._contents.add(content)
        name = Path(part, f"{number:05d}_{safe(clip.name)[-60:]}.wav")
        (self.out / "audio" / part).mkdir(exist_ok=True)
        soundfile.write(self.out / "audio" / name, sound, RATE, subtype="PCM_16")
        values = (name.as_posix(), ",".join(clip.labels), clip.group, part, f"{len(sound) / RATE:.2f}", content)
        return dict(zip(COLUMNS, values, strict=True))


def write_lists(out: Path, rows: list[dict[str, str]]) -> None:
    """all.csv, labelled.csv and sizes.csv."""
    write_csv(out / "all.csv", rows, COLUMNS[:4])
    write_csv(out / "labelled.csv", labelled(rows), ("file_name", "label", "weight"))
    sizes = []
    for part in dict.fromkeys(row["part"] for row in rows):
        seconds = [float(row["seconds"]) for row in rows if row["part"] == part]
        licence = SOURCES[part].licence if part in SOURCES else PARTS.get(part, "those of the other parts")
        sizes.append({"part": part, "clips": len(seconds), "hours": f"{sum(seconds) / 3600:.2f}", "licence": licence})
    write_csv(out / "sizes.csv", sizes, ("part", "clips", "hours", "licence"))
    print(f"{len(rows)} clips, {sum(float(row['seconds']) for row in rows) / 3600:.1f} hours")


def labelled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The clips with the labels that enough clips have, and a weight: larger for rare labels, as for AudioSet, then by SHARES.

    A package's recordings in a language are a label too, as most have one speaker; those of several have theirs (`speaker`).
    """
    labels_of_row = [row["label"].split(",") for row in rows]
    for row, labels in zip(rows, labels_of_row, strict=True):
        if row["part"] in SOURCES and labels[0].startswith("speech_"):
            labels += [f"{row['part']}_{labels[0]}", *speaker(row)]
    counts = Counter(label for labels in labels_of_row for label in labels)
    kept, totals = [], Counter()
    for row, all_labels in zip(rows, labels_of_row, strict=True):
        labels = [label for label in all_labels if counts[label] >= LEAST_CLIPS]
        weight = sum(1000 / (counts[label] + 100) for label in labels) ** (1 / 1.5)
        if labels:
            name = Path("lms", row["file_name"]).with_suffix(".npy").as_posix()
            kept.append((kind_of(row["part"]), name, ",".join(labels), weight))
            totals[kept[-1][0]] += weight
    scales = {kind: 1e5 * SHARES[kind][0] / total for kind, total in totals.items()}
    return [{"file_name": name, "label": label, "weight": f"{weight * scales[kind]:.4f}"} for kind, name, label, weight in kept]


def kind_of(part: str) -> str:
    """The kind in SHARES of a part."""
    return next((kind for kind, (_, parts) in SHARES.items() if part in parts), "recorded")


def speaker(row: dict[str, str]) -> tuple[str, ...]:
    """A label of who speaks in a recording of fillets-ng (sound/atlantis/nl/sp-v-nonsense: v, the big fish)."""
    named = re.search(r"/sound/[^/]+/([a-z]+)/[^/-]+-([a-z0-9]+)-", row["group"])
    return (f"fillets_{named[1]}_{named[2]}",) if named else ()


def write_csv(path: Path, rows: list[dict], columns: tuple[str, ...]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
