"""`kdn net rtc train | eval | call`: real-time video and what controls its rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from kdn.cli.options import JsonOption, SeedOption, output_file, output_folder
from kdn.cli.show import emit, printed_even_early, progress_bar
from kdn.errors import BadInput

__all__ = ["app"]

app = typer.Typer(help="Real-time video whose codec survives loss.", no_args_is_help=True)

Controllers = Annotated[
    str,
    typer.Option(
        help="Comma-separated: ours, ours-safe, aurora, onrl, offline, gcc, gcc-kalman, salsify, "
        "copa, bbr-like, fbra, oracle."
    ),
]
Policies = Annotated[
    Path | None,
    typer.Option(help="A file of policies that `train` wrote; the packaged ones without."),
]

_SHOWN = {
    "ssim_db": "SSIM dB",
    "p95_delay_ms": "P95 ms",
    "stalls_per_minute": "stalls a min",
    "stall_share": "stalled",
    "undecoded_share": "not shown",
    "sent_mbps": "Mbit/s",
    "loss": "loss",
    "p95_shown_ms": "P95 shown",
    "same_pictures": "same",
}
_WAYS = ("simulated", "udp", "namespaces")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Where the policy goes.", callback=output_file)] = Path(
        "policies.npz"
    ),
    reward: Annotated[
        str, typer.Option(help="codec-aware, network-only or onrl; or offline: from GCC's logs.")
    ] = "codec-aware",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Environment steps of 50 ms, in whole parts of 4,096, 60,000 without; offline: gradient"
            " steps, 2,500 without.",
        ),
    ] = None,
    seed: SeedOption = 1,
    safeguard: Annotated[bool, typer.Option(help="GCC drives while loss is high.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Teach a controller by simulated calls; the file keeps the policies that it has already."""
    from kdn.net.rtc import learn
    from kdn.net.rtc.judge import training_tables
    from kdn.net.rtc.policy import add_policy, load_policies
    from kdn.net.rtc.reward import REWARDS

    if reward != "offline" and reward not in REWARDS:
        raise BadInput(f"no reward {reward!r}; there are {', '.join(REWARDS)} and offline")
    if reward == "offline" and safeguard:
        raise BadInput(
            "offline learns from calls that GCC drives throughout; leave --safeguard out"
        )
    if out.exists():
        load_policies(out)  # a file of another kind is refused before the work
    row: dict[str, Any] = {"reward": reward, "seed": seed}
    with progress_bar() as progress:
        bar = progress.add_task(f"learning: {reward}", total=None)

        def tick(what: str, done: int, of: int) -> None:
            text = f"learning: {reward}, {what}"
            progress.update(bar, completed=done, total=of, description=text)

        if reward == "offline":
            policy = learn.learn_offline(
                training_tables(), seed=seed, steps=steps or learn.OFFLINE_STEPS, tick=tick
            )
        else:
            learning = learn.Learning(reward, safeguard, steps or learn.Learning.steps, seed)
            policy, curve = learn.learn_online(
                training_tables(),
                learning,
                lambda done, quality: tick(f"quality {quality:.2f}", done, learning.steps),
            )
            row |= {"steps": curve.points[-1][0], "best_quality": max(q for _, q in curve.points)}
            row |= {"steps_to_95_per_cent": learn.steps_to_plateau(curve)}
    add_policy(policy, out)  # to those of now: another training may have ended meanwhile
    _print([row | {"policies": str(out)}], as_json, "trained")


