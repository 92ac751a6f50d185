"""`kdn net l4s simulate | train | eval | run`: choose an L4S queue for every packet."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from kdn.cli import rtc
from kdn.cli.options import JsonOption, SeedOption, output_file, output_folder
from kdn.cli.show import emit, printed_even_early, progress_bar
from kdn.errors import BadInput

__all__ = ["app"]

app = typer.Typer(
    help="Packets: the right L4S queue for each, and real-time video.", no_args_is_help=True
)
l4s = typer.Typer(help="Predict the next packet's delay, mark accordingly.", no_args_is_help=True)
app.add_typer(l4s, name="l4s")
app.add_typer(rtc.app, name="rtc")

_REAL = "all-L, all-C, random, by-type, last-value, by-forecast, swift, swift-online"
RealPolicy = Annotated[str, typer.Option(help=f"{_REAL}.")]
Policy = Annotated[str, typer.Option(help=f"{_REAL}, oracle.")]
Seconds = Annotated[float, typer.Option(min=2.0, max=1e6, help="Length of the run in seconds.")]


_NARROW = 6
"""Up to so many rows are shown as columns beside one another, which fits 80 characters."""

_WORDS = {
    "p50_ms": "median delay, ms",
    "p95_ms": "95th percentile of delay, ms",
    "p99_ms": "99th percentile of delay, ms",
    "p999_ms": "99.9th percentile of delay, ms",
    "goodput_mbps": "goodput, Mbit/s",
    "loss": "share of packets lost",
    "others_mbps": "goodput of the others, Mbit/s",
    "others_p99_ms": "99th percentile of the others, ms",
    "fairness": "fairness (Jain's index)",
    "late_share": "share that came out of order",
    "extent": "farthest out of order, packets",
    "classic_share": "share sent in the classic queue",
    "switches_per_s": "changes of queue per second",
    "decision_us": "time of a decision, us",
    "steps_kept": "learning steps kept",
    "steps_undone": "learning steps undone",
    "weight": "classic queue's share of turns",
}


def _print(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    """One JSON object, or a table: few rows stand side by side, many below one another."""
    if as_json:
        emit({"rows": rows})
    if as_json or not rows:
        return
    table = Table(title=title)
    if len(rows) <= _NARROW:
        table.add_column("")
        for _ in rows:
            table.add_column("", justify="right", overflow="fold")
        table.show_header = False
        for name in rows[0]:
            table.add_row(_WORDS.get(name, name.replace("_", " ")), *(_cell(r[name]) for r in rows))
    else:
        for name in rows[0]:
            table.add_column(name.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(_cell(value) for value in row.values()))
    Console().print(table)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _scenario(name: str) -> Any:
    from kdn.net.l4s.scenarios import LISTS

    every = [one for scenarios in LISTS.values() for one in scenarios]
    found = [one for one in every if name.lower() in one.name.lower()]
    if not found:
        listed = "; ".join(one.name for one in every)
        raise BadInput(f"no scenario has {name!r} in its name; there are: {listed}")
    return found[0]


@l4s.command()
def simulate(
    scenario: Annotated[str, typer.Option(help="Part of a scenario's name.")] = "1M pages",
    policy: Policy = "swift",
    seconds: Seconds = 10.0,
    seed: SeedOption = 1,
    share: Annotated[str, typer.Option(help="Classic queue's WRR share: 1/16 or 10%.")] = "1/16",
    link: Annotated[
        Path | None,
        typer.Option(help="Play this recorded link: mahimahi, or lines of seconds and Mbit/s."),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for two pictures.", callback=output_folder)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run one scenario under a policy, beside the flow that stays in the low-latency queue."""
    from kdn.net.l4s.evaluate import judge, policy_world
    from kdn.net.l4s.scenarios import over_link
    from kdn.net.world.traces import read_link

    chosen = _scenario(scenario)
    if link is not None:
        chosen = over_link(chosen, read_link(link), link.name)
    worlds = {  # all of them first: what is asked wrongly is refused before anything runs
        name: policy_world(chosen, name, None, 100.0, share, seconds, seed)
        for name in dict.fromkeys(("all-L", policy))
    }
    with progress_bar() as progress:
        for name, world in worlds.items():
            bar = progress.add_task(f"{chosen.name}: {name}", total=seconds)
            world.run(tick=lambda t, bar=bar: progress.update(bar, completed=t))  # type: ignore[misc]
    if plots is not None:
        _draw(worlds, policy, plots)
    rows = [asdict(judge(w, name, share)) for name, w in worlds.items()]
    if not as_json:  # the title has the scenario, which all columns share
        rows = [{k: v for k, v in row.items() if k not in {"scenario", "family"}} for row in rows]
    _print(rows, as_json, chosen.name)


