"""Text encoders of M2D-CLAP: texts to vectors, by Hugging Face transformers or sentence-transformers.

Both are imported when an encoder is loaded, and only then. Code that comes with a model is not run unless it is asked for.
"""

import logging
import pickle
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..utils.errors import UserError, first_line
from ..utils.hub import quiet_hub, unreachable

POOLINGS = ("mean", "cls", "sentence")
#: What comes before a transformer's own names in a checkpoint that holds the text encoder.
_PREFIXES = ("text_encoder.", "model.")
_POOLER = "pooler."
_ADDED_TOKENS = 8  # at most, to a text's own
_NV_EMBED_TOKENS = 32768

logger = logging.getLogger("m2d")


class Recipe(NamedTuple):
    """A published text encoder: its name on the Hugging Face hub, how a text's vector is made (see load_text_encoder), and E."""

    name: str
    pooling: str
    width: int


#: By the letter in a checkpoint's name.
PUBLISHED: Mapping[str, Recipe] = {
    "A": Recipe("thenlper/gte-base", "mean", 768),
    "B": Recipe("google-bert/bert-base-uncased", "cls", 768),
    "N": Recipe("nvidia/NV-Embed-v2", "sentence", 4096),
    "E": Recipe("google-bert/bert-large-uncased", "cls", 1024),
    "L": Recipe("Alibaba-NLP/gte-large-en-v1.5", "cls", 1024),
    "M": Recipe("answerdotai/ModernBERT-base", "cls", 768),
    "Q": Recipe("Alibaba-NLP/gte-Qwen2-7B-instruct", "sentence", 3584),
    "R": Recipe("FacebookAI/roberta-base", "cls", 768),
}


class TextEncoder(nn.Module):
    """Texts to vectors, in float32; loaded on the CPU, in evaluation.

    Attributes:
        name: the model's name or folder.
        width: E, the width of a vector.
        max_tokens: tokens that a text may have, those that the tokenizer adds included.
    """

    def __init__(self, name: str, width: int, max_tokens: int):
        super().__init__()
        self.name, self.width, self.max_tokens = name, width, max_tokens
        self._has_warned = False

    def forward(self, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
        """Vectors of texts: float32 `[B, E]`, not normalised.

        Args:
            texts: the texts.
            truncate: leave out what a text has beyond `max_tokens`, with one warning.

        Raises:
            ValueError: a text has more than `max_tokens` tokens, and `truncate` is not given.
        """
        if isinstance(texts, str):
            raise ValueError(f"a list of texts is expected, not the one text {texts[:40]!r}")
        if not texts:
            return torch.zeros(0, self.width)
        texts = list(texts)
        for text, count in zip(texts, self.token_counts(texts), strict=True):
            if count > self.max_tokens:
                self._check_truncation(text, count, truncate)
        return self.encode(texts).float()

    def check_lengths(self, texts: Iterable[str]) -> None:
        """Look for texts that have too many tokens, among those that have as many characters.

        Raises:
            ValueError: as `forward`, without `truncate`.
        """
        for text in texts:
            if len(text) + _ADDED_TOKENS > self.max_tokens:
                count = self.token_counts([text])[0]
                if count > self.max_tokens:
                    self._check_truncation(text, count, truncate=False)

    def _check_truncation(self, text: str, count: int, truncate: bool) -> None:
        what = f"a text has {count} tokens, {self.name} takes at most {self.max_tokens}"
        if not truncate:
            raise ValueError(f"{what}: shorten it, or ask for truncation (truncate=True, --truncate): {text[:60]!r}…")
        if not self._has_warned:
            self._has_warned = True
            logger.warning("%s; longer texts are cut to that length, such as %r…", what, text[:60])

    @abstractmethod
    def token_counts(self, texts: list[str]) -> list[int]:
        """How many tokens each text has."""

    @abstractmethod
    def encode(self, texts: list[str]) -> torch.Tensor:
        """Vectors `[B, E]` of texts, each truncated to `max_tokens`."""


class TransformerEncoder(TextEncoder):
    """A Hugging Face transformer, and the mean of its last outputs over a text's tokens, or the first token's output."""

    def __init__(self, name: str, model: Any, tokenizer: Any, pooling: str):
        longest = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
        super().__init__(name, model.config.hidden_size, min(longest, tokenizer.model_max_length))
        self.text_encoder, self.tokenizer, self.pooling = model.float().eval(), tokenizer, pooling
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(not key.startswith(_POOLER))

    def token_counts(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]

    def encode(self, texts: list[str]) -> torch.Tensor:
        device = next(self.text_encoder.parameters()).device
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt").to(device)
        outputs = self.text_encoder(**tokens).last_hidden_state
        if self.pooling == "cls":
            return outputs[:, 0]
        weights = tokens["attention_mask"][..., None].to(outputs.dtype)
        return (outputs * weights).sum(dim=1) / weights.sum(dim=1)


class SentenceEncoder(TextEncoder):
    """A model of sentence-transformers, which brings its own pooling.

    Args:
        name: the model's name or folder.
        model: the SentenceTransformer.
        end_token: what is added to each text (NV-Embed-v2: its end-of-text token).
    """

    def __init__(self, name: str, model: Any, end_token: str = ""):
        super().__init__(name, model.get_embedding_dimension(), model.max_seq_length)
        self.text_encoder, self.end_token = model.float().eval(), end_token

    def token_counts(self, texts: list[str]) -> list[int]:
        ids = self.text_encoder.tokenizer([text + self.end_token for text in texts], verbose=False)["input_ids"]
        return [len(each) for each in ids]

    def encode(self, texts: list[str]) -> torch.Tensor:
        texts = [text + self.end_token for text in texts]
        return self.text_encoder.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)


