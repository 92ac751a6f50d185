"""The scheduler's side of a connector: what is stored of a prompt, what to load, what to save.

    new request ─> matched: how many tokens could come ─> allocated: into these blocks ─┐
                                                                                        v
    every step ─> step: which of the scheduled tokens to save ────────────────> StepPlan to the worker

Nothing here waits: a lookup asks the index of the store, in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdn.core import BLOCK_TOKENS, EXACT, Fingerprint, Recipe, TokenIds
from kdn.errors import KdnError
from kdn.scale.counts import TransferCounts
from kdn.store import Store

__all__ = ["LoadTask", "PromptFacts", "SaveTask", "ScheduledRequest", "StepPlan", "TransferPlanner"]


@dataclass(frozen=True)
class PromptFacts:
    """What a connector needs to know of a request."""

    request_id: str
    num_prompt_tokens: int
    salt: str = ""
    adapter: str | None = None
    """The digest of the LoRA adapter it is computed with."""
    load: bool = True
    save: bool = True
    recipe: Recipe = EXACT
    """How the KV was made that it may load: another one than `EXACT` was handed over for it alone."""


@dataclass(frozen=True)
class LoadTask:
    """Bring the KV of tokens [start, stop) into `table`; the tokens before give its name."""

    request_id: str
    adapter: str | None
    salt: str
    token_ids: TokenIds
    """All tokens up to `stop`."""
    start: int
    table: tuple[int, ...]
    """The block of each run of block tokens, from the first token of the prompt on."""
    recipe: Recipe = EXACT
    generation: str = ""
    """The planner's when the KV was looked up."""

    @property
    def stop(self) -> int:
        """The position after the last token to load."""
        return len(self.token_ids)


@dataclass(frozen=True)
class SaveTask:
    """Store the KV of tokens [start, stop), which is in `table` once the step is computed."""

    adapter: str | None
    salt: str
    token_ids: TokenIds
    """All tokens up to `stop`."""
    start: int
    table: tuple[int, ...]
    generation: str = ""
    """The planner's when the KV was computed."""


@dataclass(frozen=True)
class StepPlan:
    """What the worker does beside one step of the engine."""

    loads: tuple[LoadTask, ...] = ()
    saves: tuple[SaveTask, ...] = ()
    idle: bool = False
    """Does the engine compute nothing in this step, so that it may wait for loads?"""


@dataclass(frozen=True)
class ScheduledRequest:
    """A request of one step."""

    request_id: str
    num_computed: int
    """Tokens whose KV is there before the step."""
    num_scheduled: int
    table: Callable[[], Sequence[int]]
    """The engine's blocks of the request, from its first token on; asked for only to save."""


@dataclass
class _Followed:
    facts: PromptFacts
    token_ids: Sequence[int]
    """The engine's own list, which grows with the answer."""
    generation: str
    """The planner's when the request was last looked up, before any of it was computed."""
    start: int = 0
    """Where the last lookup began: what the engine had itself."""
    stored: int = 0
    """How many leading tokens the store has or was given."""
    loading_to: int = 0
    gave_up: bool = False
    """Did a load fail as a whole? Another would again, and the request would wait for ever."""
    tier: str = ""
    """Which tier has most of what the last lookup found."""


