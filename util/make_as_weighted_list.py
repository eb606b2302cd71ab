"""The list of a M2D-AS run: AudioSet's labels, and a weight that evens out its classes, for each clip of a list.

    python util/make_as_weighted_list.py
    python util/make_as_weighted_list.py --segments my/audioset_csv --org_list data/files_audioset.csv

reads a list with a column `file_name` and writes `file_name,label,weight`. The first 11 characters of a file's
name are the clip's AudioSet id; its labels are looked up in AudioSet's segment lists.
The weight of a clip is (sum over its labels of 1000 / (count + 100)) ** (1 / 1.5), where count is the number of
clips in the list that carry the label: a clip with a rare label weighs more.
"""

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.utils.atomic_file import write_csv
from m2d.utils.download import DownloadError, download
from m2d.utils.outputs import OVERWRITE_HELP, check_outputs
from m2d.utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")

AUDIOSET_URL = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/"
SEGMENT_FILES = ("eval_segments.csv", "balanced_train_segments.csv", "unbalanced_train_segments.csv")
CLASS_FILE = "class_labels_indices.csv"
ID_LENGTH = 11
CLASSES = 527
MAX_BYTES = 1e9  # of a list; the largest has 101 MB


def check_file(path: Path) -> None:
    """Raise ValueError where a file is not the whole AudioSet file that its name says.

    The second line of a segment list gives its number of segments (`# num_ytids=…, num_segs=…`).
    """
    with path.open(encoding="utf-8") as lines:
        head = [lines.readline() for _ in range(3)]
        if path.name == CLASS_FILE:
            if head[0].strip().split(",")[:2] != ["index", "mid"]:
                raise ValueError(f"{path}: the first line is {head[0].strip()[:80]!r}, expected 'index,mid,display_name'")
            classes = sum(1 for line in (*head[1:], *lines) if line.strip())
            if classes != CLASSES:
                raise ValueError(f"{path}: holds {classes} classes, AudioSet has {CLASSES}: not whole, get it again")
            return
        if not all(line.startswith("#") for line in head):
            raise ValueError(f"{path}: the first 3 lines of an AudioSet segment list start with '#', here {head[0][:80]!r} …")
        told = re.search(r"num_segs=(\d+)", head[1])
        rows = sum(1 for line in lines if line.strip())
    if told and int(told.group(1)) != rows:
        raise ValueError(f"{path}: holds {rows} segments, its second line says {told.group(1)}: not whole, get it again")


def fetch_lists(base_url: str, folder: Path) -> Path:
    """Fetch AudioSet's lists that `folder` does not hold yet, each checked before it gets its name. Returns the folder."""
    for name in (*SEGMENT_FILES, CLASS_FILE):
        try:
            download(f"{base_url.rstrip('/')}/{name}", folder / name, check_file, MAX_BYTES)
        except DownloadError as error:
            raise DownloadError(
                f"{error}. Where the network does not reach it, put {', '.join(SEGMENT_FILES)} and {CLASS_FILE} "
                "into a folder and give it by --segments"
            ) from error
    return folder


def read_segments(folder: Path) -> pd.Series:
    """The labels of AudioSet's clips: comma-separated class ids (`/m/…`), indexed by the clip's YouTube id.

    An id that is in the lists twice keeps its first row.
    """
    tables = []
    for name in SEGMENT_FILES:
        path = folder / name
        check_file(path)
        tables.append(
            pd.read_csv(
                path,
                skiprows=3,
                header=None,
                names=["id", "start", "end", "label"],
                usecols=["id", "label"],
                dtype=str,
                keep_default_na=False,
                skipinitialspace=True,
            )
        )
    table = pd.concat(tables).drop_duplicates("id")
    return table.set_index("id")["label"]


def read_classes(folder: Path) -> set[str]:
    """The ids (`mid`) of AudioSet's classes."""
    path = folder / CLASS_FILE
    check_file(path)
    return set(pd.read_csv(path, dtype=str, keep_default_na=False)["mid"])


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def _known_labels(label: str, classes: set[str], unknown: Counter) -> str:
    names = label.split(",")
    distinct = set(names)
    if len(distinct) == len(names) and distinct <= classes:
        return label
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    unknown.update(name for name in names if name not in classes)
    return ",".join(name for name in names if name in classes)


