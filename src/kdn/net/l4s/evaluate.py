"""How good: errors of the predictors, delays under the policies, and what others pay for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput
from kdn.net.l4s.choosers import chooser, marking_of
from kdn.net.l4s.scenarios import evaluation, with_adopters
from kdn.net.l4s.stream import replay
from kdn.net.l4s.tokens import WINDOW, Samples
from kdn.net.world.records import MS, SECOND
from kdn.net.world.spec import Scenario
from kdn.net.world.world import World

__all__ = [
    "FlowOutcome",
    "adopt",
    "delays_ms",
    "errors",
    "judge",
    "neural_guess",
    "policy_world",
]

_WARM_UP_S = 1.5


def neural_guess(weights: NDArray[np.float32]) -> Callable[[Samples], NDArray[np.float64]]:
    """The Transformer's median as a guess (ns) per question."""

    def guess(samples: Samples) -> NDArray[np.float64]:
        change = replay(weights, samples)[:, 2].astype(np.float64)
        squashed = np.clip(change + np.arcsinh(samples.last / MS), 0.0, 9.0)
        return np.asarray(np.sinh(squashed) * MS)

    return guess


def errors(
    guess: Callable[[Samples], NDArray[np.float64]], flows: Sequence[Samples], start: float = 0.0
) -> dict[str, float]:
    """MAE, RMSE, P99 and the MAE on sharp changes, in ms; questions need half a window of history.

    `start` leaves out the first part of each flow (a share), where predictors may have learned.
    """
    off, sharp = [], []
    for flow in flows:
        asked = (flow.known >= WINDOW // 2) & (
            np.arange(len(flow.known)) >= start * len(flow.known)
        )
        error = np.abs(guess(flow) - flow.delay)[asked] / MS
        delay, last = flow.delay[asked] / MS, flow.last[asked] / MS
        change = np.abs(delay - last)
        off.append(error)
        sharp.append(error[(change > 2.0) & (change > 0.2 * last)])
    every, steep = np.concatenate(off), np.concatenate(sharp)
    return {
        "mae_ms": float(every.mean()),
        "rmse_ms": float(np.sqrt((every**2).mean())),
        "p99_ms": float(np.percentile(every, 99)),
        "sharp_mae_ms": float(steep.mean()) if len(steep) else 0.0,
        "num": float(len(every)),
    }


@dataclass(frozen=True)
class FlowOutcome:
    """One policy in one scenario. Delays are one-way, above propagation, deciding included."""

    scenario: str
    family: str
    policy: str
    weight: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    goodput_mbps: float
    loss: float
    others_mbps: float
    """Goodput of all other flows together."""
    others_p99_ms: float
    """P99 of the other flows' packets."""
    fairness: float
    """Jain's index over all flows that send in bulk or by demand, of goodput."""
    late_share: float
    extent: int
    classic_share: float
    switches_per_s: float


def delays_ms(world: World, flows: Sequence[int]) -> NDArray[np.float64]:
    """One-way delays above propagation of the flows' packets, from ready to delivered, after the warm-up.

    Raises BadInput when there are none.
    """
    log = world.log()
    log = log[log["t_send"] > _WARM_UP_S * SECOND]
    parts = []
    for flow in flows:
        own = log[log["flow"] == flow]
        parts.append((own["t_deliver"] - own["t_ready"] - world.state.flows[flow]["base"]) / MS)
    delays = np.concatenate(parts)
    if not len(delays):
        raise BadInput(
            f"no packet of the flows to be judged was acknowledged after {_WARM_UP_S:g} s of "
            f"{world.scenario.name!r}: the link is too slow for what is sent, or the run too short"
        )
    return delays


def policy_world(
    scenario: Scenario,
    policy: str,
    weights: NDArray[np.float32] | None = None,
    cost_us: float = 0.0,
    weight: str = "1/16",
    seconds: float | None = None,
    seed: int | None = None,
) -> World:
    """The scenario, ready to run, with flow 0 under the policy and every flow logged."""
    marking = marking_of(policy)
    cost = cost_us if marking == "ask" and policy != "oracle" else 0.0
    chosen = evaluation(scenario, marking, weight, seconds, seed, cost_us=cost)
    flows = [replace(flow, logged=True) for flow in chosen.flows]
    if policy == "all-C":
        flows[0] = replace(flows[0], ecn="ect0", control="cubic")
    made = chooser(policy, weights)
    return World(replace(chosen, flows=tuple(flows)), {} if made is None else {0: made})


def judge(world: World, policy: str, weight: str) -> FlowOutcome:
    """What the finished world shows of flow 0 and of the others."""
    scenario, flow = world.scenario, world.totals(0)
    others = range(1, len(scenario.flows))
    share = [world.totals(i).goodput_mbps for i in range(len(scenario.flows))]
    p50, p95, p99, p999 = np.percentile(delays_ms(world, [0]), [50, 95, 99, 99.9])
    return FlowOutcome(
        scenario=scenario.name,
        family=scenario.tags[0] if scenario.tags else "",
        policy=policy,
        weight=weight,
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        p999_ms=float(p999),
        goodput_mbps=flow.goodput_mbps,
        loss=flow.lost / max(flow.sent, 1),
        others_mbps=sum(share[1:]),
        others_p99_ms=float(np.percentile(delays_ms(world, others), 99)) if share[1:] else 0.0,
        fairness=sum(share) ** 2 / max(len(share) * sum(s * s for s in share), 1e-9),
        late_share=flow.late / max(flow.acked, 1),
        extent=flow.extent,
        classic_share=1.0 - flow.sent_l / max(flow.sent, 1) if policy != "all-C" else 1.0,
        switches_per_s=flow.switches / scenario.seconds,
    )


def adopt(
    scenario: Scenario,
    count: int,
    policy: str,
    weights: NDArray[np.float32] | None,
    cost_us: float,
    seconds: float,
) -> dict[str, Any]:
    """`count` flows under the policy in flow 0's place: their P99, and what the rest gets."""
    crowd = with_adopters(scenario, count, marking_of(policy), cost_us)
    flows = tuple(replace(flow, logged=True) for flow in crowd.flows)
    made = {i: chooser(policy, weights) for i in range(count)}
    world = World(
        replace(crowd, flows=flows, seconds=seconds),
        {i: one for i, one in made.items() if one is not None},
    )
    world.run()
    adopters, rest = range(count), range(count, len(flows))
    return {
        "scenario": scenario.name,
        "policy": policy,
        "adopters": count,
        "p50_ms": float(np.percentile(delays_ms(world, adopters), 50)),
        "p99_ms": float(np.percentile(delays_ms(world, adopters), 99)),
        "goodput_mbps": sum(world.totals(i).goodput_mbps for i in adopters) / count,
        "others_mbps": sum(world.totals(i).goodput_mbps for i in rest),
    }
