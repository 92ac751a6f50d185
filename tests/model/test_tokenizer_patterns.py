"""Regular expressions of strangers' tokenizers: plain ones run here, others where they can be stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kdn.core import TokenIds
from kdn.errors import BadInput, WeightsError
from kdn.model import load_model
from kdn.model.text.patterns import expansion_of, is_plain_pattern, patterns_in
from kdn.model.text.tokenizer import Tokenizer, load_tokenizer

Tiny = Callable[..., Path]

CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
WORDS = r"[^\r\n\p{L}\p{N}]?"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t)|" + WORDS + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES,
    WORDS + r"[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+" + CONTRACTIONS + r"?|\p{N}{1,3}|\s+",
    WORDS + r"((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+" + CONTRACTIONS + r"?|\p{N}",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{P}\p{S}]?[\p{L}\p{M}]+",
    "[\u4e00-\u9fa5\u3040-\u309f]+", r"[0-9][0-9][0-9]", r" ?[^(\s|.,!?)]+", r"\s?\p{L}++",
    r"(?=(\d{3})+(?!\d))", r"[\p{Han}]+|[\p{Ll}&&[^\p{Han}]]+",
]  # fmt: skip
NOT_PLAIN = [
    r"(a+)+b", r"(a|a)*b", r"(a?){50}b", r"(?:a*)*", r"a*a*a*b", r"\s*\s*x", r"(\w+)\1", r"(?x) a +",
    r"(?:\p{L}\p{M}*)+", "a?" * 40 + "a" * 40, r"((a{1000}){1000}){1000}", r"a{1,3}+b", r"(?(1)a)",
    r"(?<n>a)\k<n>", "x" * 5_000, r"(a", r"[a", r"a)b", r"[]a]", "(" * 50 + "a" + ")" * 50,
    r"(.*)(.*)(.*)x", r"(?:a|b)+c", r"\Q(\E",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_are_plain(pattern: str) -> None:
    assert is_plain_pattern(pattern)


@pytest.mark.parametrize("pattern", NOT_PLAIN)
def test_what_may_take_long_is_not(pattern: str) -> None:
    assert not is_plain_pattern(pattern)


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def definition(tiny_model: Tiny) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny_model("llama") / "tokenizer.json").read_text("utf-8"))
    return found


PHRASES = r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|\s+(?!\S)|\s+"
"""EXAONE's, which is published and not plain."""


def test_an_intricate_pattern_makes_the_same_tokens_apart(definition: dict[str, Any]) -> None:
    import tokenizers

    whole = json.dumps(definition | {"pre_tokenizer": split(PHRASES)})
    ours, theirs = Tokenizer(whole), tokenizers.Tokenizer.from_str(whole)
    for text in ("two words, 12 m\u0301 \u00e4", "", " \n ", "\U0001f600 <|end|>"):
        theirs.encode_special_tokens = True
        expected = theirs.encode(text, add_special_tokens=False)
        ids: TokenIds = tuple(expected.ids)
        assert ours.encode(text) == ids
        assert ours.edges(text) == expected.offsets
        assert ours.decode(ids, special=True) == text
    with pytest.raises(BadInput, match="half a character"):
        ours.encode("\ud800")


def test_a_text_that_takes_too_long_is_refused_and_the_next_is_taken(
    definition: dict[str, Any],
) -> None:
    ours = Tokenizer(json.dumps(definition | {"pre_tokenizer": split("a*a*[^a]")}), deadline_s=4.0)
    started = time.monotonic()
    with pytest.raises(BadInput, match=r"a text of 20000 characters: it took more than 4 s"):
        ours.encode("a" * 20000)
    assert time.monotonic() - started < 60
    assert ours.decode(ours.encode("aab")) == "aab"


def test_a_model_with_a_hostile_pattern_loads_in_time(tiny_model: Tiny, tmp_path: Path) -> None:
    made = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
    path = made / "tokenizer.json"
    known = json.loads(path.read_text("utf-8"))
    bombs = [
        ({"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "b"}, "searches for"),
        ({"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 5_000}, "times longer"),
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "ab"}] * 20}, "times longer"),
    ]  # fmt: skip
    for normalizer, why in bombs:
        path.write_text(json.dumps(known | {"normalizer": normalizer}), "utf-8")
        with pytest.raises(WeightsError, match=why):
            load_model(made, cache_dir=tmp_path)
    path.write_text(
        json.dumps(known | {"pre_tokenizer": split("((a{1000}){1000}){1000}")}), "utf-8"
    )
    loaded = load_model(made, cache_dir=tmp_path, dtype="float32", device="cpu")
    with suppress(BadInput):
        assert loaded.tokenizer.decode(loaded.tokenizer.encode("aaaa")) == "aaaa"
    path.write_text(json.dumps(known | {"pre_tokenizer": split("(a+)+b")}), "utf-8")
    loaded = load_model(made, cache_dir=tmp_path, dtype="float32", device="cpu")
    with pytest.raises(BadInput, match="cannot take a text of 40 characters: Onig"):
        loaded.tokenizer.encode("a" * 40)
    path.write_text("[]", "utf-8")
    with pytest.raises(WeightsError, match="is no tokenizer"):
        load_tokenizer(made)


def test_white_space_before_a_special_token_is_searched_once(definition: dict[str, Any]) -> None:
    token = {
        "id": 257, "content": "<|turn|>", "lstrip": True, "rstrip": False, "normalized": False,
        "single_word": False, "special": True,
    }  # fmt: skip
    added = [one for one in definition["added_tokens"] if one["id"] != 257] + [token]
    ours = Tokenizer(json.dumps(definition | {"added_tokens": added}))
    assert ours.encode("a  \n<|turn|>b", special=True) == (
        *ours.encode("a"),
        257,
        *ours.encode("b"),
    )
    started = time.process_time()
    assert len(ours.encode(" " * 100_000 + "x", special=True)) > 1
    assert time.process_time() - started < 10


def test_patterns_and_growth_are_found_wherever_they_stand() -> None:
    inner = {"type": "Replace", "pattern": {"Regex": "x"}, "content": "abc"}
    assert list(patterns_in([inner, {"a": {"b": [inner]}}, {"pattern": {"String": "x"}}])) == [
        "x",
        "x",
    ]
    assert expansion_of([inner, {"prepend": "ab"}, None]) == 6
