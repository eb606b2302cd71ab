"""An encoder for mteb's tasks on audio.

It is made in Python:

    import mteb
    from m2d.adapters.mteb import M2DEncoder

    mteb.evaluate(M2DEncoder("CHECKPOINT"), mteb.get_tasks(tasks=["ESC50"]))
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.modality_collators import AudioCollator

from ..inference.runtime import RuntimeM2D
from ..utils.device import pick_device


class M2DEncoder(AbsEncoder):
    """One vector per clip, the mean over time; clips of a batch may differ in length and rate.

    Args:
        weights: checkpoint, as RuntimeM2D takes it.
        revision: a name for this version of the weights among mteb's results.
        device: cuda, mps, cpu; auto takes the first there is.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be used.
    """

    def __init__(self, weights: str | Path, revision: str = "1", device: str = "auto", **_: Any):
        self.runtime = RuntimeM2D(weight_file=weights).to(pick_device(device))
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"m2d/{Path(weights).parent.name or Path(weights).stem}",
                "revision": revision,
                "embed_dim": self.runtime.cfg.feature_d,
                "similarity_fn_name": "cosine",
                "framework": ["PyTorch"],
                "modalities": ["audio"],
            }
        )

    @torch.no_grad()
    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """Embeddings `[N, D]` of the clips that a DataLoader of mteb gives.

        Raises:
            ValueError: the data set has no audio.
        """
        if "audio" not in inputs.dataset.features:
            raise ValueError("M2D encodes audio; this task's data set has none")
        inputs.collate_fn = AudioCollator(target_sampling_rate=self.runtime.sample_rate)
        return np.concatenate([self._encode_batch([item["array"] for item in batch["audio"]]) for batch in inputs])

    def _encode_batch(self, clips: list[np.ndarray]) -> np.ndarray:
        waveforms = [torch.as_tensor(clip, dtype=torch.float32).flatten() for clip in clips]
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True).to(self.runtime.backbone.cls_token.device)
        return self.runtime.get_scene_embeddings(padded, lengths=[len(clip) for clip in waveforms]).float().cpu().numpy()
