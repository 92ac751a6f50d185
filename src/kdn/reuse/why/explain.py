"""Explains one request: the place, the nearest stored prompt, the reason.

turned off, or steered?    ──> the request itself says so
reused fewer than stored?  ──> not worth loading, or the load failed
stored once, and left?     ──> evicted
stored for somebody else?  ──> adapter, salt, dtype, weights, lossy
a stored prompt parts here ──> judged by both texts (`texts.py`)
none does                  ──> new text, or nothing stored
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from kdn.core import EXACT, PUBLIC_SALT, Fingerprint, Request, Role, TokenIds, Usage
from kdn.errors import KdnError
from kdn.reuse.prefix import LossRule
from kdn.reuse.steer import Steer, steered_from
from kdn.reuse.why.branches import StoredBranch, agreement, most_similar, stored_branches
from kdn.reuse.why.reasons import Explanation, MissReason
from kdn.reuse.why.texts import Parting, judge
from kdn.store import Store, block_ids
from kdn.store.block.reader import read_header
from kdn.store.index.index import Entry, Family

__all__ = ["Explainer"]

Decode = Callable[[Sequence[int]], str]
Sees = Callable[[str], bool]
_WINDOW = 48
"""Tokens of text that are shown on each side of the place."""
_READ = 4096
"""Tokens of text that are judged."""
_MOST_FAMILIES = 256


@dataclass(frozen=True)
class _Asked:
    """One request as the questions below see it."""

    request: Request
    fingerprint: Fingerprint
    token_ids: TokenIds
    """Without the last, which is always computed."""
    reused: int
    stored: int
    declined: int
    ended_s: float | None
    sees: Sees


class Explainer:
    """Says why prompts were not reused further. Reads the store's index; moves no KV and counts nothing.

    Meant to run beside the engine, for somebody who asked: it looks at every block's name once.
    """

    def __init__(
        self,
        store: Store,
        fingerprints: Callable[[], Mapping[str | None, Fingerprint]],
        fingerprint: Callable[[str | None], Fingerprint],
        dtype: str,
        loss: LossRule,
        decode: Decode,
        *,
        show_text: bool = True,
    ) -> None:
        """`fingerprints` names the model with each adapter, and with none (None), `fingerprint` with what
        a request began with.

        `show_text` False tells places and reasons alone.
        """
        self._store = store
        self._fingerprints = fingerprints
        self._fingerprint = fingerprint
        self._dtype = dtype
        self._loss = loss
        self._decode = decode
        self._show_text = show_text

    def foresee(self, request: Request, sees: Sees | None = None) -> Explanation:
        """What would happen to a request that is not sent: nothing is declined or fails."""
        fingerprint = self._fingerprint(request.adapter)
        token_ids = request.prompt.token_ids[:-1]
        stored = self._longest(self._own_families(request, fingerprint), token_ids)
        exact = min(stored, _most_reused(request))
        usage = Usage(request.prompt.num_tokens, 0, exact=exact, stored=stored)
        return self.explain(request, usage, sees=sees)

    def explain(
        self,
        request: Request,
        usage: Usage,
        *,
        ended_s: float | None = None,
        sees: Sees | None = None,
    ) -> Explanation:
        """Why no more than `usage` says was reused. `sees` names the salts that the asker may know of;
        by default only the request's own."""
        reused = 0 if not request.reuse else usage.exact + usage.lossy
        asked = _Asked(
            request,
            self._fingerprint(request.adapter),
            request.prompt.token_ids[:-1],
            reused,
            max(usage.stored, reused),
            usage.declined,
            ended_s,
            sees or (lambda salt: salt in (request.salt, PUBLIC_SALT)),
        )
        reason = self._of_loading(asked)
        if reason is not None:
            return self._told(asked, reason, asked.reused)
        entries: Sequence[Entry] = self._store.index.entries()
        if ended_s is not None:  # what came later was no company of this request
            later = self._store.index.arrived_after(ended_s)
            entries = [one for one in entries if one.key not in later]
        reason = self._of_other_blocks(asked, entries)
        if reason is not None:
            return self._told(asked, reason, asked.stored)
        return self._of_texts(asked, entries)

    def _of_loading(self, asked: _Asked) -> MissReason | None:
        """What is known without a look at the store."""
        if not asked.request.reuse:
            return MissReason.REUSE_OFF
        if asked.request.sampling.prompt_logprobs is not None:
            return MissReason.PROMPT_LOGPROBS
        left_out = asked.stored - asked.reused
        is_steered = asked.request.option(Steer) is not None
        if left_out and is_steered and asked.reused == _most_reused(asked.request):
            return MissReason.STEERED
        if asked.declined:
            return MissReason.LOAD_NOT_WORTH_IT
        if left_out:
            return MissReason.LOAD_FAILED
        return MissReason.ALL_REUSED if asked.reused >= len(asked.token_ids) else None

    def _of_other_blocks(self, asked: _Asked, entries: Sequence[Entry]) -> MissReason | None:
        """Blocks that left, and blocks that are somebody else's."""
        own = set(self._own_families(asked.request, asked.fingerprint))
        if self._has_left(asked, own):
            return MissReason.EVICTED
        others = dict.fromkeys(
            one.family for one in entries if one.family not in own and asked.sees(one.family.salt)
        )

        def reach(family: Family) -> int:
            # a request stores what it computes: another recipe's blocks may begin where exact ones end
            behind = self._store.index.match([family], asked.token_ids, asked.stored)
            return max(self._longest([family], asked.token_ids), asked.stored + behind.num_tokens)

        found: list[tuple[int, Family]] = [
            (reach(family), family) for family in list(others)[:_MOST_FAMILIES]
        ]
        longest, family = max(found, key=lambda one: one[0], default=(0, None))
        segment_stop = self._segment_stop(asked)
        if family is None or longest <= asked.stored or longest < segment_stop:
            return None
        return self._difference(asked, family)

    def _segment_stop(self, asked: _Asked) -> int:
        """Where the part that holds the place ends: an opening that all prompts share says nothing."""
        for _, start, stop in asked.request.prompt.spans():
            if start <= asked.stored < stop:
                return min(stop, len(asked.token_ids))
        return len(asked.token_ids)

    def _has_left(self, asked: _Asked, own: set[Family]) -> bool:
        """Was a block that goes on beyond the place here before the request ended?"""
        for leaver in self._store.index.leavers():
            if asked.ended_s is not None and leaver.left_s > asked.ended_s:
                continue
            entry = leaver.entry
            if entry.family in own and agreement(entry, asked.token_ids) > asked.stored:
                return True
        return asked.ended_s is None and self._left_before_opening(asked, own)

    def _left_before_opening(self, asked: _Asked, own: set[Family]) -> bool:
        """The same of blocks that other processes knew, by the names this prompt's blocks would have."""
        left = {key for tier in self._store.tiers for key in tier.left_keys()}
        if not left:
            return False
        prompt, upto = asked.request.prompt, asked.request.prompt.num_tokens
        return any(
            block.start + block.num_tokens > asked.stored and block.key in left
            for family in own
            for block in block_ids(
                prompt,
                upto,
                fingerprint=family.fingerprint,
                recipe=family.recipe,
                salt=family.salt,
            )
        )

    def _difference(self, asked: _Asked, family: Family) -> MissReason:
        """In what another family of blocks differs from the request's own."""
        if family.fingerprint != asked.fingerprint:
            if family.fingerprint in self._fingerprints().values():
                return MissReason.ADAPTER
            return MissReason.WEIGHTS if self._same_dtype(family) else MissReason.DTYPE
        if family.salt not in (asked.request.salt, PUBLIC_SALT):
            return MissReason.SALT
        return MissReason.LOSSY

    def _same_dtype(self, family: Family) -> bool:
        """Does a block of the family say so? One that cannot be read says nothing."""
        for entry in self._store.index.entries():
            if entry.family != family:
                continue
            with suppress(KdnError):
                handle = self._store.tiers.open_local(entry.key)
                if handle is not None:
                    with closing(handle):
                        return read_header(handle, entry.key).shape.dtype == self._dtype
        return True

    def _of_texts(self, asked: _Asked, entries: Sequence[Entry]) -> Explanation:
        """What stored prompts that part from this one at the place say about it."""
        own = set(self._own_families(asked.request, asked.fingerprint))
        mine = [one for one in entries if one.family in own]
        place, token_ids = asked.stored, asked.token_ids
        found = most_similar(stored_branches(mine, token_ids, place), token_ids[place:])
        if found is None:
            reason = MissReason.NEW_TEXT if place else MissReason.NOTHING_STORED
            return self._told(asked, reason, place)
        reason, detail = judge(self._parting(asked, found, place))
        return self._told(asked, reason, place, found, detail)

    def _parting(self, asked: _Asked, found: StoredBranch, place: int) -> Parting:
        spans = list(asked.request.prompt.spans())
        at = next(i for i, (_, start, stop) in enumerate(spans) if start <= place < stop)
        segment, start, _ = spans[at]
        others = [
            self._decode(other.token_ids[:_READ])
            for i, (other, _, _) in enumerate(spans)
            if i != at and other.role is Role.DOCUMENT
        ]
        return Parting(
            before=self._decode(asked.token_ids[start:place]),
            text=self._decode(asked.token_ids[place : place + _READ]),
            stored=self._decode(found.token_ids),
            role=segment.role,
            documents=others,
        )

    def _told(
        self,
        asked: _Asked,
        reason: MissReason,
        place: int,
        found: StoredBranch | None = None,
        detail: str = "",
    ) -> Explanation:
        token_ids = asked.request.prompt.token_ids
        role = next(
            (
                str(one.role)
                for one, start, stop in asked.request.prompt.spans()
                if start <= place < stop
            ),
            "",
        )
        shows = self._show_text
        return Explanation(
            reason=reason,
            num_tokens=len(token_ids),
            reused=asked.reused,
            stored=asked.stored,
            place=place,
            role=role,
            before=self._decode(token_ids[max(place - _WINDOW, 0) : place]) if shows else "",
            text=self._decode(token_ids[place : place + _WINDOW]) if shows else "",
            stored_text=self._decode(found.token_ids[:_WINDOW]) if shows and found else "",
            detail=detail if shows else "",
        )

    def _own_families(self, request: Request, fingerprint: Fingerprint) -> list[Family]:
        return [
            Family(fingerprint, recipe, salt)
            for recipe in self._loss.reads(request, fingerprint)
            for salt in dict.fromkeys((request.salt, PUBLIC_SALT))
        ]

    def _longest(self, families: Sequence[Family], token_ids: TokenIds) -> int:
        """How much of the prompt these families hold, those of one recipe together with exact ones."""
        recipes = dict.fromkeys(family.recipe for family in families)
        return max(
            self._store.index.match(
                [one for one in families if one.recipe in (EXACT, recipe)], token_ids
            ).num_tokens
            for recipe in recipes
        )


def _most_reused(request: Request) -> int:
    """How many of the prompt's first tokens the request would take from a store that has all of them."""
    if request.sampling.prompt_logprobs is not None:
        return 0
    steer = request.option(Steer)
    if steer is not None:
        return steered_from(request.prompt, steer.factors)
    return request.prompt.num_tokens
