"""How long a save keeps training waiting, against torch.save in its place, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.save_stall --model m2d_vit_base --folder /tmp

A step of training is a forward and backward pass and an update of a small batch. 'stall' is the time that a save
takes from the training loop (the copy to host memory); 'write' is how long the file then takes in the background, and
'steps meanwhile' what that does to the steps. 'torch.save' is what waiting for the file (and the disk) would take.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from m2d.models import registry as models_mae
from m2d.run.checkpoint_writer import CheckpointWriter
from m2d.train.config import OptimSettings
from m2d.train.optim import make_optimizer

clock = time.perf_counter


class Training:
    """A model that is trained on one random batch."""

    def __init__(self, name: str, batch_size: int, device: torch.device):
        self.device = device
        self.model = models_mae.build(name, img_size=(80, 208), patch_size=16).to(device)
        self.optimizer = make_optimizer(self.model, OptimSettings())
        self.batch = torch.randn(batch_size, 1, 80, 208, device=device)

    def step(self) -> float:
        """Seconds of one step."""
        begin = clock()
        self.model(self.batch, 0.7)[0].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_target_network(0.9999)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return clock() - begin

    def state(self) -> dict:
        """What a checkpoint holds."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def waiting_save(state: dict, path: Path) -> float:
    """Seconds of torch.save until the file is on the disk."""
    begin = clock()
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    return clock() - begin


def one_save(training: Training, saver: CheckpointWriter) -> tuple[float, float, list[float]]:
    """Seconds of the stall and of the write, and those of the steps during the write."""
    begin = clock()
    saver.save(training.state())
    stall, meanwhile = clock() - begin, []
    while saver._thread.is_alive():
        meanwhile.append(training.step())
    saver.finish()
    return stall, clock() - begin - stall, meanwhile


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["m2d_vit_tiny", "m2d_vit_small", "m2d_vit_base"])
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to write to; none: the temporary one")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; seconds, medians of {args.repeats} saves"
    )
    print(f"{'model':<16}{'file':>10}{'torch.save':>12}{'stall':>8}{'share':>8}{'write':>8}{'step':>8}{'steps meanwhile':>17}")
    for name in args.model:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            training, saver = Training(name, args.batch_size, torch.device(args.device)), CheckpointWriter(Path(folder), 1e9)
            alone = statistics.median(training.step() for _ in range(args.repeats + 1))
            path = Path(folder) / "waiting.pth"
            waited = statistics.median(waiting_save(training.state(), path) for _ in range(args.repeats))
            saves = [one_save(training, saver) for _ in range(args.repeats)]
            stall, write = (statistics.median(save[i] for save in saves) for i in (0, 1))
            meanwhile = statistics.median(step for save in saves for step in save[2])
            size = f"{path.stat().st_size / 2**20:.0f} MiB"
            saving = f"{waited:>12.3f}{stall:>8.3f}{stall / waited:>8.0%}{write:>8.3f}"
            print(f"{name:<16}{size:>10}{saving}{alone:>8.3f}{meanwhile:>17.3f}")


if __name__ == "__main__":
    main()
