"""M2D-CLAP from nothing on real sound: a tiny model, captions by rule, and words that it never read.

    python benchmarks/real_sound.py SOUND
    python wav_to_lms.py SOUND/audio SOUND/lms --suffix wav --min_length None --csv SOUND/all.csv
    python benchmarks/clap.py SOUND OUT/0 --fold 0        # and 1 to 7
    python benchmarks/clap_folds.py OUT/* --plot unread.png

writes a caption for each labelled clip, makes a text encoder in OUT/text, encodes the captions (m2d captions), trains (m2d train
clap) and compares sounds that it did not hear with the names of their classes: OUT/judged.npz, of which clap_folds.py makes
tables.

The text encoder knows what WordNet knows: a word's vector is a sum of random vectors, one of each thing that the word's nouns are
kinds of (a viola is a bowed stringed instrument, ...), and one of its own. So words of which no caption was read mean something.
With --words own there is only the word's own vector: what cannot be known stays unknown. The text encoder is a BERT without
blocks whose outputs are the words' vectors; the mean is a text's.

Held out are voices, drum kits and notes, and with --fold every eighth instrument, every fourth language and every third kind of
drum with all their sounds: no caption has their names. Over the folds each name is unread once.
"""

import argparse
import csv
import random
import re
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from m2d.cli.captions import main as make_captions
from m2d.inference.runtime import RuntimeM2D
from m2d.models.text_encoder import load_text_encoder
from m2d.train.pretrain import main as train
from m2d.train.programs import M2D_CLAP

WIDTH = 128
FUNCTION_WORDS = 0.2  # length of the vectors of words that are no nouns
PROGRAMS = """grand piano|bright piano|electric grand|honky tonk piano|electric piano|tine piano|harpsichord|clavichord
celesta|glockenspiel|music box|vibraphone|marimba|xylophone|tubular bells|dulcimer
drawbar organ|percussive organ|rock organ|church organ|reed organ|accordion|harmonica|bandoneon
nylon guitar|steel guitar|jazz guitar|clean guitar|muted guitar|overdriven guitar|distorted guitar|guitar harmonics
acoustic bass|fingered bass|picked bass|fretless bass|slapped bass|popped bass|synth bass|square bass
violin|viola|cello|contrabass|tremolo strings|pizzicato strings|harp|timpani
string ensemble|slow ensemble|synth strings|soft strings|choir|voice oohs|synth voice|orchestra hit
trumpet|trombone|tuba|muted trumpet|french horn|brass section|synth brass|soft brass
soprano saxophone|alto saxophone|tenor saxophone|baritone saxophone|oboe|english horn|bassoon|clarinet
piccolo|flute|recorder|pan flute|blown bottle|shakuhachi|whistle|ocarina
square lead|sawtooth lead|calliope lead|chiff lead|charang lead|vocal lead|fifths lead|bass lead
new age pad|warm pad|polysynth pad|choir pad|bowed pad|metallic pad|halo pad|sweep pad""".replace("\n", "|").split("|")
#: What eight programs each are.
FAMILIES = """keyboard instrument|percussion instrument|organ|guitar|bass guitar|string instrument|string ensemble
brass instrument|reed instrument|wind instrument|synthesizer|synthesizer""".replace("\n", "|").split(
    "|"
)  # of eight programs each
DRUMS = dict(kick="bass drum", snare="snare drum", tom="tom drum", hihat_closed="closed hihat", hihat_open="open hihat")
DRUMS |= dict(ride="ride cymbal", crash="crash cymbal", cowbell="cowbell", stick="drum stick")
TONGUES = {"en-us": "english", "de": "german", "fr-fr": "french", "es": "spanish", "it": "italian", "pt-br": "portuguese"}
TONGUES |= {"sv": "swedish", "pl": "polish", "ru": "russian", "tr": "turkish", "fi": "finnish", "cmn": "chinese"}
TONGUES |= {"en": "english", "fr": "french"}
BRANCHES = dict(english="germanic", german="germanic", swedish="germanic", french="romance", spanish="romance", italian="romance")
BRANCHES |= dict(portuguese="romance", polish="slavic", russian="slavic", turkish="turkic", finnish="uralic", chinese="sinitic")
NAMES = dict(instruments=PROGRAMS, drums=list(DRUMS.values()), numbers=list(BRANCHES), language=list(BRANCHES), words=[])
FOLDS = dict(
    instruments=8, drums=3, numbers=4, language=4
)  # a fold leaves every n-th name unread; nobody can know how words sound
TEMPLATES = {
    "instruments": ("a {} plays a note", "the sound of the {}", "one note of a {}"),
    "drums": ("somebody hits a {}", "the sound of a {}", "a {} once"),
    "numbers": ("a voice says a number in {}", "somebody speaks {}", "a {} number"),
    "language": ("a telephone voice speaks {}", "somebody speaks {}", "a {} announcement"),
    "words": ("a voice says the word {}", "somebody says {}", "the word {}"),
}
PROMPT = "{} can be heard"
HELD_OUT_KITS = ("macarthur", "sonic_pi")