def load_text_encoder(
    name: str,
    weights: Mapping[str, torch.Tensor] | None = None,
    tokenizer: str | Path | None = None,
    pooling: str | None = None,
    trust_remote_code: bool = False,
) -> TextEncoder:
    """A text encoder.

    Args:
        name: a letter of PUBLISHED, a model of the Hugging Face hub, or a local folder.
        weights: the transformer's weights, from a checkpoint that holds them: none are then read or downloaded. Their names may
            begin with `text_encoder.` or `model.`.
        tokenizer: where the tokenizer comes from, a name or a folder; None: from `name`.
        pooling: how a text's vector is made: `mean` of the last outputs over its tokens, the output of the first token (`cls`),
            or as the model's files for sentence-transformers say (`sentence`). None: a published model's own; `sentence` for a
            folder that has such files; else `mean`.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        UserError: a package is missing, there is no such model, or the weights do not fit it.
    """
    recipe = PUBLISHED.get(name)
    name, pooling = (recipe.name, pooling or recipe.pooling) if recipe else (str(name), pooling)
    if pooling is None:
        pooling = "sentence" if Path(name, "modules.json").is_file() else "mean"
    if pooling not in POOLINGS:
        raise UserError(f"unknown pooling {pooling!r} of a text encoder: choose from {', '.join(POOLINGS)}")
    with _explained(name), quiet_hub("sentence_transformers"):
        for source in {str(tokenizer or name), *((name,) if weights is None else ())}:
            if not Path(source).exists() and (reason := unreachable(source)):
                raise OSError(reason)
        if pooling == "sentence":
            if weights is not None:
                raise UserError(f"text encoder {name}: weights in a checkpoint are read for transformers alone")
            return _load_sentence_encoder(name, tokenizer, trust_remote_code)
        import transformers

        found = transformers.AutoTokenizer.from_pretrained(tokenizer or name, trust_remote_code=trust_remote_code)
        if weights is None:
            model = transformers.AutoModel.from_pretrained(name, trust_remote_code=trust_remote_code)
        else:
            model = _with_weights(name, weights, _config(name, weights, tokenizer, trust_remote_code), trust_remote_code)
        return TransformerEncoder(name, model, found, pooling)


def _load_sentence_encoder(name: str, tokenizer: str | Path | None, trust_remote_code: bool) -> SentenceEncoder:
    if tokenizer is not None:
        raise UserError(f"text encoder {name}: a model of sentence-transformers has its own tokenizer")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name, device="cpu", trust_remote_code=trust_remote_code)
    if name != PUBLISHED["N"].name:
        return SentenceEncoder(name, model)
    model.max_seq_length = _NV_EMBED_TOKENS
    model.tokenizer.padding_side = "right"
    return SentenceEncoder(name, model, model.tokenizer.eos_token)


def _with_weights(name: str, weights: Mapping[str, torch.Tensor], config: Any, trust_remote_code: bool) -> Any:
    """The transformer of these weights, which it shares."""
    import transformers

    with torch.device("meta"):
        kind = type(transformers.AutoModel.from_config(config, trust_remote_code=trust_remote_code))
    state = _without_prefix(weights)
    model, report = kind.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True
    )
    missing = [key for key in report["missing_keys"] if not key.startswith(_POOLER)]
    wrong = [*missing, *report["unexpected_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if wrong:
        raise UserError(f"text encoder {name}: {len(wrong)} tensors of the checkpoint do not fit it, such as {min(wrong)}")
    return model


def _without_prefix(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in weights)), "")
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items()}


def _config(name: str, weights: Mapping[str, torch.Tensor], tokenizer: str | Path | None, trust_remote_code: bool) -> Any:
    """The transformer's configuration: from a local folder, from the weights themselves (BERT), or from the hub."""
    import transformers

    folder = next((f for f in (tokenizer, name) if f and Path(f, "config.json").is_file()), None)
    config = None if folder else _bert_config(_without_prefix(weights))
    return config or transformers.AutoConfig.from_pretrained(folder or name, trust_remote_code=trust_remote_code)


def _bert_config(state: Mapping[str, torch.Tensor]) -> Any:
    """The configuration that weights of BERT have, with heads of width 64 as all published ones; None for other weights."""
    import transformers

    types = state.get("embeddings.token_type_embeddings.weight")
    if types is None or len(types) != 2:  # RoBERTa has one type
        return None
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    return transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_attention_heads=max(1, width // 64),
        num_hidden_layers=len({key.split(".")[2] for key in state if key.startswith("encoder.layer.")}),
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
    )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Loading without the libraries' own reports, and with one-line errors."""
    try:
        from transformers.utils import logging as reports
    except ImportError as error:
        raise _missing(error) from error
    verbosity, has_bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise _missing(error) from error
    except pickle.UnpicklingError as error:
        raise UserError(f"text encoder {name}: its weights run code when they are loaded: refused") from error
    except (OSError, ValueError) as error:
        remedy = "trust_remote_code=True (--trust_remote_code) runs it" if "trust_remote_code" in str(error) else ""
        remedy = remedy or "without network, give the folder of a downloaded model"
        raise UserError(f"text encoder {name}: {first_line(error)} ({remedy})") from error
    finally:
        reports.set_verbosity(verbosity)
        if has_bars:
            reports.enable_progress_bar()


def _missing(error: ImportError) -> UserError:
    return UserError(f"text encoders need {error.name or 'transformers'}, which is not installed: pip install 'm2d-audio[clap]'")
