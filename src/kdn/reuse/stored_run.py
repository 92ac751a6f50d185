"""The stored beginning of a prompt: finding it, opening it, and telling what of it is exact.

    prompt    prelude | document one | document two | history
    exact     ████████████████████████
    shared                            ██████████████████████████   computed over a sibling's KV

A request stores what it computes, from the end of the run that it reuses.  So blocks of a recipe begin
where exact ones end, and only both together are a run from the first token on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby, takewhile

from kdn.core import (
    EXACT,
    PUBLIC_SALT,
    ChainHash,
    Fingerprint,
    Invoked,
    Recipe,
    Request,
    TokenIds,
    chain_hash,
    chain_hashes,
)
from kdn.store import BlockHit, Match, Reader, Store
from kdn.store.index.index import Family

__all__ = [
    "exact_tokens",
    "longest_run",
    "made_as",
    "recipe_for_whole",
    "run_name",
    "stored_recipes",
    "stored_run",
    "taint_of",
    "whole_run",
]


def stored_run(
    store: Store,
    request: Request,
    fingerprint: Fingerprint,
    recipe: Recipe,
    invoked: Invoked | None,
) -> Match:
    """The longest run of exact blocks and blocks of that recipe, from the prompt's first token to the last
    but one; where it reaches an adapter's first row, it goes on with the adapter's."""
    token_ids = request.prompt.token_ids[:-1]
    stop = len(token_ids) if invoked is None else invoked.start
    found = store.match(fingerprint, recipe, request.salt, token_ids[:stop], or_exact=True)
    if invoked is None or found.num_tokens < stop or stop >= len(token_ids):
        return found
    more = store.match(
        invoked.fingerprint, recipe, request.salt, token_ids, invoked.start, or_exact=True
    )
    return Match((*found.hits, *more.hits))


def stored_recipes(
    store: Store,
    request: Request,
    fingerprint: Fingerprint,
    recipes: Sequence[Recipe],
    invoked: Invoked | None,
) -> list[Recipe]:
    """Those of which there are blocks that `stored_run` could find. It is one look, and counts nothing."""
    owners = (fingerprint,) if invoked is None else (fingerprint, invoked.fingerprint)
    families = itertools.product(owners, recipes, (request.salt, PUBLIC_SALT))
    stored = {family.recipe for family in store.index.among(itertools.starmap(Family, families))}
    return [recipe for recipe in recipes if recipe in stored]


def longest_run(
    store: Store,
    fingerprint: Fingerprint,
    recipes: Iterable[Recipe],
    salt: str,
    token_ids: TokenIds,
) -> Match:
    """The longest run of exact blocks and blocks of one of the recipes; between equal ones the first."""
    runs = (store.match(fingerprint, recipe, salt, token_ids, or_exact=True) for recipe in recipes)
    return max(runs, key=lambda run: run.num_tokens)


def recipe_for_whole(recipe: Recipe, token_ids: TokenIds) -> Recipe:
    """What names the blocks of these tokens where `recipe` made them as a whole.

    A block's key tells what stands before it and not what follows. But what is chosen in a text depends on
    all of it, so two texts that begin alike must not have one first block.
    """
    return _for_text(recipe, chain_hash(token_ids))


def whole_run(
    store: Store,
    fingerprint: Fingerprint,
    recipe: Recipe,
    salt: str,
    token_ids: TokenIds,
    ends: Sequence[int],
) -> Match | None:
    """All tokens up to the last of `ends` (ascending) that the recipe made as a whole; None: up to none.

    A prompt may end a document a thousand times, so all of its beginnings are hashed in one pass and the
    store is asked only about those of which it has any block.
    """
    texts = chain_hashes(token_ids, ends)
    recipes = {end: _for_text(recipe, text) for end, text in zip(ends, texts, strict=True)}
    families = (
        Family(fingerprint, one, own) for one in recipes.values() for own in (salt, PUBLIC_SALT)
    )
    stored = {family.recipe for family in store.index.among(families)}
    for end in sorted(recipes, reverse=True):
        if recipes[end] in stored:
            match = store.match(fingerprint, recipes[end], salt, token_ids[:end])
            if match.hits and match.num_tokens == end:
                return match
    return None


def _for_text(recipe: Recipe, text: ChainHash) -> Recipe:
    return replace(recipe, detail=f"{recipe.detail}/{text[:16]}")


def taint_of(blocks: Iterable[BlockHit | Reader]) -> Recipe:
    """What taints a run with these blocks, and all that is computed after it; EXACT: nothing does."""
    recipes = (block.id.recipe for block in blocks)
    return next((recipe for recipe in recipes if recipe.tainted), EXACT)


def exact_tokens(readers: Iterable[Reader]) -> int:
    """The tokens before the first tainted block."""
    leading = takewhile(lambda reader: not reader.id.recipe.tainted, readers)
    return sum(reader.num_tokens for reader in leading)


def made_as(readers: Iterable[Reader]) -> str:
    """The recipes that the run was made by, in order, each with its tokens: `exact 30+codec:int8 310`."""
    groups = groupby(readers, key=lambda reader: reader.id.recipe.name)
    return "+".join(f"{name} {sum(one.num_tokens for one in own)}" for name, own in groups)


def run_name(readers: Sequence[Reader], made: str, salt: str, token_ids: TokenIds) -> str:
    """A source's name for the blocks of a prompt's first tokens: equal KV under equal names."""
    num_tokens = sum(reader.num_tokens for reader in readers)
    owners = "+".join(dict.fromkeys(reader.id.fingerprint for reader in readers))
    return f"{owners}/{made}/{salt}/{chain_hash(token_ids[:num_tokens])}"
