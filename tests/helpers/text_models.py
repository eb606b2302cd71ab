"""Small text encoders in local folders: a BERT with a vocabulary of whole words, and the same for sentence-transformers."""

from pathlib import Path

import torch

WORDS = "a the of dog cat barks meows rain falls on roof man woman speaks piano drum sound loud quiet can be heard".split()


def bert_folder(folder: Path, width: int = 32, heads: int = 2, positions: int = 24, seed: int = 0) -> Path:
    """Write a BERT of two blocks at random and its tokenizer to a folder, which is returned."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = dict(hidden_size=width, num_attention_heads=heads, num_hidden_layers=2, intermediate_size=2 * width)
    model = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=positions, **sizes))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def sentence_folder(folder: Path, bert: Path) -> Path:
    """Write a model of sentence-transformers, the mean of a BERT's outputs, to a folder, which is returned."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(bert))
    SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")]).save(str(folder))
    return folder
