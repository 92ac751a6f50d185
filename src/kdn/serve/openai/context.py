"""What every route has at hand, and the step they share: from requests to a running flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kdn.clock import Clock
from kdn.core import Blend, Prompt, Request, Retention, Sampling
from kdn.serve.errors import Refused
from kdn.serve.metrics import Metrics
from kdn.serve.openai.requests import KdnOptions, SamplingBody
from kdn.serve.openai.streams import ResponseStreams, depart
from kdn.serve.service import Service
from kdn.serve.settings import ServeSettings

__all__ = ["RequestContext"]


@dataclass(frozen=True)
class RequestContext:
    """The parts of one server, joined once in `create_app`."""

    service: Service
    settings: ServeSettings
    metrics: Metrics
    clock: Clock
    new_id: Callable[[], str]

    def created(self) -> int:
        """Now, in whole seconds since 1970."""
        return int(self.clock.wall())

    def depart(
        self,
        answer_id: str,
        prompts: Sequence[tuple[Prompt, Sampling]],
        body: SamplingBody,
        adapter: str | None,
    ) -> ResponseStreams:
        """Submit `n` requests a prompt, prompts in order. Raises what the engine refuses with."""
        options = body.kdn or KdnOptions()
        choices = body.n or 1
        if len(prompts) * choices > self.settings.max_choices:
            raise Refused(
                f"{len(prompts)} prompts with n={choices} ask for more than "
                f"{self.settings.max_choices} answers",
                param="n",
            )
        requests = [
            Request(
                id=f"{answer_id}-{index * choices + choice}",
                prompt=prompt,
                sampling=_seeded(sampling, choice),
                salt=body.cache_salt or "",
                adapter=adapter,
                priority=body.priority or 0,
                reuse=options.reuse is not False,
                blend=_blend(options),
                max_kl=options.max_kl,
                load_within_s=options.load_within_s,
                retention=Retention(options.keep),
            )
            for index, (prompt, sampling) in enumerate(prompts)
            for choice in range(choices)
        ]
        return depart(self.service, self.metrics, requests)


def _blend(options: KdnOptions) -> Blend | None:
    if options.reuse != "blend":
        return None
    return Blend(None if options.ratio == "auto" else options.ratio, options.collection)


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """One seed must not give `n` equal answers."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice)
