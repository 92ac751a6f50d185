"""From a scenario's words to the world's rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdn.errors import BadConfig
from kdn.net.world.control import RULES, Rule
from kdn.net.world.control.rule import settings
from kdn.net.world.events import APP, SEND, UPDATE, push
from kdn.net.world.queue import QUEUES, Discipline
from kdn.net.world.records import (
    APP_GREEDY,
    ASK,
    BLOCKS,
    BY_TYPE,
    CLOCK,
    ECT0,
    ECT1,
    EVENT,
    FIXED,
    FLOW,
    FQ,
    HOP,
    LOG,
    MS,
    NIL,
    NOT_ECT,
    PACKET,
    RANDOM,
    SECOND,
    US,
    State,
)
from kdn.net.world.spec import LEAST_QUEUE, Flow, Hop, Scenario

__all__ = ["build", "empty_hop"]

ECNS = {"not-ect": NOT_ECT, "ect0": ECT0, "ect1": ECT1}
MARKINGS = {"fixed": FIXED, "random": RANDOM, "blocks": BLOCKS, "by-type": BY_TYPE, "ask": ASK}

_INITIAL_WINDOW = 10
_MTU = 1500


def build(scenario: Scenario, num_packets: int = 1 << 16, num_log: int = 1 << 14) -> State:
    """A world at time 0 with every first event in its heap.

    `num_packets` bounds packets that exist together, `num_log` the rows between two flushes.
    """
    num_hops, num_flows = len(scenario.hops), len(scenario.flows)
    if not num_hops or not num_flows:
        raise BadConfig(f"scenario {scenario.name!r} needs at least one hop and one flow")
    fq = np.zeros((num_hops, num_flows), FQ)
    fq["head"] = NIL
    tables = [hop.rate for hop in scenario.hops]
    state = State(
        clock=_clock(scenario.seed),
        events=np.zeros(num_packets + 64 * num_flows, EVENT),
        packets=np.zeros(num_packets, PACKET),
        hops=np.zeros(num_hops, HOP),
        flows=np.zeros(num_flows, FLOW),
        fq=fq,
        log=np.zeros(num_log, LOG),
        rate_t=np.concatenate([table.times_ns for table in tables]),
        rate=np.concatenate([table.bits_per_s for table in tables]),
    )
    start = 0
    for index, hop in enumerate(scenario.hops):
        fill_hop(state.hops[index], hop, start)
        state.hops[index]["next_hop"] = index + 1
        start += len(hop.rate.times_ns)
        if _queue(hop.queue.aqm).has_timer:
            push(state, int(state.hops[index]["t_update"]), UPDATE, index)
    for index, flow in enumerate(scenario.flows):
        _fill_flow(state.flows[index], flow, scenario)
        push(
            state, int(flow.start_s * SECOND), SEND if flow.app.chunk_bytes is None else APP, index
        )
    return state


def _rule(name: str) -> Rule:
    for rule in RULES:
        if rule.name == name:
            return rule
    raise BadConfig(f"no congestion rule {name!r}; there are {', '.join(r.name for r in RULES)}")


def _queue(name: str) -> Discipline:
    for queue in QUEUES:
        if queue.name == name:
            return queue
    raise BadConfig(f"no queue {name!r}; there are {', '.join(q.name for q in QUEUES)}")


def _clock(seed: int) -> np.ndarray[Any, Any]:
    clock = np.zeros(1, CLOCK)
    clock["free"] = clock["asking"] = clock["watched"] = NIL
    clock["random"] = np.uint64(seed * 2_654_435_761 + 12_345)
    return clock


def empty_hop(hop: Hop, num_packets: int, num_flows: int = 1) -> State:
    """A world of one hop and flows that never start: what a router over real sockets keeps."""
    flows = tuple(Flow("unresponsive", "not-ect") for _ in range(num_flows))
    state = build(Scenario("router", (hop,), flows), num_packets, num_log=1)
    state.clock["num_events"] = 0
    return state


def fill_hop(row: Any, hop: Hop, rates_at: int) -> None:
    """Write the hop's settings into its row."""
    queue, rate = hop.queue, hop.rate
    row["aqm"] = QUEUES.index(_queue(queue.aqm))
    row["mtu"] = _MTU
    row["limit"] = max(int(queue.limit_ms * 1e-3 * rate.mean_bps / 8), LEAST_QUEUE * _MTU)
    row["limit_packets"] = 10_000 if queue.linux else 1 << 40
    row["prop"], row["jitter"] = int(hop.delay_ms * MS), int(hop.jitter_ms * MS)
    row["loss"] = hop.loss
    row["rates_at"], row["rates_len"] = rates_at, len(rate.times_ns)
    row["rates_period"], row["opportunities"] = rate.period_ns, int(rate.opportunities)
    row["rate_index"] = NIL if rate.opportunities else 0
    row["linux"] = int(queue.linux)
    row["alpha"], row["beta"] = queue.alpha_hz, queue.beta_hz
    row["target"], row["t_update"] = int(queue.target_ms * MS), int(queue.update_ms * MS)
    row["coupling"] = queue.coupling
    row["p_c_max"] = min(1.0 / queue.coupling**2, 1.0)
    row["min_th"], row["ramp_range"] = int(queue.min_th_us * US), int(queue.range_us * US)
    row["th_len"] = queue.th_len
    row["ts_fifo"], row["t_shift"] = int(queue.scheduler == "ts-fifo"), int(queue.shift_ms * MS)
    row["weight_c"], row["weight_l"] = queue.weights
    row["credit"] = _MTU * (queue.weights[0] - queue.weights[1])
    for end in ("head_l", "tail_l", "head_c", "tail_c"):
        row[end] = NIL
    for end in ("new_head", "new_tail", "old_head", "old_tail"):
        row[end] = NIL


