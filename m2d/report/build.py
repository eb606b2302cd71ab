"""The data of a report's page: plain values that the scripts draw."""

import logging
import re
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import numpy as np

from .. import __version__
from ..audio.logmel import PRESETS, FrontEnd, mel_filters
from ..evaluation.probe import Judgement
from ..finetune.training import Settings as FineTuneSettings
from ..train.config import GROUPS
from ..train.programs import PROGRAMS
from ..utils.names import shown
from . import embedding, learned
from .clips import Clips, evenly
from .curves import charts
from .look import Look, has_decoder, reconstructions
from .media import data_uri, mask_uri, sound_uri, spectrogram_uri, thumbnail, value_range
from .runs import Run

SAMPLES_SHOWN = 3
QUERIES, NEIGHBOURS = 5, 4
_BINS = 30
_NO_CLASSES = "No probe: neither folders nor labels name two classes of a dozen clips."
_SEEN_LABELS = "No probe: the encoder was trained on the labels of these clips; the validation figures judge it."
_MOST_PICTURE_BYTES = 1 << 21
#: Flags of a run's place and machine, not of what it computes.
_PLACES = set("output_dir log_dir tracker num_workers pin_mem rank_timeout save_minutes auto_resume keep_last".split())

logger = logging.getLogger("m2d")


def report_data(looks: Sequence[Look], most_clips: int, sounds: bool) -> dict[str, Any]:
    """All that the page shows.

    Args:
        looks: the runs, opened.
        most_clips: how many clips of each run are encoded; 0: none.
        sounds: hold the first seconds of the neighbours that have an audio file.
    """
    names = distinct_names([look.run for look in looks])
    return {
        "title": names[0] if len(names) == 1 else f"{len(names)} runs",
        "made": f"{datetime.now():%Y-%m-%d %H:%M}",
        "version": __version__,
        "charts": charts([look.run for look in looks]),
        "runs": [_of_run(look, name, most_clips, sounds) for look, name in zip(looks, names, strict=True)],
        "settings": settings_table([look.run for look in looks]),
    }


def distinct_names(runs: Sequence[Run]) -> list[str]:
    """The runs' names; equal names with as many of their folders as distinguish them."""
    parts = [run.folder.absolute().parts for run in runs]
    length = 1
    while length < max(map(len, parts)) and len({part[-length:] for part in parts}) < len({*parts}):
        length += 1
    names = [shown("/".join(part[-length:])) for part in parts]
    if len(set(names)) < len(names):  # checkpoints of one run
        names = [f"{name} {run.checkpoint.stem if run.checkpoint else ''}" for name, run in zip(names, runs, strict=True)]
    return names


def _of_run(look: Look, name: str, most_clips: int, sounds: bool) -> dict[str, Any]:
    logger.info("%s: %s", name, look.run.state)
    data: dict[str, Any] = {"name": name, "state": look.run.state, "seen": None, "data": None, "learned": None}
    samples = look.samples(SAMPLES_SHOWN)
    if samples:
        data["seen"] = _seen(look, samples)
    if look.clips is not None:
        data["data"] = _summary(look, look.clips)
        if look.runtime is not None and most_clips:
            data["learned"] = _learned(look, look.clips, most_clips, sounds)
    data["confusion"] = _confusion(look.run)
    data["facts"] = facts(look.run, data["learned"])
    data["notes"] = look.notes
    data["starts"] = [_start(start) for start in look.run.starts]
    return data


def _confusion(run: Run) -> str | None:
    """The confusion matrix that fine-tuning has drawn."""
    path = run.folder / "confusion.png"
    if not (run.is_finetuning and path.is_file() and path.stat().st_size < _MOST_PICTURE_BYTES):
        return None
    return data_uri(path.read_bytes(), "image/png")


def _start(start: dict) -> dict[str, str]:
    command = start.get("command")
    words = " ".join(map(str, command)) if isinstance(command, list) else ""
    return {
        "time": str(start.get("time", "")),
        "command": words,
        "m2d": str(start.get("m2d", "")),
        "torch": str(start.get("torch", "")),
    }


# ---------------------------------------------------------------- figures at a glance


def facts(run: Run, found: dict[str, Any] | None) -> list[list[str]]:
    """(what, value, unit or reference) of a run, at most six."""
    last = run.epochs[-1] if run.epochs else {}
    rows = [["epochs", _epochs(run), run.state]]
    if "train_loss" in last:
        first = run.epochs[0]["train_loss"] if "train_loss" in run.epochs[0] else last["train_loss"]
        rows.append(["training loss", f"{last['train_loss']:.4f}", f"{first:.4f} after the first epoch"])
    for key, label in (("probe_linear", "linear probe"), ("accuracy", "validation accuracy"), ("map", "validation mAP")):
        values = [(row[key], row["epoch"]) for row in run.epochs if key in row]
        if values:
            best = max(values)
            rows.append([label, f"{values[-1][0]:.3f}", f"best {best[0]:.3f} after epoch {best[1]:g}"])
    if found:
        used = found["directions"]
        rows.append(
            [
                "directions used",
                f"{used[learned.TRAINED]:.0f}",
                f"RankMe of {found['count']} clips; untrained {used[learned.UNTRAINED]:.0f}",
            ]
        )
    if run.speeds:
        rates, waits = [speed.rate for speed in run.speeds], [speed.waiting for speed in run.speeds]
        rows.append(["speed", f"{np.median(rates):.0f} clips/s", f"{np.mean(waits):.0%} waiting for data"])
    return rows[:6]


