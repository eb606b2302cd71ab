"""The encoder that comes with the project: its file, its embeddings, and the message where it is missing."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from m2d.checkpoint import shipped
from m2d.checkpoint.errors import CheckpointError
from m2d.checkpoint.file import resolve
from m2d.inference.embed import main as embed
from m2d.inference.runtime import RuntimeM2D


def a_sound() -> np.ndarray:
    t = np.arange(24000) / 16000
    return (0.3 * np.sin(2 * np.pi * 220 * t * (1 + t)) * np.exp(-t)).astype(np.float32)


#: Every 160th of the 960 numbers that `a_sound` had when the encoder was added.
EMBEDDING = [-0.381397, 0.214220, 1.652001, -0.050153, -0.997390, -2.365867]


def test_its_embedding_is_what_it_was():
    with torch.no_grad():
        vector = RuntimeM2D("tiny").get_scene_embeddings(torch.from_numpy(a_sound())[None])[0]
    assert vector.shape == (960,)
    np.testing.assert_allclose(vector[::160].numpy(), EMBEDDING, atol=1e-3)


def test_the_file_alone_gives_the_same(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "examples")
    from portable_m2d import PortableM2D

    with torch.no_grad():
        vector = PortableM2D(resolve("tiny")).get_scene_embeddings(torch.from_numpy(a_sound())[None])[0]
    np.testing.assert_allclose(vector[::160].numpy(), EMBEDDING, atol=1e-3)


def test_embed_uses_it_and_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "m2d")
    soundfile.write(tmp_path / "a.wav", a_sound(), 16000, subtype="FLOAT")
    assert embed([str(tmp_path / "a.wav"), "--out", str(tmp_path / "e.npz"), "--device", "cpu"]) == 0
    assert any(shipped.DEFAULT in message and "docs/weights.md" in message for message in caplog.messages)
    with np.load(tmp_path / "e.npz") as saved:
        np.testing.assert_allclose(saved["embeddings"][0, ::160], EMBEDDING, atol=1e-3)


def test_a_file_of_its_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_bytes(b"mine")
    assert resolve("tiny").read_bytes() == b"mine"


def test_a_missing_or_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="comes with a clone of this project"):
        resolve("tiny")
    file = shipped.SHIPPED["tiny"].file
    (tmp_path / file).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        resolve("tiny")


def test_the_card_names_the_file_and_its_data():
    card = (shipped.FOLDER / "README.md").read_text()
    for file, sha256, _ in shipped.SHIPPED.values():
        content = (shipped.FOLDER / file).read_bytes()
        assert file in card and hashlib.sha256(content).hexdigest() == sha256 and len(content) < 12e6