def _fill_flow(row: Any, flow: Flow, scenario: Scenario) -> None:
    """Write the flow's settings and its first window into its row."""
    last = len(scenario.hops) - 1 if flow.last_hop is None else flow.last_hop
    path = scenario.hops[flow.first_hop : last + 1]
    there = flow.in_ms + flow.out_ms + sum(hop.delay_ms for hop in path)
    back = there if flow.back_ms is None else flow.back_ms
    rule = _rule(flow.control)
    row["cc"], row["ect"], row["mark"] = RULES.index(rule), ECNS[flow.ecn], ECNS[flow.ecn]
    for name, value in settings(rule).items():
        row[name] = value
    row["size"], row["first_hop"], row["last_hop"] = flow.packet, flow.first_hop, last
    row["delay_in"], row["delay_out"] = int(flow.in_ms * MS), int(flow.out_ms * MS)
    row["delay_back"], row["base"] = int(back * MS), int(there * MS)
    row["start"], row["stop"] = int(flow.start_s * SECOND), int(min(flow.stop_s, 1e9) * SECOND)
    row["marking"] = MARKINGS[flow.marking]
    row["decision_gap"] = int(flow.decision_gap_ms * MS)
    row["decision_cost"] = int(flow.decision_cost_us * US)
    row["decided"] = -SECOND
    row["logged"] = int(flow.logged or flow.marking != "fixed")
    _fill_app(row, flow)
    row["rwnd"] = flow.max_window_packets * flow.packet
    row["cwnd"], row["ssthresh"] = _INITIAL_WINDOW * flow.packet, 1e15
    row["oldest"] = row["newest"] = row["highest"] = NIL
    row["min_rtt"], row["reduced"] = 1e18, -SECOND


def _fill_app(row: Any, flow: Flow) -> None:
    app = flow.app
    if app.chunk_bytes is None:
        row["app_bytes"] = APP_GREEDY
        return
    row["chunk"], row["chunk_spread"] = app.chunk_bytes, float(app.random_chunks)
    row["interval"], row["interval_spread"] = app.interval_ms * MS, float(app.random_intervals)
    row["on"], row["off"] = app.on_s * SECOND, app.off_s * SECOND
    row["app_until"] = int(app.on_s * SECOND)
