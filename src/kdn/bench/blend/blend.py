"""What does blending save, and what does it cost in quality, beside every other way to choose rows?

Quality (`--only quality`): prompts of eight documents, each computed alone after the prelude; every
arm's distribution against the full prefill's.  Timing (`--only timing`): time to the first token
through the real engine, interleaved with full prefills.  With `--rows FILE` judged prompts are kept,
and a later run goes on from them, so that the slow part may run anywhere, at any time; a run of the
timing alone reports those that are there.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from kdn import api
from kdn.bench.blend.arms import (
    ATTENTION,
    FULL,
    HALF,
    HKVD,
    LEAN,
    NAIVE,
    NOISE,
    OURS,
    PROBES,
    RANDOM,
    RATIO,
    WHOLE,
    Arm,
    chosen_arms,
    default_way,
)
from kdn.bench.blend.lab import Lab
from kdn.bench.blend.layers import PROFILED, layer_rows, profile, profiled_before
from kdn.bench.blend.prompts import BlendPrompt, questions
from kdn.bench.blend.quality import Judged, judge, judged_before
from kdn.bench.blend.timing import (
    ANCHORS,
    BLEND,
    DISK,
    FULL_TIME,
    LAYER,
    Timed,
    longer,
    time_ways,
)
from kdn.bench.common.kept import begin_kept
from kdn.bench.common.lines import Lines
from kdn.bench.common.measure import median, ratio
from kdn.bench.common.result import BenchOptions, Result, Row, model_name, scratch_folder
from kdn.bench.common.scores import geometric, interval
from kdn.bench.engine.lineup import opened
from kdn.calibration.key_bias import key_bias_share
from kdn.errors import BadInput
from kdn.plot import Figure, Interval

__all__ = ["run"]

_PROMPTS = 100
_QUICK_PROMPTS = 2
_PARTS = (None, "all", "quality", "timing", "layers")
_HKVD, _RANDOM = f"{HKVD}@{RATIO}", f"{RANDOM}@{RATIO}"
_ATTENTION = f"{ATTENTION}@{RATIO}"
_NAIVE, _NOISE, _FULL = f"{NAIVE}@0.0", f"{NOISE.name}@1.0", f"{FULL}@1.0"
_COMPARED = {
    _NAIVE: "naive reuse",
    _HKVD: "HKVD",
    _RANDOM: "random rows",
    _ATTENTION: "the question's attention without key-bias correction",
}
_LEAST_DRAWN = 10


def run(options: BenchOptions) -> Result:
    """Judge, time, and say both together."""
    if options.only not in _PARTS:
        raise BadInput(f"blend has the parts quality, timing and layers, not {options.only!r}")
    lean = _lean(options) if options.only != "timing" else None
    torch.set_num_threads(options.threads)
    asked = questions(options.data, options.seed, _QUICK_PROMPTS if options.quick else _PROMPTS)
    begin_kept(options)
    if options.only == "layers":
        return _layers(options, asked[len(asked) // 2 :][: options.items or PROFILED])
    judged = judged_before(asked, options.rows)
    asked = asked[: options.items]
    timed: dict[str, Timed] = {}
    with scratch_folder() as folder, opened(options, folder) as service:
        bias = service.calibration.learn_key_bias()  # else idle time measures it beside the timing
        if options.only != "timing":
            lab = Lab(service.model, service.parts.attention, bias)
            judged = judge(
                service,
                lab,
                asked,
                options.rows,
                options.say,
                quick=options.quick,
                lean=lean,
            )
        if options.only != "quality":
            timed = _timed(options, service, asked)
    ours = f"{default_way(model_name(options.model))}@{RATIO}"
    return Result(
        bench="blend",
        model=options.model,
        config=options.describe_kept() | {"prompts": len(judged)},
        rows=[*_quality_rows(judged), *_timing_rows(timed)],
        summary=_summary(judged, timed, ours),
        notes=_notes(judged, ours),
        figures=_figures(judged),
        page=_page(options),
        dtype=next((one.dtype for one in timed.values()), None),
    )


def _layers(options: BenchOptions, asked: list[BlendPrompt]) -> Result:
    """The profile of layers and anchors, on prompts that judge nothing else."""
    known = profiled_before(options.rows)
    with scratch_folder() as folder, opened(options, folder) as service:
        lab = Lab(service.model, service.parts.attention, service.calibration.learn_key_bias())
        share = key_bias_share(model_name(options.model))
        found = profile(service, lab, asked, known, options.rows, options.say, bias_share=share)
    rows = layer_rows(found)
    return Result(
        bench="blend",
        model=options.model,
        config=options.describe_kept() | {"prompts": len(found)},
        rows=rows,
        summary={},
        notes=(
            "`attention caught`: what the full prefill's question pays to the rows, of the most there is.",
        ),
        page=_page(options, "blend-layers"),
    )


def _lean(options: BenchOptions) -> list[Arm] | None:
    """The arms that were asked for by name or ratio; None when none were."""
    if options.arms is None and options.ratios is None:
        return None
    return chosen_arms(options.arms or LEAN, options.ratios or (RATIO, 0.3))


def _page(options: BenchOptions, kind: str = "blend") -> str:
    """As the file of kept rows, so that each set of rows has its page."""
    if options.rows is not None:
        return options.rows.stem
    data = options.data.stem if options.data is not None else "shipped"
    return f"{kind}-{model_name(options.model)}-{data}"


def _timed(options: BenchOptions, service: api.Kdn, asked: list[BlendPrompt]) -> dict[str, Timed]:
    rounds = options.pairs or min(2 if options.quick else 6, len(asked))
    options.say(f"timing: {rounds} rounds of every way")
    found = {"": time_ways(options, service, asked, rounds)}
    if not options.quick:
        options.say(f"timing: {rounds} rounds over longer prompts")
        found[", long"] = time_ways(options, service, longer(asked), rounds)
    return found


# --- quality ---------------------------------------------------------------------------------


def _values(judged: Sequence[Judged], arm: str, key: str) -> list[float]:
    return [j["arms"][arm][key] for j in judged if key in j["arms"].get(arm, {})]


def _pairs(judged: Sequence[Judged], a: str, b: str, key: str) -> list[tuple[float, float]]:
    both = [j["arms"] for j in judged if a in j["arms"] and b in j["arms"]]
    return [(arms[a][key], arms[b][key]) for arms in both]


def _quality_rows(judged: Sequence[Judged]) -> list[Row]:
    names = dict.fromkeys(arm for one in judged for arm in one["arms"])
    return [_quality_row(judged, arm) for arm in names]


def _quality_row(judged: Sequence[Judged], arm: str) -> Row:
    name, _, share = arm.rpartition("@")
    row: Row = {"way": name, "ratio": float(share), "prompts": len(_of(judged, arm))}
    for key, title in (("kl", "KL first"), ("kl32", "KL 32"), ("agree", "same first token")):
        found = _values(judged, arm, key)
        row[title] = statistics.mean(found) if found else None
    row |= _gains(judged, arm)
    for key, title in (("nll", "gold NLL"), ("f1", "F1")):
        found = _values(judged, arm, key)
        row[title] = statistics.mean(found) if found else None
    if _values(judged, arm, "f1"):
        _, low, high = interval(_values(judged, arm, "f1"))
        row["F1 interval"] = f"{low:.3f}-{high:.3f}"
    found = _values(judged, arm, "rows")
    row["rows computed"] = statistics.mean(found) if found else None
    return row


def _of(judged: Sequence[Judged], arm: str) -> list[Judged]:
    return [one for one in judged if arm in one["arms"]]


def _gains(judged: Sequence[Judged], arm: str) -> Row:
    """How many times closer than naive reuse, on the same prompts, where it was judged on any."""
    if arm in (_FULL, _NAIVE) or not _pairs(judged, _NAIVE, arm, "kl"):
        return {}
    row: Row = {}
    for key, title in (("kl", "closer than naive"), ("kl32", "closer, 32")):
        mean, low, high = geometric(_pairs(judged, _NAIVE, arm, key))
        row[title] = mean
        row[f"{title}, interval"] = f"{low:.2f}-{high:.2f}"
    naive = sum(a for a, _ in _pairs(judged, _NAIVE, arm, "kl"))
    own = sum(b for _, b in _pairs(judged, _NAIVE, arm, "kl"))
    row["repaired"] = 1 - own / naive if naive else None
    return row


def _summary(
    judged: Sequence[Judged], timed: dict[str, Timed], ours: str
) -> dict[str, float | None]:
    def mean(arm: str, key: str) -> float | None:
        found = _values(judged, arm, key)
        return statistics.mean(found) if found else None

    def gain(arm: str, key: str) -> float | None:
        pairs = _pairs(judged, arm, ours, key)
        return geometric(pairs)[0] if pairs else None

    return {
        "ttft_speedup": _speedup(timed, "", BLEND),
        "ttft_disk_speedup": _speedup(timed, "", DISK),
        "ttft_long_speedup": _speedup(timed, ", long", BLEND),
        "ttft_layer_speedup": _speedup(timed, "", LAYER),
        "ttft_long_layer_speedup": _speedup(timed, ", long", LAYER),
        "ttft_anchors_speedup": _speedup(timed, "", ANCHORS),
        "ttft_long_anchors_speedup": _speedup(timed, ", long", ANCHORS),
        "ratio": RATIO,
        "kl_full_noise": mean(_NOISE, "kl"),
        "kl_naive": mean(_NAIVE, "kl"),
        "kl_blend": mean(ours, "kl"),
        "kl_gain_naive": gain(_NAIVE, "kl"),
        "kl_gain_random": gain(_RANDOM, "kl"),
        "kl_gain_hkvd": gain(_HKVD, "kl"),
        "kl32_gain_naive": gain(_NAIVE, "kl32"),
        "kl32_gain_hkvd": gain(_HKVD, "kl32"),
        "kl_gain_key_bias": gain(_ATTENTION, "kl"),
        "agreement_share": mean(ours, "agree"),
        "agreement_naive_share": mean(_NAIVE, "agree"),
        "f1_full": mean(_FULL, "f1"),
        "f1_blend": mean(ours, "f1"),
    }


def _notes(judged: Sequence[Judged], ours: str) -> tuple[str, ...]:
    if not judged:
        return ()
    said = [f"The default for this model: {ours.rpartition('@')[0]}."]
    for arm, name in _COMPARED.items():
        for key, where in (("kl", "at the answer position"), ("kl32", "over 32 forced tokens")):
            pairs = _pairs(judged, arm, ours, key)
            if not pairs:
                continue
            mean, low, high = geometric(pairs)
            said.append(
                f"At 15 % the default is {mean:.2f} times closer to the full prefill than {name}"
                f" {where} (95 % bootstrap interval over {len(pairs)} prompts {low:.2f}-{high:.2f})."
            )
    for arm in _others(judged, ours):
        pairs = _pairs(judged, arm, ours, "kl")
        if not pairs:
            continue
        mean, low, high = geometric(pairs)
        said.append(
            f"KL at the answer position with {arm.rpartition('@')[0]} is {mean:.2f} times the default's"
            f" (95 % bootstrap interval over {len(pairs)} prompts {low:.2f}-{high:.2f})."
        )
    said.append(
        "`rows computed` counts rows times layers, the probe pass and the question"
        " included, as a share of a full prefill's; KL is held above 0.0001 nats in ratios."
    )
    return tuple(said)


def _others(judged: Sequence[Judged], ours: str) -> list[str]:
    """What could replace the default, of the ways that were judged beside it."""
    way = ours.rpartition("@")[0]
    share = 1.0 if way == WHOLE else HALF
    named = [one.key for one in chosen_arms(PROBES, (RATIO,)) if one.bias_share == share]
    return [arm for arm in named if _pairs(judged, arm, ours, "kl")]


# --- timing ----------------------------------------------------------------------------------


def _timing_rows(timed: dict[str, Timed]) -> list[Row]:
    rows: list[Row] = []
    for size, found in timed.items():
        for way in found.samples:
            row: Row = {
                "way": way + size,
                "prompt tokens": round(found.num_tokens),
                "recomputed": found.usages[way].recomputed,
                "loaded MB": round(found.loaded_bytes[way] / 1e6, 1),
                "first token, ms": 1000 * (median(found.samples, way) or 0.0),
            }
            faster = ratio(found.samples, way, FULL_TIME)
            if faster is not None and way != FULL_TIME:
                row |= {"speedup": faster.median, "spread": f"{faster.low:.2f}-{faster.high:.2f}"}
            beside = ratio(found.samples, way, BLEND)
            if beside is not None and way in (LAYER, ANCHORS):
                row["sooner than the default"] = beside.median
                row["its spread"] = f"{beside.low:.2f}-{beside.high:.2f}"
            rows.append(row)
    return rows


def _speedup(timed: dict[str, Timed], size: str, way: str) -> float | None:
    """Geometric mean over prompts of the paired ratios."""
    if size not in timed or way not in timed[size].samples:
        return None
    samples = timed[size].samples
    pairs = zip(samples[FULL_TIME], samples[way], strict=True)
    return geometric(list(pairs))[0]


# --- figures ---------------------------------------------------------------------------------


def _figures(judged: Sequence[Judged]) -> tuple[Figure, ...]:
    """The paper's figures 6 and 16 (error and agreement by ratio) and 8 (ranks between layers)."""
    figures = []
    for key, what, title in (
        ("kl", "KL to the full prefill, nats", "Error by ratio (the paper's figure 6)"),
        ("agree", "share of equal first tokens", "Plateau (the paper's figure 16)"),
    ):
        curves, intervals, count = _curves(judged, key)
        told = f"{title}, {count} prompts"
        figures.append(Figure(told, "share of reused rows recomputed", what, curves, intervals))
    ranked = [one for one in judged if "ranks" in one]
    return (*(one for one in figures if one.lines), *map(_rank_figure, [ranked] if ranked else []))


