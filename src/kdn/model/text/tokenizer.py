"""Text to token ids and back, by the tokenizer that was published with the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import xxhash

from kdn.core import TokenIds, text_of
from kdn.errors import BadInput, WeightsError
from kdn.machine.bounded import BoundedProcess
from kdn.model.text import encode_process
from kdn.model.text.patterns import expansion_of, is_plain_pattern, patterns_in

__all__ = ["Incremental", "Tokenizer", "load_tokenizer"]

_BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no character (yet)."""


ENCODE_DEADLINE_S = 5.0
"""A text takes so long at most where a tokenizer's patterns may take for ever, and more the longer it is."""
_CHARS_A_S = 100_000
_MAX_EXPANSION = 1024
"""How many times longer a tokenizer may make a text before it cuts it."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece writes a byte that no piece of its vocabulary covers."""
_SPACE = "\u2581"
"""How SentencePiece writes a space."""


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes the 256 bytes (GPT-2's `bytes_to_unicode`)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    spelt = {chr(byte): byte for byte in shown}
    return spelt | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


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
        deadline_s: float = ENCODE_DEADLINE_S,
    ) -> None:
        """`definition` is the text of a tokenizer.json.

        `deadline_s` is the time for a short text where its patterns may take for ever.
        """
        self._deadline_s = deadline_s
        parts = _checked(json.loads(definition))
        self._apart: BoundedProcess | None = None
        """Tokenises where the patterns may take long; the tokenizer here then has none."""
        if not all(map(is_plain_pattern, patterns_in(parts.get("pre_tokenizer")))):
            first = json.dumps(definition)
            self._apart = BoundedProcess(
                Path(encode_process.__file__), encode_process.MEMORY_BYTES, [first]
            )
            definition_here = json.dumps(parts | {"pre_tokenizer": None})
        else:
            definition_here = definition
        self._inner = tokenizers.Tokenizer.from_str(definition_here)
        self._inner.encode_special_tokens = True
        added = self._inner.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._byte_level = '"ByteLevel"' in json.dumps(parts.get("decoder"))
        self._special = {token.content: i for i, token in added.items() if token.special}
        self.special_ids = frozenset(self._special.values())
        """Tokens that are no text unless asked for, such as `<|im_end|>`."""
        self._cut = _special_cut(token for token in added.values() if token.special)
        self.bos_token = bos_token or ""
        self.eos_token = eos_token or ""
        self.bos_ids: TokenIds = self.encode(self.bos_token, special=True) if add_bos else ()
        """What a prompt that follows no template begins with; often nothing."""
        own = self._inner.token_to_id(eos_token) if eos_token else None
        self.eos_ids: TokenIds = tuple(dict.fromkeys((*eos_ids, *(() if own is None else (own,)))))
        self.vocab_size: int = self._inner.get_vocab_size()
        self.digest: str = xxhash.xxh3_128_hexdigest(definition.encode())

    @property
    def definition(self) -> str:
        """The text of a tokenizer.json, for libraries that read one."""
        return self._inner.to_str()

    def encode(self, text: str, *, special: bool = False) -> TokenIds:
        """The ids of `text`, nothing added.

        Only with `special` does `<|im_end|>` and its like become one special token; otherwise it is
        text like any other, as is right for what users and documents say.
        """
        if not special or self._cut is None:
            return tuple(self._encoded(text)[0])
        # The library would need a second copy of itself for this, which takes as long to build as
        # all else: so the text is cut here, at special tokens, and what is between is plain.
        token_ids: list[int] = []
        start = 0
        for match in self._cut.finditer(text):
            token_ids.extend(self.encode(text[start : match.start()]))
            token_ids.append(self._special[match[match.lastindex or 0]])
            start = match.end()
        return (*token_ids, *self.encode(text[start:]))

    def holds_special(self, text: str) -> bool:
        """Would `encode` with `special` make a special token of some of the text?"""
        return self._cut is not None and self._cut.search(text) is not None

    def edges(self, text: str) -> list[tuple[int, int]]:
        """By token of `encode(text)`, the half-open range of characters that it stands for."""
        return self._encoded(text)[1]

    def _encoded(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and edges. Raises BadInput for a text that cannot be tokenised, or not in time."""
        if self._apart is not None:
            text_of(text, "the text")
            answer = self._apart.ask({"text": text}, self._deadline_s + len(text) / _CHARS_A_S)
            if "ids" not in answer:
                raise BadInput(
                    f"the model's tokenizer cannot take a text of {len(text)} characters: "
                    f"{answer.get('error')}"
                )
            return answer["ids"], [(start, stop) for start, stop in answer["edges"]]
        try:
            found = self._inner.encode(text, add_special_tokens=False)
        except TypeError as error:
            raise BadInput(
                "the text holds half a character, as in badly decoded bytes; give whole ones"
            ) from error
        return found.ids, found.offsets

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids; special tokens are left out unless `special`."""
        text: str = self._inner.decode(list(token_ids), skip_special_tokens=not special)
        return text

    def token_text(self, token_id: int) -> str:
        """One token as text, special ones too. Half a character reads as U+FFFD.

        The space that it begins with is kept, which decoding it alone takes off where words carry it.
        """
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of UTF-8 that one token stands for, also where they are part of a character."""
        piece = self._inner.id_to_token(token_id)
        if piece is None or token_id in self._added:
            return (piece or "").encode()
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        if self._byte_level:
            return bytes(_BYTE_OF[character] for character in piece)
        return piece.replace(_SPACE, " ").encode()

    def detokenizer(self, *, special: bool = False) -> Incremental:
        """Decodes one sequence as it is generated; special tokens are left out unless `special`."""
        return Incremental(self, special=special)


def _special_cut(special: Iterable[tokenizers.AddedToken]) -> re.Pattern[str] | None:
    """Finds special tokens, longest first, with the white space that some of them swallow.

    Each has a group of its own, so that a match's `lastindex` leads to the token.
    """
    ordered = sorted(special, key=lambda token: len(token.content), reverse=True)
    # A run of white space is tried from its beginning only: from everywhere, it would take quadratic time.
    patterns = (
        (r"(?:(?<!\s)\s*+)?" if t.lstrip else "")
        + f"({re.escape(t.content)})"
        + ("\\s*" if t.rstrip else "")
        for t in ordered
    )
    return re.compile("|".join(patterns)) if ordered else None


_PARTIAL_TOKENS = 3
"""A character of UTF-8 has four bytes at most."""
_MOST_HELD = 8
"""More tokens without a whole character at their end are bytes that fit nowhere."""


class Incremental:
    """Turns ids into text as they come, holding back what is not yet a whole character."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped: frozenset[int] = frozenset() if special else tokenizer.special_ids
        self._known: list[int] = []
        """The last ids that gave text: decoding again with them keeps spaces right."""
        self._shown = ""
        """Their text."""
        self._held: list[int] = []
        """Ids that gave none yet."""

    def push(self, token_id: int) -> str:
        """The text that became printable with this token; empty while a character is incomplete."""
        if token_id in self._skipped:
            return ""
        self._held.append(token_id)
        fresh = self._fresh()
        if fresh.endswith(_BROKEN):
            return self._released() if len(self._held) > _MOST_HELD else ""
        # What made this text stays as context: some decoders strip the space of a first word.
        self._known, self._held = self._held, []
        self._shown = self._text(self._known)
        return fresh

    def flush(self) -> str:
        """At the end of generation: what was held back, less a character that never came whole."""
        text = self._fresh().rstrip(_BROKEN)
        self._known, self._shown, self._held = [], "", []
        return text

    def _released(self) -> str:
        """The text of all that is held but the last bytes, which may still become a character."""
        self._held, last = self._held[:-_PARTIAL_TOKENS], self._held[-_PARTIAL_TOKENS:]
        fresh = self._fresh()
        self._known, self._shown, self._held = self._held, self._text(self._held), last
        return fresh

    def _fresh(self) -> str:
        """The text of what is held."""
        text = self._text([*self._known, *self._held])
        if text.startswith(self._shown):
            return text[len(self._shown) :]
        return self._text(self._held)  # a byte that fits nowhere breaks the bytes before it, too

    def _text(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, special=True)


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
            add_bos=_adds_bos(definition, settings),
            eos_ids=eos_ids,
        )
    except OSError as error:
        raise WeightsError(
            f"{folder} lacks a readable tokenizer.json ({error}); fetch the model with it"
        ) from error
    except Exception as error:  # the library raises bare Exception for a definition it cannot read
        raise WeightsError(f"{path} is no tokenizer ({error}); fetch the model again") from error
    return tokenizer, _chat_template(folder, settings)


