"""How soon does a real vLLM answer when its KV comes from kdn, from its own cache, or from others' stores?

Each arm is a vLLM of its own with the same model; all run at the same time and take turns with the same
prompts.  A prompt is asked when it is new to everybody (with a connector: a miss), again after vLLM's
own cache was emptied (a hit of the store), and its first half before another end (a hit in
part).  At last, prompts over documents that kdn blends and hands over, beside vLLM's full prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median as middle

from kdn.bench.common.findings import Findings, Part, go_on
from kdn.bench.common.measure import Samples, interleave, median, ratio
from kdn.bench.common.result import BenchOptions, Result, Row, scratch_folder
from kdn.bench.engine.lineup import weights
from kdn.bench.scale.vllm_arms import (
    ARMS,
    DISK,
    EXAMPLE,
    LENGTHS,
    LMCACHE,
    MEMORY,
    NODE,
    OFF,
    OURS,
    FirstToken,
    VllmArm,
    random_prompt,
    start_arms,
    vllm_python,
)
from kdn.bench.scale.vllm_blend import time_blending
from kdn.errors import BadInput, EngineFailed
from kdn.plot import Figure

__all__ = ["row_of", "run", "sum_up"]

NEW, OWN, HIT, PART = "new", "own cache", "hit", "part"
AT = 2048
BLEND = "blend"
SUMMARY = (
    "hit_speedup_2048",
    "part_speedup_2048",
    "hit_speedup_disk",
    "hit_speedup_example",
    "hit_speedup_lmcache",
    "miss_cost",
    "blend_speedup",
)

Arms = Mapping[str, VllmArm]


def run(options: BenchOptions) -> Result:
    """Every arm at every length, then blending; a length that `--rows` has is not measured again."""
    names = options.arms or ((OFF, MEMORY, DISK) if options.quick else ARMS)
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise BadInput(f"no arm {unknown[0]!r}; choose among: {', '.join(ARMS)}")
    if OFF not in names:
        raise BadInput(f"every arm is compared with {OFF!r}: name it too")
    python = vllm_python()
    dtype = options.machine_dtype()
    config = options.describe() | {"arms": ", ".join(names), "dtype": dtype}
    found = Findings.open(options.rows, config, dict.fromkeys(SUMMARY))
    lengths = LENGTHS[:1] if options.quick else LENGTHS
    if {*map(_named, lengths), BLEND} - set(found.done):
        with ExitStack() as stack:
            scratch = stack.enter_context(scratch_folder())
            _, model = weights(options, dtype)
            arms, absent = start_arms(names, python, model, options, scratch, stack)
            told = [f"{name} is absent: {why[:300]}" for name, why in absent.items()]
            found.notes = [note for note in found.notes if " is absent: " not in note] + told
            go_on(found, _parts(options, arms, model, scratch, lengths, found), options.rows)
    sum_up(found, lengths)
    notes = [_MEANING, _HONESTY, *_absent_keys(found)]
    result = found.result("vllm", options.model, notes, [_figure(found, names)])
    return replace(result, dtype=dtype)


def _named(length: int) -> str:
    return f"{length} tokens"


def _parts(
    options: BenchOptions,
    arms: Arms,
    model: Path,
    scratch: Path,
    lengths: Sequence[int],
    found: Findings,
) -> list[Part]:
    parts: list[Part] = [
        (_named(length), partial(_measure, options, arms, length, found)) for length in lengths
    ]
    return [*parts, (BLEND, partial(_blend, options, arms, model, scratch, found))]


def _measure(options: BenchOptions, arms: Arms, length: int, found: Findings) -> None:
    """All ways of all arms at one length, in rounds."""
    options.say(f"{length} tokens: {', '.join(arms)}")
    usual = 1 if options.quick else 3 if length > AT else 5
    samples: Samples = {}
    tokens: dict[tuple[int, str], dict[str, int]] = {}
    cached: dict[str, int] = {}

    def turn(name: str, number: int) -> float:
        whole = random_prompt(options.seed, f"{number}", length)
        other = random_prompt(options.seed, f"{number}, another end", length - length // 2)
        for way, answer in _ask(name, arms[name], whole, whole[: length // 2] + other):
            if way in (HIT, PART):
                cached[f"{name}/{way}"] = answer.cached
                if not answer.cached:
                    continue  # nothing came back: not a hit
            samples.setdefault(f"{name}/{way}", []).append(answer.seconds)
            tokens.setdefault((number, way), {})[name] = answer.token_id
        return samples[f"{name}/{NEW}"][-1]

    sides: dict[str, Callable[[int], float]] = {name: partial(turn, name) for name in arms}
    interleave(sides, options.pairs or usual)
    found.samples[length] = samples
    for name in arms:
        row = row_of(samples, name, length)
        row["tokens of a hit in part"] = cached.get(f"{name}/{PART}")
        row["other first tokens"] = _others(tokens, name)
        found.rows.append(row)


def _ask(
    name: str, arm: VllmArm, whole: Sequence[int], part: Sequence[int]
) -> list[tuple[str, FirstToken]]:
    """The answers of one round; vLLM's own cache is emptied where a store is to answer."""
    answers = [(NEW, arm.ask(whole))]
    if name == OFF:
        answers += [(OWN, arm.ask(whole)), (PART, arm.ask(part))]
    else:
        arm.settle()
        answers.append((HIT, arm.ask(whole)))
        arm.settle()
        answers.append((PART, arm.ask(part)))
    arm.settle()
    return answers


