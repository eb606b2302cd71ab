"""M2D-CLAP in RuntimeM2D and PortableM2D: every layout, both embeddings, text encoders, and what cannot be used."""

import argparse
import copy
import logging

import pytest
import torch
from checkpoint_files import (
    head_tensors,
    mlp_tensors,
    published_name,
    semantic_tensors,
    write_checkpoint,
    write_clap,
)
from text_models import bert_folder

from examples.portable_m2d import PortableM2D
from m2d.checkpoint.errors import CheckpointError
from m2d.checkpoint.weights import read_weights
from m2d.inference.runtime import RuntimeM2D
from m2d.models.registry import build
from m2d.models.text_encoder import load_text_encoder
from m2d.utils.errors import UserError

D = 192
TEXTS = ["a dog barks", "rain falls on the roof"]
MODELS = [RuntimeM2D, PortableM2D]


def open_model(kind, path, **options):
    return kind(weight_file=path, **options)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def audio():
    return torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert"), width=D, heads=3)


# ---------------------------------------------------------------- audio


LAYOUTS = {
    "2024": (mlp_tensors, dict()),
    "2025": (semantic_tensors, dict(prefix="backbone.", extras="p16kpBpTI", text={"text_encoder.x": torch.zeros(3)})),
    "2025, three blocks": (lambda width: semantic_tensors(width, 3), dict(prefix="backbone.", extras="p16kpN")),
    "2025, compiled": (semantic_tensors, dict(prefix="_orig_mod.backbone.", extras="p16kpB")),
    "mean": (lambda width: mlp_tensors(width, "text_proj"), dict(extras="pA")),
}


def projected_by_hand(tensors, tokens):
    """The training model's projector, filled with the tensors, over the tokens of one clip."""
    if not any(name.startswith("audio_proj") for name in tensors):
        return tokens.mean(dim=0)
    depth = len({name.split(".")[2] for name in tensors if ".sem_blocks." in name})
    model = build("m2d_clap_vit_tiny", img_size=(80, 64), decoder_depth=1, sem_mode=depth)
    model.load_state_dict(tensors, strict=False)
    return model.audio_proj(tokens[None])[0]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_audio_embeddings_of_every_layout(kind, layout, tmp_path, audio):
    make, options = LAYOUTS[layout]
    tensors = make(D)
    path = write_clap(tmp_path, tensors, **options)
    flat = open_model(kind, path, flat_features=True)
    tokens = flat.encode(audio)
    found = flat.encode_clap_audio(audio)
    close(found, torch.stack([projected_by_hand(tensors, clip) for clip in tokens]))
    close(flat.project_audio(tokens), found)
    stacked = open_model(kind, path)
    assert stacked.cfg.feature_d == 5 * D
    close(stacked.encode_clap_audio(audio), found)
    close(stacked.encode_clap_audio(audio[:, ::2], sample_rate=8000), flat.encode_clap_audio(audio[:, ::2], sample_rate=8000))
    assert not [name for name, parameter in flat.named_parameters() if "proj" in name.split(".")[0] and parameter.requires_grad]


@torch.no_grad()
def test_clips_of_a_padded_batch_are_embedded_as_if_alone(tmp_path, audio):
    runtime = RuntimeM2D(weight_file=write_clap(tmp_path, semantic_tensors(D)))
    found = runtime.encode_clap_audio(audio, lengths=[20_000, 9_000])
    close(found[1:], runtime.encode_clap_audio(audio[1:, :9_000]))
    close(found[:1], runtime.encode_clap_audio(audio[:1]))


@torch.no_grad()
def test_an_m2d_clap_checkpoint_serves_as_an_encoder(tmp_path, audio):
    """As with any other checkpoint, fine-tuned ones with their classifier too."""
    path = write_clap(
        tmp_path, semantic_tensors(D), prefix="backbone.", extras="p16kpBpTI", text={"text_encoder.x": torch.ones(2)}
    )
    weights = read_weights(path)
    assert weights.layout == "M2D-CLAP of 2025" and list(weights.text) == ["text_encoder.x"]
    assert weights.norm_stats == (-6.5, 3.5) and not any(name.startswith("text_encoder") for name in weights.state)
    assert RuntimeM2D(weight_file=path)(audio).shape == (2, 8, 5 * D)
    encoder = {name: tensor for name, tensor in weights.state.items() if not name.startswith(("audio_proj", "logit_scale"))}
    tuned = tmp_path / published_name("m2d_clap_vit_tiny", (80, 64), rate="p16kpN") / "tuned.pth"
    tuned.parent.mkdir()
    torch.save({f"module.ar.runtime.backbone.{k}": v for k, v in encoder.items()} | head_tensors(4, 5 * D), tuned)
    for kind in MODELS:
        assert open_model(kind, tuned, num_classes=4)(audio).shape == (2, 4)
        with pytest.raises(ValueError, match="no projector"):
            open_model(kind, tuned).encode_clap_audio(audio)


