"""Prefix reuse: the beginning of a prompt that was computed before is not computed again.

Exact, unless settings or the request allow blocks that went through a lossy codec.  `LossRule` says
which codec writes a request's blocks, and which it may read:

    setting codec      max_kl      writes                              reads besides exact
    none, lossless     any         that                                what max_kl allows
    int8, ...          none        that (it was chosen by name)    that
    int8, ...          a number    that if measured within, else       whatever was measured
                                   lossless                            within
    auto               a number    the smallest measured within, else  whatever was measured
                                   lossless                            within
    auto               none        lossless                            nothing

A request's own max_kl stands before the setting's; 0 means exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kdn.core import (
    BLOCK_TOKENS,
    EXACT,
    BlockId,
    Cause,
    Fingerprint,
    Invoked,
    KvShape,
    Planned,
    Prefix,
    Recipe,
    Request,
    RetainedKV,
    RetainedPrefix,
    TokenIds,
    chain_hashes,
)
from kdn.reuse.codec_quality import QualityRecord
from kdn.reuse.load_or_compute import EstimateS, worth_loading
from kdn.reuse.source import StoreSource, tokens_by_tier
from kdn.reuse.stored_run import (
    exact_tokens,
    longest_run,
    made_as,
    run_name,
    stored_run,
    taint_of,
)
from kdn.reuse.technique import Technique
from kdn.store import (
    CODECS,
    Block,
    BlockHit,
    Codec,
    Delivery,
    Loss,
    Match,
    Reader,
    Store,
    cut_blocks,
    open_leading,
)
from kdn.trace import NoTrace, Trace

__all__ = ["LossRule", "PrefixReuse", "lossy_recipe", "run_bytes"]


AUTO = "auto"


def lossy_recipe(codec: str) -> Recipe:
    """How KV was made that went through a codec, and KV that was computed after such KV."""
    return Recipe((Cause.CODEC,), codec)


@dataclass(frozen=True)
class LossRule:
    """The settings, and where measurements are found. By default nothing may be lost."""

    codec: str = "none"
    """A codec's name, or `auto`."""
    max_kl: float | None = None
    record: Callable[[Fingerprint], QualityRecord | None] = lambda _: None

    def writes(self, request: Request, fingerprint: Fingerprint) -> Codec:
        """What this request's blocks are written with."""
        if self.codec != AUTO:
            chosen = CODECS[self.codec]
            return chosen if self._allows(chosen, request, fingerprint) else CODECS["lossless"]
        gains = self._measured_within(request, fingerprint)
        return CODECS[max(gains, key=gains.__getitem__, default="lossless")]

    def reads(self, request: Request | None, fingerprint: Fingerprint) -> list[Recipe]:
        """Which recipes may stand in for computing, exact first, then the least loss first.

        None stands for a request that says nothing of it.
        """
        lossy = dict.fromkeys(self._measured_within(request, fingerprint))
        if self._named_without_limit(request):
            lossy[self.codec] = None
        return [EXACT, *map(lossy_recipe, lossy)]

    def allowed(
        self, request: Request, fingerprint: Fingerprint, follows: Recipe = EXACT
    ) -> dict[str, Loss]:
        """Lossy codecs that exact blocks may go through on their way to this request.

        Where blocks of a lossy recipe follow, the run stays what it says: none that loses more.
        """
        record, within = self.record(fingerprint), self._measured_within(request, fingerprint)
        if record is None:
            return {}
        losses = {name: Loss(record.codecs[name].kl, 1 / gain) for name, gain in within.items()}
        if not follows.tainted:
            return losses
        most = losses.get(follows.detail)
        return {} if most is None else {n: one for n, one in losses.items() if one.kl <= most.kl}

    def _limit(self, request: Request | None) -> float | None:
        asked = None if request is None else request.option(Prefix)
        return self.max_kl if asked is None or asked.max_kl is None else asked.max_kl

    def _named_without_limit(self, request: Request | None) -> bool:
        named = self.codec != AUTO and not CODECS[self.codec].lossless
        return named and self._limit(request) is None

    def _allows(self, codec: Codec, request: Request, fingerprint: Fingerprint) -> bool:
        if codec.lossless or self._named_without_limit(request):
            return True
        return codec.name in self._measured_within(request, fingerprint)

    def _measured_within(
        self, request: Request | None, fingerprint: Fingerprint
    ) -> dict[str, float]:
        """Lossy codecs whose measured KL is within the limit, least first, with their gains."""
        limit = self._limit(request)
        record = self.record(fingerprint) if limit else None
        if limit is None or record is None:
            return {}
        known = [
            (quality.kl, name, quality.gain)
            for name, quality in record.codecs.items()
            if name in CODECS and not CODECS[name].lossless and quality.kl <= limit
        ]
        return {name: gain for _, name, gain in sorted(known)}


