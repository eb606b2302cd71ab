"""How fast wav_to_lms.py converts, against a plain converter written the obvious way; both in one run.

    python benchmarks/wav_to_lms.py [--clips 300] [--stereo_clips 150] [--repeats 5] [--processes N]

The plain converter: one process per core, each with one torch thread; librosa loads (soundfile decodes, soxr_hq
resamples), nnAudio computes the mel spectrogram, np.save writes. Rates leave out the start of the processes, which
has a line of its own. Decoding and resampling alone come in two ways: the obvious one (librosa.load), and as
m2d.audio.decode does it. Clips (a gliding voice-like tone, pauses, a floor of noise) are made in a temporary folder;
--folder puts it on another disk. CPU times tell more than rates where other programs run beside.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import soundfile  # noqa: E402

from m2d.audio.convert import KEPT_MEMORY, Converter, Job, npy_sink  # noqa: E402
from m2d.audio.decode import load_audio  # noqa: E402
from m2d.audio.logmel import EPS, PRESETS  # noqa: E402
from m2d.utils.malloc import keep_freed_memory  # noqa: E402

SAMPLE_RATE = 16000


def plain_converter() -> Callable[[str, str], None]:
    import librosa
    import torch
    from nnAudio.features import MelSpectrogram

    torch.set_num_threads(1)
    to_mel = MelSpectrogram(
        sr=SAMPLE_RATE, n_fft=400, win_length=400, hop_length=160, n_mels=80, fmin=50, fmax=8000, verbose=False
    )

    def convert(source: str, target: str) -> None:
        waveform, _ = librosa.load(source, sr=SAMPLE_RATE)
        with torch.no_grad():
            lms = torch.log(to_mel(torch.from_numpy(waveform)) + EPS)
        np.save(target, lms.numpy())

    return convert


def our_converter() -> Callable[[str, str], None]:
    converter = Converter(PRESETS["16k"], 0, npy_sink)

    def convert(source: str, target: str) -> None:
        outcome = converter(Job(source, source, target))
        if outcome.error:
            raise RuntimeError(outcome.error)

    return convert


def plain_loader() -> Callable[[str, str], None]:
    import librosa

    return lambda source, _: librosa.load(source, sr=SAMPLE_RATE)


def our_loader() -> Callable[[str, str], None]:
    return lambda source, _: load_audio(source, SAMPLE_RATE)


JOBS = {
    "plain": plain_converter,
    "loading, plain": plain_loader,
    "loading, ours": our_loader,
    "ours": our_converter,
}
PROGRAM = "wav_to_lms.py"


def work(make: str, pairs: list[tuple[str, str]], warm_up: str, ready: object, results: object) -> None:
    """One process's share: prepared and warmed up before the clock starts. Puts its CPU seconds."""
    if make.endswith("ours"):
        keep_freed_memory(*KEPT_MEMORY)
    convert = JOBS[make]()
    convert(pairs[0][0], warm_up)
    ready.wait()
    begin = time.process_time()
    for source, target in pairs:
        convert(source, target)
    results.put(time.process_time() - begin)


def harness_rate(make: str, sources: list[Path], folder: Path, processes: int) -> tuple[float, float]:
    """Files per second, and CPU milliseconds per file, of processes that share the files."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        pairs = [(str(source), str(Path(out, f"{source.stem}.npy"))) for source in sources]
        context = multiprocessing.get_context("spawn")
        ready, results = context.Barrier(processes + 1), context.Queue()
        workers = [
            context.Process(target=work, args=(make, pairs[n::processes], str(Path(out, f"warm{n}.npy")), ready, results))
            for n in range(processes)
        ]
        for worker in workers:
            worker.start()
        ready.wait(timeout=300)
        begin = time.perf_counter()
        cpu_seconds = sum(results.get() for _ in workers)
        seconds = time.perf_counter() - begin
        for worker in workers:
            worker.join()
        return len(sources) / seconds, 1000 * cpu_seconds / len(sources)


def program_rate(source: Path, folder: Path, processes: int) -> tuple[float, float]:
    """The program itself: files per second from its first file to its last, and seconds from its start to the first."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, str(ROOT / "wav_to_lms.py"), str(source), out, "--workers", str(processes)]
        begin = time.time()
        subprocess.run(command, stderr=subprocess.DEVNULL, check=True)
        written = [entry.stat().st_mtime for entry in os.scandir(out)]
        first, last = min(written), max(written)
        return (len(written) - 1) / (last - first), first - begin


def make_clips(folder: Path, count: int, rate: int, channels: int) -> list[Path]:
    folder.mkdir()
    t = np.arange(11 * rate) / rate
    phase = 2 * np.pi * np.cumsum(140 + 40 * np.sin(2 * np.pi * 0.7 * t)) / rate
    voice = sum(np.sin(n * phase) / n for n in range(1, 20)) * np.maximum(0, np.sin(2 * np.pi * 1.5 * t))
    noise = np.random.default_rng(0).standard_normal((len(t), channels))
    sound = 0.3 * voice[:, None] + 0.001 * noise
    paths = [folder / f"{number:05}.wav" for number in range(count)]
    for number, path in enumerate(paths):
        begin = number * 97 % rate
        soundfile.write(path, sound[begin : begin + 10 * rate], rate, subtype="PCM_16")
    return paths


def measure(title: str, sources: list[Path], folder: Path, processes: int, repeats: int) -> list[float]:
    """Print one table; return the times from start to first file. The ways take turns, so that none has a quiet hour."""
    rates: dict[str, list[float]] = {name: [] for name in [*JOBS, PROGRAM]}
    cpu: dict[str, list[float]] = {name: [] for name in rates}
    starts = []
    for _ in range(repeats):
        for name in JOBS:
            rate, milliseconds = harness_rate(name, sources, folder, processes)
            rates[name].append(rate)
            cpu[name].append(milliseconds)
        rate, start = program_rate(sources[0].parent, folder, processes)
        rates[PROGRAM].append(rate)
        starts.append(start)
    print(f"{title}, {len(sources)} files, {processes} processes, median of {repeats}")
    print(f"  {'':28}{'files/s':>8}{'x plain':>9}{'x loading, plain':>18}{'x loading, ours':>17}{'CPU ms/file':>13}")
    rate = {name: np.median(values) for name, values in rates.items()}
    for name in rates:
        compared = [rate[name] / rate[other] for other in ("plain", "loading, plain", "loading, ours")]
        spent = f"{np.median(cpu[name]):13.2f}" if cpu[name] else ""
        print(f"  {name:28}{rate[name]:8.1f}{compared[0]:9.2f}{compared[1]:18.2f}{compared[2]:17.2f}{spent}")
    return starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300, help="clips of 10 s, 16 kHz, mono (default 300)")
    parser.add_argument("--stereo_clips", type=int, default=150, help="clips of 10 s, 44.1 kHz, stereo (default 150)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the median counts (default 5)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: the number of cores")
    parser.add_argument("--folder", help="where to make the temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        starts = []
        for title, count, rate, channels in (
            ("10 s, 16 kHz, mono", args.clips, SAMPLE_RATE, 1),
            ("10 s, 44.1 kHz, stereo", args.stereo_clips, 44100, 2),
        ):
            sources = make_clips(folder / f"{rate}", count, rate, channels)
            starts += measure(title, sources, folder, args.processes, args.repeats)
        print(f"wav_to_lms.py from its start to its first file: {np.median(starts):.2f} s ({max(starts):.2f} s at most)")


if __name__ == "__main__":
    main()