@app.command("eval")
def evaluate(
    controllers: Controllers = "ours,aurora,gcc,copa,oracle",
    codec: Annotated[str, typer.Option(help="masked, unmasked or h264+fec30.")] = "masked",
    data: Annotated[
        Path | None, typer.Option(help="Folder of recorded links (cellular/, puffer/).")
    ] = None,
    num_links: Annotated[int, typer.Option("--links", min=1, help="How many links.")] = 12,
    seconds: Annotated[float, typer.Option(min=3.0, max=1e6, help="Length of a call.")] = 30.0,
    policies: Policies = None,
    as_json: JsonOption = False,
) -> None:
    """Every controller over held-out links (or recorded ones) with clips that nothing was trained on."""
    from kdn.net.rtc.choose import controller
    from kdn.net.rtc.judge import held_out_tables, judged
    from kdn.net.rtc.policy import load_policies
    from kdn.net.rtc.worlds import held_out_links, recorded_links

    links = held_out_links(num_links) if data is None else recorded_links(data, num_links)
    if not links:
        raise BadInput(f"{data} holds no cellular/*.gz or puffer/*.gz; give the folder above them")
    learned, tables = load_policies(policies), held_out_tables(codec)
    names = controllers.split(",")
    for name in names:
        controller(name, links[0], learned)  # a wrong name is refused before anything is run
    rows: list[dict[str, Any]] = []

    def print_rows() -> None:
        few = [{n: row[n] for n in ("controller", *_SHOWN) if n in row} for row in rows]
        title = f"{len(links)} links, {len(tables)} clips, codec {codec}"
        _print(rows if as_json else few, as_json, title)

    with printed_even_early(print_rows), progress_bar() as progress:
        bar = progress.add_task("calls", total=len(names) * len(links) * len(tables))
        for name in names:
            progress.update(bar, description=f"calls: {name}")
            found = judged(name, tables, links, learned, seconds, lambda: progress.advance(bar))
            rows.append({"controller": name} | asdict(found))


@app.command()
def call(
    file: Annotated[Path, typer.Argument(help="A video file.")],
    controllers: Controllers = "ours,gcc",
    mbps: Annotated[float, typer.Option(min=0.05, max=1e6, help="The link's rate.")] = 1.0,
    link: Annotated[Path | None, typer.Option(help="Play this recorded link instead.")] = None,
    loss: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of packets lost.")] = 0.01,
    delay_ms: Annotated[float, typer.Option(min=0.0, max=1e6, help="One-way delay.")] = 30.0,
    queue: Annotated[int, typer.Option(min=4, help="Packets that the bottleneck holds.")] = 40,
    height: Annotated[int, typer.Option(min=16, help="Rows that the video is scaled to.")] = 208,
    seconds: Annotated[float, typer.Option(min=2.0, max=1e6, help="Length of the call.")] = 8.0,
    out: Annotated[
        Path, typer.Option(help="Folder for pictures and videos.", callback=output_folder)
    ] = Path("call"),
    codecs: Annotated[
        str, typer.Option(help="Comma-separated: masked, unmasked, h264+fec30.")
    ] = "masked",
    over: Annotated[
        str,
        typer.Option(
            help="simulated; or udp: real time, real sockets and a router in user space, on loopback; "
            "or namespaces: the same between network namespaces (needs root)."
        ),
    ] = "simulated",
    policies: Policies = None,
    as_json: JsonOption = False,
) -> None:
    """Call with a real video: code, send, lose, decode; a strip of what viewers saw, and a video each."""
    from kdn.net.rtc.call import STEP_MS, Link
    from kdn.net.rtc.choose import check_real, codec, controller
    from kdn.net.rtc.clips import read_clip, write_pictures
    from kdn.net.rtc.policy import load_policies
    from kdn.net.rtc.strips import draw_rates, draw_strip, screens, side_by_side
    from kdn.net.world.traces import constant, read_link

    rate = constant(mbps * 1e6) if link is None else read_link(link)
    path = Link(link.name if link else f"{mbps:g} Mbit/s", rate, delay_ms, queue, loss)
    learned, chosen = load_policies(policies), codecs.split(",")
    pairs = [(name, coded) for name in controllers.split(",") for coded in chosen]
    for name, coded in pairs:  # a wrong name is refused before anything is run
        controller(name, path, learned)
        if over != "simulated":
            check_real(name)
        codec(coded)
    clip = read_clip(file, height, most=int(seconds * 60))
    calls, rates = {}, {}
    rows: list[dict[str, Any]] = []
    out.mkdir(parents=True, exist_ok=True)

    def print_rows() -> None:
        few = [{n: row[n] for n in ("controller", *_SHOWN) if n in row} for row in rows]
        title = f"{file.name} over {path.name}; pictures and videos go to {out}"
        _print(rows if as_json else few, as_json, title)

    with printed_even_early(print_rows), _place(over) as place:
        for name, coded in pairs:
            label = name if len(chosen) == 1 else f"{name} {coded}"
            one = controller(name, path, learned, clip.fps)
            running, row = _called(place, path, clip, coded, seconds, link, one, label, as_json)
            rates[label], calls[label] = row.pop("rates"), running
            rows.append({"controller": label} | asdict(running.outcome()) | row)
            video = out / f"{label.replace(' ', '-')}.mp4"
            write_pictures(video, screens(running), clip.fps)
    times = [seconds * share for share in (0.2, 0.4, 0.6, 0.8, 0.95)]
    draw_strip(calls, times, out / "strip.png")
    side_by_side(calls, out / "side-by-side.mp4")
    draw_rates(rates, STEP_MS / 1000.0, f"{file.name} over {path.name}", out / "rates.png")


