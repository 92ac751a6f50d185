"""Does a controller that knows its codec survives loss learn sooner and call better?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np

from kdn.bench.common.findings import Findings, Part, go_on
from kdn.bench.common.result import BenchOptions, Result, Row, Scalar
from kdn.bench.rtc.codecs import (
    LASTING,
    codec_lines,
    lasting_lines,
    lasting_rows,
    lasting_summary,
    speed_rows,
    table_rows,
)
from kdn.errors import BadInput
from kdn.net.rtc.call import Call, Link, run_call
from kdn.net.rtc.choose import CODECS, CONTROLLERS, codec, controller
from kdn.net.rtc.clips import generated, packaged
from kdn.net.rtc.inside import windows
from kdn.net.rtc.judge import HELD_OUT_CLIPS, held_out_tables, judged, training_tables
from kdn.net.rtc.learn import Learning, learn_online, steps_to_plateau
from kdn.net.rtc.policy import load_policies
from kdn.net.rtc.real_call import RealCall
from kdn.net.rtc.tables import RateTable
from kdn.net.rtc.worlds import changing_link, held_out_links, recorded_links
from kdn.plot import Figure

__all__ = ["PARTS", "run"]

PARTS = ("codec", "lasting", "speed", "calls", "learning", "inside", "real", "page")
"""What `only` may name; `page` measures nothing."""
_LEARNERS = {
    "codec-aware": Learning("codec-aware"),
    "codec-aware, safeguarded": Learning("codec-aware", safeguard=True),
    "network-only": Learning("network-only"),
}
_SEEDS, _STEPS = 5, 24_576
_CALL_S, _REAL_S = 30.0, 6.0
_TABLED = 24
"""Pictures of a clip that its tables are of."""
_ALSO_OF = {"learning": "curve"}
"""Rows of another name that a part measures."""
_REAL = ("ours", "gcc")
_REAL_CODECS = ("masked", "h264+fec30")
_INSIDE = ("learns", "learns-safe", "ours", "gcc")
_INSIDE_S, _INSIDE_SEEDS, _WINDOW_S = 900.0, 3, 60.0


def run(options: BenchOptions) -> Result:
    """Every part; `options.data` is a folder whose `net` has recorded links, or None.

    With `options.rows` what that file lacks is measured, and a part that `options.only` names is measured
    again when the file has all of it.  `only` = "page": the page of the file, and nothing is measured.
    Raises BadInput when `options.only` names no part, or the page has no file.
    """
    if options.only is not None and options.only not in PARTS:
        raise BadInput(f"rtc has no part {options.only!r}; there are {', '.join(PARTS)}")
    if options.only == "page" and (options.rows is None or not options.rows.exists()):
        raise BadInput(
            f"the page is made of kept rows, and there are none at {options.rows}: name them by --rows"
        )
    config = options.describe() | {"seeds": _SEEDS, "steps": _STEPS, "call_s": _CALL_S}
    found = Findings.open(options.rows, config, {})
    go_on(found, _parts(options, found), options.rows)
    return Result(
        bench="rtc",
        model="kdn's own video codec",
        config=config,
        rows=found.rows,
        summary=_summary(found.rows),
        notes=(*_NOTES, *found.notes),
        figures=_figures(found.rows),
    )


_NOTES = (
    (
        "Links are random as in the published training world (bandwidth redrawn every few seconds, any "
        "delay, queue and loss), with bandwidths of 0.2 to 3 Mbit/s because our pictures are small. Links "
        "and clips of the evaluation were used for no training. `ssim_diff_db`, `p95_delay_diff_ms` and "
        "`stall_cut` compare ours with the better of the two other learners, `aurora` (network-only) and "
        "`onrl` (with its fallback to GCC), masked codec, held-out links."
    ),
    (
        "`training_time_cut` is 1 less the ratio of environment steps until validation reaches 95 % of its "
        "own plateau, ours to the safeguarded learner's, medians over seeds. Steps in which GCC drives count."
    ),
    (
        "Part `inside`: calls of 15 minutes over links that change every 3 to 15 s, by minute. `learns` "
        "begins with nothing and learns while it calls; its gains over GCC are of the later half."
    ),
    (
        "Part `lasting`: runs of four whole pictures and ten of which each loses packets, each packet alone, "
        "without feedback. `codec_cost_db` is the twin less the masked codec without loss, `codec_gain_N_db` "
        "the masked codec, its vectors sent twice, less the twin at N % loss (mean PSNR of the ten; "
        "`last`: the tenth; `masks`: the twin sends its vectors twice, too), at equal rate along its "
        "logarithm, mean over two held-out clips."
    ),
    (
        "`table_error` is the mean difference in SSIM dB between a call by table and the same call with "
        "pictures really coded, sent and decoded, masked codec."
    ),
)


def _parts(options: BenchOptions, found: Findings) -> list[Part]:
    """What is to be measured, in pieces of a minute or so."""

    def measured(name: str, rows: Callable[[], Sequence[Row]]) -> Part:
        def measure() -> None:
            options.say(name)
            found.rows += rows()

        return name, measure

    work: list[tuple[str, Callable[[], Sequence[Row]]]] = [
        ("codec: rates and qualities", table_rows),
        *((f"lasting: {name}", _lasting(name, options.quick)) for name in LASTING),
        ("speed: pictures and steps", lambda: speed_rows(options.clock, options.quick)),
        *_call_work(options),
        *_learning_work(options.quick),
        *_inside_work(options.quick),
        *_real_work(options.quick),
    ]
    parts = [measured(name, rows) for name, rows in work if name.startswith(options.only or "")]
    if options.only and {name for name, _ in parts} <= set(found.done):
        found.done = [name for name in found.done if not name.startswith(options.only)]
        named = options.only, _ALSO_OF.get(options.only)
        found.rows = [row for row in found.rows if row["part"] not in named]
    return parts


def _lasting(coded: str, quick: bool) -> Callable[[], list[Row]]:
    return lambda: lasting_rows(coded, quick)


def _call_work(options: BenchOptions) -> list[tuple[str, Callable[[], Sequence[Row]]]]:
    return [
        (f"calls: {where}, {coded}, {name}", _calls(where, links, coded, name, options))
        for where, links in _links(options).items()
        for coded in CODECS
        for name in _controllers(options.quick)
    ]


def _learning_work(quick: bool) -> list[tuple[str, Callable[[], Sequence[Row]]]]:
    return [
        (f"learning: {name}, seed {seed}", _learning(name, learning, seed, quick))
        for seed in range(1, 2 if quick else _SEEDS + 1)
        for name, learning in _LEARNERS.items()
    ]


def _inside_work(quick: bool) -> list[tuple[str, Callable[[], Sequence[Row]]]]:
    return [
        (f"inside: {name}, {coded}, seed {seed}", _inside(name, coded, seed, quick))
        for seed in range(1, 2 if quick else _INSIDE_SEEDS + 1)
        for coded in _REAL_CODECS
        for name in _INSIDE
    ]


def _links(options: BenchOptions) -> dict[str, list[Link]]:
    links = {"held-out": held_out_links(3 if options.quick else 12)}
    if options.data is not None and not options.quick:
        links["recorded"] = recorded_links(options.data / "net", 12)
    return {where: found for where, found in links.items() if found}


def _controllers(quick: bool) -> tuple[str, ...]:
    if quick:
        return ("ours", "aurora", "onrl", "gcc")
    return tuple(name for name in CONTROLLERS if not name.startswith("learns"))


def _calls(
    where: str, links: list[Link], coded: str, name: str, options: BenchOptions
) -> Callable[[], list[Row]]:
    def rows() -> list[Row]:
        seconds = 10.0 if options.quick else _CALL_S
        outcome = judged(name, held_out_tables(coded), links, load_policies(), seconds)
        labels = {"part": "calls", "links": where, "codec": coded, "controller": name}
        return [labels | asdict(outcome)]

    return rows


def _learning(name: str, learning: Learning, seed: int, quick: bool) -> Callable[[], list[Row]]:
    def rows() -> list[Row]:
        asked = Learning(
            learning.reward,
            learning.safeguard,
            4096 if quick else _STEPS,
            seed,
            check_every=2048,
        )
        _, curve = learn_online(training_tables(), asked)
        found: list[Row] = [
            {"part": "curve", "learner": name, "seed": seed, "steps": steps, "quality": quality}
            for steps, quality in curve.points
        ]
        best = max(quality for _, quality in curve.points)
        row: Row = {"part": "learning", "learner": name, "seed": seed, "best quality": best}
        return [*found, row | {"steps to 95 %": steps_to_plateau(curve)}]

    return rows


def _inside(name: str, coded: str, seed: int, quick: bool) -> Callable[[], list[Row]]:
    """One long call, minute by minute. A learner begins with nothing."""

    def rows() -> list[Row]:
        seconds = 2 * _WINDOW_S if quick else _INSIDE_S
        link = changing_link(seed, seconds)
        call = Call(_table("bikes", coded), link, seconds, seed)
        run_call(call, controller(name, link, load_policies(), call.table.fps))
        labels: Row = {"part": "inside", "controller": name, "codec": coded, "seed": seed}
        return [labels | dict[str, Scalar](row) for row in windows(call, _WINDOW_S)]

    return rows


def _real_work(quick: bool) -> list[tuple[str, Callable[[], Sequence[Row]]]]:
    return [
        (f"real: {clip}, {link.name}", _real(clip, link))
        for link in held_out_links(1 if quick else 4)
        for clip in HELD_OUT_CLIPS[: 1 if quick else None]
    ]


def _real(clip_name: str, link: Link) -> Callable[[], list[Row]]:
    """The same calls by table and with the pictures that the table is of."""

    def rows() -> list[Row]:
        policies, found = load_policies(), list[Row]()
        bikes = clip_name == "bikes"
        clip = packaged("bikes", 208, _TABLED) if bikes else generated(91, _TABLED, 208, 320)
        for name, coded in product(_REAL, _REAL_CODECS):
            labels: Row = {"part": "real", "clip": clip.name, "link": link.name}
            labels |= {"controller": name, "codec": coded}
            real = RealCall.over(link, clip, codec(coded), _REAL_S)
            table = Call(_table(clip.name, coded), link, _REAL_S)
            for mode, call in (("real pictures", real), ("table", table)):
                outcome = run_call(call, controller(name, link, policies, clip.fps))
                found.append(labels | {"mode": mode} | asdict(outcome))
        return found

    return rows


def _table(clip: str, codec_name: str) -> RateTable:
    (table,) = [t for t in held_out_tables(codec_name) if t.name == clip]
    return table


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    calls = {
        row["controller"]: row
        for row in rows
        if row["part"] == "calls" and (row["links"], row["codec"]) == ("held-out", "masked")
    }
    found: dict[str, float | None] = dict.fromkeys(
        (
            "training_time_cut",
            "ssim_diff_db",
            "p95_delay_diff_ms",
            "stall_cut",
            "ssim_diff_db_gcc",
            "p95_delay_diff_ms_gcc",
            "stall_cut_gcc",
            "steps_per_s",
            "table_error",
            "inside_ssim_diff_db_gcc",
            "inside_p95_delay_diff_ms_gcc",
        )
    )
    if {"ours", "gcc", "aurora", "onrl"} <= set(calls):
        ours = calls["ours"]
        rival = max((calls["aurora"], calls["onrl"]), key=lambda row: row["ssim_db"])
        for other, suffix in ((rival, ""), (calls["gcc"], "_gcc")):
            found[f"ssim_diff_db{suffix}"] = ours["ssim_db"] - other["ssim_db"]
            found[f"p95_delay_diff_ms{suffix}"] = ours["p95_delay_ms"] - other["p95_delay_ms"]
            if other["stall_share"] > 0:
                found[f"stall_cut{suffix}"] = 1.0 - ours["stall_share"] / other["stall_share"]
    found["training_time_cut"] = _time_cut(rows)
    found["steps_per_s"] = next((r["steps per s"] for r in rows if r["part"] == "speed"), None)
    found["table_error"] = _table_error(rows)
    for number in ("ssim_db", "p95_delay_ms"):
        name, unit = number.rsplit("_", 1)
        found[f"inside_{name}_diff_{unit}_gcc"] = _inside_gain(rows, number)
    return found | lasting_summary(rows)


def _inside_gain(rows: Sequence[Mapping[str, Any]], number: str) -> float | None:
    """What learning inside has over GCC in the later half of long calls, masked codec."""
    late: dict[str, list[float]] = {}
    for row in rows:
        late_enough = row["part"] == "inside" and row["begin_s"] >= _INSIDE_S / 2
        if late_enough and row["codec"] == "masked":
            late.setdefault(row["controller"], []).append(row[number])
    if not {"learns", "gcc"} <= set(late):
        return None
    return float(np.mean(late["learns"]) - np.mean(late["gcc"]))


def _time_cut(rows: Sequence[Mapping[str, Any]]) -> float | None:
    taken: dict[str, list[int]] = {}
    for row in rows:
        if row["part"] == "learning":
            taken.setdefault(row["learner"], []).append(row["steps to 95 %"])
    ours, safe = taken.get("codec-aware"), taken.get("codec-aware, safeguarded")
    return 1.0 - float(np.median(ours) / np.median(safe)) if ours and safe else None


def _table_error(rows: Sequence[Mapping[str, Any]]) -> float | None:
    real = [row for row in rows if row["part"] == "real"]
    pairs: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in real:
        if row["codec"] != "masked":
            continue
        same = row["clip"], row["link"], row["controller"]
        pairs.setdefault(same, {})[row["mode"]] = row["ssim_db"]
    off = [abs(pair["real pictures"] - pair["table"]) for pair in pairs.values() if len(pair) == 2]
    return float(np.mean(off)) if off else None


def _figures(rows: Sequence[Mapping[str, Any]]) -> tuple[Figure, ...]:
    drawn = (
        Figure("Learning", "thousand steps", "validation quality", _curves(rows)),
        Figure("Codecs on bikes", "kbit/s", "PSNR of luma, dB", codec_lines(rows)),
        Figure("Loss that lasts, bikes", "kbit/s", "PSNR of luma, dB", lasting_lines(rows)),
        Figure("Learning inside a call", "minute", "share of time stalled", _inside_lines(rows)),
    )
    return tuple(figure for figure in drawn if figure.lines)


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Each learner's median validation over its steps."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in _LEARNERS:
        by_step: dict[int, list[float]] = {}
        for row in rows:
            if row["part"] == "curve" and row["learner"] == name:
                by_step.setdefault(row["steps"] // 2048, []).append(row["quality"])
        if by_step:
            curves[name] = [(2.048 * k, float(np.median(v))) for k, v in sorted(by_step.items())]
    return curves


def _inside_lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The share of each minute that was stalled, mean over seeds."""
    inside: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row["part"] == "inside":
            minutes = inside.setdefault(f"{row['controller']}, {row['codec']}", {})
            minutes.setdefault(row["begin_s"] / 60.0, []).append(row["stall_share"])
    return {
        name: [(at, float(np.mean(found))) for at, found in sorted(minutes.items())]
        for name, minutes in inside.items()
    }
