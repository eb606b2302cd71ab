"""What small models that come with PyPI packages are worth on the tasks of real_sound.py, by the probe of judge.py.

    pip install --no-deps --target OTHERS resemblyzer basic-pitch webrtcvad-wheels
    PYTHONPATH=OTHERS python benchmarks/judge_packages.py SOUND --out packages.jsonl

resemblyzer     a speaker encoder (5 M parameters, Apache-2.0): 256 numbers a clip
basic-pitch     which notes sound (17,000 parameters, Apache-2.0, ONNX): mean and deviation over time of its outputs

musicnn's weights are for TensorFlow 1, and not judged.
"""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from learning import TASKS, interval, ridge_probe, statistics

Embed = Callable[[np.ndarray], torch.Tensor]  # 16 kHz -> [width]
PITCH_RATE, PITCH_SAMPLES = 22050, 43844  # of basic-pitch's input


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sound", type=Path, metavar="SOUND", help="the folder that real_sound.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to add to")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    args = parser.parse_args()
    models = {"resemblyzer": resemblyzer(), "basic-pitch": basic_pitch()}
    for task in args.tasks:
        rows = list(csv.DictReader((args.sound / f"{task}.csv").open()))
        clips = [soundfile.read(args.sound / "audio" / row["file_name"], dtype="float32")[0] for row in rows]
        labels, groups = (np.array([row[column] for row in rows]) for column in ("label", "group"))
        for name, embed in models.items():
            right = ridge_probe(torch.stack([embed(clip) for clip in clips]), labels, groups)
            row = {"model": name, "task": task, "accuracy": [float(right.mean()), *interval(right, groups)]}
            print("{} {} {:.3f} ({:.3f} to {:.3f})".format(name, task, *row["accuracy"]), flush=True)
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def resemblyzer() -> Embed:
    from resemblyzer import VoiceEncoder

    encoder = VoiceEncoder("cpu", verbose=False)
    return lambda clip: torch.from_numpy(encoder.embed_utterance(clip).copy())


def basic_pitch() -> Embed:
    import basic_pitch
    import onnxruntime

    path = Path(basic_pitch.__file__).parent / "saved_models/icassp_2022/nmp.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def embed(clip: np.ndarray) -> torch.Tensor:
        sound = soxr.resample(clip, 16000, PITCH_RATE)
        steps = []
        for begin in range(0, len(sound), PITCH_SAMPLES):
            piece = sound[begin : begin + PITCH_SAMPLES]
            padded = np.pad(piece, (0, PITCH_SAMPLES - len(piece)))
            outputs = np.concatenate(session.run(None, {name: padded[None, :, None]}), axis=2)[0]
            steps.append(outputs[: max(1, len(piece) * len(outputs) // PITCH_SAMPLES)])
        return statistics(torch.from_numpy(np.concatenate(steps)))

    return embed


if __name__ == "__main__":
    main()
