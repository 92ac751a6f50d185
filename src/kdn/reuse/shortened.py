"""The beginning of a stored run, where what follows must be computed in another way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kdn.core import LayerKV, LayerSource, Planned

__all__ = ["LeadingTokens", "reused_before"]


@dataclass(frozen=True)
class LeadingTokens:
    """The first `num_tokens` tokens of a source, at least one."""

    source: LayerSource
    num_tokens: int

    @property
    def name(self) -> str:
        return f"{self.source.name}[:{self.num_tokens}]"

    def start(self, layer: int) -> None:
        self.source.start(layer)

    def take(self, layer: int) -> Sequence[LayerKV]:
        left, runs = self.num_tokens, list[LayerKV]()
        for run in self.source.take(layer):
            if left <= 0:
                break
            runs.append(LayerKV(run.k[:left], run.v[:left], run.shift))
            left -= run.num_tokens
        return runs

    def close(self) -> None:
        self.source.close()


def reused_before(planned: Planned, since: int) -> Planned:
    """The plan with no row of its prefix taken from the store at position `since` or after it."""
    plan = planned.plan
    if plan.prefix is None or plan.num_prefix <= since:
        return planned
    spare = plan.num_prefix - since
    counts = {"exact": planned.exact, "lossy": planned.lossy}
    if not plan.stored:  # else what is shared stands after the prefix
        counts["shared"] = planned.shared
    left = _without(counts, spare)
    tiers = _without(planned.tiers, spare)
    return replace(
        planned,
        plan=replace(plan, prefix=_leading(plan.prefix, since)),
        exact=left["exact"],
        lossy=left["lossy"],
        shared=left.get("shared", planned.shared),
        tiers={name: tokens for name, tokens in tiers.items() if tokens},
    )


def _leading(source: LayerSource, num_tokens: int) -> LayerSource | None:
    if num_tokens:
        return LeadingTokens(source, num_tokens)
    source.close()
    return None


def _without(counts: Mapping[str, int], spare: int) -> dict[str, int]:
    """Counts of tokens, with so many taken off the last ones."""
    left = dict(counts)
    for name in reversed(left):
        taken = min(left[name], spare)
        left[name] -= taken
        spare -= taken
    return left
