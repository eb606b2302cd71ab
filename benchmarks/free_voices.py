"""Speech of other synthesizers than espeak-ng that benchmarks/free_sound.py trains on: recorded voices, by flite and festival.

apt-get install flite festival festvox-kallpc16k … (VOICE_PACKAGES)
"""

import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import soundfile
from free_synthesis import Sound, number, phrase, scaled, word

FLITE = ("kal16", "awb", "rms", "slt")
BY_FLITE = 400  # clips of a voice
BY_FESTIVAL = 200
#: Language, and the package that has the voice, by festival's name.
FESTIVAL = {
    "kal_diphone": ("en", "festvox-kallpc16k"),
    "ked_diphone": ("en", "festvox-kdlpc16k"),
    "cmu_us_slt_arctic_hts": ("en", "festvox-us-slt-hts"),
    "lp_diphone": ("it", "festvox-italp16k"),
    "pc_diphone": ("it", "festvox-itapc16k"),
    "suo_fi_lj_diphone": ("fi", "festvox-suopuhe-lj"),
    "hy_fi_mv_diphone": ("fi", "festvox-suopuhe-mv"),
    "upc_ca_ona_hts": ("ca", "festvox-ca-ona-hts"),
}
VOICE_PACKAGES = ("flite", *(package for _, package in FESTIVAL.values()))


def by_flite(_: Path, scale: float) -> Iterator[Sound]:
    """Invented words, phrases and numbers in English; labels are the voice and the phonemes."""
    for voice in FLITE:
        for n in range(scaled(BY_FLITE, scale)):
            rng = random.Random(f"flite {voice} {n}")
            make_text = rng.choice((word, word, phrase, number))
            text = make_text(rng)
            with tempfile.TemporaryDirectory() as folder:
                wav = Path(folder, "speech.wav")
                set_to = (f"duration_stretch={rng.uniform(0.7, 1.4):.2f}", f"int_f0_target_mean={rng.randint(80, 230)}")
                how = [part for setting in set_to for part in ("--setf", setting)]
                command = ["flite", "-voice", voice, *how, "-ps", "-t", text, "-o", wav]
                spoken = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                samples, rate = soundfile.read(wav, dtype="float32")
            phonemes = [symbol for symbol in spoken.split() if symbol != "pau"]
            labels = ["speech_en", f"flite_{voice}", *sorted({f"arpa_{symbol}" for symbol in phonemes})]
            if make_text is word and phonemes:
                labels += [f"arpafirst_{phonemes[0]}", f"arpalast_{phonemes[-1]}"]
            yield Sound(f"{voice}_{n}_{text}", tuple(labels), f"flite {voice}", samples, rate)


def by_festival(_: Path, scale: float) -> Iterator[Sound]:
    """Invented words, phrases and numbers by each voice; labels are the language and the voice."""
    for voice, (language, _package) in FESTIVAL.items():
        rng = random.Random(f"festival {voice}")
        texts = [rng.choice((word, phrase, number))(rng) for _ in range(scaled(BY_FESTIVAL, scale))]
        stretches = [rng.uniform(0.75, 1.35) for _ in texts]
        with tempfile.TemporaryDirectory() as folder:
            lines = [f"(voice_{voice})"]
            for n, (text, stretch) in enumerate(zip(texts, stretches, strict=True)):
                lines.append(f"(Parameter.set 'Duration_Stretch {stretch:.2f})")
                say = f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{folder}/{n}.wav" \'riff)'
                lines.append(f"(unwind-protect {say} nil)")  # a voice cannot say every invented word
            Path(folder, "all.scm").write_text("\n".join(lines) + "\n")
            subprocess.run(["festival", "-b", f"{folder}/all.scm"], check=True, capture_output=True)
            for n, text in enumerate(texts):
                labels, wav = (f"speech_{language}", f"festival_{voice}"), Path(folder, f"{n}.wav")
                if wav.exists():
                    yield Sound(f"{voice}_{n}_{text}", labels, f"festival {voice}", *soundfile.read(wav, dtype="float32"))
