"""Constraints as masks over one model's tokens, by llguidance.

A constraint is judged before it is used: compiled in a thread beside the caller, within a deadline, with
bounds on its text, its grammar and the work of one mask.  So a hostile schema costs its sender an error.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from kdn.core import Constraint, ConstraintKind
from kdn.errors import BadInput, MissingExtra
from kdn.model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["COMPILE_DEADLINE_S", "Grammar", "GrammarMatcher", "Grammars"]

COMPILE_DEADLINE_S = 5.0
"""A constraint that takes longer to compile is refused; what the bounds let through takes a second or two."""
_MAX_GRAMMARS = 64
"""So many compiled constraints are kept; most have some 100 KB."""
_LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,  # 7 ms
    "step_max_items": 10_000,  # at worst 0.3 s, where most texts need 0.02 ms
    "max_lexer_states": 20_000,  # some 30 MB
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
_SPACE = r"[ \t\n]{0,16}"
"""White space between JSON's marks: bounded, since small models otherwise never come to an end."""


class GrammarMatcher:
    """Follows one answer: which tokens may come next, and whether it is complete."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, spoil: Callable[[], None]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._spoil = spoil

    def allowed(self) -> Tensor:
        """The ids of the tokens that may come next, ascending; ends of text where the answer may end.

        Raises BadInput when that takes more work than the bounds allow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        places = np.unpackbits(bits, bitorder="little")[: self._vocab_size].nonzero()[0]
        return torch.from_numpy(places)

    def take(self, token_id: int) -> None:
        """The answer goes on with one of the allowed tokens."""
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Can nothing more follow?"""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            self._spoil()
            why = _first_line(self._matcher.get_error())
            raise BadInput(f"the constraint is too complex to follow: {why}; simplify it")


class Grammar:
    """A compiled constraint. Every answer gets a matcher of its own; what was learnt of it is shared."""

    def __init__(self, start: LLMatcher, vocab_size: int) -> None:
        self._start = start
        self._vocab_size = vocab_size
        self.is_spoilt = False
        """An answer met a bound of what is shared: the next ones get it compiled again."""

    def matcher(self) -> GrammarMatcher:
        """At the beginning of an answer."""
        return GrammarMatcher(self._start.deep_copy(), self._vocab_size, self._spoil)

    def _spoil(self) -> None:
        self.is_spoilt = True


class Grammars:
    """Compiles constraints for one model, and keeps the last ones. Safe from several threads."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, *, deadline_s: float = COMPILE_DEADLINE_S
    ) -> None:
        """`vocab_size` is the number of logits, which may be more than the tokenizer's."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._deadline_s = deadline_s
        self._kept: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._lock = threading.Lock()
        self._building = threading.Lock()

    def compile(self, constraint: Constraint) -> Grammar:
        """The constraint, ready for answers; immediately when it is one of the last ones.

        Raises BadInput for what cannot be honoured, named by its keyword, or not within the deadline;
        MissingExtra without llguidance.
        """
        with self._lock:
            kept = self._kept.get(constraint)
            if kept is not None and not kept.is_spoilt:
                self._kept.move_to_end(constraint)
                return kept
        work = self._workers.submit(self._compiled, constraint)
        try:
            found = work.result(self._deadline_s)
        except Late:
            work.cancel()
            raise BadInput(
                f"the {constraint.kind} is not compiled within {self._deadline_s:g} s; simplify it"
            ) from None
        with self._lock:
            self._kept[constraint] = found
            while len(self._kept) > _MAX_GRAMMARS:
                self._kept.popitem(last=False)
        return found

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        """Two, so that one hostile constraint does not keep the others waiting."""
        return ThreadPoolExecutor(2, thread_name_prefix="kdn-grammar")

    def _vocabulary(self) -> LLTokenizer:
        with self._building:
            return self._built

    @cached_property
    def _built(self) -> LLTokenizer:
        """The tokens as llguidance wants them: half a second for 50,000."""
        from llguidance import LLTokenizer

        eos = list(self._tokenizer.eos_ids) or None
        try:
            return LLTokenizer(self._tokenizer.definition, n_vocab=self._vocab_size, eos_token=eos)
        except Exception as error:
            raise BadInput(
                f"answers of this model cannot be constrained: its tokenizer is not understood ({error})"
            ) from error

    def _compiled(self, constraint: Constraint) -> Grammar:
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError as error:
            raise MissingExtra(
                "constrained answers need llguidance: pip install 'kdn[structured]'"
            ) from error
        vocabulary, limits = self._vocabulary(), LLParserLimits(**cast("Any", _LIMITS))
        try:
            text = _grammar_text(constraint)
        except Exception as error:
            raise BadInput(
                f"the {constraint.kind} cannot be read: {_reason(str(error))}"
            ) from error
        matcher = LLMatcher(vocabulary, text, log_level=0, limits=limits)
        nothing_fits = not matcher.is_error() and not any(matcher.compute_bitmask())
        if matcher.is_error() or nothing_fits:
            why = _reason(matcher.get_error()) or "no text fulfils it"
            raise BadInput(f"the {constraint.kind} cannot be honoured: {why}")
        return Grammar(matcher, self._vocab_size)


def _grammar_text(constraint: Constraint) -> str:
    """The constraint in llguidance's own form."""
    from llguidance import LLMatcher, grammar_from

    kind, text = constraint.kind, constraint.text
    if kind in (ConstraintKind.JSON_OBJECT, ConstraintKind.JSON_SCHEMA):
        options: Any = {"whitespace_pattern": _SPACE, "coerce_one_of": False, "lenient": False}
        schema = text or '{"type": "object"}'
        return LLMatcher.grammar_from_json_schema(schema, overrides=options)
    if kind is ConstraintKind.REGEX:
        return LLMatcher.grammar_from_regex(text)
    if kind is ConstraintKind.CHOICE:
        texts = (json.dumps(one, ensure_ascii=False) for one in json.loads(text))
        return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
    return grammar_from("grammar", text)


def _reason(error: str) -> str:
    """What llguidance says, without its own names and without the state of its parser."""
    why = _first_line(error)
    if why.startswith("Unimplemented keys:"):
        keys = json.loads(why.partition(":")[2])
        return f"it uses {', '.join(keys)}, which {'is' if len(keys) == 1 else 'are'} not supported"
    return why


def _first_line(error: str) -> str:
    """The first line; an expression's error stands in the last."""
    lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("error: ")), "")
    return " ".join(filter(None, [lines[0] if lines else "", said]))[:300]