def _curves(judged: Sequence[Judged], key: str) -> tuple[Lines, dict[str, list[Interval]], int]:
    """Means by ratio, and their intervals, over the prompts that were judged in every way drawn.

    A way is drawn where it met at least ten prompts at both ratios, or as many as there are.
    """
    arms = {
        name: {0.0: _NAIVE} | {ratio: f"{name}@{ratio}" for ratio in (RATIO, 0.3)}
        for name in (OURS, WHOLE, ATTENTION, HKVD, RANDOM)
    }
    met = {
        name: {i for i, one in enumerate(judged) if set(own.values()) <= one["arms"].keys()}
        for name, own in arms.items()
    }
    drawn = [name for name, found in met.items() if len(found) >= min(_LEAST_DRAWN, len(judged))]
    common = set.intersection(*(met[name] for name in drawn)) if drawn else set[int]()
    shared = [judged[i] for i in sorted(common)]
    curves: Lines = {}
    intervals: dict[str, list[Interval]] = {}
    for name in drawn if shared else ():
        means = {ratio: interval(_values(shared, arm, key)) for ratio, arm in arms[name].items()}
        curves[name] = [(ratio, mean) for ratio, (mean, _, _) in means.items()]
        intervals[name] = [(low, high) for _, low, high in means.values()]
    return curves, intervals, len(shared)


def _rank_figure(whole: Sequence[Judged]) -> Figure:
    def line(key: str) -> list[tuple[float, float]]:
        columns = zip(*(one["ranks"][key] for one in whole), strict=True)
        return [(float(i), statistics.mean(column)) for i, column in enumerate(columns, 1)]

    return Figure(
        "Do layers agree on which rows deviate? (the paper's figure 8)",
        "layer",
        "Spearman's rank correlation of V deviation",
        {"with the next layer": line("neighbours"), "with layer 1": line("with_first")},
        is_linear=True,
    )
