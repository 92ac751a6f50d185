"""The reasons why a prompt's tokens were computed, each with one sentence and its page of advice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ADVICE_PAGE", "SENTENCES", "Explanation", "MissReason"]

ADVICE_PAGE = "docs/why-not.md"


class MissReason(StrEnum):
    """Why the prompt's next token was computed. The values are stable: dashboards count them."""

    ALL_REUSED = "all_reused"
    REUSE_OFF = "reuse_off"
    STEERED = "steered"
    PROMPT_LOGPROBS = "prompt_logprobs"
    NOTHING_STORED = "nothing_stored"
    NEW_TEXT = "new_text"
    NEW_QUESTION = "new_question"
    CHANGING_VALUE = "changing_value"
    THINKING_STRIPPED = "thinking_stripped"
    SYSTEM_PROMPT = "system_prompt"
    TOOLS_ORDER = "tools_order"
    TOOLS_CHANGED = "tools_changed"
    DOCUMENTS_ORDER = "documents_order"
    OTHER_DOCUMENT = "other_document"
    HISTORY_CHANGED = "history_changed"
    ADAPTER = "adapter"
    SALT = "salt"
    DTYPE = "dtype"
    WEIGHTS = "weights"
    LOSSY = "lossy"
    EVICTED = "evicted"
    LOAD_NOT_WORTH_IT = "load_not_worth_it"
    LOAD_FAILED = "load_failed"

    @property
    def advice(self) -> str:
        """Where the advice about it stands."""
        return f"{ADVICE_PAGE}#{self.value}"


SENTENCES: dict[MissReason, str] = {
    MissReason.ALL_REUSED: "everything but the last token came from the store",
    MissReason.REUSE_OFF: "the request asked that nothing stored be used",
    MissReason.STEERED: "the request is steered from here on, and such tokens are always computed",
    MissReason.PROMPT_LOGPROBS: "the prompt's log-probabilities were asked for: all of it is computed",
    MissReason.NOTHING_STORED: "no stored prompt of this model and tenant begins in this way",
    MissReason.NEW_TEXT: "everything stored that begins so was used; what follows is new",
    MissReason.NEW_QUESTION: "another question or message stands here, as is to be expected",
    MissReason.CHANGING_VALUE: "a date, a time, a number or an id differs, and the text goes on alike",
    MissReason.THINKING_STRIPPED: "the stored answer holds the model's thoughts, which the template"
    " leaves out when the answer comes back as history",
    MissReason.SYSTEM_PROMPT: "another system prompt stands here",
    MissReason.TOOLS_ORDER: "the same tools are described in another order",
    MissReason.TOOLS_CHANGED: "other tools are described here",
    MissReason.DOCUMENTS_ORDER: "the same documents stand in another order",
    MissReason.OTHER_DOCUMENT: "another document stands here",
    MissReason.HISTORY_CHANGED: "an earlier turn of the conversation differs",
    MissReason.ADAPTER: "the same text is stored for another adapter of this model",
    MissReason.SALT: "the same text is stored under another salt",
    MissReason.DTYPE: "the same text is stored for another number type",
    MissReason.WEIGHTS: "the same text is stored for other weights, another tokenizer or another version",
    MissReason.LOSSY: "the same text is stored with a loss that this request does not allow",
    MissReason.EVICTED: "this text was stored, and has left the store: evicted, expired or cleared",
    MissReason.LOAD_NOT_WORTH_IT: "computing these tokens is sooner than using what is stored of them",
    MissReason.LOAD_FAILED: "a stored block could not be loaded",
}
"""One sentence a reason, without a full stop."""


@dataclass(frozen=True)
class Explanation:
    """Where a prompt left what is stored, and why as far as can be told.

    Texts are the request's own, and those of its tenant's or of public blocks; empty where the store is
    sealed, or where nothing stored goes on otherwise.
    """

    reason: MissReason
    num_tokens: int
    """Of the prompt."""
    reused: int
    """Tokens that came from the store, however."""
    stored: int
    """Tokens at the prompt's beginning that the store held."""
    place: int
    """Position of the first token that was computed for want of a stored one."""
    role: str
    """Of the prompt's part that holds it: prelude, document, history, instruction or question."""
    before: str = ""
    """The text in front of the place, which both prompts have."""
    text: str = ""
    """How this prompt goes on."""
    stored_text: str = ""
    """How the most similar stored prompt goes on."""
    detail: str = ""
    """What differs, in a few words, where that is known."""

    @property
    def sentence(self) -> str:
        """The reason as one sentence."""
        more = f" ({self.detail})" if self.detail else ""
        return f"at token {self.place} of {self.num_tokens}: {SENTENCES[self.reason]}{more}"