def test_a_whole_training_model_is_loaded_with_its_projectors(tmp_path, audio):
    path = write_checkpoint(tmp_path, model="m2d_clap_vit_tiny", size=(80, 64), off_emb_dim=32, sem_mode=2)
    whole = RuntimeM2D(weight_file=path, encoder_only=False)
    assert whole.backbone.text_proj.in_features == 32 and len(whole.backbone.audio_proj.sem_blocks) == 2
    with torch.no_grad():
        tokens = whole.backbone.drop_cls_token(whole.backbone.forward_encoder(torch.randn(2, 1, 80, 64), 0.0)[0])
        close(whole.project_audio(tokens), whole.backbone.audio_proj(tokens))


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("inner", ["text_encoder.", "model."])
def test_a_text_encoder_in_the_file_needs_its_tokenizer_alone(kind, inner, tmp_path, bert):
    """The folder's own weights are other ones, and are not read."""
    own = load_text_encoder(str(bert_folder(tmp_path / "own", width=D, heads=3, seed=1)), pooling="cls")
    text = {inner + name: tensor for name, tensor in own.text_encoder.state_dict().items()}
    model = open_model(kind, write_clap(tmp_path, semantic_tensors(D), extras="p16kpBpTI", prefix="backbone.", text=text))
    encoder = model.load_text_encoder(tokenizer=bert)
    assert model.text_encoder is encoder
    found = model.encode_clap_text(TEXTS)
    assert found.dtype == torch.float32 and not found.requires_grad
    with torch.no_grad():
        close(found, own(TEXTS))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("projector", ["none", "linear", "mlp"])
