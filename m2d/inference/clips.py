"""Audio files as command-line programs take them."""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..audio.listing import list_audio, readable_suffixes, words_of_others
from ..audio.sources.find import ARCHIVE_SUFFIXES
from ..utils.names import shown

logger = logging.getLogger("m2d")


def list_clips(sources: Sequence[str | Path]) -> list[Path]:
    """Audio files: those named, those below the folders named, and those in the column `file_name` of the lists (.csv) named.

    Paths in a list are relative to its folder.

    Raises:
        FileNotFoundError: a file, or a folder, is not there.
        ValueError: a folder without audio, or a list that cannot be read.
    """
    clips: list[Path] = []
    for source in map(Path, sources):
        if source.suffix.lower() == ".csv":
            clips += [source.parent / name for name in _listed(source)]
        elif source.is_dir():
            found, others = list_audio(source, readable_suffixes())
            not_taken = words_of_others(others)
            if not found:
                endings = f"names that end in {', '.join(readable_suffixes())}"
                raise ValueError(f"{shown(source)}: no audio files in it ({not_taken or endings})")
            if not_taken:
                logger.warning("%s: %s", shown(source), not_taken)
            clips += found
        elif source.name.lower().endswith(ARCHIVE_SUFFIXES):
            raise ValueError(f"{shown(source)}: archives are read by m2d convert and m2d pack; unpack it for other programs")
        elif source.exists():
            clips.append(source)
        else:
            raise FileNotFoundError(f"there is no file or folder {shown(source)}")
    return clips


def name_in_list(path: str | Path, folder: Path) -> str:
    """A file's name in a list that is in `folder`: relative to it where the file is below it, else absolute."""
    return os.path.abspath(path).removeprefix(os.path.join(os.path.abspath(folder), ""))


def _listed(path: Path) -> Iterable[str]:
    try:
        from ..data.clip_list import read_list  # with pyarrow, which a program on files and folders needs not
    except ModuleNotFoundError as error:
        raise ValueError(f"{shown(path)}: lists need {error.name}: pip install 'm2d-audio[train]'") from None
    return read_list(path).names


def add_audio(parser: argparse.ArgumentParser) -> None:
    """The positional arguments of a program on audio."""
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help="audio files, folders, or lists (.csv with a column file_name)")


def parse_with_audio(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments among which flags and AUDIO come in any order; all that follows `--` is AUDIO."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_intermixed_args(words[:end])
    args.audio += words[end + 1 :]
    if not args.audio:
        parser.error("no audio: name files, folders, or lists (.csv)")
    return args
