"""How much of a sibling's KV can stand in for a model's own, at what loss, and how much sooner it answers?

Each ordered pair is profiled on contexts of one half and judged on those of another: every way to share
that `kdn share profile` knows, its controls at equal work, and each layer alone.  A run that is stopped goes
on where it was (`--rows`).  `--only quality`, `--only timing` and `--only page` do a part of it;
`--only base` is the quality of what takes the base's KV, without pairs of two fine-tunes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import torch

from kdn import api
from kdn.bench.common.kept import begin_kept
from kdn.bench.common.result import BenchOptions, Result, commit_name, model_name, scratch_folder
from kdn.bench.share.arms import HALF, RANDOM, WHY, ShareArms, alora_outcome
from kdn.bench.share.pair import (
    BASE,
    SharePair,
    adapters_in,
    fitted_contexts,
    lengthened_items,
    pairs_of,
    task_items,
)
from kdn.bench.share.rows import ShareRows
from kdn.bench.share.sums import share_figures, share_notes, share_rows, share_summary
from kdn.bench.share.tasks import TASKS
from kdn.bench.share.timing import joined, timing_round
from kdn.calibration.share_profile import (
    PairSide,
    ShareItem,
    ShareProfiler,
    default_choices,
)
from kdn.calibration.share_run import profile_again, profile_pair
from kdn.config import BlendConfig, Config, EngineConfig, StoreConfig, home_folder
from kdn.core import ShareConfig
from kdn.errors import BadInput
from kdn.model import resolve
from kdn.reuse.share import PairRecord

__all__ = ["run"]

_PROFILED, _FITTED, _JUDGED = 24, 40, 200
"""Contexts of a profile and of a map; items a pair."""
_ROUNDS, _QUICK_ROUNDS = {500: 8, 2000: 4, 4000: 3}, {150: 2}
"""Rounds of timing by the context's tokens, of the first pair: those of one shape take the same time."""
_IN_TURN = 5
"""Pairs are judged in turn, so many items each, so that a run that is stopped has fair numbers of all."""
_EXPLAINED, _SCANNED_EVERY = 25, 5
"""So many items are judged by every arm; one in so many of them also with each layer alone."""
_LENGTHENED = {2000: 10, 4000: 5}
"""Items a pair behind contexts that were lengthened to so many tokens."""
_STORE_BYTES = 2 << 30
_PARTS = ("quality", "base", "timing", "page")
_USUAL = "smollm2-135m"
"""Its page is `share`; pages of other models have the model in their names."""


def run(options: BenchOptions) -> Result:
    """Profile, judge, time.  Raises BadInput without --adapters and --data, but for `--only page`."""
    if options.only not in (None, *_PARTS):
        raise BadInput(f"share has no part {options.only!r}; there are {', '.join(_PARTS)}")
    rows = ShareRows(options.rows)
    if options.only != "page":
        adapters = adapters_in(options.adapters, options.model)
        if options.data is None:
            raise BadInput(
                "share measures on data: --data names the folder with squad, hotpotqa, banking77, clinc150"
            )
        begin_kept(options, ())
        torch.set_num_threads(options.threads)
        with (
            scratch_folder() as folder,
            _opened(options, adapters, folder) as opened,
        ):
            crossed = options.only != "base"
            pairs = pairs_of(list(adapters), quick=options.quick, crossed=crossed)
            if options.only == "timing":
                pairs = pairs[:1]
            arms = [_arms(options, opened, pair, rows) for pair in pairs]
            if options.only != "timing":
                _judge_in_turn(options, opened, arms, rows)
            if options.only not in ("quality", "base"):
                _time(options, opened, *arms[0], rows)
    return Result(
        bench="share",
        model=options.model,
        config=options.describe_kept() | {"items": len(rows.items), "rounds": len(rows.rounds)},
        rows=share_rows(rows),
        summary=share_summary(rows),
        notes=share_notes(rows),
        figures=share_figures(rows),
        page=None if model_name(options.model) == _USUAL else f"share-{model_name(options.model)}",
    )


@contextmanager
def _opened(options: BenchOptions, adapters: dict[str, Path], scratch: Path) -> Iterator[api.Kdn]:
    """The model with the adapters; profiles and maps lie in a home of the benchmark's own, and stay."""
    home = options.home or home_folder(os.environ)
    config = Config(
        home=home / "bench" / "share",
        engine=EngineConfig(threads=options.threads, fit_idle_s=0),
        blend=BlendConfig(key_bias=0),  # nothing is measured in idle time
        share=ShareConfig(guard_every=0),
        store=StoreConfig(
            folder=scratch / "store", disk_bytes=_STORE_BYTES, memory_bytes=_STORE_BYTES
        ),
    )
    model = resolve(options.model, home)
    with api.open(model, config=options.note(config), adapters=adapters) as opened:
        yield opened


def _arms(
    options: BenchOptions, opened: api.Kdn, pair: SharePair, rows: ShareRows
) -> tuple[SharePair, ShareArms]:
    """The pair and its arms, profiled first."""
    record = _profiled(options, opened, pair, rows)
    sides = pair.sides(opened)
    shape = opened.model.decoder.config.kv_shape(
        str(opened.model.decoder.dtype).removeprefix("torch.")
    )
    made = opened.calibration.shares.map(sides[0].fingerprint, sides[1].fingerprint, shape)
    return pair, ShareArms(ShareProfiler(*sides), record, made, options.seed)


