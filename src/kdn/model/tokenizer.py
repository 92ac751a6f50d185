"""Text to token ids and back, by the tokenizer that was published with the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import xxhash

from kdn.core import TokenIds
from kdn.errors import WeightsError

__all__ = ["Incremental", "Tokenizer", "load_tokenizer"]

_BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no character (yet)."""


class Tokenizer:
    """One model's tokenizer. Safe to use from several threads: nothing in it changes."""

    def __init__(
        self,
        definition: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        add_bos: bool = False,
        eos_ids: TokenIds = (),
    ) -> None:
        """`definition` is the text of a tokenizer.json."""
        self._marked = tokenizers.Tokenizer.from_str(definition)
        self._plain = tokenizers.Tokenizer.from_str(definition)
        self._plain.encode_special_tokens = True
        self.bos_token = bos_token or ""
        self.eos_token = eos_token or ""
        self.bos_ids: TokenIds = self.encode(self.bos_token, special=True) if add_bos else ()
        """What a prompt that follows no template begins with; often nothing."""
        own = self._marked.token_to_id(eos_token) if eos_token else None
        self.eos_ids: TokenIds = tuple(dict.fromkeys((*eos_ids, *(() if own is None else (own,)))))
        self.vocab_size: int = self._marked.get_vocab_size()
        self.digest: str = xxhash.xxh3_128_hexdigest(definition.encode())
        self._special = frozenset(
            i for i, token in self._marked.get_added_tokens_decoder().items() if token.special
        )

    def encode(self, text: str, *, special: bool = False) -> TokenIds:
        """The ids of `text`, nothing added.

        Only with `special` does `<|im_end|>` and its like become one special token; otherwise it is
        text like any other, as is right for what users and documents say.
        """
        chosen = self._marked if special else self._plain
        return tuple(chosen.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids; special tokens are left out unless `special`."""
        text: str = self._marked.decode(list(token_ids), skip_special_tokens=not special)
        return text

    def token_text(self, token_id: int) -> str:
        """One token as text, special ones too. Half a character reads as U+FFFD."""
        return self.decode((token_id,), special=True)

    def is_special(self, token_id: int) -> bool:
        """Is it a control token, which `decode` leaves out?"""
        return token_id in self._special

    def detokenizer(self) -> Incremental:
        """Decodes one sequence as it is generated."""
        return Incremental(self)


class Incremental:
    """Turns ids into text as they come, holding back what is not yet a whole character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""
        """What the ids in `_ids` already gave out: decoding again with it keeps spaces right."""

    def push(self, token_id: int) -> str:
        """The text that became printable with this token; empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_BROKEN):
            return ""
        fresh = text[len(self._shown) :]
        # The last token stays as context: some decoders strip the space of a first word.
        self._ids = [token_id]
        self._shown = self._tokenizer.decode(self._ids)
        if self._shown.endswith(_BROKEN):
            self._ids, self._shown = [], ""
        return fresh

    def flush(self) -> str:
        """What was held back, at the end of generation, without a character that never came whole."""
        text = self._tokenizer.decode(self._ids)[len(self._shown) :].rstrip(_BROKEN)
        self._ids, self._shown = [], ""
        return text


def load_tokenizer(folder: Path, eos_ids: TokenIds = ()) -> tuple[Tokenizer, str | None]:
    """The tokenizer of a model folder, and its chat template if it has one.

    Raises WeightsError when tokenizer.json is absent or cannot be read.
    """
    settings = _settings(folder)
    path = folder / "tokenizer.json"
    try:
        definition = path.read_text("utf-8")
        tokenizer = Tokenizer(
            definition,
            bos_token=_token(settings, "bos_token"),
            eos_token=_token(settings, "eos_token"),
            add_bos=bool(settings.get("add_bos_token", _adds_bos(definition, settings))),
            eos_ids=eos_ids,
        )
    except OSError as error:
        raise WeightsError(
            f"{folder} lacks a readable tokenizer.json ({error}); fetch the model with its tokenizer"
        ) from error
    except Exception as error:  # the library raises bare Exception for a definition it cannot read
        raise WeightsError(f"{path} is no tokenizer ({error}); fetch the model again") from error
    return tokenizer, _chat_template(folder, settings)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); fetch the model again") from error
    return settings if isinstance(settings, dict) else {}


def _token(settings: dict[str, Any], name: str) -> str | None:
    """A token's text; older files wrap it in an object."""
    token = settings.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    return None if text is None else str(text)


def _adds_bos(definition: str, settings: dict[str, Any]) -> bool:
    """Newer files do not say it: then it stands in the post-processor, by the token's name."""
    bos = _token(settings, "bos_token")
    return bos is not None and bos in json.dumps(json.loads(definition).get("post_processor"))


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.exists():
        return beside.read_text("utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template or None
