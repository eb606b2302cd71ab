"""Audio files to log-mel spectrograms, the training data of M2D.

    m2d convert SRC DEST [flags]                    (or python wav_to_lms.py SRC DEST)
    m2d convert SRC --pack OUT.pack [flags]

SRC/sub/a.wav becomes DEST/sub/a.npy, float32 [1, 80, frames], 100 frames a second. Files that exist are skipped, so that
the same command continues after an interruption. Files that cannot be converted are listed in DEST/failed.csv.

SRC may also be a .tar (as WebDataset has them), a .zip, a .parquet with a column of audio (as Hugging Face has them), or a
pattern in quotes that names several, such as 'shards/*.tar'. They are read as they are, without unpacking. The member
sub/a.flac becomes DEST/sub/a.npy; with several archives shards/7.tar's becomes DEST/7/sub/a.npy.

Archives may lie at addresses (https://host/7.tar, 's3://bucket/*.parquet', and what else fsspec reads): they are read through
the cache of remote packs. A .csv with a column file_name, or a .txt, lists addresses, of archives or of audio files; the latter
are named by their addresses' paths below the folder that all share. pip install 'm2d-audio[remote]'.

With --pack OUT.pack in place of DEST, all go into a few large files, which training takes as --csv_main OUT.pack. The
same command continues with the chunks that are missing. Files that cannot be converted are left out, and listed in
OUT.pack/failed.csv; to try them again, remove the chunk-N.* files that it names.

--shard 2/4 converts the second quarter, so that machines that share a disk, or jobs of a Slurm array, do it together; what
fails is listed in failed-2-of-4.csv. When all are done, the same command without --shard converts what is missing and
writes --csv and failed.csv.

Exit status: 0 all converted; 1 some failed, or the run was stopped; 2 nothing was started.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from ..audio.convert import KEPT_MEMORY
from ..audio.logmel import PRESETS
from ..audio.plan import ALL_SUFFIXES
from ..data.convert_folder import convert_wav
from ..utils.malloc import keep_freed_memory
from ..utils.outputs import OVERWRITE_HELP
from ..utils.program import ArgumentParser, run_program
from ..utils.shard import WHOLE, shard_of

logger = logging.getLogger("m2d")


def build_parser() -> argparse.ArgumentParser:
    """The flags, named as the arguments of `convert_wav`. What they hold is text: a path may be `a,b`, `snd#2` or `None`."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("from_dir", metavar="SRC", help="the folder to walk, an archive, a pattern or a list of addresses")
    parser.add_argument("to_dir", metavar="DEST", nargs="?", help="the folder to write to; not with --pack")
    parser.add_argument("--out", metavar="DEST", help="the same as DEST")
    parser.add_argument(
        "--suffix",
        help=f"the audio files' suffix, or several: wav,flac,mp3; {ALL_SUFFIXES}: every format that can be read "
        f"(default: of a folder wav, of archives {ALL_SUFFIXES}). Upper and lower case count as the same",
    )
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N files of the sorted order")
    parser.add_argument(
        "--min_length",
        type=seconds,
        default=6.1,
        metavar="SECONDS",
        help="zero-pad shorter clips to this length (6.1); None: do not pad",
    )
    parser.add_argument("--verbose", action="store_true", help="name each file")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: as many as CPU cores)")
    parser.add_argument("--csv", metavar="LIST.csv", help="also write the list of the spectrograms, for --csv_main")
    parser.add_argument(
        "--columns",
        metavar="NAME=COLUMN,…",
        help="of parquet files, columns that the list has besides: label=category,group=fold "
        "(default: label, where there is a column label or labels)",
    )
    parser.add_argument("--separator", default=";", help="in the list, between several labels of a clip")
    parser.add_argument("--sr", choices=PRESETS, default="16k", help="sample rate (16k)")
    parser.add_argument("--device", default="cpu", help="where the spectrograms are computed: cpu (the default), cuda or mps")
    parser.add_argument("--pack", metavar="OUT.pack", help="the pack to write, a folder, in place of DEST")
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        help="of a pack's values: float16 (half the size, rounded by at most 0.004; the default) or float32",
    )
    parser.add_argument(
        "--chunk_clips", type=int, metavar="N", help="clips per file of a pack (8192, or more where there were too many files)"
    )
    parser.add_argument(
        "--shard",
        type=shard_of,
        default=WHOLE,
        metavar="I/N",
        help="convert only the I-th of N parts (machines that share a disk)",
    )
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    return parser


def seconds(text: str) -> float | None:
    return None if text == "None" else float(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    out = options.pop("out")
    if out is not None and options["to_dir"] is not None:
        parser.error(f"the folder to write to is given twice: {options['to_dir']} and --out {out}")
    options["to_dir"] = options["to_dir"] if out is None else out
    keep_freed_memory(*KEPT_MEMORY)
    return run_program(
        lambda: convert(options), interrupted="interrupted: the files written are whole; the same command continues from here"
    )


def convert(options: dict[str, Any]) -> int:
    """Call `convert_wav`; returns the exit status: 1 where files failed, or the run was stopped.

    Raises:
        ValueError, FileNotFoundError, NotADirectoryError: nothing was started.
    """
    try:
        with logging_redirect_tqdm():
            report = convert_wav(**options)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, RuntimeError) as error:
        logger.error("%s", error)
        return 1
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
