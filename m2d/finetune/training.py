"""Fine-tuning: an encoder and a linear classifier, trained together on labelled clips or on events in time."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint.weights import load_file, save_atomically
from ..data.rng import Purpose, random_bits
from ..data.sampler import EpochSampler
from ..evaluation.scores import accuracy, macro_f1, mean_average_precision
from ..inference.runtime import Config, RuntimeM2D
from ..run.log import RunLog
from ..train.distributed.collectives import from_rank0, gather
from ..train.distributed.launch import Launch
from ..train.optim import learning_rate
from ..utils.errors import UserError
from ..utils.names import shown
from .augment import mixup, random_resize_crop, spec_augment
from .clips import FineTuneSet

logger = logging.getLogger("m2d")

BEST, LAST, LOG = "checkpoint-best.pth", "last.pth", "log.txt"
_PEAK_LR = {"sgd": 0.5, "adamw": 5e-4}
_PEAK_BATCH = 64  # clips of a step that this rate of sgd is for; smaller steps take as much less
_MANY_CLIPS = 1000  # to train on: with fewer, sgd at this rate diverged
_DIVERGED = 1.5  # times the loss of equal scores

PEAK_HELP = f"peak learning rate; default: 5e-4 for adamw, 0.5 for sgd, in proportion less for steps below {_PEAK_BATCH} clips"
OPTIM_HELP = f"the optimizer; default: sgd, with fewer than {_MANY_CLIPS} clips to train on adamw"


@dataclass(frozen=True)
class Settings:
    """How to fine-tune. The defaults are the published recipe's for small data sets of short clips."""

    weights: str = field(metadata={"help": "checkpoint to start from: a file, a folder, an https address, or hf:owner/name"})
    epochs: int = field(default=50, metadata={"help": "epochs of the full run"})
    warmup_epochs: int = field(default=5, metadata={"help": "epochs of linear warm-up"})
    batch_size: int = field(default=64, metadata={"help": "clips per process and step"})
    split_iter: int = field(default=1, metadata={"help": "parts that a step is computed in, to save memory"})
    optim: str | None = field(default=None, metadata={"help": OPTIM_HELP, "choices": ("sgd", "adamw")})
    lr: float | None = field(default=None, metadata={"help": PEAK_HELP})
    weight_decay: float = field(default=0.0, metadata={"help": "of matrices"})
    layer_decay: float = field(default=1.0, metadata={"help": "each block's learning rate is the next one's times this"})
    freeze_embed: bool = field(default=True, metadata={"help": "do not train the patch embedding"})
    training_mask: float | None = field(
        default=None, metadata={"help": "share of patches hidden in training, whole rows and columns; default: 0.5, events 0"}
    )
    mixup: float = field(default=0.3, metadata={"help": "mix clips by shares of a beta distribution of this parameter; 0: never"})
    freq_mask: int = field(default=30, metadata={"help": "longest run of mel bands that is masked"})
    time_mask: int = field(default=48, metadata={"help": "longest run of frames that is masked"})
    rrc: bool = field(default=True, metadata={"help": "random resize crop (clip labels only)"})
    balanced: bool = field(default=False, metadata={"help": "draw every class equally often"})
    dur_frames: int | None = field(default=None, metadata={"help": "frames of the model's input, in place of the checkpoint's"})
    patience: int = field(default=0, metadata={"help": "end after this many epochs without a better validation score; 0: never"})
    bf16: bool = field(default=False, metadata={"help": "compute in bfloat16 where it is safe"})
    seed: int = field(default=0, metadata={"help": "a run is a function of data, settings and seed"})