class Clip:
    """A clip: its task, its class in words, what that is a kind of, its file, whether it is held out and its name unread."""

    def __init__(self, task: str, row: dict[str, str], unread: Sequence[str]):
        self.task, self.name, self.kind = task, row["file_name"], ""
        label, group = row["label"], row["group"]
        if task == "instruments":
            self.words, self.kind = PROGRAMS[int(group)], FAMILIES[int(group) // 8]
            self.held_out = int(re.search(r"--(\d+)_", self.name)[1]) >= 6
        elif task == "drums":
            self.words, self.held_out = DRUMS[label], group in HELD_OUT_KITS
            self.kind = "cymbal" if "cymbal" in self.words or "hihat" in self.words else "percussion instrument"
        else:
            self.words = label if task == "words" else TONGUES[label]
            self.kind = "" if task == "words" else f"{BRANCHES[self.words]} language"
            self.held_out = random.Random(group).random() < 0.2
        self.unread = self.words in unread

    @property
    def captions(self) -> list[str]:
        """What the clip is, in words, each way."""
        captions = [template.format(self.words) for template in TEMPLATES[self.task]]
        return [*captions, f"{self.words} is a {self.kind}"] if self.kind else captions


def unread_names(task: str, fold: int | None) -> list[str]:
    """The names of a task of which a fold reads no caption."""
    folds = FOLDS.get(task, 0)
    return NAMES[task][fold::folds] if fold is not None and fold < folds else []


def read_clips(sound: Path, tasks: list[str], fold: int | None) -> list[Clip]:
    """All labelled clips of the tasks."""
    return [Clip(task, row, unread_names(task, fold)) for task in tasks for row in csv.DictReader((sound / f"{task}.csv").open())]


# ---------------------------------------------------------------- the text encoder


class WordNet:
    """The nouns of WordNet: what each word is a kind of."""

    def __init__(self, folder: Path):
        if not (folder / "usr/share/wordnet/data.noun").exists():
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "-qq", "download", "wordnet-base"], cwd=folder, check=True)
            subprocess.run(["dpkg-deb", "-x", next(folder.glob("wordnet-base_*.deb")).name, "."], cwd=folder, check=True)
        self.senses, self.parents, self.kinds = defaultdict(list), {}, defaultdict(int)
        for line in (folder / "usr/share/wordnet/data.noun").open():
            if line.startswith(" "):
                continue
            fields = line.split(" | ")[0].split()
            self.parents[fields[0]] = [fields[i + 1] for i, field in enumerate(fields) if field in ("@", "@i")]
        for line in (folder / "usr/share/wordnet/index.noun").open():
            if not line.startswith(" "):
                fields = line.split()
                self.senses[fields[0]] = fields[-int(fields[2]) :]
        for sense in self.parents:
            for each in self.ancestors(sense):
                self.kinds[each] += 1

    def ancestors(self, sense: str) -> dict[str, int]:
        """What a sense is a kind of, itself included, with the number of steps."""
        found, now, steps = {sense: 0}, [sense], 0
        while now:
            steps += 1
            now = [parent for each in now for parent in self.parents[each] if parent not in found]
            found.update(dict.fromkeys(now, steps))
        return found

    def vector(self, word: str, own: bool) -> np.ndarray:
        """A word's vector, of length 1; of words that are no nouns, of length FUNCTION_WORDS."""
        vector = noise(word)
        senses = self.senses.get(word) or self.senses.get(word.removesuffix("s")) or []
        for place, sense in enumerate([] if own else senses[:3]):
            for each, steps in self.ancestors(sense).items():
                rarity = np.log(len(self.parents) / self.kinds[each])
                vector = vector + 0.6**place * 0.8**steps * rarity / 4 * noise(each)
        return vector / np.linalg.norm(vector) * (1.0 if senses else FUNCTION_WORDS)


