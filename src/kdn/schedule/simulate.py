"""Jobs through a policy on paper: the same decisions as in the engine, with a model in place of the machine.

arrive  ->  count what is cached now  ->  order  ->  pack  ->  one pass  ->  retain prefixes  ->  ...
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdn.core import BLOCK_TOKENS, JctModel, Job
from kdn.schedule.queue import RequestQueue

__all__ = ["Ended", "PrefixCache", "PrefixJob", "simulate"]


@dataclass(frozen=True)
class PrefixJob:
    """A job whose first `num_prefix` tokens are those of every job with the same `prefix`."""

    id: str
    arrival_ns: int
    prefix: str
    num_prefix: int
    num_tokens: int


@dataclass(frozen=True)
class Ended:
    """What became of a job."""

    id: str
    arrival_ns: int
    start_ns: int
    end_ns: int
    num_cached: int

    @property
    def latency_ns(self) -> int:
        return self.end_ns - self.arrival_ns

    @property
    def wait_ns(self) -> int:
        return self.start_ns - self.arrival_ns


class PrefixCache:
    """Blocks of prefixes under a cap, the least recently used gone first, as the memory tier has it."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity = capacity_tokens
        self._blocks: OrderedDict[tuple[str, int], int] = OrderedDict()

    def match(self, prefix: str, num_prefix: int) -> int:
        """Leading tokens that are here now. Not a use."""
        found = 0
        for block, size in _blocks(prefix, num_prefix):
            if block not in self._blocks:
                break
            found += size
        return found

    def use(self, prefix: str, num_prefix: int) -> None:
        """What is here of it was read."""
        for block, _ in _blocks(prefix, num_prefix):
            if block not in self._blocks:
                break
            self._blocks.move_to_end(block)

    def retain(self, prefix: str, num_prefix: int) -> None:
        """All of it was computed and is put in."""
        for block, size in _blocks(prefix, num_prefix):
            if size > self._capacity:
                continue
            if block not in self._blocks:
                while sum(self._blocks.values()) + size > self._capacity:
                    self._blocks.popitem(last=False)
                self._blocks[block] = size
            self._blocks.move_to_end(block)


def _blocks(prefix: str, num_prefix: int) -> list[tuple[tuple[str, int], int]]:
    starts = range(0, num_prefix, BLOCK_TOKENS)
    return [((prefix, at), min(BLOCK_TOKENS, num_prefix - at)) for at in starts]


def simulate(
    jobs: Sequence[PrefixJob],
    waiting: RequestQueue,
    model: JctModel,
    cache: PrefixCache,
    pack_tokens: int,
) -> list[Ended]:
    """Every job to its end, in order of ending. `waiting` must be empty and carries the policy."""
    coming = sorted(jobs, key=lambda job: (job.arrival_ns, job.id))
    known = {job.id: job for job in coming}
    now, at, ended = 0, 0, list[Ended]()
    while at < len(coming) or len(waiting):
        if not len(waiting):
            now = max(now, coming[at].arrival_ns)
        while at < len(coming) and coming[at].arrival_ns <= now:
            waiting.add(_arrived(coming[at], cache))
            at += 1
        _count_again(waiting, known, cache)
        members = waiting.admit(now, bool, pack_tokens)  # memory is not simulated
        start, now = now, now + _pass_ns(members, known, model)
        for member in members:
            job = known[member.id]
            cache.use(job.prefix, job.num_prefix)
            ended.append(Ended(job.id, job.arrival_ns, start, now, member.num_cached))
        for member in members:
            cache.retain(known[member.id].prefix, known[member.id].num_prefix)
    return ended


def _pass_ns(members: Sequence[Job], known: dict[str, PrefixJob], model: JctModel) -> int:
    """The time of one pass; a prefix that several share is brought in once."""
    seconds, brought = model.pass_s - model.prompt_s, set[str]()
    for member in members:
        prefix = known[member.id].prefix
        new, cached = member.num_missing, member.num_cached
        whole = model.prompt_s + model.share(new, cached)
        seconds += model.beside(new, cached) if prefix in brought else whole
        brought.add(prefix)
    return round(seconds * 1e9)


def _arrived(job: PrefixJob, cache: PrefixCache) -> Job:
    cached = cache.match(job.prefix, job.num_prefix)
    return Job(
        job.id,
        job.arrival_ns,
        job.num_tokens,
        cached,
        1,
        num_cached_at_arrival=cached,
        family=job.prefix,
        num_shared=job.num_prefix,
    )


def _count_again(waiting: RequestQueue, known: dict[str, PrefixJob], cache: PrefixCache) -> None:
    """What is cached of each waiting job at this moment; one look per prefix."""
    looked: dict[tuple[str, int], int] = {}
    for job in waiting.jobs():
        one = known[job.id]
        name = (one.prefix, one.num_prefix)
        if name not in looked:
            looked[name] = cache.match(*name)
        if looked[name] != job.num_cached:
            waiting.add(replace(job, num_cached=looked[name]))