def _checked(parts: Any) -> dict[str, Any]:
    """The definition. Raises ValueError or TypeError for what could take this process's time or memory."""
    if not isinstance(parts, dict):
        raise TypeError("it is no mapping")
    for name in ("normalizer", "decoder", "post_processor"):
        intricate = [one for one in patterns_in(parts.get(name)) if not is_plain_pattern(one)]
        if intricate:
            raise ValueError(
                f"its {name} searches for {intricate[0][:80]!r}, which may take for ever"
            )
    if expansion_of([parts.get("normalizer"), parts.get("decoder")]) > _MAX_EXPANSION:
        raise ValueError(f"it makes texts more than {_MAX_EXPANSION} times longer")
    return parts


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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
    if "add_bos_token" in settings or bos is None:
        return bool(settings.get("add_bos_token")) and bos is not None
    return bos in json.dumps(json.loads(definition).get("post_processor"), ensure_ascii=False)


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    try:
        found = beside.read_text("utf-8") if beside.exists() else settings.get("chat_template")
        if isinstance(found, list):  # several named ones
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"the chat template in {folder} cannot be read ({error!r}); fetch the model again"
        ) from error
    if found is not None and not isinstance(found, str):
        raise WeightsError(
            f"the chat template in {folder} is a {type(found).__name__}, not a text; fetch the model again"
        )
    return found or None