def noise(key: str) -> np.ndarray:
    """A random vector of length about 1 that belongs to a text."""
    return np.random.default_rng(list(key.encode())).standard_normal(WIDTH) / np.sqrt(WIDTH)


def write_text_encoder(folder: Path, texts: list[str], wordnet: WordNet, own: bool) -> None:
    """A BERT without blocks: its outputs are the words' vectors."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in texts for word in text.split()})]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    flat = 1e4  # so large that the layer norm only scales
    sizes = dict(hidden_size=WIDTH, num_attention_heads=1, num_hidden_layers=0, max_position_embeddings=64)
    model = BertModel(BertConfig(vocab_size=len(words), layer_norm_eps=flat, **sizes))
    with torch.no_grad():
        for parameter in model.embeddings.parameters():
            parameter.zero_()
        model.embeddings.LayerNorm.weight.fill_(flat**0.5)
        for n, word in enumerate(words[5:], 5):
            model.embeddings.word_embeddings.weight[n] = torch.from_numpy(wordnet.vector(word, own))
    model.save_pretrained(folder)


# ---------------------------------------------------------------- training and judging


def write_lists(out: Path, clips: list[Clip]) -> None:
    """Lists of training and validation, and their captions."""
    read = [clip for clip in clips if not clip.unread]
    for name, held_out in (("train", False), ("val", True)):
        names = [str(Path(clip.name).with_suffix(".npy")) for clip in read if clip.held_out == held_out]
        (out / f"{name}.csv").write_text("\n".join(["file_name", *names]) + "\n")
    with (out / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "caption"))
        writer.writerows((clip.name, caption) for clip in read for caption in clip.captions)


def judge(runtime: RuntimeM2D, sound: Path, clips: list[Clip], out: Path) -> None:
    """Write how near the sounds that were not heard are to each name: those held out, and all of unread names."""
    clips = [clip for clip in clips if clip.held_out or clip.unread]
    names = list(dict.fromkeys(clip.words for clip in clips))
    with torch.no_grad():
        texts = torch.nn.functional.normalize(runtime.encode_clap_text([PROMPT.format(name) for name in names]), dim=1)
        sounds = project(runtime, [np.load(sound / "lms" / Path(clip.name).with_suffix(".npy")) for clip in clips])
    save_judged(out, clips, names, torch.nn.functional.normalize(sounds, dim=1), texts)


def save_judged(out: Path, clips: list[Clip], names: list[str], sounds: torch.Tensor, texts: torch.Tensor) -> None:
    """Write OUT/judged.npz, from unit vectors of the sounds `[N, D]` and of the names `[names, D]`.

    It has `cosines` [N, names], `own` [N], the place of a sound's own name, `task` [N], `files` [N], `names`, `unread` [names],
    and both sides' vectors, `vectors` [N, D] and `texts` [names, D].
    """
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / "judged.npz",
        cosines=(sounds @ texts.T).numpy().astype(np.float16),
        own=[names.index(clip.words) for clip in clips],
        task=[clip.task for clip in clips],
        files=[clip.name for clip in clips],
        names=names,
        unread=[any(clip.unread for clip in clips if clip.words == name) for name in names],
        vectors=sounds.numpy().astype(np.float16),
        texts=texts.numpy().astype(np.float16),
    )


def project(runtime: RuntimeM2D, spectrograms: Sequence[np.ndarray]) -> torch.Tensor:
    """Vectors `[N, D]` of log-mel spectrograms `[1, mels, frames]`, which are repeated until they fill the model's input."""
    frames = runtime.backbone.patch_embed.img_size[1]
    filled = [np.tile(lms, -(-frames // lms.shape[-1]))[..., : max(frames, lms.shape[-1])] for lms in spectrograms]
    vectors: dict[int, torch.Tensor] = {}
    for length in {lms.shape[-1] for lms in filled}:
        places = [place for place, lms in enumerate(filled) if lms.shape[-1] == length]
        for here in (places[i : i + 64] for i in range(0, len(places), 64)):
            x = torch.from_numpy(np.stack([filled[place] for place in here]).astype(np.float32))
            features = runtime.encode_lms(runtime.normalize_batch(x.to(runtime.backbone.norm_stats.device)))
            vectors.update(zip(here, runtime.project_audio(runtime.clap_patches(features)).cpu(), strict=True))
    return torch.stack([vectors[place] for place in range(len(filled))])


def prepare(args: argparse.Namespace) -> list[Clip]:
    """Write lists, captions, the text encoder and the captions' embeddings; returns the clips."""
    args.out.mkdir(parents=True, exist_ok=True)
    clips = read_clips(args.sound, args.tasks, args.fold)
    write_lists(args.out, clips)
    texts = [caption for clip in clips for caption in clip.captions] + [PROMPT.format(clip.words) for clip in clips]
    if not (args.out / "text").exists():
        write_text_encoder(args.out / "text", texts, WordNet(args.wordnet or args.out / "wordnet"), args.words == "own")
    encode = f"{args.out / 'captions.csv'} --text_encoder {args.out / 'text'} --out {args.out / 'captions.safetensors'}"
    assert make_captions(f"{encode} --device cpu --batch_size 256 --overwrite".split()) == 0
    return clips


def training_flags(args: argparse.Namespace) -> list[str]:
    """The command line of m2d train clap."""
    return (
        f"--model m2d_clap_vit_mini --decoder_depth 2 --input_size 80x96 --csv_main {args.out / 'train.csv'} "
        f"--csv_val {args.out / 'val.csv'} --data_path {args.sound / 'lms'} --file_caption {args.out / 'captions.safetensors'} "
        f"--text_encoder {args.out / 'text'} --loss_off {args.loss_off} --mask_ratio {args.mask_ratio} "
        f"--batch_size {args.batch_size} --epochs {args.epochs} --warmup_epochs 2 --lr {args.lr} --num_workers 1 "
        f"--ema_decay_init 0.99 --ema_decay 0.999 --feature_eval_freq 0 --device {args.device} --seed {args.seed} "
        f"--output_dir {args.out / 'run'} --auto_resume"
    ).split()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sound", type=Path, metavar="SOUND", help="the folder that real_sound.py wrote, with lms/")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--words", choices=("wordnet", "own"), default="wordnet")
    parser.add_argument("--wordnet", type=Path, help="a folder with Debian's wordnet-base; none: OUT/wordnet, downloaded")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TEMPLATES), default=list(TEMPLATES))
    parser.add_argument("--fold", type=int, help="which names are unread, 0 to 7; none: all are read")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--loss_off", type=float, default=0.5)
    parser.add_argument("--mask_ratio", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    torch.set_num_threads(1)
    clips = prepare(args)
    assert train(M2D_CLAP, training_flags(args)) == 0
    runtime = RuntimeM2D(weight_file=args.out / f"run/checkpoint-{args.epochs}.pth")
    runtime.text_encoder = load_text_encoder(str(args.out / "text"))
    judge(runtime, args.sound, clips, args.out)


if __name__ == "__main__":
    main()
