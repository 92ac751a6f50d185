"""What it costs to compute a context each time, and what to store its KV: every term by name.

Li, Liu, Cheng, Du, Jiang: Towards More Economical Context-Augmented LLM Generation by Reusing Stored
KV Cache (arXiv 2503.14647) give the idea and a simplified ratio.  That ratio leaves the one prefill
that stored KV needs too out of the denominator and so has no bound; the exact one is at most N.
Both are here.  Added to the published terms: loading that is not hidden, writing, requests, egress,
throughput that is provisioned, and uses that find the KV gone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from kdn.cost.sheet import PriceSheet, TierPrice
from kdn.cost.speed import Speed
from kdn.cost.units import PerHour, Seconds, Usd, total
from kdn.errors import BadInput

__all__ = ["Bill", "StoredTerms", "Workload", "bill", "exact_ratio", "load_time", "published_ratio"]

_MOST_TOKENS = 100_000_000
_HOUR = Seconds(3600.0)


@dataclass(frozen=True)
class Workload:
    """One context and how it is used over a period. Raises BadInput for what cannot be."""

    context_tokens: int
    uses: int
    """Requests over the context in the period, the first included (N)."""
    prompt_tokens: int = 100
    output_tokens: int = 100
    period: Seconds = _HOUR
    found_share: float = 1.0
    """Of the uses after the first, those that find the KV neither evicted nor expired."""
    overlap: float = 0.0
    """Share of the load time that is that overlaps with computing."""
    contexts: int = 1
    """How many such contexts share what is provisioned."""

    def __post_init__(self) -> None:
        counts = (self.context_tokens, self.prompt_tokens, self.output_tokens)
        if min(counts) < 0 or max(counts) > _MOST_TOKENS:
            raise BadInput(f"lengths of {counts} tokens: expected 0 to {_MOST_TOKENS:,}")
        if self.uses < 1 or self.contexts < 1:
            raise BadInput(f"{self.uses} uses of {self.contexts} contexts: at least one of each")
        if not (0 <= self.found_share <= 1 and 0 <= self.overlap <= 1):
            raise BadInput(f"shares {self.found_share} and {self.overlap}: expected 0 to 1")

    @property
    def hits(self) -> float:
        """Uses that are expected to load what the first one stored."""
        return (self.uses - 1) * self.found_share


@dataclass(frozen=True)
class StoredTerms:
    """The bill of stored KV, term by term."""

    first_prefill: Usd
    missed_prefills: Usd
    prompts: Usd
    decode: Usd
    load: Usd
    storage: Usd
    write: Usd
    requests: Usd
    egress: Usd
    provisioned: Usd

    @property
    def usd(self) -> Usd:
        return total(getattr(self, term.name) for term in fields(self))


@dataclass(frozen=True)
class Bill:
    """Both ways to serve a workload, over its period."""

    text: Usd
    """Every use computes the context."""
    stored: StoredTerms
    text_delay: Seconds
    """To the first token of a use, without queueing."""
    stored_delay: Seconds
    """The same of a use that finds the KV."""
    ratio: float
    """Text over stored, every term counted: at most the number of uses."""
    exact_ratio: float
    """The same with storage, loading and fees at nothing."""
    published_ratio: float
    """The study's simplification of that."""

    @property
    def saving(self) -> float:
        """Dollars saved over the period; negative when storing costs more."""
        return self.text.value - self.stored.usd.value


def exact_ratio(uses: int, context: Seconds, rest: Seconds) -> float:
    """Text over stored when storing is free: N (a + b) / (a + N b), between 1 and N."""
    return _ratio(uses * (context.value + rest.value), context.value + uses * rest.value)


def published_ratio(uses: int, context: Seconds, rest: Seconds) -> float:
    """1 + (N - 1)/N a/b, as published: close to the exact one only where a is far below N b."""
    return 1 + (uses - 1) / uses * context.over(rest)


def load_time(speed: Speed, tier: TierPrice, context: int) -> Seconds:
    """From asking for a context's KV to having it."""
    return Seconds(tier.latency_s) + tier.bandwidth.time(speed.size(context))


def bill(work: Workload, speed: Speed, sheet: PriceSheet, tier: TierPrice) -> Bill:
    """What `work` costs both ways. Raises BadInput when the context does not fit the tier."""
    _validate(work, speed, tier)
    context = speed.context(work.context_tokens, work.prompt_tokens)
    prompt = speed.prompt(work.prompt_tokens, work.context_tokens)
    decode = speed.decode(work.output_tokens, work.context_tokens + work.prompt_tokens)
    shared_decode = decode * (1 / speed.decode_batch)
    rest = prompt + shared_decode
    stored = _stored(work, speed, sheet.gpu, tier, (context, prompt, shared_decode))
    text = sheet.gpu.cost(context + rest) * work.uses
    return Bill(
        text=text,
        stored=stored,
        text_delay=context + prompt,
        stored_delay=_shown(load_time(speed, tier, work.context_tokens), work) + prompt,
        ratio=_ratio(text.value, stored.usd.value),
        exact_ratio=exact_ratio(work.uses, context, rest),
        published_ratio=published_ratio(work.uses, context, rest),
    )


def _stored(
    work: Workload,
    speed: Speed,
    gpu: PerHour,
    tier: TierPrice,
    times: tuple[Seconds, Seconds, Seconds],
) -> StoredTerms:
    context, prompt, decode = times
    size = speed.size(work.context_tokens)
    load = _shown(load_time(speed, tier, work.context_tokens), work)
    return StoredTerms(
        first_prefill=gpu.cost(context),
        missed_prefills=gpu.cost(context) * (work.uses - 1 - work.hits),
        prompts=gpu.cost(prompt) * work.uses,
        decode=gpu.cost(decode) * work.uses,
        load=gpu.cost(load) * work.hits,
        storage=tier.storage.cost(size, work.period),
        write=tier.write.cost(size),
        requests=tier.put.cost(1) + tier.get.cost(work.hits),
        egress=tier.read.cost(size) * work.hits,
        provisioned=tier.provisioned.cost(work.period) * (1 / work.contexts),
    )


def _shown(load: Seconds, work: Workload) -> Seconds:
    """The part of a load that computing does not hide."""
    return load * (1 - work.overlap)


def _validate(work: Workload, speed: Speed, tier: TierPrice) -> None:
    needed_gb = speed.size(work.context_tokens).value * work.contexts / 1e9
    if tier.capacity_gb is not None and needed_gb > tier.capacity_gb:
        raise BadInput(
            f"{needed_gb:.4g} GB of KV do not fit the {tier.capacity_gb:g} GB of tier {tier.name}"
        )


def _ratio(text: float, stored: float) -> float:
    return text / stored if stored else 1.0
