"""How much does a server answer under load, how soon, beside vLLM's, and where does its time go?

A generator in another process sends the same prompts to `kdn serve`, to our engine without HTTP and to
vLLM's server, over connections of its own.  Loads: prompts that nobody has seen (`unique`), prompts that
begin with one of a few documents (`shared`, Zipf), and prompts and answers of all lengths (`mixed`); all
at once, or as a Poisson process at a share of the rate that we answer all at once.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kdn.bench.common.result import BenchOptions, Result, Row, scratch_folder
from kdn.bench.engine.lineup import weights
from kdn.bench.scale.vllm_arms import vllm_python
from kdn.bench.serve.servers import (
    HttpServer,
    LoadedServer,
    server_settings,
    start_alone,
    start_kdn,
    start_vllm,
)
from kdn.bench.serve.traffic import LoadResult, TrafficShape, make_load
from kdn.config import load_config
from kdn.core import quantile
from kdn.errors import BadInput, EngineFailed
from kdn.plot import Figure

__all__ = ["FULL", "QUICK", "ServeScale", "measure", "run", "turns"]

KDN, NOTHING_KEPT, ALONE, VLLM = "kdn", "kdn, nothing retained", "engine alone", "vllm"
_KEEP_NOTHING: dict[str, object] = {"kdn": {"keep": "nothing"}}


@dataclass(frozen=True)
class ServeScale:
    """How much is measured."""

    shapes: Mapping[str, TrafficShape]
    count: int
    """Requests in a load."""
    rounds: int
    cost_rounds: int
    """Of our own servers with the first shape: a cost is the small difference of two of them."""
    rates: tuple[float, ...]
    """Of the load that arrives over time, as shares of the saturated rate."""
    eager_vllm: bool = False


FULL = ServeScale(
    shapes={
        "unique": TrafficShape("unique", (512, 512), (32, 32)),
        "shared": TrafficShape("shared", (64, 64), (32, 32), num_documents=8, document_tokens=1024),
        "mixed": TrafficShape("mixed", (64, 2048), (8, 64)),
    },
    count=24,
    rounds=2,
    cost_rounds=8,
    rates=(0.3, 0.7),
)
QUICK = ServeScale(
    shapes={
        "unique": TrafficShape("unique", (256, 256), (8, 8)),
        "shared": TrafficShape("shared", (32, 32), (8, 8), num_documents=3, document_tokens=512),
    },
    count=8,
    rounds=1,
    cost_rounds=1,
    rates=(0.5,),
    eager_vllm=True,
)


def run(options: BenchOptions) -> Result:
    """Measure at the usual scale; `quick` sends fewer and shorter prompts, and vLLM does not compile."""
    with scratch_folder() as folder:
        return measure(options, QUICK if options.quick else FULL, folder)


def measure(options: BenchOptions, scale: ServeScale, scratch: Path) -> Result:
    """Measure at a given scale, with files in `scratch`."""
    found = _Found()
    with ExitStack() as stack:
        dtype = options.machine_dtype()
        _, folder = weights(options, dtype)
        servers = _start(options, scale, scratch, folder, stack, found)
        told = msgspec.json.decode((folder / "config.json").read_bytes())
        _Measuring(options, scale, servers, found, told["vocab_size"]).everything()
    options.note(load_config(server_settings(options, scratch / "served"), home=options.home))
    return Result(
        bench="serve",
        model=options.model,
        config=options.describe() | {"requests": scale.count, "rounds": scale.rounds},
        rows=found.rows,
        summary=found.summary(),
        notes=(*_NOTES, *found.spreads(), *found.notes),
        figures=(found.figure(),) if found.by_rate else (),
        dtype=dtype,
    )


_NOTES = (
    (
        "`cpu s` are processor seconds of the server for each answer, what it leaves for later included:"
        " they say more than the clock where other work runs beside. `idle` is the engine's thread with"
        " nothing to do."
    ),
    (
        "`retention_cost` and `http_cost` are shares of saturated throughput: with all retained against"
        " nothing, and over HTTP against the engine without; `retention_cpu_cost` and `http_cpu_cost` the"
        " same of `cpu s`, which other work on the machine changes less."
    ),
    (
        "Loads at a rate are sent once to each server, to kdn first; `ttft_gain_vllm` is the median of their"
        " ratios, so a load carries the luck of its arrivals."
    ),
)


@dataclass
class _Found:
    """What is gathered on the way."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Answers a second of saturated loads, by shape and server, one a round."""
    cpu_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Processor seconds of one answer of those loads."""
    waits: dict[tuple[str, float, str], float] = field(default_factory=dict)
    """Mean seconds to the first token, by shape, share of the saturated rate and server."""
    by_rate: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def gain(self, shape: str, ours: str, theirs: str) -> float | None:
        """How many times their throughput ours is, by rounds: the median."""
        return _middle(_ratios(self.rates, shape, ours, theirs))

    def cost(self, name: str) -> _Costs:
        """What we spend beside `name`, by rounds: of throughput, and of processor time."""
        rates = [1 - one for one in _ratios(self.rates, "unique", KDN, name)]
        return _Costs(rates, [1 - one for one in _ratios(self.cpu_s, "unique", name, KDN)])

    def summary(self) -> dict[str, float | None]:
        """Every key there is; those of absent rivals are None."""
        retained, served = self.cost(NOTHING_KEPT), self.cost(ALONE)
        waits = [
            self.waits[shape, rate, VLLM] / ours
            for (shape, rate, name), ours in self.waits.items()
            if name == KDN and (shape, rate, VLLM) in self.waits
        ]
        return {
            "throughput_gain_vllm": self.gain("unique", KDN, VLLM),
            "ttft_gain_vllm": _middle(waits),
            "shared_gain_vllm": self.gain("shared", KDN, VLLM),
            "retention_cost": _middle(retained.rate),
            "retention_cpu_cost": _middle(retained.cpu),
            "http_cost": _middle(served.rate),
            "http_cpu_cost": _middle(served.cpu),
        }

    def spreads(self) -> list[str]:
        """How far the rounds of each cost lie apart."""
        costs = {"retention": self.cost(NOTHING_KEPT), "http": self.cost(ALONE)}
        return [
            f"Of {len(each)} rounds `{name}_{kind}` is {min(each):.3f} to {max(each):.3f}."
            for name, cost in costs.items()
            for kind, each in (("cost", cost.rate), ("cpu_cost", cost.cpu))
            if each
        ]

    def figure(self) -> Figure:
        """First tokens over the rate."""
        return Figure("Mean time to first token", "requests/s", "seconds", self.by_rate)


@dataclass(frozen=True)
class _Costs:
    """Shares that are lost, by rounds."""

    rate: list[float]
    cpu: list[float]


def _ratios(
    values: Mapping[tuple[str, str], Sequence[float]], shape: str, ours: str, theirs: str
) -> list[float]:
    pairs = zip(values.get((shape, ours), []), values.get((shape, theirs), []), strict=False)
    return [a / b for a, b in pairs]


def _middle(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _start(
    options: BenchOptions,
    scale: ServeScale,
    scratch: Path,
    folder: Path,
    stack: ExitStack,
    found: _Found,
) -> dict[str, LoadedServer]:
    options.say("starting kdn serve")
    ours = start_kdn(options, scratch)
    stack.callback(ours.close)
    options.say("starting the engine alone")
    alone = start_alone(options, scratch)
    stack.callback(alone.close)
    servers: dict[str, LoadedServer] = {KDN: ours, NOTHING_KEPT: ours, ALONE: alone}
    options.say("starting vLLM")
    try:
        rival = start_vllm(options, scratch, vllm_python(), folder, eager=scale.eager_vllm)
    except (BadInput, EngineFailed) as absent:
        found.notes.append(f"vLLM is absent: {absent}")
    else:
        stack.callback(rival.close)
        servers[VLLM] = rival
    return servers


@dataclass(frozen=True)
class _Measuring:
    """One benchmark run over some servers."""

    options: BenchOptions
    scale: ServeScale
    servers: Mapping[str, LoadedServer]
    found: _Found
    vocab_size: int

    def everything(self) -> None:
        for name in self.servers:  # what is made at the first requests
            self._load(name, "unique", 2, None, "warm")
        for shape in self.scale.shapes:
            self._saturated(shape)
        for shape in self.scale.shapes:
            for share in self.scale.rates:
                self._at_rate(shape, share)

    def _saturated(self, shape: str) -> None:
        """All at once, every server in turn; who is first changes from round to round."""
        rounds = self.options.pairs or self.scale.rounds
        cost_rounds = (self.options.pairs or self.scale.cost_rounds) if shape == "unique" else 0
        for number, name in turns(self.servers, rounds, cost_rounds):
            self.options.say(f"{shape}, all at once: {name}")
            result = self._load(name, shape, self.scale.count, None, f"all {number}")
            self.found.rates.setdefault((shape, name), []).append(result.requests_per_s)
            cpu_s = float(self.found.rows[-1]["cpu s"] or 0.0)
            self.found.cpu_s.setdefault((shape, name), []).append(cpu_s)

    def _at_rate(self, shape: str, share: float) -> None:
        rate = share * statistics.median(self.found.rates[shape, KDN])
        for name in (one for one in self.servers if one in (KDN, VLLM)):
            self.options.say(f"{shape}, {rate:.2f} a second: {name}")
            result = self._load(name, shape, self.scale.count, rate, f"rate {share}")
            mean = statistics.mean(result.first_token_s)
            self.found.waits[shape, share, name] = mean
            self.found.by_rate.setdefault(f"{name}, {shape}", []).append((rate, mean))

    def _load(self, name: str, shape: str, count: int, rate: float | None, seed: str) -> LoadResult:
        server = self.servers[name]
        # nobody sees a prompt twice, and two names share a server's store
        requests = make_load(
            self.scale.shapes[shape],
            count,
            rate,
            self.vocab_size,
            f"{self.options.seed}/{seed}",
            reader=name,
        )
        extra = _KEEP_NOTHING if name == NOTHING_KEPT else {}
        server.settle()
        before_s, parts = server.cpu_s(), _parts(server)
        result = server.run(requests, extra)
        if not result.good:
            raise EngineFailed(f"{name} answered nothing: {result.answered[0].error}")
        after = _parts(server)
        server.settle()
        cpu_s = server.cpu_s() - before_s
        if seed != "warm":
            spent = {part: after[part] - parts[part] for part in after}
            self.found.rows.append(_row(name, shape, rate, result, cpu_s) | _shares(spent, result))
            self._note_errors(name, result)
        return result

    def _note_errors(self, name: str, result: LoadResult) -> None:
        failed = [one.error for one in result.answered if one.error]
        if failed:
            self.found.notes.append(f"{name}: {len(failed)} requests failed, as {failed[0][:200]}")


def turns(names: Iterable[str], rounds: int, cost_rounds: int) -> Iterator[tuple[int, str]]:
    """Who is loaded in which round: kdn and vLLM in `rounds`, all of ours in `cost_rounds`."""
    kinds = ((rounds, {KDN, VLLM}), (cost_rounds, {KDN, NOTHING_KEPT, ALONE}))
    for number in range(max(rounds, cost_rounds)):
        wanted = set[str]().union(*(kind for count, kind in kinds if number < count))
        there = [name for name in names if name in wanted]
        yield from ((number, name) for name in (there if number % 2 == 0 else there[::-1]))


def _parts(server: LoadedServer) -> dict[str, float]:
    """Seconds of the engine's thread by part, and of processors in the event loop's thread."""
    if not isinstance(server, HttpServer) or not (
        parts := server.metrics("kdn_engine_seconds_total")
    ):
        return {}
    return parts | {"http": server.metrics("kdn_cpu_seconds_total").get("MainThread", 0.0)}


def _row(name: str, shape: str, rate: float | None, result: LoadResult, cpu_s: float) -> Row:
    first, token = result.first_token_s, result.token_s
    return {
        "part": shape,
        "server": name,
        "rate": rate,
        "requests/s": result.requests_per_s,
        "first token, ms": 1000 * statistics.mean(first),
        "P99": 1000 * quantile(first, 0.99),
        "a token, ms": 1000 * statistics.mean(token) if token else None,
        "P99 of a token": 1000 * quantile(token, 0.99) if token else None,
        "cpu s": cpu_s / len(result.good),
    }


def _shares(spent: Mapping[str, float], result: LoadResult) -> Row:
    """Where a second of the load went, as shares; idle is what is left of the engine's thread."""
    if not spent:
        return {}
    # `wait` began before the load did
    shares = {part: s / result.seconds for part, s in spent.items() if part != "wait"}
    busy = sum(share for part, share in shares.items() if part != "http")
    row: Row = {"idle": max(1 - busy, 0.0)}
    row.update(shares)
    return row