class ClipClassifier(nn.Module):
    """An encoder with a classifier: normalised log-mel `[B, 1, bands, frames]` to logits `[B, C]`, or per time step `[B, T, C]`.

    Args:
        runtime: a RuntimeM2D with `num_classes`.
        per_step: logits for each time step.
    """

    def __init__(self, runtime: RuntimeM2D, per_step: bool):
        super().__init__()
        self.runtime, self.per_step = runtime, per_step

    def forward(self, lms: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        features = self.runtime.encode_lms(lms, average_per_time_frame=self.per_step)
        if not self.per_step:
            return self.runtime.classify(features.mean(dim=1))
        return self.runtime.classify(features.flatten(0, 1)).unflatten(0, features.shape[:2])


def build(settings: Settings, classes: int, per_step: bool) -> ClipClassifier:
    """The model to train: the checkpoint's encoder and a classifier that starts at random."""
    hidden = settings.training_mask if settings.training_mask is not None else (0.0 if per_step else 0.5)
    if per_step and hidden:
        raise UserError("--training_mask hides whole time steps, which events need: leave it out")
    torch.manual_seed(settings.seed)
    cfg = Config(training_mask=hidden, dur_frames=settings.dur_frames, freeze_embed=settings.freeze_embed)
    return ClipClassifier(RuntimeM2D(cfg, weight_file=settings.weights, num_classes=classes), per_step)


def parameter_groups(model: ClipClassifier, settings: Settings) -> list[dict]:
    """Groups of parameters by learning rate and weight decay; `scale` is the rate's share of the head's.

    Block i of n is scaled by layer_decay^(n - i), the embedding by layer_decay^(n + 1), the final norm by layer_decay.
    """
    depth = len(model.runtime.backbone.blocks)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = name.removeprefix("runtime.")
        if not name.startswith("backbone."):
            layer = depth + 1
        elif name.startswith("backbone.blocks."):
            layer = int(name.split(".")[2]) + 1
        else:
            layer = depth if name.startswith("backbone.norm") else 0
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((settings.layer_decay ** (depth + 1 - layer), decay), []).append(parameter)
    return [{"params": members, "scale": scale, "weight_decay": decay} for (scale, decay), members in groups.items()]


def default_optimizer(clips: int) -> str:
    """The name of the optimizer for `clips` clips to train on."""
    return "sgd" if clips >= _MANY_CLIPS else "adamw"


def make_optimizer(model: ClipClassifier, settings: Settings, name: str) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or AdamW."""
    groups = parameter_groups(model, settings)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0)


def default_peak(optim: str, clips: int) -> float:
    """The peak learning rate for steps of `clips` clips, all processes together."""
    return _PEAK_LR[optim] * (min(1.0, clips / _PEAK_BATCH) if optim == "sgd" else 1.0)


@dataclass
class Progress:
    """How far a run is; what `last.pth` keeps beside the model."""

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0


class FineTuning:
    """A fine-tuning run.

    Figures go to `log`, which its user replaces once the run is at the epoch to continue from.
    A subclass may judge an epoch by other scores (`validate`, `is_best`) and keep other files (`report`, `save`, `resume`).

    Args:
        settings: how to train.
        model: what to train.
        train, validation: what to train on and to validate by.
        classes: names.
        single_label: classes exclude each other.
        weights: sampling weights of the training clips; none: each clip once an epoch.
        folder: where checkpoints and the log are written.
        launch: this process among the run's.
        workers: threads that read ahead.
        data: a digest of what is trained on: a run is not resumed with other data.
    """

    def __init__(
        self,
        settings: Settings,
        model: ClipClassifier,
        train: FineTuneSet,
        validation: FineTuneSet,
        classes: list[str],
        single_label: bool,
        folder: Path,
        launch: Launch,
        workers: int,
        weights: np.ndarray | None = None,
        data: str = "",
    ):
        self.settings, self.classes, self.single_label = settings, classes, single_label
        self.folder, self.launch, self.workers, self.data = folder, launch, workers, data
        self.model, self.train_set, self.validation_set = model.to(launch.device), train, validation
        size = min(settings.batch_size, max(1, len(train) // launch.world_size))
        self.sampler = EpochSampler(len(train), size, 1, launch.rank, launch.world_size, settings.seed, weights)
        self.optim = settings.optim or default_optimizer(len(train))
        self.optimizer = make_optimizer(self.model, settings, self.optim)
        self.peak = default_peak(self.optim, size * launch.world_size) if settings.lr is None else settings.lr
        self.progress = Progress()
        self.log, self._warned = RunLog(None), False
        self.metric_name = "accuracy" if single_label else "map"
        self.resume()
        self.parallel = self.model
        if launch.world_size > 1:
            self.parallel = DistributedDataParallel(
                self.model, device_ids=[launch.device.index] if launch.device.type == "cuda" else None
            )

    # ------------------------------------------------------------------ training

    def run(self) -> float:
        """Train to the end; returns the best validation score (accuracy, or mean average precision)."""
        while self.progress.epoch < self.settings.epochs and not self._is_stale():
            begin = time.monotonic()
            loss = self._train_epoch(self.progress.epoch)
            scores = from_rank0(self.launch, self.validate)
            self.progress.epoch += 1
            if self.is_best(scores):
                self.progress.best, self.progress.best_epoch = scores.get(self.metric_name, -1.0), self.progress.epoch
                self.save(BEST)
            if self.launch.is_main:
                self.report(loss, scores, time.monotonic() - begin)
            self.save(LAST)
        return self.progress.best

    def is_best(self, scores: dict[str, float]) -> bool:
        """Whether the epoch that has ended is the best so far."""
        return scores[self.metric_name] > self.progress.best

    def _is_stale(self) -> bool:
        patience = self.settings.patience
        return 0 < patience <= self.progress.epoch - self.progress.best_epoch

    def _train_epoch(self, epoch: int) -> float:
        self.model.train()
        runtime, device = self.model.runtime, self.launch.device
        total = torch.zeros((), device=device)
        batches = self.train_set.training_batches(self.sampler.batches(epoch), self.settings.seed, self.workers)
        for step, batch in enumerate(batches):
            rng = self._seed(epoch, step)
            lms = runtime.normalize_batch(batch.lms.to(device, non_blocking=True))
            lms, targets = self._augmented(lms, batch.targets.to(device, non_blocking=True), rng)
            rate = learning_rate(
                epoch + step / self.sampler.steps_per_epoch, self.peak, 0.0, self.settings.warmup_epochs, self.settings.epochs
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            self.optimizer.zero_grad(set_to_none=True)
            for part, wanted in zip(lms.chunk(self.settings.split_iter), targets.chunk(self.settings.split_iter), strict=True):
                with self._precision():
                    logits = self.parallel(part)
                loss = self._loss(logits.float(), wanted) * (len(part) / len(lms))
                loss.backward()
                total += loss.detach()
            self.optimizer.step()
        mean = float(np.mean(gather((total / self.sampler.steps_per_epoch).item())))
        self._check_loss(mean, epoch + 1)
        return mean

    def _check_loss(self, mean: float, epoch: int) -> None:
        """Refuse a loss that is not finite, and warn of one that says less than equal scores for all classes would."""
        if not np.isfinite(mean):
            raise UserError(f"the loss of epoch {epoch} is not finite: lower --lr (it is {self.peak:g})")
        guessing = math.log(len(self.classes)) if self.single_label else math.log(2)
        if mean > _DIVERGED * guessing and not self._warned:
            self._warned = True
            remedy = f"lower --lr (it is {self.peak:g})" + ("" if self.optim == "adamw" else ", or --optim adamw")
            logger.warning("the loss of epoch %d, %.2f, is far above that of guessing, %.2f: %s", epoch, mean, guessing, remedy)

    def _seed(self, epoch: int, step: int) -> np.random.Generator:
        """Make masks and augmentation of a step a function of the seed, epoch, step and rank."""
        position = torch.tensor([step * self.launch.world_size + self.launch.rank])
        bits = random_bits(self.settings.seed, epoch, position, Purpose.MASK).item()
        torch.manual_seed(bits)
        return np.random.default_rng(bits)

    def _augmented(self, lms: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        lms, targets = mixup(lms, targets, self.settings.mixup, rng)
        if self.settings.rrc and not self.model.per_step:
            lms = random_resize_crop(lms, rng)
        return spec_augment(lms, self.settings.freq_mask, self.settings.time_mask, rng), targets

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.single_label:
            return F.cross_entropy(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, targets)

    def _precision(self) -> torch.autocast | nullcontext:
        return torch.autocast(self.launch.device.type, torch.bfloat16) if self.settings.bf16 else nullcontext()

    # ------------------------------------------------------------------ validation

    @torch.inference_mode()
    def predict(self, clips: FineTuneSet) -> tuple[np.ndarray, np.ndarray]:
        """Logits and targets of clips, or of their time steps: `[n, C]` each."""
        self.model.eval()
        scores, targets = [], []
        for rows, logits, wanted in self._logits(clips):
            if self.model.per_step:
                scores.append(logits)
                targets.append(wanted)
                continue
            rows = np.array(rows)
            for row in np.unique(rows):  # a long clip's stretches are averaged
                scores.append(logits[rows == row].mean(axis=0, keepdims=True))
                targets.append(wanted[rows == row][:1])
        return np.concatenate(scores), np.concatenate(targets)

    def _logits(self, clips: FineTuneSet) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        patch = clips.patch_frames
        for batch in clips.validation_batches(self.sampler.batch_size, self.workers):
            with self._precision():
                logits = self.model(self.model.runtime.normalize_batch(batch.lms.to(self.launch.device)))
            logits, targets = logits.float().cpu().numpy(), batch.targets.numpy()
            if self.model.per_step:
                filled = np.arange(logits.shape[1]) * patch < batch.frames[:, None]  # steps of padding do not count
                logits, targets = logits[filled], targets[filled]
            yield batch.rows, logits, targets

    def validate(self) -> dict[str, float]:
        """Figures of the validation clips."""
        scores, targets = self.predict(self.validation_set)
        once = np.ones((1, len(scores)))
        if self.single_label:
            index = targets.argmax(axis=1)
            return {"accuracy": float(accuracy(scores, index, once)[0]), "macro_f1": float(macro_f1(scores, index, once)[0])}
        return {"map": float(mean_average_precision(scores, targets > 0.5, once)[0])}

    # ------------------------------------------------------------------ files

    def report(self, loss: float, scores: dict[str, float], seconds: float) -> None:
        """Log an epoch."""
        entry = {"epoch": self.progress.epoch, "train_loss": loss, **scores, "seconds": round(seconds, 1)}
        logger.info("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in entry.items()))
        self.log.scalars(1000 * self.progress.epoch, train_loss=loss, **scores)
        self.log.epoch(**entry)

    def save(self, name: str) -> None:
        """Write a checkpoint: BEST, which the other programs read, or LAST, which a run is resumed from."""
        if not self.launch.is_main:
            return
        cfg = self.model.runtime.cfg
        state = {prefix + key: value for module, prefix in self._parts() for key, value in module.state_dict().items()}
        spec = {
            "model": cfg.model.removesuffix("_encoder_only"),
            "input_size": list(cfg.input_size),
            "patch_size": list(cfg.patch_size),
            "sr": cfg.sr,
            "weights": self.settings.weights,
        }
        saved = {"model": state, "args": spec, "classes": self.classes, "single_label": self.single_label}
        saved |= {"events": self.model.per_step}
        saved |= {"epoch": self.progress.epoch, "finetune": asdict(self.settings), "data": self.data}
        if name == LAST:
            saved |= {"optimizer": self.optimizer.state_dict(), "progress": asdict(self.progress)}
        save_atomically(saved, self.folder / name)

    def resume(self) -> None:
        """Continue the run in the folder, if there is one.

        Raises:
            UserError: it has other settings or other data.
        """
        path = self.folder / LAST
        if path.exists():
            self._take_up(load_file(path))

    def _take_up(self, saved: dict) -> None:
        """Continue from a checkpoint LAST."""
        before = asdict(Settings(**saved["finetune"]))  # settings that it does not have are at their defaults
        differing = [name for name, value in asdict(self.settings).items() if before[name] != value]
        if saved["classes"] != self.classes:
            differing.append("the classes of the data")
        elif saved["data"] != self.data:
            differing.append("the data: files, labels, groups or splits")
        if differing:
            raise UserError(f"{shown(self.folder)} holds a run with other settings ({', '.join(differing)}): give another --out")
        self._load(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.progress = Progress(**saved["progress"])
        if self.progress.epoch >= self.settings.epochs:
            logger.info("%s is finished: %d epochs are done", shown(self.folder), self.progress.epoch)
        else:
            logger.info("resuming after epoch %d", self.progress.epoch)

    def load_best(self) -> None:
        """Take the weights of the best epoch."""
        self._load(load_file(self.folder / BEST)["model"])

    def _load(self, state: dict[str, torch.Tensor]) -> None:
        for module, prefix in self._parts():
            module.load_state_dict({key: state[prefix + key] for key in module.state_dict()})

    def _parts(self) -> list[tuple[nn.Module, str]]:
        """The modules of the model with the prefixes of their names in a checkpoint: those under which EVAR saves."""
        runtime = self.model.runtime
        return [
            (runtime.backbone, "module.ar.runtime.backbone."),
            (runtime.head_norm, "module.head.norm."),
            (runtime.head, "module.head.mlp.mlp.0."),
        ]