def label_files(file_names: pd.Series, segments: pd.Series, classes: set[str]) -> pd.DataFrame:
    """Look up the labels of a list's clips.

    Clips that AudioSet's lists do not hold, and labels that are no class, are left out with a warning that
    counts and names them; a clip whose labels all are unknown goes too.

    Returns:
        columns `file_name`, `label` in the order of the list.

    Raises:
        ValueError: no clip of the list is left.
    """
    ids = pd.Index([name.rpartition("/")[2][:ID_LENGTH] for name in file_names.tolist()])
    place = segments.index.get_indexer(ids)
    lost = file_names[place < 0]
    if len(lost):
        logger.warning("%d of %d clips are not in AudioSet's lists and are left out: %s", len(lost), len(file_names), _some(lost))
    found = place[place >= 0]
    codes, combinations = pd.factorize(segments.to_numpy(dtype=object)[found])
    unknown: Counter = Counter()
    known = np.array([_known_labels(label, classes, unknown) for label in combinations], dtype=object)
    table = pd.DataFrame({"file_name": file_names[place >= 0].to_numpy(), "label": known[codes] if len(codes) else []})
    if unknown:
        logger.warning("%d labels are not in %s and are left out: %s", len(unknown), CLASS_FILE, _some(sorted(unknown)))
    bare = table["label"] == ""
    if bare.any():
        logger.warning("%d clips have no known label and are left out: %s", bare.sum(), _some(table["file_name"][bare]))
    table = table[~bare].reset_index(drop=True)
    if table.empty:
        raise ValueError(
            f"none of the {len(file_names)} clips has labels in AudioSet's lists. The first {ID_LENGTH} characters of a "
            f"file's name must be the clip's id, such as '--4gqARaEJE.npy'; the list has {_some(file_names, 3)}"
        )
    return table


def weights(labels: pd.Series) -> np.ndarray:
    """Sampling weights of clips, float64 `[clips]`, from their comma-separated labels.

    weight = (sum over the clip's labels of 1000 / (count + 100)) ** (1 / 1.5), counts over the clips given.
    """
    codes, combinations = pd.factorize(labels.to_numpy(dtype=object))
    clips = np.bincount(codes, minlength=len(combinations))
    names = [combination.split(",") for combination in combinations]
    owner = np.repeat(np.arange(len(names)), [len(each) for each in names])
    classes, _ = pd.factorize(np.array([name for each in names for name in each], dtype=object))
    counts = np.bincount(classes, weights=clips[owner])
    sums = np.bincount(owner, weights=(1000 / (counts + 100))[classes])
    return (sums ** (1 / 1.5))[codes]


def read_list(path: Path) -> pd.Series:
    """The column `file_name` of a list."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such list. Name yours by --org_list")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "file_name" not in table:
        raise ValueError(f"{path}: no column 'file_name' (the columns are {', '.join(map(str, table.columns))})")
    if table.empty:
        raise ValueError(f"{path}: the list is empty")
    return table["file_name"]


def make_weighted_list(org_list: Path, to_list: Path, segments: str, cache: Path, overwrite: bool = False) -> None:
    """Write `to_list` (file_name, label, weight) for the clips of `org_list`; `segments` is a folder or an https address."""
    files = [Path(segments) / name for name in (*SEGMENT_FILES, CLASS_FILE)]
    check_outputs([to_list], [org_list, *files], overwrite)
    file_names = read_list(org_list)
    if re.match(r"https?://", segments):
        folder = fetch_lists(segments, cache)
    else:
        folder = Path(segments)
        missing = [name for name in (*SEGMENT_FILES, CLASS_FILE) if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"--segments {folder}: missing {', '.join(missing)}")
    table = label_files(file_names, read_segments(folder), read_classes(folder))
    table["weight"] = weights(table["label"])
    to_list.parent.mkdir(parents=True, exist_ok=True)
    write_csv(to_list, table.columns, table.itertuples(index=False))
    classes = len({name for label in table["label"].unique() for name in label.split(",")})
    logger.info("%s: %d clips, %d classes", to_list, len(table), classes)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--org_list", type=Path, default=Path("data/files_audioset.csv"), help="the list to label")
    parser.add_argument("--to_list", type=Path, default=Path("data/files_as_weighted.csv"), help="the list to write")
    parser.add_argument("--segments", default=AUDIOSET_URL, help="a folder with AudioSet's four CSVs, or where to download them")
    parser.add_argument("--cache", type=Path, default=Path("data/audioset_csv"), help="where downloaded CSVs are kept")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    return run_program(lambda: make_weighted_list(args.org_list, args.to_list, args.segments, args.cache, args.overwrite))


if __name__ == "__main__":
    sys.exit(main())
