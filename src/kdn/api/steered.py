"""Texts that are steered beforehand: what is chosen of them, and their KV in the store."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdn.api.kdn import Kdn
from kdn.core import Plan, Prompt, Role, TokenIds
from kdn.engine import kv_shape, run_alone
from kdn.errors import BadInput, PromptTooLong
from kdn.machine.text import counted
from kdn.model import Message
from kdn.reuse.steer import EditedText, RunPlan, SteerRecipe, edit_text, edited_blocks
from kdn.store import CODECS

__all__ = ["ShownText", "captured_by", "prefill_steered", "scoring_heads", "show_steered"]


@dataclass(frozen=True)
class ShownText:
    """A text in pieces, with the share of the layers that chose each."""

    pieces: tuple[tuple[str, float], ...]
    num_columns: int
    """Columns that any layer chose."""


def prefill_steered(
    kdn: Kdn, text: str, recipe: SteerRecipe, name: str | None = None, salt: str = ""
) -> int:
    """Compute and store a document's KV behind the prelude as the recipe steers it; its number of tokens.

    Requests with `steer=recipe` use it.  Runs on the caller's thread, beside the engine.  Raises
    BadInput for an empty text and for a recipe of another model, PromptTooLong.
    """
    prompt, edited = _edited(kdn, text, recipe, name, salt)
    shape = kv_shape(kdn.model)
    codec = CODECS["lossless"]
    for block in edited_blocks(
        edited, prompt, shape, kdn.model.fingerprints.of(None), recipe, salt
    ):
        kdn.store.write_behind(block, codec)
    return sum(s.num_tokens for s in prompt.segments if s.role is Role.DOCUMENT)


def show_steered(kdn: Kdn, text: str, recipe: SteerRecipe) -> ShownText:
    """The text's tokens, and in how many layers each was chosen. Stores nothing."""
    prompt, edited = _edited(kdn, text, recipe, None, "")
    document = next(s for s in prompt.segments if s.role is Role.DOCUMENT)
    counts = [0] * document.num_tokens
    for own in edited.columns:
        for column in own:
            counts[column] += 1
    pieces = tuple(
        (kdn.model.tokenizer.token_text(token), count / len(edited.columns))
        for token, count in zip(document.token_ids, counts, strict=True)
    )
    return ShownText(pieces, sum(count > 0 for count in counts))


def scoring_heads(kdn: Kdn, recipe: SteerRecipe) -> list[TokenIds]:
    """The recipe's prompts as what stands before a text in a scoring pass."""
    found = []
    for text in recipe.prompts:
        prompt = kdn.prompts.segments([Message("system", text), Message("user", "?")])
        found.append(prompt.token_ids[: prompt.segments[0].num_tokens])
    return found


def captured_by(kdn: Kdn) -> RunPlan:
    """Runs plans alone on the model, beside its engine. They raise PromptTooLong beyond its context."""
    context = kdn.model.decoder.config.max_position

    def run(plan: Plan) -> Tensor:
        if plan.num_tokens > context:
            raise PromptTooLong(
                f"the text holds {counted(plan.num_tokens, 'token')} and the model's context {context};"
                " shorten the text"
            )
        kv = run_alone(kdn.model, kdn.parts.attention, plan, capture=True).captured
        assert kv is not None, "asked for"
        return kv

    return run


def _edited(
    kdn: Kdn, text: str, recipe: SteerRecipe, name: str | None, salt: str
) -> tuple[Prompt, EditedText]:
    if not text.strip():
        raise BadInput(f"{name or 'the text'} is empty; there is nothing to steer")
    config = kdn.model.decoder.config
    recipe.check_model(kdn.model.fingerprints.of(None))
    recipe.check_fits(config.num_layers, config.num_heads)
    prompt = kdn.prompts.of_document(text, name, salt)
    prelude, document = prompt.segments[:2]
    with torch.inference_mode():
        edited = edit_text(
            captured_by(kdn),
            config.num_layers,
            recipe,
            scoring_heads(kdn, recipe),
            prelude.token_ids,
            document.token_ids,
        )
    return prompt, edited
