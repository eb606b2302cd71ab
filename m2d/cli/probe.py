"""What an encoder is worth for your classes: a linear probe and nearest neighbours on clips that they were not fitted on.

    m2d probe sounds/ --weights runs/a/checkpoint-100.pth runs/b/checkpoint-100.pth --out probe/

DATA is a folder of class folders (sounds/dog/1.wav; a second level of folders are groups: sounds/kick/kit7/1.wav), or a list:
a CSV with the columns file_name and label, and optionally split (train, val, test) and group. Clips of a group (a kit, a
speaker, a recording) are held out together. Every encoder is judged beside the same encoder untrained and the mean and standard
deviation of the log-mel; intervals are 95%, by resampling groups. --out takes the figures as JSON, and pictures.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..audio.logmel import SILENCE
from ..evaluation.features import POOLINGS, EncoderFeatures, LogMelFeatures, clip_features, untrained, weights_key
from ..evaluation.labelled_clips import LabelledClips, class_counts, judgeable, read_labelled
from ..evaluation.probe import Judgement, Protocol
from ..evaluation.probe_plots import confusion, draw_confusion, draw_per_class
from ..evaluation.scores import mean_average_precision
from ..inference.runtime import RuntimeM2D
from ..utils.atomic_file import write_text
from ..utils.device import pick_device
from ..utils.errors import UserError
from ..utils.names import counted, shown
from ..utils.outputs import OVERWRITE_HELP, check_outputs, drawn_by
from ..utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")

_REPORT = "probe.json"
LOGMEL = "log-mel statistics"
_UNTRAINED = "untrained, as "
_INAUDIBLE = 1e-3  # above the log-mel of silence
_PROGRAM = "m2d probe"


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of class folders, or a list (.csv)")
    parser.add_argument(
        "--weights",
        nargs="+",
        required=True,
        metavar="CKPT",
        help="checkpoints: files, folders, https addresses or hf:owner/name",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write probe.json and pictures here")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    parser.add_argument("--data_path", type=Path, help="the folder that a list's names start from; default: the list's own")
    parser.add_argument("--separator", default=";", help="between several labels of a clip in a list")
    parser.add_argument("--folds", type=int, default=5, help="parts of the cross-validation (without a column split)")
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="mean_std",
        help="statistics over a clip's time steps; mean: what m2d embed gives; layers: mean_std of the middle block too",
    )
    parser.add_argument("--max_clips", type=int, default=0, help="judge with this many clips, drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of folds, untrained weights and --max_clips")
    parser.add_argument("--cache", type=Path, default=_cache_folder(), help="folder that keeps features by the clips' content")
    parser.add_argument("--no_cache", dest="cache", action="store_const", const=None, help="keep no features")
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    parser.add_argument("--workers", type=int, default=2, help="threads that read and decode")
    return parser


def _is_own(path: Path) -> bool:
    """Whether an earlier run wrote this report or picture."""
    try:
        return drawn_by(path, _PROGRAM) or {"data", "weights", "pooling", "figures"} <= json.loads(path.read_text()).keys()
    except (OSError, ValueError, AttributeError):
        return False


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2d" / "probe"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = make_parser().parse_args(argv)
    return run_program(lambda: probe(args))


def probe(args: argparse.Namespace) -> int:
    """Judge all encoders and report; returns 1 where clips were left out, else 0.

    Raises:
        OSError, UserError: nothing can be judged.
    """
    if min(args.folds - 1, args.workers) < 1:
        raise UserError("--folds must be at least 2, --workers at least 1")
    if args.out:
        pictures = [*args.out.glob("confusion*.png"), *args.out.glob("per_class*.png")]
        check_outputs([args.out / _REPORT, *pictures], (), args.overwrite, _is_own)
    clips = judgeable(read_labelled(args.data, args.separator, args.data_path or ""))
    if 0 < args.max_clips < len(clips):
        rows = np.random.default_rng(args.seed).permutation(len(clips))[: args.max_clips]
        clips = judgeable(clips[np.sort(rows)])
    counts = class_counts(clips)
    logger.info(
        "%d clips of %d classes (%d to %d clips each) in %d groups",
        len(clips), len(clips.classes), min(counts.values()), max(counts.values()), len(np.unique(clips.groups)),
    )  # fmt: skip
    device = pick_device(args.device)
    features, readable = _all_features(args, clips, device)
    left_out = int((~readable).sum())
    if left_out:
        logger.warning("%d of %d clips are left out: see above", left_out, len(clips))
        rows = np.flatnonzero(readable)
        clips = clips[rows]
        features = {name: values[rows] for name, values in features.items()}
    protocol = Protocol(judgeable(clips), args.folds, args.seed, "cuda" if device.type == "cuda" else "cpu")
    judgements = {name: protocol.judge(values, name) for name, values in features.items()}
    print(table(judgements, protocol))
    if args.out:
        write_report(args.out, judgements, protocol, args)
    return 1 if left_out else 0


def _all_features(
    args: argparse.Namespace, clips: LabelledClips, device: torch.device
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The features of each encoder, of the untrained ones and of the log-mel, and which clips all of them could read."""
    features, readable, made = {}, np.ones(len(clips), dtype=bool), set()
    names = _short_names(args.weights)
    for weights, name in zip(args.weights, names, strict=True):
        trained = RuntimeM2D(weight_file=weights).to(device).eval()
        cfg = trained.cfg
        shape = f"{cfg.model.removesuffix('_encoder_only')} {cfg.input_size}p{cfg.patch_size} {cfg.sr}"
        random = untrained(trained, args.seed).eval()
        sources = {
            name: EncoderFeatures(trained, args.pooling, weights_key(trained)),
            _UNTRAINED + name: EncoderFeatures(random, args.pooling, weights_key(random)),
            f"{LOGMEL} at {cfg.sr}": LogMelFeatures(cfg.sr),
        }
        for what, source in sources.items():
            if source.key in made:
                continue
            made.add(source.key)
            logger.info("features of %s%s", what, "" if what.startswith(LOGMEL) else f" ({shape})")
            rows = np.flatnonzero(readable)
            found, was_read = clip_features(source, [clips.paths[row] for row in rows], args.cache, args.workers)
            features[what] = np.zeros((len(clips), found.shape[1]), np.float32)
            features[what][rows] = found
            readable[rows] = was_read
            if what.startswith(LOGMEL):
                warn_of_silence(found[was_read])
    return features, readable