def _epochs(run: Run) -> str:
    done = f"{run.epochs[-1]['epoch']:g}" if run.epochs else "0"
    return f"{done} of {run.last_epoch}" if run.last_epoch else done


# ---------------------------------------------------------------- what the encoder sees


def axes_of(front_end: FrontEnd) -> list[list]:
    """Ticks of a mel axis: text in kHz, and the place from 0 (bottom) to 1."""
    filters = mel_filters(front_end)
    bins = np.arange(filters.shape[1]) * front_end.sample_rate / front_end.n_fft
    centres = filters @ bins / filters.sum(axis=1)
    hertz = [f for f in (250, 1000, 4000, 12000) if f <= front_end.f_max]
    places = np.interp(hertz, centres, (np.arange(front_end.n_mels) + 0.5) / front_end.n_mels)
    return [[f"{f / 1000:g}", round(float(place), 3)] for f, place in zip(hertz, places, strict=True)]


def front_end_of(look: Look) -> FrontEnd:
    """The log-mel's sizes of a run."""
    return PRESETS.get(str(look.run.settings.get("sr", "16k")), PRESETS["16k"])


def _seen(look: Look, samples: list) -> dict[str, Any]:
    rebuilt = reconstructions(look, samples)
    height, width = look.settings.model.patch_shape
    rows, columns = samples[0].hidden.shape
    items = []
    for i, sample in enumerate(samples):
        limits = value_range(sample.clip)
        item = {
            "name": shown(sample.name),
            "picture": spectrogram_uri(sample.clip, limits),
            "mask": mask_uri(sample.hidden),
            "cover": [columns * width / sample.clip.shape[1], rows * height / sample.clip.shape[0]],
            "share": round(1 - float(sample.hidden.mean()), 4),
        }
        if rebuilt:
            item |= {"rebuilt": spectrogram_uri(rebuilt[i].clip, limits), "loss": round(rebuilt[i].loss, 4)}
        items.append(item)
    front_end = front_end_of(look)
    return {
        "items": items,
        "khz": axes_of(front_end),
        "seconds": samples[0].clip.shape[1] * front_end.hop_size / front_end.sample_rate,
        "epoch": max(1, int(look.run.epochs[-1]["epoch"])) if look.run.epochs else 1,
        "reconstructs": has_decoder(look.run),
    }


# ---------------------------------------------------------------- what it has learned


def _learned(look: Look, clips: Clips, most: int, sounds: bool) -> dict[str, Any] | None:
    most = max(learned.CLIPS_PER_CLASS, min(most, learned.affordable_clips(look.runtime, look.frames)))
    rows, classes = learned.sample(clips.names, clips.labels, most)
    try:
        crops, kept = clips.beginnings(rows, look.frames)
        features = learned.compared_features(look.runtime, crops)
    except (OSError, ValueError) as error:
        look.notes.append(f"What it has learned cannot be shown: {error}")
        return None
    if not np.isfinite(features[learned.TRAINED]).all():
        look.notes.append("The encoder's outputs are not finite numbers: is the checkpoint damaged?")
        return None
    if classes is not None and len(kept) < len(rows):
        classes = learned.readable(classes, np.isin(rows, kept))
    names = [clips.names[row] for row in kept.tolist()]
    judged = classes is not None and not look.run.is_finetuning  # which has seen the labels
    judgements = learned.judge(classes, features) if judged else {}
    for line in learned.verdict(judgements):
        print(line)
    labels = None
    if classes is not None and clips.labels is not None:
        labels = np.array([classes.classes[i] for i in classes.targets])
    trained = features[learned.TRAINED]
    return {
        "count": len(kept),
        "directions": {what: round(value, 1) for what, value in learned.directions(features).items()},
        "probe": _probe(judgements),
        "unprobed": _SEEN_LABELS if look.run.is_finetuning else _NO_CLASSES,
        "map": map_data(trained, names, labels),
        "near": _near(look, clips, trained, crops, kept, sounds),
    }


def _probe(judgements: dict[str, Judgement]) -> list[list]:
    rows = [[what, *map(float, judgement.figures[learned.ACCURACY])] for what, judgement in judgements.items()]
    return [[what, *(round(value, 4) for value in values)] for what, *values in rows]