def _time(
    options: BenchOptions, opened: api.Kdn, pair: SharePair, arms: ShareArms, rows: ShareRows
) -> None:
    """Rounds at every length; one at the first length, before all others, only warms up."""
    assert options.data is not None, "checked"
    contexts = TASKS[pair.task](options.data, "test")
    ways, warm = [one for one in arms.frontier() if one.work <= HALF], False
    known, record = opened.calibration.shares.pairs, arms.record
    for other in set(known) - {(record.sender, record.receiver)}:
        del known[
            other
        ]  # the receiver would store layer inputs for it, and its own prefill take longer
    for length, usual in (_QUICK_ROUNDS if options.quick else _ROUNDS).items():
        done = sum((one["pair"], one["length"]) == (pair.name, length) for one in rows.rounds)
        for number in range(done, options.pairs or usual):
            options.say(f"share: {pair.name}, {length} tokens, round {number + 1} of timing")
            context = joined(opened, contexts, length, number)
            if not warm:
                nowhere = ShareRows(None)
                timing_round(options, opened, pair, context, ways, None, nowhere, length, "warm")
                warm = True
            name = str(number)
            timing_round(options, opened, pair, context, ways, arms.group, rows, length, name)


def _profiled(
    options: BenchOptions, opened: api.Kdn, pair: SharePair, rows: ShareRows
) -> PairRecord:
    """The pair's profile on its own half, which an earlier run may have begun or ended."""
    assert options.data is not None, "checked"
    count, fitted = (3, 0) if options.quick else (_PROFILED, _FITTED)
    items = task_items(opened, options.data, pair.task, "profile", count, quick=options.quick)
    own = [item for _, item in items]
    contexts = fitted_contexts(opened, options.data, pair.task, fitted)
    layers = opened.model.decoder.config.num_layers
    sender, receiver = pair.sides(opened)
    weights = f"{sender.weights} {receiver.weights}{' quick' * options.quick}"
    rows.refuse_others(pair.name, weights)
    clock = None if options.only in ("quality", "base") else options.clock

    def tell(what: str, done: int, of: int) -> None:
        options.say(f"share: {pair.name}, {done} of {of} {what}")

    shares, known = opened.calibration.shares, rows.records.get(pair.name)
    if known is not None:
        return profile_again(known, sender, receiver, own, contexts, shares, tell, clock)
    choices = default_choices(layers, max(layers // 6, 1))
    record = profile_pair(sender, receiver, own, contexts, choices, shares, tell, clock)
    if pair.name not in rows.profiles:
        points = [
            {"arm": one.choice.name, "work": round(one.work, 4), "kl": round(one.kl, 5),
             "nll_change": round(one.nll - record.own_nll, 4), "items": one.contexts}
            for one in record.usable("best")
        ]  # fmt: skip
        kept = msgspec.to_builtins(record.without_times())
        rows.keep({"pair": pair.name, "weights": weights, "profile": points, "record": kept})
    return record


def _judge_in_turn(
    options: BenchOptions,
    opened: api.Kdn,
    arms: Sequence[tuple[SharePair, ShareArms]],
    rows: ShareRows,
) -> None:
    """A few items of each pair, then a few more of each, until all are judged; longer contexts after that."""
    held_out = [(pair, ways, _held_out(options, opened, pair)) for pair, ways in arms]
    for length in range(1 + len(_LENGTHENED)):
        judging = [
            _judge(options, opened, pair, ways, held[length], rows)
            for pair, ways, held in held_out
            if length < len(held)
        ]
        while judging:
            judging = [one for one in judging if len(list(islice(one, _IN_TURN))) == _IN_TURN]


@dataclass(frozen=True)
class _HeldOut:
    """Items of one length, and the name that their rows have."""

    name: str
    items: Sequence[tuple[str, ShareItem]]
    is_lengthened: bool = False


def _held_out(options: BenchOptions, opened: api.Kdn, pair: SharePair) -> list[_HeldOut]:
    """The items of a pair: as the data has them, then behind longer contexts."""
    assert options.data is not None, "checked"
    most = 4 if options.quick else options.items or _JUDGED
    items = task_items(opened, options.data, pair.task, "test", most, quick=options.quick)
    found = [_HeldOut(pair.name, items)]
    for num_tokens, most in {} if options.quick else _LENGTHENED.items():
        items = lengthened_items(opened, options.data, pair.task, num_tokens, most)
        found.append(_HeldOut(pair.name_at(num_tokens), items, is_lengthened=True))
    return found


def _judge(
    options: BenchOptions,
    opened: api.Kdn,
    pair: SharePair,
    arms: ShareArms,
    held: _HeldOut,
    rows: ShareRows,
) -> Iterator[None]:
    """Judges an item a step."""
    alora = opened.model.adapters.get(f"{pair.task}-alora")
    for number, (name, item) in enumerate(held.items):
        if (held.name, name) not in rows.items:
            options.say(f"share: {held.name}, item {number + 1} of {len(held.items)}")
            explained = number < _EXPLAINED and not held.is_lengthened
            scan = explained and not number % _SCANNED_EVERY
            without = frozenset() if explained else WHY | RANDOM | arms.between
            if held.is_lengthened:
                without |= {"rows, equal work"}
            line = {
                "pair": held.name,
                "item": name,
                "tokens": len(item.context),
                "commit": commit_name(),
                "arms": arms.measure(item, scan=scan, without=without),
            }
            if alora is not None and pair.sender == BASE and not held.is_lengthened:
                side = PairSide("alora", opened.model, opened.parts.attention, alora)
                line["alora"] = alora_outcome(side, item)
            rows.keep(line)
        yield
