"""M2D-CLAP's projectors on an encoder that is trained already: every name unread once, in minutes on a CPU.

    python benchmarks/clap_frozen.py SOUND OUT --weights tiny
    python benchmarks/clap_folds.py OUT/*

SOUND is what real_sound.py wrote, with log-mel spectrograms; captions, text encoder and folds are those of clap.py. The encoder
is frozen, and so its features, mean and deviation over time, are made once. An audio projector (two layers) brings them to the
text vectors by M2D-CLAP's loss, once for each fold and seed; a name of the fold and its sounds are in none of its batches.
Writes OUT/FOLD-SEED/judged.npz as clap.py does.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clap import FOLDS, PROMPT, Clip, WordNet, read_clips, save_judged, write_text_encoder
from m2d.inference.runtime import RuntimeM2D
from m2d.models.clap import START_LOGIT_SCALE, clap_loss
from m2d.models.text_encoder import load_text_encoder

FRAMES = 208  # of a clip that are encoded
HIDDEN = 256


@torch.no_grad()
def encode(runtime: RuntimeM2D, sound: Path, clips: Sequence[Clip]) -> torch.Tensor:
    """Mean and deviation over time of each clip's features: `[N, 2 F·D]`."""
    groups: dict[int, list[tuple[int, np.ndarray]]] = {}
    for place, clip in enumerate(clips):
        lms = np.load(sound / "lms" / Path(clip.name).with_suffix(".npy"))[..., :FRAMES].astype(np.float32)
        groups.setdefault(lms.shape[-1], []).append((place, lms))
    found: dict[int, torch.Tensor] = {}
    for group in groups.values():
        for some in (group[i : i + 32] for i in range(0, len(group), 32)):
            features = runtime.encode_lms(runtime.normalize_batch(torch.from_numpy(np.stack([lms for _, lms in some]))))
            pooled = torch.cat([features.mean(dim=1), features.std(dim=1, unbiased=False)], dim=1)
            found.update(zip((place for place, _ in some), pooled, strict=True))
    return torch.stack([found[place] for place in range(len(clips))])


def train(features: torch.Tensor, captions: torch.Tensor, seed: int, steps: int, batch_size: int) -> nn.Module:
    """A projector of features `[N, D]` to the space of captions `[N, captions, E]`."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layers = nn.Linear(features.shape[1], HIDDEN), nn.ReLU(), nn.Dropout(0.5), nn.Linear(HIDDEN, captions.shape[2])
    projector, scale = nn.Sequential(*layers), nn.Parameter(torch.tensor(START_LOGIT_SCALE))
    optimizer = torch.optim.AdamW([*projector.parameters(), scale], lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randperm(len(features), generator=generator)[:batch_size]
        drawn = torch.randint(captions.shape[1], (len(rows),), generator=generator)
        loss = clap_loss(projector(features[rows]), captions[rows, drawn], scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return projector.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sound", type=Path, metavar="SOUND")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--weights", default="tiny")
    parser.add_argument("--words", choices=("wordnet", "own"), default="wordnet")
    parser.add_argument("--wordnet", type=Path, help="a folder with Debian's wordnet-base; none: OUT/wordnet, downloaded")
    parser.add_argument("--tasks", nargs="+", choices=tuple(FOLDS), default=["instruments", "drums"])
    parser.add_argument("--folds", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips = read_clips(args.sound, args.tasks, None)
    texts = [caption for clip in clips for caption in clip.captions] + [PROMPT.format(clip.words) for clip in clips]
    write_text_encoder(args.out / "text", texts, WordNet(args.wordnet or args.out / "wordnet"), args.words == "own")
    text_encoder = load_text_encoder(str(args.out / "text"))
    names = list(dict.fromkeys(clip.words for clip in clips))
    with torch.no_grad():
        captions = text_encoder(texts[: 4 * len(clips)]).view(len(clips), 4, -1)
        prompts = text_encoder([PROMPT.format(name) for name in names])
    features = encode(RuntimeM2D(weight_file=args.weights), args.sound, clips)
    for fold in range(args.folds):
        clips = read_clips(args.sound, args.tasks, fold)
        heard = torch.tensor([not clip.held_out and not clip.unread for clip in clips])
        judged = [clip for clip in clips if clip.held_out or clip.unread]
        scaled = (features - features[heard].mean(dim=0)) / (features[heard].std(dim=0) + 1e-6)
        centre = captions[heard].mean(dim=(0, 1))
        for seed in range(args.seeds):
            projector = train(scaled[heard], captions[heard] - centre, seed, args.steps, args.batch_size)
            with torch.no_grad():
                sounds = F.normalize(projector(scaled[~heard]), dim=1)
            save_judged(args.out / f"{fold}-{seed}", judged, names, sounds, F.normalize(prompts - centre, dim=1))


if __name__ == "__main__":
    main()
