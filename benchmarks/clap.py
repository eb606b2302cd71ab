"""M2D-CLAP from nothing on real sound: a tiny model, captions by rule, and words that it never read.

    python benchmarks/real_sound.py SOUND
    python wav_to_lms.py SOUND/audio SOUND/lms --suffix wav --min_length None --csv SOUND/all.csv
    python benchmarks/clap.py SOUND OUT

writes a caption for each labelled clip, makes a text encoder in OUT/text, encodes the captions (m2d captions), trains (m2d train
clap) and classifies held-out sounds by the names of their classes alone: prints accuracies, and draws OUT/map.png.

The text encoder knows what WordNet knows: a word's vector is a sum of random vectors, one of each thing that the word's nouns are
kinds of (a viola is a bowed stringed instrument, ...), and one of its own. So words of which no caption was read mean something.
With --words own there is only the word's own vector: what cannot be known stays unknown. The text encoder is a BERT without
blocks whose outputs are the words' vectors; the mean is a text's.

Held out are voices, drum kits and notes, and the instruments of UNREAD with all their sounds: no caption has their names.
"""

import argparse
import csv
import random
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from sklearn.manifold import TSNE

from m2d.audio.decode import load_audio
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
UNREAD = ("marimba", "accordion", "viola", "trombone", "clarinet", "piccolo")
DRUMS = dict(kick="bass drum", snare="snare drum", tom="tom drum", hihat_closed="closed hihat", hihat_open="open hihat")
DRUMS |= dict(ride="ride cymbal", crash="crash cymbal", cowbell="cowbell", stick="drum stick")
TONGUES = {"en-us": "english", "de": "german", "fr-fr": "french", "es": "spanish", "it": "italian", "pt-br": "portuguese"}
TONGUES |= {"sv": "swedish", "pl": "polish", "ru": "russian", "tr": "turkish", "fi": "finnish", "cmn": "chinese"}
TEMPLATES = {
    "instruments": ("a {} plays a note", "the sound of the {}", "one note of a {}"),
    "drums": ("somebody hits a {}", "the sound of a {}", "a {} once"),
    "numbers": ("a voice says a number in {}", "somebody speaks {}", "a {} number"),
    "words": ("a voice says the word {}", "somebody says {}", "the word {}"),
}
PROMPT = "{} can be heard"
HELD_OUT_KITS = ("macarthur", "sonic_pi")


class Clip:
    """A clip: its task, its class in words, its file and whether it is held out."""

    def __init__(self, task: str, row: dict[str, str]):
        self.task, self.name = task, row["file_name"]
        label, group = row["label"], row["group"]
        if task == "instruments":
            self.words = PROGRAMS[int(group)]
            self.held_out = self.words in UNREAD or int(re.search(r"--(\d+)_", self.name)[1]) >= 6
        elif task == "drums":
            self.words, self.held_out = DRUMS[label], group in HELD_OUT_KITS
        else:
            self.words = TONGUES[label] if task == "numbers" else label
            self.held_out = random.Random(group).random() < 0.2

    @property
    def captions(self) -> list[str]:
        """What the clip is, in words, each way."""
        return [template.format(self.words) for template in TEMPLATES[self.task]]


def read_clips(sound: Path, tasks: list[str]) -> list[Clip]:
    """All labelled clips of the tasks."""
    return [Clip(task, row) for task in tasks for row in csv.DictReader((sound / f"{task}.csv").open())]


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
    read = [clip for clip in clips if clip.words not in UNREAD]
    for name, held_out in (("train", False), ("val", True)):
        names = [str(Path(clip.name).with_suffix(".npy")) for clip in read if clip.held_out == held_out]
        (out / f"{name}.csv").write_text("\n".join(["file_name", *names]) + "\n")
    with (out / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "caption"))
        writer.writerows((clip.name, caption) for clip in read for caption in clip.captions)