def test_text_embeddings_by_a_local_folder(kind, projector, tmp_path, bert, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    narrow = bert_folder(tmp_path / "bert", width=32)
    folder = bert if projector == "none" else narrow
    tensors = mlp_tensors(D)
    expected = load_text_encoder(str(folder))(TEXTS).detach()
    if projector == "linear":
        tensors |= {"text_proj.weight": torch.randn(D, 32), "text_proj.bias": torch.randn(D)}
        expected = expected @ tensors["text_proj.weight"].T + tensors["text_proj.bias"]
    elif projector == "mlp":
        tensors |= mlp_tensors(D, "text_proj", inputs=32)
        hidden = torch.relu(expected @ tensors["text_proj.0.weight"].T + tensors["text_proj.0.bias"])
        expected = hidden @ tensors["text_proj.2.weight"].T + tensors["text_proj.2.bias"]
    model = open_model(kind, write_clap(tmp_path, tensors, extras="p16kpA"))
    model.load_text_encoder(str(folder))
    close(model.encode_clap_text(TEXTS), expected)
    many = [TEXTS[i % 2] for i in range(131)]
    close(model.encode_clap_text(many), expected[[i % 2 for i in range(131)]])


@pytest.mark.parametrize("kind", MODELS)
def test_a_text_encoder_that_is_set_is_no_part_of_the_module(kind, tmp_path, bert):
    model = open_model(kind, write_clap(tmp_path, mlp_tensors(D)))
    names = set(model.state_dict())
    for encoder in (load_text_encoder(str(bert)), lambda texts, truncate=False: torch.full((len(texts), D), 2.0)):
        model.text_encoder = encoder
        with torch.no_grad():
            close(model.encode_clap_text(TEXTS), encoder(TEXTS))
        assert set(model.state_dict()) == names
    assert copy.deepcopy(model).encode_clap_text(TEXTS).tolist() == [[2.0] * D] * 2


@pytest.mark.parametrize("kind", MODELS)
def test_long_texts_are_cut_only_when_asked(kind, tmp_path, bert, caplog):
    model = open_model(kind, write_clap(tmp_path, mlp_tensors(D)))
    model.load_text_encoder(str(bert))
    long = ["rain " * 30]
    with pytest.raises(ValueError, match="24.*truncate=True"):
        model.encode_clap_text(long)
    with caplog.at_level(logging.WARNING):
        found = model.encode_clap_text(long, truncate=True)
        model.encode_clap_text(long, truncate=True)
    assert len([record for record in caplog.records if "cut to that length" in record.getMessage()]) == 1
    close(found, model.encode_clap_text(["rain " * 22]))


def test_settings_of_a_configuration_are_taken(tmp_path, bert):
    cfg = argparse.Namespace(text_encoder=str(bert), tokenizer="", trust_remote_code="False")
    runtime = RuntimeM2D(cfg, write_clap(tmp_path, mlp_tensors(D)))
    close(runtime.encode_clap_text(TEXTS), load_text_encoder(str(bert))(TEXTS).detach())


# ---------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoint_without_projector(kind, tmp_path, audio):
    model = open_model(kind, write_checkpoint(tmp_path, size=(80, 64)))
    for ask in (
        lambda: model.encode_clap_audio(audio),
        lambda: model.project_audio(torch.zeros(1, 3, D)),
        lambda: model.encode_clap_text(TEXTS),
    ):
        with pytest.raises(ValueError, match="checkpoint-1.pth has no projector"):
            ask()


@pytest.mark.parametrize("kind", MODELS)
def test_a_text_encoder_of_another_width(kind, tmp_path):
    model = open_model(kind, write_clap(tmp_path, mlp_tensors(D) | mlp_tensors(D, "text_proj", inputs=48)))
    model.text_encoder = lambda texts, truncate=False: torch.zeros(len(texts), 32)
    with pytest.raises(ValueError, match="width 32, .*checkpoint-1.pth takes 48"):
        model.encode_clap_text(TEXTS)


def test_a_text_encoder_of_another_width_is_refused_when_it_is_loaded(tmp_path):
    runtime = RuntimeM2D(weight_file=write_clap(tmp_path, mlp_tensors(D)))
    with pytest.raises(UserError, match="width 32, .*takes 192"):
        runtime.load_text_encoder(bert_folder(tmp_path / "bert", width=32))
    assert runtime.text_encoder is None


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("texts", ["rain", []])
def test_a_list_of_texts_is_expected(kind, texts, tmp_path):
    model = open_model(kind, write_clap(tmp_path, mlp_tensors(D)))
    with pytest.raises(ValueError, match="a list of texts is expected"):
        model.encode_clap_text(texts)


def test_tokens_of_another_shape(tmp_path):
    runtime = RuntimeM2D(weight_file=write_clap(tmp_path, mlp_tensors(D)))
    for shape in ((3, D), (1, 3, D + 1), (1, 0, D)):
        with pytest.raises(ValueError, match=r"patch tokens are \[batch, tokens, 192\]"):
            runtime.project_audio(torch.zeros(shape))


def test_a_letter_that_is_not_known(tmp_path):
    runtime = RuntimeM2D(weight_file=write_clap(tmp_path, mlp_tensors(D), extras="p16kpZ"))
    with pytest.raises(UserError, match="a text encoder 'Z' is not known"):
        runtime.encode_clap_text(TEXTS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"audio_proj.2.weight": torch.zeros(D, 7)}, "audio_proj is no projector of M2D-CLAP: look at its 2.weight"),
        ({"audio_proj.2.bias": None}, "look at its 2.bias"),
        ({"audio_proj.0.weight": torch.zeros(())}, r"audio_proj.0.weight is \[\], expected 2 dimensions"),
        ({"audio_proj.3.weight": torch.zeros(3)}, "look at its 3.weight"),
        ({"audio_proj.sem_token": torch.zeros(1, 1, D)}, "audio_proj is no projector"),
        ({"text_proj.weight": torch.zeros(5)}, r"text_proj.weight is \[5\], expected 2 dimensions"),
        ({"text_proj.0.weight": torch.zeros(5, 5)}, "text_proj is no projector"),
    ],
)
def test_tensors_that_are_no_projector(changed, message, tmp_path):
    tensors = mlp_tensors(D) | changed
    path = write_clap(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(CheckpointError, match=message):
        RuntimeM2D(weight_file=path)
