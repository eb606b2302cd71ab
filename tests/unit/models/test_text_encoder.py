"""Text encoders: poolings, padding, truncation, weights from a checkpoint, and what is missing."""

import json
import logging
import sys

import pytest
import torch
from text_models import bert_folder, sentence_folder

from m2d.models.text_encoder import PUBLISHED, load_text_encoder
from m2d.utils.errors import UserError

TEXTS = ["a dog barks", "rain falls on the roof"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert"))


def last_hidden_states(bert, text):
    """The outputs of one text alone, `[tokens, E]`, by transformers itself."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(bert)([text], return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(bert).eval()(**tokens).last_hidden_state[0]


@pytest.mark.parametrize("pooling", [None, "mean", "cls"])
def test_pooling_of_a_padded_batch_is_that_of_each_text_alone(bert, pooling):
    encoder = load_text_encoder(str(bert), pooling=pooling)
    with torch.no_grad():
        found = encoder(TEXTS)
    wanted = [last_hidden_states(bert, text) for text in TEXTS]
    wanted = torch.stack([each[0] if pooling == "cls" else each.mean(dim=0) for each in wanted])
    assert found.dtype == torch.float32 and found.shape == (2, encoder.width) == (2, 32)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_sentence_transformers_by_folder(bert, tmp_path):
    encoder = load_text_encoder(str(sentence_folder(tmp_path / "sentence", bert)))
    wanted = torch.stack([last_hidden_states(bert, text).mean(dim=0) for text in TEXTS])
    torch.testing.assert_close(encoder(TEXTS), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="27 tokens.*at most 24"):
        encoder(["rain " * 25])


def test_long_texts_are_truncated_only_when_asked_and_said_once(bert, caplog):
    encoder = load_text_encoder(str(bert))
    long = "rain " * 30
    with pytest.raises(ValueError, match="32 tokens.*at most 24.*--truncate"):
        encoder(["rain", long])
    with caplog.at_level(logging.WARNING), torch.no_grad():
        cut = encoder([long, long], truncate=True)
        encoder([long], truncate=True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    torch.testing.assert_close(cut[0], last_hidden_states(bert, "rain " * 22).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert encoder([]).shape == (0, 32)
    with pytest.raises(ValueError, match="list of texts"):
        encoder("a dog barks")


@pytest.mark.parametrize("prefix", ["text_encoder.", "model.", ""])
def test_weights_of_a_checkpoint_replace_those_of_the_folder(bert, tmp_path, prefix):
    other = load_text_encoder(str(bert_folder(tmp_path / "other", seed=1)))
    weights = {prefix + name: tensor for name, tensor in other.text_encoder.state_dict().items() if "pooler" not in name}
    with torch.no_grad():
        found = load_text_encoder(str(bert), weights)(TEXTS)
        torch.testing.assert_close(found, other(TEXTS))
    assert not torch.allclose(found, load_text_encoder(str(bert))(TEXTS))


def test_weights_of_berts_sizes_need_a_tokenizer_alone(tmp_path):
    bert = bert_folder(tmp_path / "bert", width=64, heads=1)
    whole = load_text_encoder(str(bert), pooling="cls")
    for name in ("config.json", "model.safetensors"):
        (bert / name).unlink()
    weights = {f"text_encoder.{name}": tensor for name, tensor in whole.text_encoder.state_dict().items()}
    again = load_text_encoder("B", weights, tokenizer=bert)
    assert again.pooling == PUBLISHED["B"].pooling
    with torch.no_grad():
        torch.testing.assert_close(again(TEXTS), whole(TEXTS))
    assert (
        again.text_encoder.embeddings.word_embeddings.weight.data_ptr()
        == weights["text_encoder.embeddings.word_embeddings.weight"].data_ptr()
    )


def test_weights_that_do_not_fit_are_refused(bert):
    weights = dict(load_text_encoder(str(bert)).text_encoder.state_dict())
    weights.pop("encoder.layer.1.output.dense.bias")
    with pytest.raises(UserError, match="1 tensors.*encoder.layer.1.output.dense.bias"):
        load_text_encoder(str(bert), weights)
    wider = {name: torch.cat([tensor, tensor]) if "word_embeddings" in name else tensor for name, tensor in weights.items()}
    with pytest.raises(UserError, match="2 tensors"):
        load_text_encoder(str(bert), wider)


def test_what_cannot_be_loaded_is_said_in_one_line(bert, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no/such/folder") as error:
        load_text_encoder(str(tmp_path / "no/such/folder"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="choose from mean, cls, sentence"):
        load_text_encoder(str(bert), pooling="max")
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(UserError, match=r"pip install 'm2d-audio\[clap\]'"):
        load_text_encoder(str(bert))


def test_code_that_comes_with_a_model_is_not_run_unasked(tmp_path):
    folder, marker = bert_folder(tmp_path / "bert"), tmp_path / "marker"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    (folder / "evil.py").write_text(code + "from transformers import BertConfig as Config, BertModel as Model\n")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "evil"}
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        load_text_encoder(str(folder))
    assert str(folder) in str(error.value) and not marker.exists()
