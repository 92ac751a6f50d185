"""Answers of several tokens as a tree: only where answers part is there anything to ask.

lost card    ->  lost -> card          one question at the root (lost? new?), one after `lost`
lost phone               phone         (card? phone?); after `new` there is nothing to ask
new card         new
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdn.core import TokenIds
from kdn.rank.choices import Choice

__all__ = ["Fork", "fork_of"]


@dataclass(frozen=True)
class Fork:
    """A place where answers part: after `path`, one of `tokens` follows."""

    path: TokenIds
    """What all answers from here on have begun with."""
    tokens: TokenIds
    """One for each branch."""
    branches: tuple[tuple[int, ...], ...]
    """For each of `tokens` the places, among the choices, of the answers that go on with it."""
    forks: tuple[Fork | None, ...]
    """For each of `tokens` where its answers part again; None where one is left."""


def fork_of(choices: Sequence[Choice]) -> Fork:
    """The first fork of at least two choices, none of which begins with all of another."""
    return _fork(choices, range(len(choices)), ())


def _fork(choices: Sequence[Choice], members: Sequence[int], path: TokenIds) -> Fork:
    groups = _groups(choices, members, len(path))
    while len(groups) == 1:  # all go on alike: no question
        path = (*path, *groups)
        groups = _groups(choices, members, len(path))
    forks = tuple(
        _fork(choices, group, (*path, token)) if len(group) > 1 else None
        for token, group in groups.items()
    )
    return Fork(path, tuple(groups), tuple(map(tuple, groups.values())), forks)


def _groups(choices: Sequence[Choice], members: Sequence[int], at: int) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for member in members:
        groups.setdefault(choices[member].tokens[at], []).append(member)
    return groups
