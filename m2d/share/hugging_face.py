"""A checkpoint as a folder that Hugging Face's transformers loads."""

import ast
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..audio.logmel_torch import PRESETS
from ..checkpoint.build import no_sizes
from ..checkpoint.weights import Weights, block_count
from ..inference.runtime import RuntimeM2D
from ..utils.atomic_file import write_bytes, write_text
from ..utils.outputs import check_outputs
from .classes import Classes
from .encoder import ENCODER, describe
from .licence import Licence
from .model_card import model_card

logger = logging.getLogger("m2d")

MODELING = "modeling_m2d.py"
FILES = ("config.json", "model.safetensors", MODELING, "preprocessor_config.json", "README.md")
_HERE = Path(__file__).parent
_PREFIX = "m2d."  # of the tensors' names: the attribute of the models in modeling_m2d.py


def export_folder(weights: Weights, folder: Path, licence: Licence, classes: Classes | None, overwrite: bool = False) -> None:
    """Write a checkpoint's encoder, with its classifier if it has one, as a folder for transformers.

    Args:
        weights: the checkpoint.
        folder: where to; made if it is not there.
        licence: of the weights.
        classes: of the classifier; None where there is none.
        overwrite: replace files of an earlier export.

    Raises:
        CheckpointError, ValueError: the checkpoint does not give its sizes, or cannot be used; a file is there already.
        OSError: the disk is full, or the folder is not writable.
    """
    check_outputs([folder / name for name in FILES], [weights.path], overwrite)
    if weights.spec is None:
        raise no_sizes(weights.path)
    runtime = RuntimeM2D(weight_file=weights.path, num_classes=len(classes.names) if classes else None)
    state, config = hub_state(runtime), hub_config(weights, runtime, classes)
    folder.mkdir(parents=True, exist_ok=True)
    from safetensors.torch import save

    content = save(state, {"format": "pt", **describe(weights)})
    write_bytes(folder / "model.safetensors", content)
    write_text(folder / MODELING, modeling_source())
    write_text(folder / "preprocessor_config.json", _json(extractor_config(weights)))
    write_text(folder / "README.md", model_card(weights, runtime, config, licence, content))
    write_text(folder / "config.json", _json(config))
    labelled = f", {len(classes.names)} classes" if classes else ""
    logger.info("%s: %d tensors, %.1f MB%s", folder, len(state), len(content) / 1e6, labelled)


def hub_state(runtime: RuntimeM2D) -> dict[str, torch.Tensor]:
    """The tensors of a runtime's encoder and head under the names that transformers looks for."""
    parts = {f"backbone.{name}": tensor for name, tensor in runtime.backbone.state_dict().items() if name.startswith(ENCODER)}
    parts |= {name: tensor for name, tensor in runtime.state_dict().items() if name.startswith(("head.", "head_norm."))}
    return {_PREFIX + name: tensor.contiguous() for name, tensor in parts.items()}


def hub_config(weights: Weights, runtime: RuntimeM2D, classes: Classes | None) -> dict[str, Any]:
    """What config.json holds."""
    spec, module = weights.spec, MODELING.removesuffix(".py")
    classifier = "M2DForAudioClassification"
    names = {"AutoConfig": "M2DConfig", "AutoModel": "M2DModel", "AutoModelForAudioClassification": classifier}
    config: dict[str, Any] = {
        "architectures": [classifier if classes else "M2DModel"],
        "auto_map": {auto: f"{module}.{name}" for auto, name in names.items()},
        "model_type": "m2d",
        "model": spec.model,
        "input_size": runtime.cfg.input_size,
        "patch_size": runtime.cfg.patch_size,
        "sr": spec.sr,
        "hidden_size": runtime.backbone.embed_dim,
        "num_hidden_layers": block_count(runtime.backbone.state_dict()),
        "norm_stats": [runtime.cfg.mean, runtime.cfg.std],
        "torch_dtype": "float32",
    }
    if classes:
        config["flat_classifier"] = runtime.cfg.flat_features
        config["id2label"] = dict(enumerate(classes.names))
        config["label2id"] = {name: number for number, name in enumerate(classes.names)}
        config["problem_type"] = f"{'single' if classes.single_label else 'multi'}_label_classification"
    return config


def extractor_config(weights: Weights) -> dict[str, Any]:
    """What preprocessor_config.json holds."""
    return {
        "auto_map": {"AutoFeatureExtractor": f"{MODELING.removesuffix('.py')}.M2DFeatureExtractor"},
        "feature_extractor_type": "M2DFeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": PRESETS[weights.spec.sr].sample_rate,
    }


def modeling_source() -> str:
    """One Python file: the classes for transformers, and of the portable model what they are made of."""
    docstring, imports, classes = _parts(_HERE / MODELING)
    _, more_imports, portable = _parts(_HERE / "portable_m2d.py")
    kept, used = list(classes), _names(classes)
    for part in reversed(portable):  # what a definition uses comes before it
        if _defined(part) & used:
            kept.insert(0, part)
            used |= _names([part])
    used_imports = {line for line in (*imports, *more_imports) if not line.startswith("from .") and _imported(line) & used}
    origin = f"# Written by m2d export of M2D {__version__}, from its portable_m2d.py and {MODELING}: change it there."
    lines = sorted(used_imports, key=lambda line: (line.startswith("from"), line))
    return "\n".join([docstring, "", origin, "", *lines, *kept, ""])


def _parts(path: Path) -> tuple[str, list[str], list[str]]:
    """A module's docstring, its imports, and its other statements with the comments before them."""
    text = path.read_text(encoding="utf-8")
    docstring, *statements = ast.parse(text).body
    lines, imports, others, end = text.splitlines(), [], [], docstring.end_lineno
    for node in statements:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.append(ast.unparse(node))
        else:
            others.append("\n".join(lines[end : node.end_lineno]))
        end = node.end_lineno
    return "\n".join(lines[: docstring.end_lineno]), imports, others


def _names(parts: Iterable[str]) -> set[str]:
    """Names that statements use."""
    return {node.id for part in parts for node in ast.walk(ast.parse(part)) if isinstance(node, ast.Name)}


def _defined(part: str) -> set[str]:
    """Names that a statement defines."""
    (node,) = ast.parse(part).body
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return {node.name}
    return {target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)}


def _imported(line: str) -> set[str]:
    """Names that an import makes known."""
    (node,) = ast.parse(line).body
    return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}


def _json(value: dict) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
