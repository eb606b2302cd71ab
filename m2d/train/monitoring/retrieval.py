"""How well the captions of a validation list find their clips, and the clips their captions."""

from typing import Any

import numpy as np
import torch

from ...data.captions.dataset import CaptionDataset
from ...data.sampler import SampleKey
from ...evaluation.retrieval import retrieval_figures
from ..trainer import Trainer


@torch.no_grad()
def retrieval(trainer: Trainer, model: Any, dataset: CaptionDataset, most_clips: int) -> dict[str, float]:
    """Recall at 1 and 10 and mean average precision at 10, from texts to clips (`val_t2a_…`) and back (`val_a2t_…`).

    Args:
        trainer: gives precision, device and statistics.
        model: the whole model, on the trainer's device.
        dataset: the clips, each with all of its captions; of clips with one file name the first.
        most_clips: at most this many, evenly spread; a crop of each, unmasked.
    """
    model.eval()
    total, batch_size = len(dataset.clips), trainer.settings.run.batch_size
    spread = np.arange(min(most_clips, total)) * total // min(most_clips, total)
    _, first = np.unique([dataset.clips.name(int(i)) for i in spread], return_index=True)
    clips = spread[np.sort(first)]
    audio = []
    for begin in range(0, len(clips), batch_size):
        keys = [SampleKey(0, begin + n, int(clip)) for n, clip in enumerate(clips[begin : begin + batch_size])]
        inputs = trainer.transform.clean(dataset.__getitems__(keys))
        with trainer.autocast():
            audio.append(model.embed_latent(model.forward_encoder(inputs, mask_ratio=0.0)[0]).float())
    captions, owners = dataset.captions.all_of(clips)
    texts = []
    for begin in range(0, len(captions), batch_size):
        part = captions[begin : begin + batch_size]
        part = part if isinstance(part, list) else torch.from_numpy(part).to(trainer.launch.device)
        with trainer.autocast():
            texts.append(model.embed_text(part).float())
    belongs = torch.from_numpy(owners[:, None] == np.arange(len(clips))).to(trainer.launch.device)
    text_embeddings, audio_embeddings = torch.cat(texts), torch.cat(audio)
    found = {
        "t2a": retrieval_figures(text_embeddings, audio_embeddings, belongs),
        "a2t": retrieval_figures(audio_embeddings, text_embeddings, belongs.T),
    }
    return {f"val_{way}_{name}": value for way, figures in found.items() for name, value in figures.items()}