def map_data(features: np.ndarray, names: list[str], labels: np.ndarray | None) -> dict[str, Any]:
    """Maps of features, with the groups of rows: given labels, folders, or clusters."""
    components = embedding.principal(features)
    labels = embedding.folders(names) if labels is None else labels
    kind = "classes"
    if labels is None:
        labels, kind = np.array([f"cluster {i + 1}" for i in embedding.clusters(components)]), "clusters found by k-means"
    group, groups = embedding.grouped(labels)
    return {
        "layouts": [layout_data(layout) for layout in embedding.layouts(components)],
        "names": [shown(name) for name in names],
        "group": group.tolist(),
        "groups": [shown(name) for name in groups],
        "kind": kind,
    }


def layout_data(layout: embedding.Layout) -> dict[str, Any]:
    """A map with places from 0 to 1."""
    low, high = layout.places.min(axis=0), layout.places.max(axis=0)
    places = (layout.places - low) / np.maximum(high - low, 1e-9)
    return {
        "method": layout.method,
        "note": layout.note,
        "x": places[:, 0].round(4).tolist(),
        "y": places[:, 1].round(4).tolist(),
    }


def _near(
    look: Look, clips: Clips, features: np.ndarray, crops: np.ndarray, rows: np.ndarray, sounds: bool
) -> dict[str, Any] | None:
    if len(features) < 3:
        return None
    queries = evenly(len(features), QUERIES)
    nearest, cosines = embedding.neighbours(features, NEIGHBOURS, queries)
    used = np.unique([*queries, *nearest.flat])
    front_end = front_end_of(look)
    shown_clips = {}
    for i in used.tolist():
        path = clips.sound(int(rows[i])) if sounds else None
        shown_clips[i] = {
            "name": shown(clips.names[int(rows[i])]),
            "picture": spectrogram_uri(thumbnail(crops[i])),
            "sound": sound_uri(path) if path else None,
        }
    found = [
        {"clip": int(query), "near": [[int(i), round(float(c), 3)] for i, c in zip(near, cosine, strict=True)]}
        for query, near, cosine in zip(queries, nearest, cosines, strict=True)
    ]
    return {"clips": shown_clips, "queries": found, "seconds": look.frames * front_end.hop_size / front_end.sample_rate}


# ---------------------------------------------------------------- data, settings


def _summary(look: Look, clips: Clips) -> dict[str, Any]:
    front_end = front_end_of(look)
    hop = front_end.hop_size / front_end.sample_rate
    rows = [["clips", f"{len(clips):,}"], ["from", shown(clips.source)]]
    if look.dataset is not None and len(look.dataset) > len(clips):
        rows.append(["repeated to", f"{len(look.dataset):,} an epoch (--min_ds_size)"])
    seconds = clips.lengths() * hop
    if len(seconds):
        of = "" if len(seconds) == len(clips) else f" (of {len(seconds)} clips looked at)"
        rows.append(["length", f"{np.median(seconds):.1f} s in the middle, {seconds.min():.1f} to {seconds.max():.1f} s{of}"])
        rows.append(["shorter than the input", f"{(seconds < look.frames * hop - 1e-9).mean():.0%}"])
    stats = look.run.saved.get("stats")
    if isinstance(stats, (list, tuple)) and stats and isinstance(stats[0], (list, tuple)):
        rows.append(["log-mel values", f"mean {stats[0][0]:.2f}, standard deviation {stats[0][1]:.2f}"])
    return {"rows": rows, "lengths": _histogram(seconds), "input": look.frames * hop}


def _histogram(seconds: np.ndarray) -> dict[str, list] | None:
    """Counts over a logarithmic axis of lengths; none where they are all the same."""
    if len(seconds) < 2 or seconds.max() <= seconds.min() * 1.01:
        return None
    edges = np.geomspace(max(seconds.min(), 0.01) * 0.999, seconds.max() * 1.001, _BINS + 1)
    counts = np.histogram(seconds, edges)[0]
    return {"edges": edges.round(4).tolist(), "counts": counts.tolist()}


def settings_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each setting: its values by run, and whether it is not at its default, or not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = []
    for name in names:
        values = [_text(run.settings[name]) if name in run.settings else "" for run in runs]
        defaults = [_text(_default(run, name)) for run in runs]
        changed = name not in _PLACES and any(
            v != d for v, d, run in zip(values, defaults, runs, strict=True) if name in run.settings
        )
        rows.append({"name": shown(str(name)), "values": values, "changed": changed, "differs": len(set(values)) > 1})
    return rows


def _default(run: Run, name: str) -> Any:
    if run.is_finetuning:
        return {each.name: each.default for each in fields(FineTuneSettings)}.get(name)
    family = str(run.settings.get("model", "")).split("_vit_")[0]
    program = next((each for each in PROGRAMS.values() if family in each.families), PROGRAMS["m2d"])
    usual = {each.name: each.default for group in GROUPS.values() for each in fields(group)}
    return {**usual, **program.defaults}.get(name)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return re.sub(r"[\[\]()']", "", str(list(value)))
    return shown(f"{value:g}" if isinstance(value, float) else str(value))
