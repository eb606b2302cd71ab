"""What `m2d embed` costs the host beside the model: microseconds of CPU for each file, with a stand-in for the device.

    python -m benchmarks.embed_host --files 4000 --workers 2

The stand-in takes no time: spectrograms and embeddings are zeros. What is left is what the host does between a GPU's batches:
reading, decoding and cutting files, and writing their rows. Of several rounds the fastest counts. The start of
processes is counted too: take some thousand files.
"""

import argparse
import logging
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from m2d.inference import embed as embed_program
from m2d.inference import stream
from m2d.inference.runtime import RuntimeM2D
from m2d.utils.malloc import keep_freed_memory

from .embed_files import decode, make_files


class WithoutDevice(stream.StreamEncoder):
    """Computes nothing of the audio."""

    def _spectrograms(self, held: list, pieces: list) -> Iterator[tuple]:
        for piece in pieces:
            yield piece, torch.empty(0)


def parse() -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--distinct", type=int, default=50, help="different files among them")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a file")
    parser.add_argument("--batch_size", type=int, default=171, help="pieces encoded at a time")
    parser.add_argument("--workers", type=int, default=2, help="files decoded at a time")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def costs(work: Callable[[], object], files: int) -> tuple[float, ...]:
    """Microseconds a file: CPU of the main thread, of all threads, of other processes; time."""

    def children() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    clocks = (time.thread_time, time.process_time, children, time.perf_counter)
    begin = [clock() for clock in clocks]
    work()
    return tuple(1e6 * (clock() - since) / files for clock, since in zip(clocks, begin, strict=True))


def main() -> None:
    """Measure and print the rows."""
    args = parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.disable(logging.INFO)
    runtime = RuntimeM2D(weight_file="m2d_vit_base-80x608p16x16-random")
    width = runtime.cfg.feature_d

    def encode_lms(lms: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.zeros(1, 1, 1).expand(len(lms), 1, width)  # their mean over time is the device's work

    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.object(stream, "StreamEncoder", WithoutDevice))
        stack.enter_context(mock.patch.object(runtime, "encode_lms", encode_lms))
        stack.enter_context(mock.patch.object(embed_program, "check_finite"))  # its time does not depend on the files
        paths = make_files(Path(name), args)
        out, options = Path(name) / "embeddings.npz", dict(batch_size=args.batch_size, workers=args.workers, overwrite=True)
        print(f"{args.files} WAVs of {args.seconds:g} s, {args.workers} workers; microseconds a file")
        print("| | main thread | all threads | decoding processes | time |")
        print("|:--|--:|--:|--:|--:|")
        for in_processes in (False, True):
            stack.enter_context(mock.patch.object(stream, "decodes_in_processes", lambda *_, how=in_processes: how))
            works = {
                "decoding alone": partial(decode, paths, runtime.sample_rate, args.workers, in_processes),
                "m2d embed": partial(embed_program.embed, paths, runtime, out, **options),
            }
            for label, work in works.items():
                found = min((costs(work, args.files) for _ in range(args.rounds)), key=sum)
                where = "processes" if in_processes else "threads"
                print(f"| {label}, in {where} | " + " | ".join(f"{value:.0f}" for value in found) + " |")


if __name__ == "__main__":
    main()
