"""What a run says: console, console.txt, log.txt, TensorBoard. Rank 0 speaks."""

import json
import logging
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger("m2d")


def start_console(is_main: bool) -> None:
    """Messages of rank 0 to standard output; of the others, errors alone."""
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    logger.propagate = False


class RunLog:
    """The logs of a run's folder; silent on ranks other than 0.

    Args:
        folder: the run's folder; None on the ranks that do not write.
        tensorboard: folder of the TensorBoard files; none: the run's.
        start: where the run goes on, in epochs: what an interrupted run logged beyond that is taken back.
    """

    def __init__(self, folder: Path | None, tensorboard: str = "", start: float = 0.0):
        self.folder = folder
        if folder is None:
            return
        self._console = logging.FileHandler(folder / "console.txt")
        self._console.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._console.setLevel(logging.DEBUG)
        logger.addHandler(self._console)
        self._writer = SummaryWriter(tensorboard or str(folder), purge_step=int(1000 * start) + 1 if start else None)
        self._take_back(start)

    def _take_back(self, start: float) -> None:
        path = self.folder / "log.txt"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if json.loads(line)["epoch"] <= start]
            path.write_text("".join(line + "\n" for line in lines))

    def scalars(self, x: int, **values: float) -> None:
        """TensorBoard scalars at x = 1000 · epoch position."""
        if self.folder is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, x)

    def epoch(self, **values: float) -> None:
        """One JSON object in log.txt."""
        if self.folder is not None:
            self._writer.flush()
            with (self.folder / "log.txt").open("a") as file:
                file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Flush and close the files."""
        if self.folder is not None:
            self._writer.close()
            logger.removeHandler(self._console)
            self._console.close()


class Pace:
    """Speed of a run since the last line: clips per second, share of time spent waiting for data, time to go."""

    def __init__(self, clips_per_step: int):
        self.clips_per_step = clips_per_step
        self._begin = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    def step(self, waited: float) -> None:
        """Count one step that waited so many seconds for its batch."""
        self._waited += waited
        self._steps += 1

    def report(self, steps_to_go: int) -> tuple[float, float, str]:
        """(clips per second, waiting share, time to go) since the last report."""
        elapsed = max(time.perf_counter() - self._begin, 1e-9)
        steps = max(self._steps, 1)
        to_go = timedelta(seconds=round(elapsed / steps * steps_to_go))
        result = (self._steps * self.clips_per_step / elapsed, self._waited / elapsed, str(to_go))
        self._begin, self._waited, self._steps = time.perf_counter(), 0.0, 0
        return result