@dataclass
class TransferPlanner:
    """Plans for one scheduler. Not safe from several threads: the engine's loop calls it.

    `fingerprints` gives the fingerprint of every rank for an adapter and a generation: tokens count as
    stored when each rank's part is there.
    """

    store: Store
    block_tokens: int
    fingerprints: Callable[[str | None, str], Sequence[Fingerprint]]
    counts: TransferCounts
    least_tokens: int = 1
    handed: Fingerprint | None = None
    """Under which name KV is handed over; None where it cannot be."""
    generation: str = ""
    """Tells the weights that the engine may have now from those of its files; empty while it has these."""
    _followed: dict[str, _Followed] = field(default_factory=dict)
    _loads: list[LoadTask] = field(default_factory=list)

    def follow(self, facts: PromptFacts, token_ids: Sequence[int]) -> None:
        """A request came; `token_ids` are its prompt, and later its answer too."""
        self._followed[facts.request_id] = _Followed(facts, token_ids, self.generation)

    def renew(self, generation: str) -> None:
        """The engine's weights may be others from now on: what was stored is found no more.

        Requests whose KV is partly computed are not stored, unless the engine computes all of it again.
        """
        self.generation = generation
        self.handed = None  # those who hand KV over have the weights of the files

    def forget(self, request_id: str) -> None:
        """A request ended, however it did."""
        self._followed.pop(request_id, None)

    def matched(self, request_id: str, num_computed: int) -> int:
        """How many tokens after the first `num_computed` can be loaded: whole blocks of the engine.

        Leaves one token to compute, as the engine's own prefix cache does.
        """
        one = self._followed.get(request_id)
        if one is None or not (one.facts.load or one.facts.save):
            return 0
        one.generation = self.generation
        if one.loading_to:
            one.gave_up = True  # all of it failed, or the engine would not ask: it is computed
        if one.gave_up:
            one.stored = one.loading_to = 0
            return 0
        one.start = num_computed
        stored = self._match(one)
        one.stored = min(stored, one.facts.num_prompt_tokens)
        most = min(stored, len(one.token_ids) - 1) // self.block_tokens * self.block_tokens
        gain = most - num_computed
        return gain if one.facts.load and gain >= self.least_tokens else 0

    def allocated(self, request_id: str, num_tokens: int, table: Sequence[int]) -> None:
        """The engine took `num_tokens` of what was matched, to come into `table`."""
        one = self._followed.get(request_id)
        if one is None or num_tokens == 0:
            return
        stop = one.start + num_tokens
        blocks = -(-stop // self.block_tokens)
        one.loading_to = stop
        self.counts.add(loads=1, hit_tokens=num_tokens)
        self._loads.append(
            LoadTask(
                request_id,
                one.facts.adapter,
                one.facts.salt,
                tuple(one.token_ids[:stop]),
                one.start,
                tuple(table[:blocks]),
                one.facts.recipe,
                one.generation,
            )
        )

    def tier_of(self, request_id: str) -> str:
        """The tier that most of a request's load comes from; empty when nothing was found."""
        one = self._followed.get(request_id)
        return "" if one is None else one.tier

    def step(self, scheduled: Sequence[ScheduledRequest]) -> StepPlan:
        """What to do beside a step that computes these requests; forgets the loads it hands over."""
        loads, self._loads = tuple(self._loads), []
        saves = [task for one in scheduled if (task := self._save(one)) is not None]
        return StepPlan(loads, tuple(saves), idle=not scheduled)

    def _save(self, request: ScheduledRequest) -> SaveTask | None:
        one = self._followed.get(request.request_id)
        if one is None or one.generation != self.generation:
            return None
        if one.loading_to > request.num_computed:
            one.stored = min(one.stored, request.num_computed)  # a part of the load did not come
        one.loading_to = 0  # the load ended: after a preemption there may be another
        stop = self._complete(one.facts, request.num_computed + request.num_scheduled)
        if stop <= one.stored or not one.facts.save:
            return None
        start, one.stored = one.stored // BLOCK_TOKENS * BLOCK_TOKENS, stop
        return SaveTask(
            one.facts.adapter,
            one.facts.salt,
            tuple(one.token_ids[:stop]),
            start,
            tuple(request.table()[: -(-stop // self.block_tokens)]),
            one.generation,
        )

    def _complete(self, facts: PromptFacts, computed: int) -> int:
        """How many tokens are worth storing when so many are computed.

        While a prompt is computed in parts: whole blocks of the store. At its end also the rest, in whole
        blocks of the engine.
        """
        if computed < facts.num_prompt_tokens:
            return computed // BLOCK_TOKENS * BLOCK_TOKENS
        return facts.num_prompt_tokens // self.block_tokens * self.block_tokens

    def _fingerprints(self, facts: PromptFacts) -> Sequence[Fingerprint]:
        if facts.recipe == EXACT:
            return self.fingerprints(facts.adapter, self.generation)
        return [] if self.handed is None else [self.handed]

    def _match(self, one: _Followed) -> int:
        self.counts.add(lookups=1, lookup_tokens=len(one.token_ids))
        try:
            found = [
                self.store.match(fingerprint, one.facts.recipe, one.facts.salt, one.token_ids)
                for fingerprint in self._fingerprints(one.facts)
            ]
        except KdnError:
            return 0  # the store counted it
        if not found:
            return 0
        tokens = Counter[str]()
        for hit in found[0].hits:
            tokens[hit.tier] += hit.num_tokens
        one.tier = max(tokens, key=lambda tier: tokens[tier], default="")
        return min(match.num_tokens for match in found)
