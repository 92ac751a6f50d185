"""A published-form tokenizer (tokenizer.json, tokenizer_config.json) from GGUF metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from kdn.errors import WeightsError

__all__ = ["tokenizer_files"]

_CONTROL, _USER_DEFINED = 3, 4
"""Values of tokenizer.ggml.token_type for tokens that the merges do not make."""

# How text is cut before merging, as published by the makers of each tokenizer.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _by_words(digits: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", digits)), behavior="isolated")
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _gpt2()],
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


_CUTS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "llama-bpe": lambda: _by_words("{1,3}"),
    "llama3": lambda: _by_words("{1,3}"),
    "qwen2": lambda: _by_words(""),
    "deepseek-r1-qwen": lambda: _by_words(""),
    "smollm": _single_digits,
}
"""tokenizer.ggml.pre -> the cut before merging."""
_LLAMA3 = ("llama-bpe", "llama3")
"""A word that is a token is one without merging, and a text begins with BOS where the file does not say."""


def tokenizer_files(get: Callable[..., Any]) -> dict[str, Any]:
    """{file name: content} for a model folder; `get(name, default)` reads the GGUF's metadata.

    Raises WeightsError for a damaged tokenizer, or a kind that is not byte-level BPE.
    """
    kind, cut = get("tokenizer.ggml.model", "missing"), get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or cut not in _CUTS:
        raise WeightsError(
            f"the GGUF file's tokenizer is of kind {kind!r}/{cut!r}, which kdn cannot rebuild; put "
            "the model's published tokenizer.json and tokenizer_config.json beside the file"
        )
    try:
        tokens = [str(token) for token in get("tokenizer.ggml.tokens", [])]
        types = list(get("tokenizer.ggml.token_type", [1] * len(tokens)))
        merges = [tuple(merge.split(" ", 1)) for merge in get("tokenizer.ggml.merges", [])]
        tokenizer = _build(tokens, types, merges, cut)
    except Exception as error:  # the library raises bare Exception for a vocabulary it refuses
        raise WeightsError(
            f"the GGUF file's tokenizer is damaged ({error}); fetch it again"
        ) from error
    return {
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": _settings(get, tokens),
    }


def _build(tokens: list[str], types: list[int], merges: list[Any], cut: str) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=cut in _LLAMA3))
    if cut in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _CUTS[cut]()
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return tokenizer


def _settings(get: Callable[..., Any], tokens: list[str]) -> dict[str, Any]:
    def token(name: str) -> str | None:
        index = get(f"tokenizer.ggml.{name}_token_id")
        if index is None:
            return None
        if not 0 <= int(index) < len(tokens):
            raise WeightsError(
                f"the GGUF file is damaged: its {name} token is {index} and its tokenizer knows "
                f"{len(tokens)} tokens; fetch it again"
            )
        return tokens[int(index)]

    return {
        "add_bos_token": bool(
            get("tokenizer.ggml.add_bos_token", get("tokenizer.ggml.pre") in _LLAMA3)
        ),
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "chat_template": get("tokenizer.chat_template"),
    }