def judge(weights: Path, text: Path, sound: Path, clips: list[Clip], out: Path) -> None:
    """Print zero-shot accuracies on held-out sounds, and draw where sounds and class names lie."""
    runtime = RuntimeM2D(weight_file=weights)
    runtime.text_encoder = load_text_encoder(str(text))
    tasks = dict.fromkeys(clip.task for clip in clips)
    groups = {task: [clip for clip in clips if clip.task == task and clip.held_out] for task in tasks}
    groups["instruments"], unread = (
        [clip for clip in groups["instruments"] if (clip.words in UNREAD) == is_unread] for is_unread in (False, True)
    )
    for task, group in {**groups, "unread instruments": unread}.items():
        classes = sorted({clip.words for clip in group})
        with torch.no_grad():
            prompts = torch.nn.functional.normalize(runtime.encode_clap_text([PROMPT.format(each) for each in classes]), dim=1)
            sounds = torch.cat([runtime.encode_clap_audio(torch.from_numpy(read_sound(sound, clip))[None]) for clip in group])
        order = (torch.nn.functional.normalize(sounds, dim=1) @ prompts.T).argsort(dim=1, descending=True)
        own = torch.tensor([classes.index(clip.words) for clip in group])[:, None]
        top1, top3 = ((order[:, :k] == own).any(dim=1).double().mean().item() for k in (1, 3))
        print(f"{task:20s} {len(group):4d} sounds {len(classes):3d} classes  chance {1 / len(classes):.3f}  "
              f"top 1 {top1:.3f}  top 3 {top3:.3f}")  # fmt: skip
        if task == "unread instruments":
            draw_map(sounds, own[:, 0], prompts, classes, out / "map.png")


def read_sound(sound: Path, clip: Clip) -> np.ndarray:
    """A clip's waveform, repeated until it is as long as the model's input."""
    waveform = load_audio(sound / "audio" / clip.name, 16000)
    return np.resize(waveform, max(len(waveform), 16000)).astype(np.float32)


def draw_map(sounds: torch.Tensor, own: torch.Tensor, prompts: torch.Tensor, classes: list[str], path: Path) -> None:
    """Sounds (points) and class names (crosses) in a plane, by t-SNE of the cosine distances; each side has its own centre."""
    both = [
        torch.nn.functional.normalize(x - x.mean(dim=0), dim=1) for x in (torch.nn.functional.normalize(sounds, dim=1), prompts)
    ]
    places = TSNE(perplexity=10, metric="cosine", init="random", random_state=0).fit_transform(torch.cat(both).numpy())
    figure, axes = pyplot.subplots(figsize=(7, 6))
    for n, name in enumerate(classes):
        points, cross = places[: len(sounds)][own == n], places[len(sounds) + n]
        axes.scatter(*points.T, color=f"C{n}", s=24, label=name)
        axes.scatter(*cross, color=f"C{n}", marker="x", s=120, linewidths=3)
    axes.legend(title="points: sounds, crosses: names")
    axes.set(xticks=[], yticks=[], title="Instruments of which no caption was read")
    figure.savefig(path, dpi=100, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sound", type=Path, metavar="SOUND", help="the folder that real_sound.py wrote, with lms/")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--words", choices=("wordnet", "own"), default="wordnet")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TEMPLATES), default=list(TEMPLATES), help="instruments among them")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    clips = read_clips(args.sound, args.tasks)
    write_lists(args.out, clips)
    text, captions = args.out / "text", args.out / "captions.safetensors"
    texts = [caption for clip in clips for caption in clip.captions] + [PROMPT.format(clip.words) for clip in clips]
    write_text_encoder(text, texts, WordNet(args.out / "wordnet"), args.words == "own")
    encode = f"{args.out / 'captions.csv'} --text_encoder {text} --out {captions} --device cpu --batch_size 256 --overwrite"
    assert make_captions(encode.split()) == 0
    flags = (
        f"--model m2d_clap_vit_mini --decoder_depth 2 --input_size 80x96 --csv_main {args.out / 'train.csv'} "
        f"--csv_val {args.out / 'val.csv'} --data_path {args.sound / 'lms'} --file_caption {captions} --text_encoder {text} "
        f"--loss_off 0.5 --mask_ratio 0.6 --batch_size {args.batch_size} --epochs {args.epochs} "
        "--warmup_epochs 2 --lr 1e-3 --num_workers 1 "
        f"--ema_decay_init 0.99 --ema_decay 0.999 --feature_eval_freq 0 --device cpu --seed {args.seed} "
        f"--output_dir {args.out / 'run'} --auto_resume"
    )
    assert train(M2D_CLAP, flags.split()) == 0
    judge(args.out / f"run/checkpoint-{args.epochs}.pth", text, args.sound, clips, args.out)


if __name__ == "__main__":
    main()