def warn_of_silence(statistics: np.ndarray) -> None:
    """Tell how many clips are silent all through, of the log-mel's statistics `[n, 2 · bands]`, whose first half are means."""
    means = statistics[:, : statistics.shape[1] // 2]
    silent = int((means <= SILENCE + _INAUDIBLE).all(axis=1).sum())
    if silent:
        logger.warning("%s of %d without any sound", counted(silent, "clip"), len(statistics))


def _short_names(weights: Sequence[str]) -> list[str]:
    """A name for each checkpoint: its file's, with as many of its folders as distinguish it."""
    parts = [Path(w).parts for w in weights]
    longest = max(map(len, parts))
    for depth in range(2, max(longest, 2) + 1):
        names = [shown("/".join(p[-depth:])) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("--weights names one checkpoint twice")


def table(judgements: dict[str, Judgement], protocol: Protocol) -> str:
    """The figures of all encoders, and the differences to the baselines, as text."""
    names = [f"{kind}/{metric}" for metric in protocol.metrics for kind in ("linear", "knn")]
    width = max(map(len, judgements)) + 2
    lines = ["", " " * width + "".join(f"{name:>26}" for name in names)]
    for what, judgement in judgements.items():
        cells = ("{:.3f} ({:.3f} to {:.3f})".format(*judgement.figures[name]) for name in names)
        lines.append(f"{what:{width}}" + "".join(f"{cell:>26}" for cell in cells))
    lines += ["", "differences on the same clips:"]
    for what, other in comparisons(judgements):
        cells = ("{:+.3f} ({:+.3f} to {:+.3f})".format(*judgements[what].difference(judgements[other], name)) for name in names)
        lines += [f"{what} - {other}", " " * width + "".join(f"{cell:>26}" for cell in cells)]
    return "\n".join(lines)


def comparisons(judgements: dict[str, Judgement]) -> list[tuple[str, str]]:
    """Which differences are of interest: each trained encoder with its baselines and with the trained ones after it."""
    trained = [name for name in judgements if not _is_baseline(name)]
    pairs = []
    for i, what in enumerate(trained):
        own = _UNTRAINED + what
        foreign = {name for name in judgements if name.startswith(_UNTRAINED) and name != own} if own in judgements else set()
        pairs += [(what, other) for other in judgements if other not in foreign and other not in trained[: i + 1]]
    return pairs


def _is_baseline(name: str) -> bool:
    return name.startswith((LOGMEL, _UNTRAINED))


def write_report(folder: Path, judgements: dict[str, Judgement], protocol: Protocol, args: argparse.Namespace) -> None:
    """Write probe.json and, for each trained encoder, its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = protocol.clips
    report = {
        "data": str(args.data),
        "weights": args.weights,
        "pooling": args.pooling,
        "seed": args.seed,
        "clips": len(clips),
        "judged": len(protocol.judged),
        "groups": len(np.unique(clips.groups)),
        "classes": class_counts(clips),
        "figures": {what: judgement.figures for what, judgement in judgements.items()},
        "strengths": {what: judgement.strengths for what, judgement in judgements.items()},
        "differences": {
            f"{what} - {other}": {name: judgements[what].difference(judgements[other], name) for name in judgements[what].figures}
            for what, other in comparisons(judgements)
        },
    }
    write_text(folder / _REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    targets = clips.targets[protocol.judged]
    trained = [what for what in judgements if not _is_baseline(what)]
    for number, what in enumerate(trained):
        suffix = f"-{number + 1}" if len(trained) > 1 else ""
        scores = judgements[what].linear
        if clips.multi_label:
            once = np.ones((1, len(targets)))
            columns = [(scores[:, [i]], targets[:, [i]]) for i in range(len(clips.classes))]
            values, measure = np.array([mean_average_precision(s, t, once)[0] for s, t in columns]), "average precision"
            sizes = targets.sum(axis=0)
        else:
            matrix = confusion(scores.argmax(axis=1), targets, len(clips.classes))
            draw_confusion(folder / f"confusion{suffix}.png", matrix, clips.classes, f"Linear probe of\n{what}", _PROGRAM)
            sizes = matrix.sum(axis=1)
            values, measure = np.diag(matrix) / np.maximum(sizes, 1), "clips named correctly"
        draw_per_class(folder / f"per_class{suffix}.png", values, sizes, clips.classes, measure, _PROGRAM)
    logger.info("written: %s", shown(folder))


if __name__ == "__main__":
    sys.exit(main())
