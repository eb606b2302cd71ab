"""What a conversion has to do: the audio files of a folder or of archives, and the spectrogram that each becomes."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..utils.names import shown
from .convert import Job
from .listing import list_audio, readable_suffixes, words_of_others
from .sources.addresses import is_list, list_contents, public_name
from .sources.archive_file import named
from .sources.find import find_archives, list_members

ALL_SUFFIXES = "all"  # takes every format that can be read

logger = logging.getLogger("m2d")


def plan_jobs(source: str | os.PathLike, dest: Path, suffix: str | Iterable[str] | None) -> tuple[list[Job], dict[str, str]]:
    """What is to be converted; and what of archives cannot be read, with reasons.

    Args:
        source: a folder, an archive or its address, a pattern that names archives, or a list of addresses.
        dest: the folder that spectrograms go to.
        suffix: the audio files' suffix, or several; None: wav in a folder, every format elsewhere.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: there is nothing to convert, or two files would become one.
    """
    archives = find_archives(source)
    if archives is None and not is_list(source):
        return _jobs_of_folder(Path(source), dest, _suffixes(".wav" if suffix is None else suffix)), {}
    if archives is None:
        jobs, left_out = _jobs_of_list(source, dest, [] if suffix is None else _suffixes(suffix))
    else:
        jobs, left_out = _jobs_of_archives(archives, source, dest, _suffixes(ALL_SUFFIXES if suffix is None else suffix))
    again = {id(twin): first for first, twin in _twins(jobs)}
    for number, job in enumerate(jobs):
        if id(job) in again:
            left_out[f"{job.name} (file {number + 1})"] = (
                f"{shown(job.source)} has the name of another, {shown(again[id(job)].source)}: the first is taken"
            )
    return [job for job in jobs if id(job) not in again], left_out


def _jobs_of_archives(
    archives: Sequence[str], source: str | os.PathLike, dest: Path, suffixes: list[str]
) -> tuple[list[Job], dict[str, str]]:
    found = list_members(archives, suffixes)
    if found.left_out and not found.members:
        reason = next(iter(found.left_out.values()))
        raise ValueError(
            f"{named(os.fspath(source))}: none of its files can be read; of {len(found.left_out)}, the first: {reason}"
        )
    _check_found(source, suffixes, found.members, found.others)
    return [Job(each.name, each.where, _target(dest, Path(each.name)), each.place) for each in found.members], found.left_out


def _jobs_of_list(path: str | os.PathLike, dest: Path, suffixes: list[str]) -> tuple[list[Job], dict[str, str]]:
    contents = list_contents(path)
    members = [each for each in contents.members if not suffixes or each[0].lower().endswith(tuple(suffixes))]
    _check_found(path, suffixes, members, {})
    jobs = [Job(name, public_name(place.path), _target(dest, Path(name)), place) for name, place in members]
    return jobs, {name: f"{shown(name)} {reason}" for name, reason in contents.left_out.items()}


def _jobs_of_folder(folder: Path, dest: Path, suffixes: list[str]) -> list[Job]:
    paths, others = list_audio(folder, suffixes)
    _check_found(folder, suffixes, paths, others)
    names = (path.relative_to(folder) for path in paths)
    jobs = [Job(str(name), str(path), _target(dest, name)) for name, path in zip(names, paths, strict=True)]
    for first, twin in _twins(jobs):
        raise ValueError(
            f"{shown(first.source)} and {shown(twin.source)} would both become {shown(twin.target)}: rename one, "
            "or convert one suffix at a time into folders of their own"
        )
    return jobs


def _target(dest: Path, name: Path) -> str:
    return str(dest / name.with_suffix(".npy"))


def _twins(jobs: Iterable[Job]) -> Iterator[tuple[Job, Job]]:
    """Jobs that have the target of one before them, behind the first of that target."""
    firsts: dict[str, Job] = {}
    for job in jobs:
        first = firsts.setdefault(job.target, job)
        if first is not job:
            yield first, job


def _check_found(source: str | os.PathLike, suffixes: Sequence[str], found: Sequence[object], others: Mapping[str, int]) -> None:
    not_taken = words_of_others(others, "--suffix")
    if not found:
        missing = f"there is no file with the suffix {' or '.join(suffixes)} in {named(os.fspath(source))}"
        raise FileNotFoundError(f"{missing}: {not_taken}" if not_taken else missing)
    if not_taken:
        logger.warning("%s", not_taken)


def _suffixes(suffix: str | Iterable[str]) -> list[str]:
    if suffix == ALL_SUFFIXES:
        return list(readable_suffixes())
    parts = suffix.strip("[]() ").split(",") if isinstance(suffix, str) else suffix
    names = [str(part).strip(" '\"").lstrip(".") for part in parts]
    if not any(names):
        raise ValueError(f"--suffix {suffix}: expected a suffix such as wav, or a list such as wav,flac")
    return [f".{name}" for name in names if name]
