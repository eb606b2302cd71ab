"""The model card (README.md) of an exported model: facts from the checkpoint, and no claims beyond them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__
from ..checkpoint.weights import Weights
from ..inference.runtime import RuntimeM2D
from .licence import NTT, NTT_LICENCE, Licence

#: Settings of the training that are shown where a checkpoint has them. None of them is a path.
_SETTINGS = ("epochs", "batch_size", "accum_iter", "blr", "lr", "weight_decay", "mask_ratio", "noise_ratio", "ema_decay", "seed")
_MOST_CLASSES = 20

_USE = """## Use

```sh
pip install torch torchaudio timm einops nnAudio transformers
```

```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("FOLDER", trust_remote_code=True)
model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True).eval()
inputs = extractor(clips, sampling_rate={rate}, return_tensors="pt")  # a list of waveforms in ±1, of one channel
with torch.no_grad():
    outputs = model(**inputs)
outputs.last_hidden_state  # [clips, time steps, {width}]
outputs.pooler_output  # [clips, {width}]: their mean over time
```

`FOLDER` is the path of this folder, or the name of the repository. `trust_remote_code=True` runs `modeling_m2d.py` of this
folder: read it first where you do not know who wrote it. Clips of any length are taken.
"""
_NOT_KNOWN = """## Not known

What the model is good for, and where it fails, was not measured for this card. Its owner adds that here.
"""
_PIPELINE = """
```python
from transformers import pipeline

tagger = pipeline("audio-classification", model="FOLDER", feature_extractor="FOLDER", trust_remote_code=True)
tagger("street.wav")
```
"""


def model_card(weights: Weights, runtime: RuntimeM2D, config: Mapping[str, Any], licence: Licence, content: bytes) -> str:
    """The text of README.md.

    Args:
        weights: the checkpoint.
        runtime: its model.
        config: what config.json holds.
        licence: of the weights.
        content: of model.safetensors.
    """
    names = list(config.get("id2label", {}).values())
    rate, width = runtime.sample_rate, runtime.backbone.embed_dim * runtime.backbone.grid_size()[0]
    title = f"{weights.spec}: {f'classifier of {len(names)} classes' if names else 'audio encoder'}"
    rows = [f"| {name} | {value} |" for name, value in facts(weights, runtime, content)]
    parts = [
        _front_matter(licence, bool(names)),
        f"# {title}",
        "A Masked Modeling Duo (M2D) encoder: waveforms to embeddings, by a vision transformer over log-mel spectrograms\n"
        "([paper](https://arxiv.org/abs/2404.06095)).",
        "\n".join(["| | |", "|:--|:--|", *rows]),
        *([_class_list(names, config["problem_type"])] if names else []),
        _USE.format(rate=rate, width=width) + (_PIPELINE if names else ""),
        f"## Licence\n\n{_licence_text(licence)}",
        _NOT_KNOWN,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def facts(weights: Weights, runtime: RuntimeM2D, content: bytes) -> list[tuple[str, str]]:
    """The checkpoint's metadata, as pairs of name and value."""
    cfg, backbone = runtime.cfg, runtime.backbone
    (rows, columns), (height, length) = backbone.grid_size(), backbone.patch_size()
    milliseconds = length * runtime.front_end.hop_size * 1000 / runtime.sample_rate
    mels, frames = cfg.input_size
    seconds = frames * runtime.front_end.hop_size / runtime.sample_rate
    parameters = sum(tensor.numel() for tensor in runtime.parameters())
    found = [
        (
            "architecture",
            f"{cfg.model}: {len(backbone.blocks)} blocks, {backbone.embed_dim} wide, {parameters / 1e6:.1f} M parameters",
        ),
        ("audio", f"{runtime.sample_rate} Hz, one channel, full scale ±1"),
        (
            "input",
            f"{mels} mel bands x {frames} frames ({seconds:.2f} s); longer clips are cut into such pieces",
        ),
        ("patches", f"{height} bands x {length} frames: {rows} x {columns} an input, a time step of {milliseconds:g} ms"),
        ("embedding", f"{backbone.embed_dim * rows} numbers per time step"),
        ("mean, standard deviation of the log-mel", f"{cfg.mean:.4f}, {cfg.std:.4f}"),
    ]
    if weights.epoch is not None:
        found.append(("epoch", str(weights.epoch)))
    settings = {name: (weights.args or {}).get(name) for name in _SETTINGS}
    trained = [f"{name} {value}" for name, value in settings.items() if isinstance(value, (int, float))]
    if trained:
        found.append(("training", ", ".join(trained)))
    found.append(("SHA-256 of model.safetensors", f"`{hashlib.sha256(content).hexdigest()}`"))
    found.append(("written by", f"`m2d export` of M2D {__version__}"))
    return found


def _front_matter(licence: Licence, classifies: bool) -> str:
    """What the Hub reads: YAML, whose strings are JSON's."""
    entries = ["library_name: transformers", f"pipeline_tag: {'audio-classification' if classifies else 'feature-extraction'}"]
    if licence.name == NTT:
        entries += ["license: other", "license_name: ntt", f"license_link: {NTT_LICENCE}"]
    elif licence.name:
        entries.append(f"license: {licence.name}")
    tags = ["audio", "m2d", "masked-modeling-duo", "custom_code"]
    return "\n".join(["---", *entries, f"tags: {json.dumps(tags)}", "---"])


def _class_list(names: Sequence[str], problem_type: str) -> str:
    shown = ", ".join(names[:_MOST_CLASSES]) + (f", … ({len(names)} in config.json)" if len(names) > _MOST_CLASSES else "")
    how = "exclude each other (softmax)" if problem_type.startswith("single") else "are independent of each other (sigmoid)"
    return f"## Classes\n\nThey {how}: {shown}."


def _licence_text(licence: Licence) -> str:
    if licence.name == NTT:
        whose = (
            f"`{licence.origin}`, or were trained from it"
            if licence.origin
            else "weights that NTT released, or were trained from them"
        )
        return (
            f"The weights are {whose}. NTT publishes them under [a licence of its own]({NTT_LICENCE}), which holds for this\n"
            "folder's weights: read it before you use or share them. The code (`modeling_m2d.py`) is under Apache-2.0."
        )
    if licence.name:
        return f"The weights: `{licence.name}`, as their owner states. The code (`modeling_m2d.py`): Apache-2.0."
    return "The weights': not stated. Ask their owner before you use or share them. The code (`modeling_m2d.py`): Apache-2.0."
