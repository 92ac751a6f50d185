"""Stored prompts that agree with a prompt up to a place and go on otherwise there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kdn.core import BLOCK_TOKENS, ChainHash, TokenIds, chain_hash, chain_hashes
from kdn.core.blocks import common_tokens, pack_tokens, unpack_tokens
from kdn.store.index.index import Entry

__all__ = ["StoredBranch", "agreement", "most_similar", "stored_branches"]

MOST_BRANCHES = 64
MOST_TOKENS = 4096
"""Of a stored prompt after the place: enough to see tools or documents in another order."""


@dataclass(frozen=True)
class StoredBranch:
    """A stored prompt after the place where it and the asked one part."""

    entry: Entry
    token_ids: TokenIds
    """From the place on; empty is impossible."""


def stored_branches(
    entries: Sequence[Entry], token_ids: Sequence[int], place: int
) -> list[StoredBranch]:
    """Every stored prompt that has `token_ids[:place]`, and another token than this one after them.

    Looks at every entry once; up to MOST_BRANCHES branches are followed.
    """
    near = [one for one in entries if place - BLOCK_TOKENS < one.start <= place < _stop(one)]
    starts = sorted({one.start for one in near})
    chains = dict(zip(starts, chain_hashes(token_ids, starts), strict=True))
    own = token_ids[place] if place < len(token_ids) else None
    followers: dict[ChainHash, list[Entry]] = defaultdict(list)
    for one in entries:
        if one.start > place:
            followers[one.after].append(one)
    branches = []
    for one in near:
        if one.after != chains[one.start]:
            continue
        tokens, at = unpack_tokens(one.tokens), place - one.start
        if tokens[:at] == tuple(token_ids[one.start : place]) and tokens[at] != own:
            whole = (*token_ids[: one.start], *tokens)
            branches.append(StoredBranch(one, _followed(whole, place, one, followers)))
            if len(branches) == MOST_BRANCHES:
                break
    return branches


def most_similar(branches: Iterable[StoredBranch], wanted: Sequence[int]) -> StoredBranch | None:
    """The branch that has most tokens in common with how the prompt goes on."""
    own = Counter(wanted[:MOST_TOKENS])

    def shared(branch: StoredBranch) -> tuple[float, int]:
        common = (Counter(branch.token_ids) & own).total()
        return common / len(branch.token_ids), common

    return max(branches, key=shared, default=None)


def agreement(entry: Entry, token_ids: Sequence[int]) -> int:
    """How many leading tokens of a prompt there would be if the entry were stored behind the rest of it.

    0 where the entry does not belong to this prompt.
    """
    if entry.start >= len(token_ids) or entry.after != chain_hash(token_ids[: entry.start]):
        return 0
    own = pack_tokens(token_ids[entry.start : _stop(entry)])
    return entry.start + common_tokens(entry.tokens, own)


def _stop(entry: Entry) -> int:
    return entry.start + entry.num_tokens


def _followed(
    whole: TokenIds, place: int, entry: Entry, followers: dict[ChainHash, list[Entry]]
) -> TokenIds:
    """The stored prompt from `place` on, block after block as long as one follows."""
    for block in _walk(whole, entry, followers, place + MOST_TOKENS):
        whole = (*whole, *block)
    return whole[place:]


def _walk(
    whole: TokenIds, entry: Entry, followers: dict[ChainHash, list[Entry]], stop: int
) -> Iterator[TokenIds]:
    while len(whole) < stop:
        after = [one for one in followers.get(chain_hash(whole), ()) if one.family == entry.family]
        if not after:
            return
        tokens = unpack_tokens(max(after, key=lambda one: len(one.tokens)).tokens)
        yield tokens
        whole = (*whole, *tokens)