class PrefixReuse(Technique):
    """Plans with the longest stored prefix, and stores what is worth keeping.

    The last prompt token is always computed: its logits are the answer's beginning.
    """

    def __init__(
        self,
        store: Store,
        shape: KvShape,
        fingerprint: Callable[[str | None], Fingerprint],
        loss: LossRule | None = None,
        *,
        estimate_s: EstimateS | None = None,
        load_within_s: float | None = None,
        invoked: Callable[[Request], Invoked | None] = lambda _: None,
        trace: Trace | None = None,
    ) -> None:
        """`fingerprint` names the model with an adapter (or None) on it; `invoked` says where in a
        prompt an adapter begins: what stands before it is the model's own, and found as that.

        With `estimate_s` blocks that would load too
        slowly are computed instead, and a node that transcodes sends its blocks as small as the
        deadline needs: that estimate, or `load_within_s`.
        """
        self._estimate_s = estimate_s
        self._load_within_s = load_within_s
        self._trace = trace or NoTrace()
        self._store = store
        self._shape = shape
        self._fingerprint = fingerprint
        self._invoked = invoked
        self._loss = loss or LossRule()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kdn-load")

    def match(self, token_ids: TokenIds, salt: str, adapter: str | None = None) -> Match:
        """What of these tokens would be found by a request that says nothing of loss. Moves no bytes."""
        fingerprint = self._fingerprint(adapter)
        recipes = self._loss.reads(None, fingerprint)
        return longest_run(self._store, fingerprint, recipes, salt, token_ids)

    def cached_tokens(self, request: Request) -> int:
        fingerprint = self._fingerprint(request.adapter)
        match = self._best_match(request, fingerprint)
        return self._worth_loading(match, request, fingerprint).num_tokens

    def refine(self, request: Request, planned: Planned) -> Planned:
        token_ids = request.prompt.token_ids
        fingerprint = self._fingerprint(request.adapter)
        found = self._best_match(request, fingerprint)
        match = self._worth_loading(found, request, fingerprint)
        stored = found.num_tokens
        planned = replace(planned, stored=stored, declined=stored - match.num_tokens)
        delivery = self._delivery(request, match, fingerprint)
        open_one = partial(self._open_one, delivery)
        readers = open_leading(self._store.tiers, match.hits, open_one)
        if not readers:
            return planned
        recipe, exact, made = taint_of(readers), exact_tokens(readers), made_as(readers)
        if delivery is not None and delivery.worst is not None and _from_node(readers):
            # which levels will come is not known yet: as much loss as may be is what is promised
            exact, made = 0, f"{made} by {delivery.worst}"
            recipe = recipe if recipe.tainted else lossy_recipe(delivery.worst)
        name = run_name(readers, made, request.salt, token_ids)
        clock = self._store.links.clock
        source = StoreSource(name, readers, self._shape, self._loader, clock)
        # What is computed after tainted KV is tainted.
        keep = RetainedPrefix(None, recipe) if recipe.tainted else None
        return replace(
            planned,
            plan=replace(planned.plan, prefix=source, keep=keep),
            exact=exact,
            lossy=source.num_tokens - exact,
            load_s=lambda: source.load_s,
            tiers=tokens_by_tier(readers),
            levels={} if delivery is None else delivery.sizes,
        )

    def retain(self, request: Request, retained: RetainedKV) -> None:
        """Store it: nothing is left for the techniques before."""
        fingerprint, invoked = self._fingerprint(request.adapter), self._invoked(request)
        recipe, codec = self._writing(request, retained, fingerprint)
        for block in self._blocks(request, retained, fingerprint, recipe, invoked):
            self._store.write_behind(block, codec)

    def close(self) -> None:
        """Stop reading ahead."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def _best_match(self, request: Request, fingerprint: Fingerprint) -> Match:
        """The longest run of exact blocks and one recipe that the request allows; exact where equal."""
        invoked = self._invoked(request)
        runs = [
            stored_run(self._store, request, fingerprint, recipe, invoked)
            for recipe in self._loss.reads(request, fingerprint)
        ]
        return max(runs, key=lambda run: run.num_tokens)

    def _worth_loading(self, match: Match, request: Request, fingerprint: Fingerprint) -> Match:
        """As much of it as comes sooner than it is computed, in the smallest encoding allowed."""
        if self._estimate_s is None:
            return match
        losses = self._loss.allowed(request, fingerprint, taint_of(match.hits))
        smallest = min((loss.share for loss in losses.values()), default=1.0)
        encoding = {tier.name for tier in self._store.tiers if tier.transcoder is not None}

        def speed(hit: BlockHit) -> float | None:
            found, share = self._store.links.bytes_per_s(hit.tier), 1.0
            if hit.id.recipe.tainted:  # it lies there as small as its codec made it
                share = losses[hit.id.recipe.detail].share if losses else 1.0
            elif hit.tier in encoding:
                share = smallest
            return None if found is None else found / share

        token_bytes, num_tokens = self._shape.token_bytes, request.prompt.num_tokens
        return worth_loading(match, num_tokens, token_bytes, speed, self._estimate_s)

    def _delivery(
        self, request: Request, match: Match, fingerprint: Fingerprint
    ) -> Delivery | None:
        """How a node is to send the match's blocks; None where nothing says by when."""
        limits = request.option(Prefix)
        within_s = (limits and limits.load_within_s) or self._load_within_s
        if within_s is None and self._estimate_s is not None:
            within_s = self._estimate_s(request.prompt.num_tokens, 0)
        encoding = {tier.name for tier in self._store.tiers if tier.transcoder is not None}
        num_tokens = sum(hit.id.num_tokens for hit in match.hits if hit.tier in encoding)
        if within_s is None or not num_tokens:
            return None
        return Delivery(
            within_s=within_s,
            num_tokens=num_tokens,
            links=self._store.links,
            allowed=self._loss.allowed(request, fingerprint, taint_of(match.hits)),
            on_read=self._store.note_delivered,
        )

    def _writing(
        self, request: Request, retained: RetainedKV, fingerprint: Fingerprint
    ) -> tuple[Recipe, Codec]:
        """The recipe and the codec of what is retained. KV that is tainted already stays as it is."""
        codec = self._loss.writes(request, fingerprint)
        if not retained.recipe.tainted:
            return (retained.recipe if codec.lossless else lossy_recipe(codec.name)), codec
        taint = CODECS.get(retained.recipe.detail)
        if taint is not None and retained.recipe == lossy_recipe(taint.name):
            return retained.recipe, taint
        return retained.recipe, codec if codec.lossless else CODECS["lossless"]

    def _open_one(self, delivery: Delivery | None, hit: BlockHit) -> Reader | None:
        """A reader of the block; None, and an event, where the store fails."""
        try:
            return self._store.open(hit, delivery=delivery)
        except Exception as error:  # noqa: BLE001  a block that cannot be opened is computed
            with suppress(Exception):
                self._trace.event("reuse.failed", technique="open", key=hit.id.key, why=repr(error))
            return None

    def _blocks(
        self,
        request: Request,
        retained: RetainedKV,
        fingerprint: Fingerprint,
        recipe: Recipe,
        invoked: Invoked | None,
    ) -> Iterator[Block]:
        first = len(retained.token_ids) if invoked is None else invoked.start
        cuts = _cut_at(first, _cuts(request, retained))
        chains = chain_hashes(retained.token_ids, [start for start, _ in cuts])
        for (start, stop), after in zip(cuts, chains, strict=True):
            tokens = retained.token_ids[start:stop]
            owner = fingerprint if invoked is None or start < first else invoked.fingerprint
            block_id = BlockId(owner, recipe, request.salt, after, start, tokens)
            runs = retained.kv[:, :, start - retained.start : stop - retained.start]
            at = slice(start - retained.start, stop - retained.start)
            states = {layer: run_bytes(rows[at]) for layer, rows in retained.hidden.items()}
            yield Block(block_id, self._shape, tuple(map(run_bytes, runs)), hidden=states)


