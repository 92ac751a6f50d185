"""A profile of a pair as one run that can be killed: each item is written down when it is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from kdn.calibration.share_profile import PairSide, ShareItem, ShareOutcome, ShareProfiler
from kdn.calibration.share_times import with_times
from kdn.clock import Clock
from kdn.core import Prompt, TokenIds
from kdn.core.blocks import pack_tokens
from kdn.errors import BadInput
from kdn.machine.files import make_private
from kdn.machine.journal import Journal, read_journal
from kdn.model import Document, LoadedModel, Message
from kdn.reuse.share.linear_map import HELD_OUT_EVERY, LinearMap, load_map, save_map
from kdn.reuse.share.pairs import PairRecord, ShareRecords
from kdn.reuse.share.plans import ShareChoice

__all__ = ["ShareQuestion", "item_of", "profile_again", "profile_pair", "refuse_unrelated"]

_COMPARED = 3
"""Contexts that tell whether two models are related."""
_SMALLEST_FIT = 2_000
"""Tokens of context; a map that is fitted on fewer does harm."""


class ShareQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a profile's data."""

    context: str
    question: str
    answer: str


def item_of(asked: ShareQuestion, model: LoadedModel) -> ShareItem:
    """The tokens as a chat has them: the context is a document, the answer ends the turn."""
    prompt: Prompt = model.chat.segments(
        [Message("user", asked.question)], [Document(None, asked.context)]
    )
    context = tuple(t for segment in prompt.segments[:-1] for t in segment.token_ids)
    answer = model.tokenizer.encode(asked.answer)
    if not answer:
        raise BadInput(f"the answer to {asked.question!r:.60} is empty; give its text")
    return ShareItem(context, prompt.segments[-1].token_ids, answer)


def profile_pair(
    sender: PairSide,
    receiver: PairSide,
    items: Sequence[ShareItem],
    map_contexts: Sequence[TokenIds],
    choices: Sequence[ShareChoice],
    records: ShareRecords,
    tell: Callable[[str, int, int], None] = lambda _what, _done, _of: None,
    clock: Clock | None = None,
) -> PairRecord:
    """Measure a pair and keep the profile; a run that was killed goes on where it was.

    `map_contexts` fit the map; with less than 2,000 tokens of them there is none.  `tell` hears what is
    done, and how far.  With a `clock` the ways are timed, too.  Raises BadInput for models that cannot
    share or have nothing to share, StoreError.
    """
    if sender.fingerprint == receiver.fingerprint:
        raise BadInput(
            f"sender and receiver are the same model, {receiver.name}: its KV is reused as it is, with"
            " nothing to measure; name two"
        )
    profiler = ShareProfiler(sender, receiver)
    refuse_unrelated(profiler, [item.context for item in items[:_COMPARED]])
    folder = records.folder(sender.fingerprint, receiver.fingerprint)
    make_private(folder)
    made = _map(profiler, map_contexts, folder, tell)
    path, name = folder / "items.jsonl", _digest(items, map_contexts, choices)
    lines = _measured(path, name)
    with closing(Journal(path, name, lines)) as journal:
        for number, item in enumerate(items):
            if number >= len(lines):
                found = [
                    [_shape(choice), one.kl, one.nll, one.agrees, one.work]
                    for choice, one in profiler.measure(item, choices, made)
                ]
                lines.append({"own": profiler.own_nll(item), "found": found})
                journal.add(lines[-1])
            tell("contexts", number + 1, len(items))
    measured = [[_read(one) for one in line["found"]] for line in lines]
    own_nll = sum(line["own"] for line in lines) / len(lines)
    record = profiler.record(items, measured, own_nll)
    if clock is not None:
        tell("times", 0, 1)
        record = with_times(record, profiler, items, made, clock)
    records.keep(record, made)
    return record


def profile_again(
    known: PairRecord,
    sender: PairSide,
    receiver: PairSide,
    items: Sequence[ShareItem],
    map_contexts: Sequence[TokenIds],
    records: ShareRecords,
    tell: Callable[[str, int, int], None] = lambda _what, _done, _of: None,
    clock: Clock | None = None,
) -> PairRecord:
    """Keep a profile that was measured of the same weights, perhaps elsewhere: its losses stay as they are.

    The map is fitted on `map_contexts` unless an earlier run has, and with a `clock` the ways are timed
    on `items` by this machine.  The caller compares the weights: losses depend on them, while a
    fingerprint also names kernels.
    """
    profiler = ShareProfiler(sender, receiver)
    folder = records.folder(sender.fingerprint, receiver.fingerprint)
    make_private(folder)
    made = _map(profiler, map_contexts, folder, tell)
    record = msgspec.structs.replace(
        known.without_times(), sender=sender.fingerprint, receiver=receiver.fingerprint
    )
    if clock is not None:
        tell("times", 0, 1)
        record = with_times(record, profiler, items, made, clock)
    records.keep(record, made)
    return record


def refuse_unrelated(profiler: ShareProfiler, contexts: Sequence[TokenIds]) -> None:
    """Raises BadInput for a sender whose KV is further from the receiver's than zeros would be."""
    apart = fmean(profiler.distance(context) for context in contexts)
    if not apart < 1:  # no number is refused, too
        sender, receiver = profiler.sender.name, profiler.receiver.name
        raise BadInput(
            f"the KV of {sender} differs from that of {receiver} by {apart:.2f} times its own square"
            " (zeros would by 1): their weights have nothing to do with each other; choose two"
            " fine-tunes of one base"
        )


def _map(
    profiler: ShareProfiler,
    contexts: Sequence[TokenIds],
    folder: Path,
    tell: Callable[[str, int, int], None],
) -> LinearMap | None:
    """The map of these contexts: the one that an earlier run fitted on them, or a new one."""
    total = sum(map(len, contexts))
    if total < _SMALLEST_FIT or len(contexts) < HELD_OUT_EVERY:
        return None
    name = hashlib.sha256(b"".join(map(pack_tokens, contexts))).hexdigest()[:16]
    config = profiler.receiver.model.decoder.config
    path = folder / f"fit-{name}.safetensors"
    found = load_map(path, config.num_layers, 2 * config.kv_size)
    if found is None:
        found = profiler.fit(contexts, lambda done: tell("tokens of the map", done, total))
        save_map(path, found)
    return found


def _measured(path: Path, name: str) -> list[dict[str, Any]]:
    """What an earlier run of this name has measured, an item a line."""
    try:
        of, lines = read_journal(path)
        return [json.loads(line) for line in lines] if of == name else []
    except (OSError, ValueError):
        return []


def _digest(
    items: Sequence[ShareItem], contexts: Sequence[TokenIds], choices: Sequence[ShareChoice]
) -> str:
    state = hashlib.sha256(repr(tuple(choices)).encode())
    for item in items:
        for part in (item.context, item.question, item.answer):
            state.update(pack_tokens(part) + b"/")
    for context in contexts:
        state.update(pack_tokens(context) + b"/")
    return state.hexdigest()


def _shape(choice: ShareChoice) -> list[Any]:
    return [choice.group, choice.ratio, choice.mapped]


def _read(line: list[Any]) -> tuple[ShareChoice, ShareOutcome]:
    (group, ratio, mapped), kl, nll, agrees, work = line
    choice = ShareChoice(None if group is None else (group[0], group[1]), ratio, mapped)
    return choice, ShareOutcome(kl, nll, agrees, work)
