"""A tiny BERT with random weights, in a folder as sentence-transformers writes one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

HIDDEN, INNER, LAYERS, HEADS, POSITIONS = 32, 64, 2, 4, 64
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{one}" for one in LETTERS)]


def write_tiny_bert(folder: Path, *, pools_first: bool = False, max_tokens: int = 48) -> Path:
    """Write it, and give `folder` back. Equal arguments write equal weights."""
    (folder / "1_Pooling").mkdir(parents=True)
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "vocab_size": len(VOCABULARY),
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    pooling = {"pooling_mode_cls_token": pools_first, "pooling_mode_mean_tokens": not pools_first}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    _tokenizer().save(str(folder / "tokenizer.json"))
    save_file(_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _tokenizer() -> Tokenizer:
    words = {word: number for number, word in enumerate(VOCABULARY)}
    made = Tokenizer(WordPiece(words, unk_token="[UNK]"))
    made.normalizer = Lowercase()
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def _weights() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        dense = {
            **{
                f"{at}.attention.self.{name}": (HIDDEN, HIDDEN)
                for name in ("query", "key", "value")
            },
            f"{at}.attention.output.dense": (HIDDEN, HIDDEN),
            f"{at}.intermediate.dense": (INNER, HIDDEN),
            f"{at}.output.dense": (HIDDEN, INNER),
        }
        for name, shape in dense.items():
            shapes[f"{name}.weight"] = shape
            shapes[f"{name}.bias"] = shape[:1]  # type: ignore[assignment]
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    weights = {name: torch.randn(shape, generator=random) / 4 for name, shape in shapes.items()}
    for name in norms:
        weights[f"{name}.weight"] = torch.ones(HIDDEN)
        weights[f"{name}.bias"] = torch.zeros(HIDDEN)
    return weights