def row_of(samples: Samples, name: str, length: int) -> Row:
    """An arm at one length: medians, and ratios to vLLM alone within each round."""

    def ms(way: str) -> float | None:
        seconds = median(samples, f"{name}/{way}")
        return None if seconds is None else 1000 * seconds

    def over(way: str) -> float | None:
        return _over(samples, f"{name}/{way}", f"{OFF}/{NEW}")

    cost = over(NEW)
    return {
        "part": "time to the first token",
        "tokens": length,
        "arm": name,
        "new ms": ms(NEW),
        "a miss costs": None if cost is None or name == OFF else 1 / cost - 1,
        "hit ms": ms(OWN if name == OFF else HIT),
        "cold over hit": over(OWN if name == OFF else HIT),
        "hit in part ms": ms(PART),
        "cold over hit in part": over(PART),
    }


def _others(tokens: Mapping[tuple[int, str], Mapping[str, int]], name: str) -> str | None:
    """How many answers were not what vLLM says alone: cold to a new prompt, of its own cache to a hit."""
    if name == OFF:
        return None
    alike = [
        found[name] == tokens[number, OWN if way == HIT else way][OFF]
        for (number, way), found in tokens.items()
        if name in found
    ]
    return f"{alike.count(False)} of {len(alike)}"


def _blend(options: BenchOptions, arms: Arms, model: Path, scratch: Path, found: Findings) -> None:
    """Prompts that kdn blends and hands over, beside vLLM's full prefill of the same tokens."""
    if DISK not in arms:
        raise EngineFailed(
            f"prompts are handed over through the folder of {DISK!r}, which is absent"
        )
    rounds = options.pairs or (1 if options.quick else 5)
    options.say("blended prompts, handed over")
    timed = time_blending(options, arms[OFF], arms[DISK], model, scratch, rounds)
    gain = ratio(timed.samples, "handed over", "full prefill")
    found.summary["blend_speedup"] = None if gain is None else gain.median
    found.rows += timed.rows()


def _over(samples: Samples, ours: str, theirs: str) -> float | None:
    """Their time over ours, the median of the rounds; None where a side has not all of them."""
    if len(samples.get(ours, ())) != len(samples.get(theirs, ())):
        return None
    found = ratio(samples, ours, theirs)
    return None if found is None else found.median


def sum_up(found: Findings, lengths: Sequence[int]) -> None:
    """Fill the summary; a key whose side is absent has no number."""
    at = AT if AT in lengths else lengths[-1]
    samples, cold = found.samples.get(at, {}), f"{OFF}/{NEW}"
    whole = found.samples.get(AT, {})
    misses = [
        missed / cold_s
        for own in found.samples.values()
        for name in OURS
        for missed, cold_s in zip(own.get(f"{name}/{NEW}", ()), own.get(cold, ()), strict=False)
    ]
    found.summary |= {
        "hit_speedup_2048": _over(whole, f"{MEMORY}/{HIT}", cold),
        "part_speedup_2048": _over(whole, f"{MEMORY}/{PART}", cold),
        "hit_speedup_disk": _over(samples, f"{DISK}/{HIT}", cold),
        "hit_speedup_example": _over(samples, f"{DISK}/{HIT}", f"{EXAMPLE}/{HIT}"),
        "hit_speedup_lmcache": _over(samples, f"{NODE}/{HIT}", f"{LMCACHE}/{HIT}"),
        "miss_cost": middle(misses) - 1 if misses else None,
    }


_MEANING = (
    "`hit_speedup_2048` and `part_speedup_2048` are vLLM's full prefill over a hit of kdn's memory, whole and"
    " of one half; `hit_speedup_example` is ExampleConnector's hit over ours from the disk,"
    " `hit_speedup_lmcache` that of LMCache's server over ours from a node: above 1 ours is sooner."
    " `miss_cost` is what a new prompt costs more with kdn's connector: the median of all rounds of its"
    " arms and lengths. `blend_speedup` is vLLM's full prefill over the time of kdn's blended pass, its"
    " storing, and vLLM's load of it; `handed over, not blended` tells how much of that is kdn's engine"
    " alone. Ratios are medians of rounds, in which all arms take turns."
)
_HONESTY = (
    "vLLM runs without compiling (`enforce_eager`) in all arms. kdn verifies every byte that it loads;"
    " ExampleConnector verifies none and finds whole prompts only. `other first tokens` compares with"
    " vLLM alone: a new prompt with its cold answer, a hit with that of its own cache."
    " LMCache's vLLM has its engine in a process of its own, since it does not start otherwise."
)


def _absent_keys(found: Findings) -> list[str]:
    missing = [f"`{name}`" for name, value in found.summary.items() if value is None]
    told = "a side of each is absent, or --quick leaves out its length"
    return [f"Without a number are {', '.join(missing)}: {told}."] if missing else []


def _figure(found: Findings, names: Sequence[str]) -> Figure:
    ways = [(OFF, NEW), (OFF, OWN), *((name, HIT) for name in names if name != OFF)]
    lines = {
        f"{name}, {way}": [
            (float(length), seconds)
            for length, samples in found.samples.items()
            if (seconds := median(samples, f"{name}/{way}")) is not None
        ]
        for name, way in ways
    }
    drawn = {label: points for label, points in lines.items() if points}
    return Figure("Time to the first token in vLLM", "prompt tokens", "s", drawn)
