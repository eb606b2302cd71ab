"""What float16 packs change against float32: spectrograms, losses of a short run, embeddings.

    python benchmarks/float16_packs.py FOLDER_OF_SOUNDS [--epochs 5]

The sounds are converted to .npy files and to packs of both kinds. m2d_vit_tiny is trained from each with the same seed
(and once more from the list with another seed, to compare with), and m2d_vit_base of random weights encodes crops of each.
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from m2d.data.dataset import prepare
from m2d.data.norm_stats import measure_stats
from m2d.data.open import open_store
from m2d.inference.runtime import RuntimeM2D
from m2d.train.pretrain import main as pretrain
from m2d.train.programs import M2D
from wav_to_lms import convert_wav

SETTINGS = (
    "--model m2d_vit_tiny --input_size 80x208 --decoder_depth 2 --device cpu --num_workers 1 "
    "--lr 0.0005 --warmup_epochs 1 --min_ds_size 0 --feature_eval_freq 0"
)
LISTS = {"list": "lms/list.csv", "float32": "float32.pack", "float16": "float16.pack"}
FRAMES = 608


def convert(sounds: Path, folder: Path) -> None:
    """The sounds as .npy files with a list, and as packs."""
    settings = {"suffix": "wav,flac,ogg", "min_length": 6.1}
    convert_wav(sounds, folder / "lms", csv=folder / "lms/list.csv", **settings)
    for dtype in ("float32", "float16"):
        convert_wav(sounds, pack=folder / f"{dtype}.pack", dtype=dtype, **settings)


def losses(folder: Path, name: str, epochs: int, batch_size: int, seed: int = 0) -> np.ndarray:
    """Loss of each epoch of a run."""
    out = folder / f"run-{name}-{seed}"
    flags = f"{SETTINGS} --csv_main {folder / LISTS[name]} --data_path {folder / 'lms'} --output_dir {out} --seed {seed}"
    if pretrain(M2D, f"{flags} --epochs {epochs} --batch_size {batch_size}".split()):
        raise SystemExit("the run failed")
    return np.array([json.loads(line)["train_loss"] for line in (out / "log.txt").read_text().splitlines()])


def embeddings(folder: Path, name: str, clips: int, model: RuntimeM2D) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops, and their patches' embeddings, normalised by their own list's statistics."""
    store = open_store(folder / LISTS[name], folder / "lms")
    stats = measure_stats(store, FRAMES)
    chosen = np.linspace(0, len(store) - 1, clips).astype(np.int64)
    crops = torch.from_numpy(store.read_crops(chosen, np.full(clips, 0.5), FRAMES)).unsqueeze(1)
    clean, _ = prepare(crops, None, stats)
    with torch.no_grad():
        return crops.float(), torch.cat([model.encode_lms(each) for each in clean.split(4)])


def differences(folder: Path, clips: int) -> None:
    """Print what a pack changes in spectrograms and embeddings."""
    torch.manual_seed(0)
    model = RuntimeM2D(weight_file=f"m2d_vit_base-80x{FRAMES}p16x16-random/random").eval()
    crops, exact = embeddings(folder, "list", clips, model)
    for name in ("float32", "float16"):
        rounded, changed = embeddings(folder, name, clips, model)
        cosine = cosine_similarity(exact.double(), changed.double(), dim=-1)
        error = (changed - exact).norm(dim=-1) / exact.norm(dim=-1)
        print(f"{name}: log-mel values differ by {(rounded - crops).abs().max():.5f} at most")
        print(f"{name}: embeddings: 1 - cosine {(1 - cosine).mean():.1e} on average, {(1 - cosine).max():.1e} at most;", end=" ")
        print(f"relative error {error.mean():.1e} on average, {error.max():.1e} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path, help="folder of .wav, .flac and .ogg files")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--clips", type=int, default=16, help="crops that are embedded")
    args = parser.parse_args()
    logging.getLogger("m2d").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(args.sounds, folder)
        differences(folder, args.clips)
        exact = losses(folder, "list", args.epochs, args.batch_size)
        print("losses of the epochs, from the list:", " ".join(f"{loss:.5f}" for loss in exact))
        for name, seed in (("float32", 0), ("float16", 0), ("list", 1)):
            other = losses(folder, name, args.epochs, args.batch_size, seed)
            change = np.abs(other / exact - 1)
            print(f"from {name}, seed {seed}: relative change {change.max():.1e} at most, {change[-1]:.1e} in the last epoch")


if __name__ == "__main__":
    main()
