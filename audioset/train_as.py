"""Pre-train M2D-AS: M2D-X whose offline task is AudioSet tagging."""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.data.label_dataset import LIST_COLUMNS, ASDataset
from m2d.data.open import ClipStore, open_store
from m2d.train.config import as_pair
from m2d.train.distributed import leave
from m2d.train.pretrain import main
from m2d.train.program import Recipe


def open_labelled(args: Namespace, path: str, noise: ClipStore | None, train: ASDataset | None) -> ASDataset:
    """Labelled clips in the list's order; validation takes the classes of the training data."""
    store = open_store(path, args.data_path, sort=False, columns=LIST_COLUMNS, optional=("weight",), check=False)
    classes = train.classes if train else None
    return ASDataset(store, as_pair(args.input_size)[1], args.seed, noise, args.random_crop, classes)


RECIPE = Recipe(
    prog="audioset/train_as.py",
    description="Pre-train M2D-AS on labelled audio, such as AudioSet (lists by util/make_as_weighted_list.py).",
    families=("m2d_as",),
    open_data=open_labelled,
    defaults=dict(model="m2d_as_vit_base", csv_main="data/files_as_weighted.csv", loss_off=0.1),
    without=("norm_pix_loss", "teacher", "swap_inputs", "min_ds_size"),
    name_defaults=dict(csv_main="data/files_as_weighted.csv", loss_off=1.0),
)

if __name__ == "__main__":
    leave(main(RECIPE))
