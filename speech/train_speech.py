"""Pre-train M2D-S: M2D-X whose offline task is to predict a speech model's features."""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.data.feature_store import check_sizes
from m2d.data.open import ClipStore, open_features
from m2d.data.speech_dataset import SpeechDataset
from m2d.train.config import as_pair
from m2d.train.distributed import leave
from m2d.train.pretrain import main
from m2d.train.program import Recipe

SETTINGS = dict(
    model="m2d_s_vit_base",
    epochs=1000,
    warmup_epochs=60,
    eval_after=500,
    save_freq=500,
    input_size="80x208",
    patch_size="80x4",
    mask_ratio=0.6,
    noise_ratio=0.2,
    force_start_epoch=-1,
)


def open_speech(args: Namespace, path: str, noise: ClipStore | None, train: SpeechDataset | None) -> SpeechDataset:
    """Speech clips with a teacher's features."""
    clips = open_features(path, args.data_path, patch_frames=as_pair(args.patch_size)[1], check=False)
    return SpeechDataset(clips, as_pair(args.input_size)[1], args.seed, noise, args.random_crop)


def check(args: Namespace) -> None:
    """Refuse crops that do not go together with features at 50 Hz."""
    check_sizes(as_pair(args.input_size)[1], as_pair(args.patch_size)[1])


RECIPE = Recipe(
    prog="speech/train_speech.py",
    description="Pre-train M2D-S on speech with stored features (made by speech/extract_offline_ls960.py).",
    families=("m2d_s",),
    open_data=open_speech,
    defaults=dict(SETTINGS, csv_main="data/files_ls960_hybrid.csv", csv_bg_noise="data/files_audioset.csv"),
    without=("norm_pix_loss", "weighted", "teacher", "swap_inputs", "min_ds_size"),
    name_defaults=dict(SETTINGS, csv_main="", csv_bg_noise=""),
    name_has_rate=False,
    name_has_epochs=False,
    check=check,
)

if __name__ == "__main__":
    leave(main(RECIPE))
