"""M2D as an upstream of s3prl, the toolkit of the SUPERB benchmark: waveforms to the features of every block.

superb/setup_s3prl.sh puts this file into s3prl/upstream/m2d/, beside a link `m2d` to this project's folder.
"""

import sys

import torch
from torch.nn.utils.rnn import pad_sequence

from ..interfaces import UpstreamBase
from .m2d.m2d.runtime_audio import RuntimeM2D


class UpstreamExpert(UpstreamBase):
    """An M2D checkpoint as an upstream.

    Args:
        ckpt: the checkpoint.
        model_config: unused; s3prl gives it to every upstream, and a checkpoint knows its sizes.
        feature_d: width of the features, checked where it is given.
        norm_mean, norm_std: statistics of the task's log-mel spectrograms; those of the checkpoint if not given.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be used, or its features have another width.
    """

    def __init__(
        self,
        ckpt: str,
        model_config: str | None = None,
        feature_d: int | None = None,
        norm_mean: float | None = None,
        norm_std: float | None = None,
        **kwargs,
    ):
        super().__init__()
        if (norm_mean is None) != (norm_std is None):
            raise ValueError("norm_mean and norm_std are given together, or neither is")
        self.model = RuntimeM2D(weight_file=ckpt)
        cfg = self.model.cfg
        if feature_d is not None and int(feature_d) != cfg.feature_d:
            raise ValueError(f"feature_d is {feature_d}, but {ckpt} has features of width {cfg.feature_d}")
        if cfg.sample_rate != 16000:
            raise ValueError(f"{ckpt} takes audio at {cfg.sample_rate} Hz; SUPERB's is at 16000 Hz")
        if norm_mean is not None:
            cfg.mean, cfg.std = float(norm_mean), float(norm_std)

    def get_output_dim(self) -> int:
        """Width of the features."""
        return self.model.cfg.feature_d

    def get_downsample_rates(self, key: str) -> int:
        """Samples per time step, the same for all features."""
        return self.model.cfg.hop_size * self.model.backbone.patch_size()[1]

    def forward(self, wavs: list[torch.Tensor]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """Features of a batch.

        Args:
            wavs: waveforms at 16 kHz, each `[samples]`; shorter ones are zero-padded to the longest.

        Returns:
            `hidden_states`: one `[B, T, D]` per block, the last one normalised; `last_hidden_state`: the last of them.
        """
        lms = self.model.to_normalized_spec(pad_sequence(wavs, batch_first=True))
        hidden_states = self.model.encode_lms(lms, return_layers=True)
        return {"last_hidden_state": hidden_states[-1], "hidden_states": hidden_states}


class StatisticsExpert(UpstreamExpert):
    """Measures mean and standard deviation of a task's log-mel spectrograms, prints them, and ends the program.

    Of the padded batches, as the model would see them. The features it gives are zeros: nothing is encoded.
    """

    batches = 10000

    def __init__(self, ckpt: str, **kwargs):
        super().__init__(ckpt, **kwargs)
        self._seen, self._count, self._mean, self._squares = 0, 0, 0.0, 0.0

    @torch.no_grad()
    def forward(self, wavs: list[torch.Tensor]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        lms = self.model.to_feature(pad_sequence(wavs, batch_first=True))
        self._add(lms.double())
        if self._seen >= self.batches:
            mean, std = self.statistics()
            print(f"m2d_calcnorm: mean {mean}, std {std} over {self._seen} batches. Use -k CHECKPOINT,{mean},{std}", flush=True)
            sys.exit(0)
        steps = -(-lms.shape[-1] // self.model.backbone.patch_size()[1])
        zeros = lms.new_zeros(lms.shape[0], steps, self.get_output_dim())
        return {"last_hidden_state": zeros, "hidden_states": [zeros] * len(self.model.backbone.blocks)}

    def _add(self, lms: torch.Tensor) -> None:
        # The batch's own mean first (Chan, Golub and LeVeque, 1979): no sum of squares grows beyond its precision.
        count, mean = lms.numel(), lms.mean().item()
        squares, delta = (lms - mean).square().sum().item(), mean - self._mean
        total = self._count + count
        self._mean += delta * count / total
        self._squares += squares + delta**2 * self._count * count / total
        self._count, self._seen = total, self._seen + 1

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation so far."""
        return self._mean, (self._squares / self._count) ** 0.5
