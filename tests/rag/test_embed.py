"""Embedders: the dull one, and MiniLM against the published implementation."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kdn.errors import MissingExtra, WeightsError
from kdn.rag.minilm import MiniLm, find_minilm
from tests.rag.helpers import HashedWords

TEXTS = [
    "How do context managers close files?",
    "",
    "The with statement calls __exit__, which closes the file. " * 40,  # longer than 256 tokens
    "Bananas ripen faster in a paper bag.",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return find_minilm()
    except MissingExtra as error:
        pytest.skip(str(error))


def test_hashed_words_are_unit_vectors_that_know_shared_words() -> None:
    vectors = HashedWords(64).embed(["a cat", "A CAT!", "dogs bark", ""])
    assert vectors.shape == (4, 64)
    assert vectors[0] @ vectors[1] == pytest.approx(1)
    assert abs(vectors[0] @ vectors[2]) < 0.9
    assert np.linalg.norm(vectors, axis=1).tolist() == pytest.approx([1, 1, 1, 0])


def test_minilm_equals_the_published_implementation(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = MiniLm(folder, torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
        mine = ours.hidden(batch["input_ids"], batch["attention_mask"].bool())
        mask = batch["attention_mask"][:, :, None]
        pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    assert ((mine - hidden) * mask).abs().max() < 1e-5
    assert np.abs(ours.embed(TEXTS) - pooled.numpy()).max() < 1e-5


def test_vectors_do_not_depend_on_the_company_of_a_text(folder: Path) -> None:
    minilm = MiniLm(folder, torch.float32)
    together = minilm.embed(TEXTS)
    alone = np.concatenate([minilm.embed([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert minilm.embed([]).shape == (0, 384)


def test_bfloat16_turns_vectors_by_next_to_nothing(folder: Path) -> None:
    exact, quick = MiniLm(folder, torch.float32), MiniLm(folder, torch.bfloat16)
    cosines = (exact.embed(TEXTS) * quick.embed(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.999
    assert exact.name == quick.name


def test_a_folder_that_is_no_bert_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json"):
        MiniLm(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match="not a BERT folder"):
        MiniLm(tmp_path)
