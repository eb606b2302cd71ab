"""`m2d captions`: embeddings of a list's captions, continued after a kill; published files converted."""

import logging
import os

import numpy as np
import pytest
import torch
from recordings import run_module
from text_models import bert_folder

from m2d.cli.captions import main
from m2d.data.captions.store import open_captions
from m2d.models.text_encoder import TransformerEncoder, load_text_encoder

CAPTIONS = {"one": ["a dog barks", "a loud dog"], "two": ["rain falls on the roof"], "three": ["a piano sound"]}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(bert_folder(tmp_path_factory.mktemp("bert")))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{name}.wav,{text}" for name, texts in CAPTIONS.items() for text in texts]
    (tmp_path / "c.csv").write_text("\n".join(["file_name,caption", *rows]) + "\n")
    return tmp_path


def run(bert, more=""):
    return main(["c.csv", "--text_encoder", bert, *f"--out out.safetensors --batch_size 2 --device cpu {more}".split()])


def check(path, encoder):
    (captions,) = open_captions(str(path))
    found = {name: captions.take(np.arange(*captions.offsets[i : i + 2])) for i, name in enumerate(captions.ids)}
    assert found.keys() == CAPTIONS.keys() and captions.width == 32
    for name, texts in CAPTIONS.items():
        with torch.no_grad():
            np.testing.assert_allclose(found[name], encoder(texts).numpy(), rtol=2e-3, atol=2e-3)


def test_captions_become_embeddings_by_id(workplace, bert):
    assert run(bert) == 0
    check("out.safetensors", load_text_encoder(bert))
    assert main(["c.csv", "--text_encoder", bert, "--out", "out.npz", "--pooling", "cls", "--device", "cpu"]) == 0
    check("out.npz", load_text_encoder(bert, pooling="cls"))
    assert run(bert) == 2  # the output is there
    assert run(bert, "--overwrite") == 0


def test_a_killed_run_is_continued(workplace, bert, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    encoded, encode = [], TransformerEncoder.encode

    def stopping(self, texts):
        if len(encoded) == 1:
            encoded.append([])
            raise KeyboardInterrupt
        encoded.append(texts)
        return encode(self, texts)

    monkeypatch.setattr(TransformerEncoder, "encode", stopping)
    assert run(bert) == 130 and not (workplace / "out.safetensors").exists()
    assert run(bert, "--truncate") == 2 and "a run with other truncate: " in caplog.text
    assert run(bert) == 0 and "2 of 4 captions are done" in caplog.text
    assert [len(texts) for texts in encoded] == [2, 0, 2]
    monkeypatch.undo()
    check(workplace / "out.safetensors", load_text_encoder(bert))


def test_long_captions_are_an_error_unless_truncation_is_asked_for(workplace, bert, caplog):
    (workplace / "c.csv").write_text(f"file_name,caption\nlong.wav,{'rain ' * 40}\nlonger.wav,{'dog ' * 40}\n")
    assert run(bert) == 2 and "--truncate" in caplog.text
    assert run(bert, "--truncate --overwrite") == 0
    assert sum("cut to that length" in record.message for record in caplog.records) == 1


def test_published_files_are_converted(workplace):
    np.save("published.npy", {"-2nkOBtIn-M": np.ones((2, 4), np.float16), "b": np.zeros(4, np.float16)}, allow_pickle=True)
    assert main(["--from_npy", "published.npy", "--out", "out.safetensors"]) == 0
    (captions,) = open_captions("out.safetensors")
    assert list(captions.ids) == ["-2nkOBtIn-M", "b"] and captions.offsets.tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("c.csv --out out.txt", "ends in .safetensors or .npz"),
        ("c.csv --out out.npz --text_encoder no/such/folder", "text encoder no/such/folder"),
        ("c.csv --out out.npz --batch_size 0", "--batch_size"),
        ("c.csv --out c.csv", "ends in"),
        ("missing.csv --out out.npz", "missing.csv"),
        ("--from_npy c.csv --out out.npz", "without running code"),
        ("c.csv --out out.npz --columns text", "no column text"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(workplace, words, told, caplog):
    assert main(words.split()) == 2
    assert told in caplog.text and caplog.text.count("\n") == 1


def test_a_list_or_a_published_file_is_asked_for(capsys):
    for words in ("--out out.npz", "c.csv --from_npy p.npy --out out.npz"):
        with pytest.raises(SystemExit) as status:
            main(words.split())
        assert status.value.code == 2 and "LIST, or --from_npy" in capsys.readouterr().err


@pytest.mark.parametrize("pooling", ["cls", "sentence"])
def test_without_a_network_one_line_says_so(workplace, pooling):
    endpoint = "http://127.0.0.1:9"  # nothing listens there
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(workplace / "hf"), "HF_HUB_OFFLINE": "0"}
    arguments = [workplace / "c.csv", "--text_encoder", "B", "--pooling", pooling, "--out", workplace / "out.safetensors"]
    done = run_module("cli.captions", *arguments, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"text encoder google-bert/bert-base-uncased: {endpoint} cannot be reached, and the cache has no config.json" in line
