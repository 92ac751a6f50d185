"""How good the answers are over each configuration: words in common with the right ones, and recall.

Nothing here is timed, and nothing is stored when a choice is made.  A finished answer is a line of a file;
a run that is begun again goes on after the last line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from kdn.api import Kdn, QueryOptions
from kdn.api.foresight import Foresight
from kdn.bench.common.kept import add_kept, begin_kept, read_kept
from kdn.bench.common.result import BenchOptions, Result, Row, model_name, scratch_folder
from kdn.bench.common.scores import interval, rouge_l, word_f1
from kdn.bench.engine.lineup import opened
from kdn.bench.rag.arms import Arms, ChoiceInput, arms, static_arms
from kdn.bench.rag.questions import load_sets
from kdn.bench.rag.workload import CUTTING, AskedQuestion, find_all, recall
from kdn.core import Request, Sampling
from kdn.errors import BadInput
from kdn.machine.facts import describe_machine
from kdn.model import Document, Message
from kdn.rag.metis import (
    ChunkState,
    ClassifierProfiler,
    EngineLoad,
    LibraryNote,
    OracleProfiler,
    Profiler,
    QueryCalls,
    RagConfiguration,
    synthesize,
)

__all__ = ["JudgedAnswer", "QualityRows", "judge_quality", "quality_rows", "quality_summary"]

OURS = "ours, balanced"
AT_LENGTH = frozenset({"qmsum", "sec10q"})
"""Sets whose right answers are sentences: judged by Rouge-L, others by F1 of words."""
STATIC_ARMS = tuple(f"static stuff {count}" for count in (1, 2, 5, 8))
"""Each begins with the parts of the one before, so that all of them cost little more than the last."""
_ANSWER_TOKENS, _LONG_TOKENS = 32, 64
_QUESTIONS, _PER_LONG = 30, 4
"""Of each set; of those with long answers, one for so many of the others: their answers take longest."""
_ALL_BYTES = 1 << 60
_NOTES = (
    "Nothing is timed, nothing is stored when a choice is made, and nobody else uses the engine.",
    (
        "F1 of words as SQuAD has it for short answers, Rouge-L for qmsum and sec10q; low and high bound the"
        " 95 % bootstrap interval of the mean, drawn over questions."
    ),
    (
        "The instruction asks for one to three sentences, so that F1 against a few words is low for right"
        " answers too: beside it stands how many answers hold a right one, word for word."
    ),
    "Recall is the share of the gold parts a question needs that reach the call which answers.",
)


class QualityRows:
    """Judged answers by set, question and configuration, kept in a file line by line.

    Safe from several threads.
    """

    def __init__(self, file: Path | None, model: str) -> None:
        """Raises BadInput for a file of another model's answers, or of something else."""
        self._file, self._model, self._lock = file, model_name(model), Lock()
        self._answers: dict[tuple[str, str, str], dict[str, Any]] = {}
        read_kept(file, self._read)

    def _read(self, line: dict[str, Any]) -> None:
        if line["model"] != self._model:
            raise BadInput(
                f"{self._file} holds answers of {line['model']}, not of {self._model}; give another file"
            )
        self._answers[line["set"], line["question"], line["configuration"]] = line

    def find(self, name: str, question: str, configuration: str) -> dict[str, Any] | None:
        """The answer to a question of the set `name`, where it was judged."""
        return self._answers.get((name, question, configuration))

    def keep(self, line: dict[str, Any]) -> None:
        """Note an answer down."""
        line = {"model": self._model, **line}
        with self._lock:
            self._answers[line["set"], line["question"], line["configuration"]] = line
            add_kept(self._file, line)


@dataclass(frozen=True)
class JudgedAnswer:
    """One arm's answer to one question."""

    set_name: str
    arm: str
    score: float
    """F1 of words, or Rouge-L of long answers."""
    is_held: bool
    """Does the answer hold a right one, word for word?"""
    recall: float | None
    num_chunks: int


def judge_quality(options: BenchOptions) -> Result:
    """The page of a model's answers, `rag-MODEL`; of `--only page`, of those that the rows hold whole.

    Raises BadInput where there are none.
    """
    if options.only == "page" and options.rows is None:
        raise BadInput("a page is made of rows: --rows names the file that holds them")
    torch.set_num_threads(options.threads)
    kept = QualityRows(options.rows, options.model)
    if options.only != "page":
        begin_kept(options, ())
    sets = load_sets(options.data, 2 if options.quick else _QUESTIONS)
    with (
        scratch_folder() as folder,
        opened(options, folder, fit_idle_s=0) as k,  # choices are the same on every machine
    ):
        by_set = {
            one.name: [asked for asked in find_all(k, [one], folder, options) if asked.parts]
            for one in sets
        }
        rows = quality_rows(_judge_all(k, by_set, kept, options))
    if not rows:
        raise BadInput(
            f"{options.rows} holds no question that every arm answered; judge some first"
        )
    return Result(
        bench="rag",
        model=options.model,
        machine=describe_machine(),
        config=options.describe_kept() | {"part_tokens": CUTTING.part_tokens},
        rows=rows,
        summary=quality_summary(rows),
        notes=_NOTES,
        page=f"rag-{model_name(options.model)}",
    )