@contextmanager
def _place(over: str) -> Iterator[Any]:
    """Where a call's processes run; None for a simulated call."""
    from kdn.net.real.namespaces import namespaces_work
    from kdn.net.real.place import open_place

    if over not in _WAYS:
        raise BadInput(f"a call runs over {', '.join(_WAYS)}, not over {over!r}")
    if over == "simulated":
        yield None
        return
    if over == "namespaces" and not namespaces_work():
        raise BadInput("network namespaces need root and iproute2; use --over udp")
    with open_place(loopback=over == "udp") as place:
        yield place


def _called(
    place: Any,
    path: Any,
    clip: Any,
    coded: str,
    seconds: float,
    link: Path | None,
    one: Any,
    label: str,
    quiet: bool,
) -> tuple[Any, dict[str, Any]]:
    """One call to its end; the call, and what is to be said of it beside its outcome."""
    from kdn.net.rtc.choose import codec
    from kdn.net.rtc.over_udp import call_over_udp
    from kdn.net.rtc.real_call import RealCall

    rates: list[float] = []

    def drive(call: Any) -> None:
        rates.extend(_run(call, one, label, quiet=quiet))

    if place is None:
        running = RealCall.over(path, clip, codec(coded), seconds)
        drive(running)
        return running, {"rates": rates}
    done = call_over_udp(place, path, clip, coded, seconds, drive, link)
    return done.call, done.row() | {"over": place.name, "rates": rates}


def _run(running: Any, one: Any, name: str, *, quiet: bool) -> list[float]:
    """The call to its end, with a line that shows how it goes; Mbit/s of every step."""
    from kdn.net.rtc.call import START_RATE_BPS, Decision

    decision, rates = Decision(START_RATE_BPS), []
    with Live(
        console=Console(stderr=True, quiet=quiet), transient=True, auto_refresh=False
    ) as live:
        while not running.done:
            feedback = running.step(decision.rate_bps, decision.probe_bps)
            decision = one.decide(feedback)
            rates.append(decision.rate_bps / 1e6)
            live.update(_view(running, feedback, name, rates), refresh=True)
    return rates


def _view(running: Any, feedback: Any, name: str, rates: list[float]) -> str:
    """One line: time, rate as a sparkline, quality and age of the newest picture."""
    bars = "▁▂▃▄▅▆▇█"
    most = max(*rates[-30:], 1e-6)
    line = "".join(bars[min(int(rate / most * 7.99), 7)] for rate in rates[-30:])
    newest = feedback.frames[-1] if len(feedback.frames) else None
    quality = "" if newest is None else f"SSIM {float(newest['quality']):.3f}"
    return f"{name:>10} {running.now_ns / 1e9:5.1f} s {line:<30} {rates[-1]:5.2f} Mbit/s {quality}"


def _print(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    if as_json:
        emit({"rows": rows})
    if as_json or not rows:
        return
    table = Table(title=title)
    for name in rows[0]:
        label = _SHOWN.get(name, name.replace("_", " "))
        table.add_column(label, overflow="fold", no_wrap=name == "controller", min_width=5)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
