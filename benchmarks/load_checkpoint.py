"""Time and peak memory of loading the encoder alone out of a training checkpoint, or the audio side of M2D-CLAP's.

    python benchmarks/load_checkpoint.py
    python benchmarks/load_checkpoint.py --layout clap

writes a training checkpoint of random numbers (weights, two AdamW moments of what is trained, settings in a Namespace),
and loads it in fresh processes: as RuntimeM2D does it, and as a plain torch.load of everything followed by
load_state_dict into a model with random weights. With --layout clap it is M2D-CLAP's layout of 2025 (encoder, projector,
BERT, optimizer: 1.7 GB), loaded as RuntimeM2D does it, without text ("runtime"), and with its text encoder and one text encoded
("text"). Memory is the peak of the resident set above its size before loading.
"cold": the file is dropped from the page cache before.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WAYS = {"training": ("runtime", "plain"), "clap": ("runtime", "text")}


def write_checkpoint(model: str, folder: Path) -> Path:
    """A training checkpoint of a model of random numbers."""
    from m2d.checkpoint.weights import save_atomically
    from m2d.models import registry as models_mae

    with torch.device("meta"):
        built = models_mae.build(model, img_size=[80, 608], patch_size=[16, 16])
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    moments = {i: {name: torch.rand(p.shape) for name in ("exp_avg", "exp_avg_sq")} for i, p in enumerate(trained)}
    state = {name: torch.rand(tensor.shape) for name, tensor in built.state_dict().items()}
    path = folder / f"{model}-80x608p16x16p16k-261122-benchmark" / "checkpoint-1.pth"
    path.parent.mkdir(parents=True)
    saved = {"model": state, "optimizer": {"state": moments}, "epoch": 1, "args": argparse.Namespace(seed=0)}
    save_atomically(saved, path)
    return path


def write_clap(model: str, folder: Path) -> Path:
    """An M2D-CLAP checkpoint as of 2025: audio model, BERT, and the moments of what stage 2 trains."""
    from transformers import BertConfig, BertModel

    from m2d.checkpoint.weights import save_atomically
    from m2d.models import registry as models_mae
    from m2d.models.projectors import SemanticProjector

    with torch.device("meta"):
        encoder = models_mae.build(f"{model}_encoder_only", img_size=[80, 1001], patch_size=[16, 16])
        projector, bert = SemanticProjector(encoder.embed_dim), BertModel(BertConfig())
    parts = {"backbone.": encoder, "backbone.audio_proj.": projector, "text_encoder.text_encoder.": bert}
    state = {prefix + name: torch.rand(t.shape) for prefix, part in parts.items() for name, t in part.state_dict().items()}
    trained = [*projector.parameters(), *bert.parameters()]
    moments = {i: {name: torch.rand(p.shape) for name in ("exp_avg", "exp_avg_sq")} for i, p in enumerate(trained)}
    path = folder / "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-261122-benchmark" / "checkpoint-1.pth"
    path.parent.mkdir(parents=True)
    saved = {"model": state, "optimizer": {"state": moments}, "epoch": 1, "args": argparse.Namespace(seed=0)}
    save_atomically(saved, path)
    return path


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def drop_from_cache(path: Path) -> None:
    """Have the file's pages leave the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(way: str, path: Path) -> list[torch.nn.Module]:
    """The encoder with the checkpoint's weights, and what else is wanted of it."""
    from m2d.checkpoint.build import loaded_backbone
    from m2d.checkpoint.projectors import load_projectors
    from m2d.checkpoint.weights import read_weights
    from m2d.models import registry as models_mae

    if way in ("runtime", "text"):
        weights = read_weights(path)
        modules = [loaded_backbone(weights, encoder_only=True, dur_frames=None), *(load_projectors(weights) or ())]
        return [*modules, *([text_encoder(weights.text)] if way == "text" else ())]
    model = path.parent.name.split("-")[0]
    encoder = models_mae.build(f"{model}_encoder_only", img_size=[80, 608], patch_size=[16, 16])
    encoder.load_state_dict(torch.load(path, map_location="cpu", weights_only=False)["model"], strict=False)
    return [encoder]


def text_encoder(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The text encoder in a checkpoint, with a tokenizer of five words in place of its own, which would be downloaded."""
    from transformers import BertTokenizerFast

    from m2d.models.text_encoder import load_text_encoder

    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.txt")
        vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
        BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
        encoder = load_text_encoder("B", weights, tokenizer=folder)
    encoder(["[UNK]"])
    return encoder


def measure(way: str, path: Path, cold: bool) -> dict[str, float]:
    """Seconds by the clock and of CPU, peak memory and size of the encoder in bytes, in this process."""
    import timm.models.vision_transformer  # noqa: F401  what loading needs anyhow is imported before the clock starts

    import m2d.checkpoint.build  # noqa: F401

    if way == "text":
        import transformers.models.bert.modeling_bert  # noqa: F401

    torch.set_num_threads(1)
    if cold:
        drop_from_cache(path)
    Path("/proc/self/clear_refs").write_text("5")
    before, began, cpu_began = memory("VmRSS"), time.perf_counter(), time.process_time()
    modules = load(way, path)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    size = sum(tensor.nbytes for tensor in modules[0].state_dict().values())
    return {"seconds": seconds, "cpu": cpu, "peak": memory("VmHWM") - before, "encoder": size}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="m2d_vit_base")
    parser.add_argument("--layout", choices=WAYS, default="training")
    parser.add_argument("--repeat", type=int, default=3, help="processes per figure; the median is shown")
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "PATH", "COLD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        way, path, cold = args.measure
        print(json.dumps(measure(way, Path(path), cold == "cold")))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = (write_clap if args.layout == "clap" else write_checkpoint)(args.model, Path(folder))
        print(f"{args.model}: {args.layout} checkpoint of {path.stat().st_size / 1e6:.0f} MB")
        for way in WAYS[args.layout]:
            for cache in ("warm", "cold"):
                command = [sys.executable, __file__, "--measure", way, str(path), cache]
                replies = (subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(args.repeat))
                runs = sorted((json.loads(reply.stdout) for reply in replies), key=lambda run: run["seconds"])
                run, cpu = runs[len(runs) // 2], sorted(run["cpu"] for run in runs)[len(runs) // 2]
                peak, size = max(run["peak"] for run in runs), run["encoder"]
                figures = f"peak {peak / 1e6:5.0f} MB = {peak / size:.2f} x the encoder's {size / 1e6:.0f} MB"
                print(f"{way:8} {cache}: {run['seconds']:6.2f} s, {cpu:5.2f} s of CPU, {figures}", flush=True)


if __name__ == "__main__":
    main()
