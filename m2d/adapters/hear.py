"""HEAR's common API (Turian et al., HEAR, PMLR 176, 2022).

Its programs take the name of this module:

    hear-validator m2d.adapters.hear --model CHECKPOINT
    python -m heareval.embeddings.runner m2d.adapters.hear --model CHECKPOINT --tasks-dir tasks
"""

import torch
from torch import nn

from ..inference.runtime import RuntimeM2D
from ..inference.waveforms import check_waveforms, resample

#: Sampling rates in Hz that HEAR's data sets come in.
RATES = (16000, 22050, 44100, 48000)


class HearModel(nn.Module):
    """A checkpoint's encoder with the attributes that HEAR asks for.

    Args:
        weights: checkpoint, as RuntimeM2D takes it.

    Attributes:
        sample_rate: Hz that audio is taken at: the model's own rate, or the next of HEAR's, which is resampled.
        scene_embedding_size, timestamp_embedding_size: width of the embeddings.
    """

    def __init__(self, weights: str):
        super().__init__()
        self.runtime = RuntimeM2D(weight_file=weights)
        self.sample_rate = min(rate for rate in RATES if rate >= self.runtime.sample_rate)
        self.scene_embedding_size = self.timestamp_embedding_size = int(self.runtime.cfg.feature_d)


def load_model(model_file_path: str = "") -> HearModel:
    """The model of a checkpoint.

    Raises:
        FileNotFoundError, ValueError: no checkpoint is named, or it cannot be used.
    """
    if not model_file_path:
        raise ValueError("no weights are named: give a checkpoint with --model")
    return HearModel(model_file_path)


@torch.no_grad()
def get_scene_embeddings(audio: torch.Tensor, model: HearModel) -> torch.Tensor:
    """Waveforms `[B, samples]` at the model's `sample_rate` to a vector each, the mean over time: `[B, scene_embedding_size]`."""
    return model.runtime.get_scene_embeddings(audio, model.sample_rate)


@torch.no_grad()
def get_timestamp_embeddings(audio: torch.Tensor, model: HearModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms `[B, samples]` to `[B, T, timestamp_embedding_size]`, and the centres of the time steps in ms `[B, T]`."""
    check_waveforms(audio)
    runtime = model.runtime
    audio = resample(audio, model.sample_rate, runtime.sample_rate)
    embeddings = runtime.encode(audio, average_per_time_frame=True)
    step_ms = runtime.cutting.patch * runtime.front_end.hop_size * 1000 / runtime.sample_rate
    centres = (runtime.patch_times(audio.shape[1]) + step_ms / 2).to(embeddings)
    return embeddings, centres.expand(len(audio), -1)