def _judge_all(
    k: Kdn,
    by_set: Mapping[str, Sequence[AskedQuestion]],
    kept: QualityRows,
    options: BenchOptions,
) -> list[JudgedAnswer]:
    """Every question by every arm; the sets in turn, so that an early end leaves some of each."""
    found = list[JudgedAnswer]()
    for number in range(max(map(len, by_set.values()))):
        for name, asked in by_set.items():
            at, is_skipped = divmod(number, _PER_LONG) if name in AT_LENGTH else (number, 0)
            if is_skipped or at >= len(asked):
                continue
            one, choices = asked[at], _choices(k, asked[at])
            question = one.question.text
            if options.only == "page" and not all(
                kept.find(name, question, str(way)) for way in choices.values()
            ):
                continue
            options.say(f"{name}: question {at + 1} of {len(asked)}")
            ways = {str(way): way for way in choices.values()}
            with ThreadPoolExecutor(len(ways)) as pool:  # side by side they read the weights once
                lines = list(pool.map(partial(_judged, k, name, one, kept=kept), ways.values()))
            by_way = dict(zip(ways, lines, strict=True))
            found += [_answered(arm, way, by_way[str(way)]) for arm, way in choices.items()]
    return found


def _judged(
    k: Kdn, name: str, asked: AskedQuestion, chosen: RagConfiguration, *, kept: QualityRows
) -> dict[str, Any]:
    question, gold = asked.question.text, asked.question.answers
    line = kept.find(name, question, str(chosen))
    if line is None:
        text = _answer(k, asked, chosen, _LONG_TOKENS if name in AT_LENGTH else _ANSWER_TOKENS)
        line = {
            "set": name,
            "question": question,
            "configuration": str(chosen),
            "text": text,
            "score": _score(text, gold, name),
            "held": _is_held(text, gold),
            "recall": recall(asked, chosen),
        }
        kept.keep(line)
    return line


def _answered(arm: str, chosen: RagConfiguration, line: dict[str, Any]) -> JudgedAnswer:
    return JudgedAnswer(
        line["set"], arm, line["score"], line["held"], line["recall"], chosen.num_chunks
    )


def _choices(k: Kdn, asked: AskedQuestion) -> dict[str, RagConfiguration]:
    """What each arm chooses on an engine that nobody else uses, with nothing stored."""
    foresight = Foresight(k.parts)
    options = QueryOptions(max_tokens=_ANSWER_TOKENS)
    text = asked.question.text
    note = LibraryNote("", CUTTING.part_tokens)
    profilers: dict[str, Profiler] = {
        "": OracleProfiler({text: asked.question.profile}),
        ", profiles by classifier": ClassifierProfiler(),
    }
    found = dict[str, RagConfiguration]()
    for suffix, profiler in profilers.items():
        given = ChoiceInput(
            profiler.profile(text, note),
            [ChunkState(part.num_tokens, score=part.score) for part in asked.parts],
            foresight.demand_model(text, asked.parts[0], options),
            EngineLoad(_ALL_BYTES),
            0,
            foresight.max_context,
        )
        fixed = static_arms()
        some: Arms = {} if suffix else {name: fixed[name] for name in STATIC_ARMS}
        some[OURS] = arms()[OURS]
        found |= {f"{name}{suffix}": arm(given) for name, arm in some.items()}
    return found


def _answer(k: Kdn, asked: AskedQuestion, chosen: RagConfiguration, max_tokens: int) -> str:
    def make(
        messages: Sequence[Message], documents: Sequence[Document], sampling: Sampling
    ) -> Request:
        return k.prompts.request(messages, documents, sampling=sampling)

    calls = QueryCalls(k.prompts.new_id("judged"), make, k.engine.submit)
    made = synthesize(
        chosen, asked.question.text, asked.parts, calls, k.parts.clock, max_tokens=max_tokens
    )
    return made.text


def _score(text: str, gold: Sequence[str], name: str) -> float:
    if not gold:
        return 0.0
    return (rouge_l if name in AT_LENGTH else word_f1)(text, gold)


def _is_held(text: str, gold: Sequence[str]) -> bool:
    said = f" {_plain(text)} "
    return any(f" {_plain(one)} " in said for one in gold)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def quality_rows(judged: Sequence[JudgedAnswer]) -> list[Row]:
    """A row for every arm of every set: means, the score with its 95 % bootstrap interval over questions."""
    groups: dict[tuple[str, str], list[JudgedAnswer]] = {}
    for one in judged:
        groups.setdefault((one.set_name, one.arm), []).append(one)
    rows = list[Row]()
    for name in dict.fromkeys(one.set_name for one in judged):
        rows += [_row(arm, own) for (of, arm), own in groups.items() if of == name]
    return rows


def _row(arm: str, own: Sequence[JudgedAnswer]) -> Row:
    mean, low, high = interval([one.score for one in own])
    recalls = [one.recall for one in own if one.recall is not None]
    name = own[0].set_name
    return {
        "part": name,
        "arm": arm,
        "questions": len(own),
        "Rouge-L" if name in AT_LENGTH else "F1": mean,
        "low": low,
        "high": high,
        "answers that hold a right one": sum(one.is_held for one in own) / len(own),
        "recall": sum(recalls) / len(recalls) if recalls else None,
        "chunks": sum(one.num_chunks for one in own) / len(own),
    }


def quality_summary(rows: Sequence[Row]) -> dict[str, float | None]:
    """Of the sets with short answers, means over sets: ours, the best static arm, the best of its recall."""
    short = [row for row in rows if "F1" in row]
    by_arm: dict[str, list[Row]] = {}
    for row in short:
        by_arm.setdefault(str(row["arm"]), []).append(row)
    if OURS not in by_arm:
        return dict.fromkeys(("f1_ours", "f1_best_static", "quality_recall_ours"))
    means = {arm: _mean(own, "F1") for arm, own in by_arm.items()}
    return {
        "f1_ours": means[OURS],
        "f1_best_static": max(f1 for arm, f1 in means.items() if arm.startswith("static")),
        "quality_recall_ours": _mean(by_arm[OURS], "recall"),
    }


def _mean(rows: Sequence[Row], column: str) -> float:
    values = [float(value) for row in rows if (value := row[column]) is not None]
    return sum(values) / len(values) if values else 0.0