def _from_node(readers: list[Reader]) -> bool:
    """May any of these come with more loss than it is kept with? Blocks that have lost come as they are."""
    return any(reader.is_delivered and not reader.id.recipe.tainted for reader in readers)


def _cuts(request: Request, retained: RetainedKV) -> list[tuple[int, int]]:
    """Block ranges of what is kept: a prompt is cut by its segments, an answer from its start."""
    stop = len(retained.token_ids)
    if retained.is_answer:
        return [(a, min(a + BLOCK_TOKENS, stop)) for a in range(retained.start, stop, BLOCK_TOKENS)]
    cuts = cut_blocks(request.prompt, stop)
    return [(max(a, retained.start), b) for a, b in cuts if b > retained.start]


def _cut_at(position: int, cuts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges, with the one that holds `position` inside cut in two there."""
    edges = [(a, position, b) if a < position < b else (a, b) for a, b in cuts]
    return [pair for edge in edges for pair in pairwise(edge)]


def run_bytes(run: Tensor) -> memoryview:
    """A tensor's bytes; of one layer's run [2, tokens, kv heads, dim] K, then V. They may lie apart: they are
    copied once, where the block is put together."""
    rows: np.ndarray[tuple[int, int], np.dtype[np.uint8]]
    rows = run.flatten(1).view(torch.uint8).numpy()
    return rows.data