def _draw(worlds: dict[str, Any], policy: str, folder: Path) -> None:
    from kdn.net.l4s.evaluate import delays_ms
    from kdn.net.l4s.plots import plot_choices, plot_delays

    folder.mkdir(parents=True, exist_ok=True)
    world, base = worlds[policy], worlds["all-L"]
    title = world.scenario.name
    delays = {name: delays_ms(one, [0]) for name, one in worlds.items()}
    plot_delays(delays, title, folder / "l4s-delays.png")
    logs = [one.log()[one.log()["flow"] == 0] for one in (world, base)]
    base_ns = int(world.state.flows[0]["base"])
    plot_choices(logs[0], logs[1], base_ns, 3.0, folder / "l4s-choices.png", f"{title}: {policy}")


@l4s.command()
def train(
    out: Annotated[Path, typer.Option(help="Where the weights go.", callback=output_file)] = Path(
        "swift.npy"
    ),
    flows: Annotated[int, typer.Option(min=2, help="Simulated flows to learn from.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps.")] = 4000,
    start: Annotated[Path | None, typer.Option(help="Weights to start from and decide by.")] = None,
    lstm: Annotated[bool, typer.Option(help="Train the LSTM baseline instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the predictor's weights from simulated flows."""
    from kdn.net.l4s.train import Training, make

    with progress_bar() as progress:
        simulated = progress.add_task("simulating", total=flows)
        learned = progress.add_task("training", total=steps)
        loss = make(
            out,
            Training(num_flows=flows, steps=steps),
            start,
            lstm,
            lambda done: progress.update(simulated, completed=done),
            lambda done: progress.update(learned, completed=done),
        )
    _print([{"weights": str(out), "flows": flows, "steps": steps, "loss": loss}], as_json, "train")


@l4s.command("eval")
def evaluate(
    policies: Annotated[
        str, typer.Option(help="Comma-separated.")
    ] = "all-L,last-value,swift,oracle",
    seconds: Seconds = 6.0,
    seed: SeedOption = 1,
    share: Annotated[str, typer.Option(help="Classic queue's WRR share: 1/16 or 10%.")] = "1/16",
    scenarios: Annotated[
        str, typer.Option("--list", help="frozen, published, transient or light.")
    ] = "frozen",
    as_json: JsonOption = False,
) -> None:
    """Every policy in every scenario of a list."""
    from kdn.net.l4s.evaluate import judge, policy_world
    from kdn.net.l4s.scenarios import LISTS

    if scenarios not in LISTS:
        raise BadInput(f"no list {scenarios!r}; there are {', '.join(LISTS)}")
    rows: list[dict[str, Any]] = []
    shown = ("scenario", "policy", "p50_ms", "p99_ms", "goodput_mbps", "classic_share")

    def print_rows() -> None:
        few = [{name: row[name] for name in shown} for row in rows]
        _print(rows if as_json else few, as_json, "policies")

    names = policies.split(",")
    with printed_even_early(print_rows), progress_bar() as progress:
        bar = progress.add_task("scenarios", total=len(LISTS[scenarios]) * len(names))
        for scenario in LISTS[scenarios]:
            for policy in names:
                world = policy_world(scenario, policy, None, 100.0, share, seconds, seed)
                world.run()
                rows.append(asdict(judge(world, policy, share)))
                progress.advance(bar)


@l4s.command()
def run(
    policy: RealPolicy = "swift",
    seconds: Seconds = 8.0,
    mbps: Annotated[float, typer.Option(min=1.0, max=1e6, help="The router's link.")] = 50.0,
    loopback: Annotated[bool, typer.Option(help="Do not make network namespaces.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Real packets through the user-space router: the floor, then all-L, then the policy."""
    import numpy as np

    from kdn.net.l4s.choosers import check_real
    from kdn.net.l4s.lab import open_place, run_real

    check_real(policy)  # refused here, not by a process that is started for it
    rows = []
    with open_place(loopback) as place:
        for kind, name in (("floor", "all-L"), ("video", "all-L"), ("video", policy)):
            found = run_real(place, name, seconds, kind, mbps)
            p50, p99 = np.percentile(found.delays_ms, [50, 99])
            row = {"place": place.name, "traffic": kind, "policy": name, "p50_ms": float(p50)}
            row |= {"p99_ms": float(p99), "goodput_mbps": found.goodput_mbps}
            kept, undone = found.sent["tuned"]
            row |= {"decision_us": float(found.sent["decision_us"])}
            rows.append(row | {"steps_kept": kept, "steps_undone": undone})
    _print(rows, as_json, "real packets; the floor is the machine's own scheduling")
