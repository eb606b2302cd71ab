"""The model of M2D-CLAP's stages 2 and 2.1, from a checkpoint's audio encoder and a text encoder."""

import logging
from collections.abc import Mapping

import torch

from ..checkpoint.weights import Weights, load_into, read_weights
from ..data.captions.dataset import CaptionDataset
from ..data.captions.store import CaptionTexts
from ..models import registry
from ..models.clap_pair import ClapPair
from ..models.text_encoder import TextEncoder, load_text_encoder
from ..utils.errors import UserError
from .config import Settings

_AUDIO_PROJECTOR, _TEXT_PROJECTOR = "audio_proj.", "text_proj."

logger = logging.getLogger("m2d")


def build_pair(settings: Settings, stats: tuple[float, float], data: CaptionDataset, load_weights: bool) -> ClapPair:
    """The pair of the settings, the same start on all ranks.

    The projector of --base_model is not used: the pair has a new one. --finetune brings both projectors, logit_scale and, where
    it is of the same text encoder, that too.

    Args:
        settings: the run's.
        stats: mean and std of the log-mel values.
        data: whose captions are looked through for longer ones than the text encoder takes.
        load_weights: read --base_model or --finetune; otherwise weights are to come from elsewhere.

    Raises:
        UserError: a checkpoint or the text encoder cannot be used.
        ValueError: a caption is too long, and --truncate is not given.
    """
    torch.manual_seed(settings.run.seed)
    model, captions = settings.model, settings.captions
    source = captions.finetune or captions.base_model
    weights = read_weights(source) if load_weights else None
    text_state = _text_state(weights, settings) if weights else None
    text_encoder = load_text_encoder(captions.text_encoder, text_state, captions.tokenizer or None, captions.text_pooling or None)
    if not captions.truncate:
        _check_lengths(text_encoder, data)
    backbone = registry.build(
        f"{model.model}_encoder_only", img_size=model.input_shape, patch_size=model.patch_shape, norm_stats=stats
    )
    pair = ClapPair(backbone, text_encoder, captions.sem_mode, captions.train_audio, captions.truncate)
    if weights:
        _load(pair, weights, settings)
        logger.info("text encoder: %s%s", text_encoder.name, f", with the weights of {source}" if text_state else "")
    return pair


def _text_state(weights: Weights, settings: Settings) -> Mapping[str, torch.Tensor] | None:
    """The text encoder's weights in an earlier stage's checkpoint, where they are of the same text encoder."""
    if not settings.captions.finetune or not weights.text:
        return None
    before, now = (weights.args or {}).get("text_encoder", ""), settings.captions.text_encoder
    if before and before != now:
        logger.warning("--text_encoder %s: the one of %s, %s, is not used", now, weights.path, before)
        return None
    return weights.text


def _load(pair: ClapPair, weights: Weights, settings: Settings) -> None:
    state = dict(weights.state)
    own_text = {name: tensor for name, tensor in state.items() if name.startswith(_TEXT_PROJECTOR)}
    if settings.captions.base_model:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_AUDIO_PROJECTOR)}
    elif "logit_scale" in state:
        pair.logit_scale.data.copy_(state["logit_scale"])
        _load_text_projector(pair, own_text)
    beside = [name for name in state if name == "logit_scale" or name.startswith(_TEXT_PROJECTOR)]
    report = load_into(pair.backbone, {name: state[name] for name in state if name not in beside}, False, weights.mapped)
    logger.info("%s: %s", weights.path, report)


def _load_text_projector(pair: ClapPair, stored: Mapping[str, torch.Tensor]) -> None:
    """Take a linear text projector of the same shape; that of another text encoder is not used."""
    own = {f"{_TEXT_PROJECTOR}{name}": tensor for name, tensor in pair.text_proj.state_dict().items()}
    if {name: tensor.shape for name, tensor in own.items()} == {name: tensor.shape for name, tensor in stored.items()}:
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def _check_lengths(text_encoder: TextEncoder, data: CaptionDataset) -> None:
    for captions in data.captions.files:
        if isinstance(captions, CaptionTexts):
            text_encoder.check_lengths(captions.texts)


def checkpoint_stats(settings: Settings) -> tuple[float, float]:
    """The statistics that the audio encoder of --base_model or --finetune was trained with.

    Raises:
        UserError: the checkpoint holds none.
    """
    source = settings.captions.finetune or settings.captions.base_model
    stats = read_weights(source).norm_stats
    if stats is None:
        raise UserError(f'{source} holds no statistics: --norm_stats "[mean,std]" gives them')
    return stats
