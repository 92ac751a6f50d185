"""Text to scores: questions that one token answers."""

from __future__ import annotations

from kdn.rank.calibrate import fit_temperature, surprise
from kdn.rank.choices import Choice, Verdict, make_choices, read_verdict, share_out, wanted
from kdn.rank.judge import Judge, one_token
from kdn.rank.label import (
    Journal,
    LabelJob,
    Labelled,
    Table,
    label_rows,
    make_table,
    read_rows,
    write_table,
)
from kdn.rank.layouts import RELEVANCE, Layout, relevance_question
from kdn.rank.questions import (
    YES_NO,
    Conversation,
    RowTemplate,
    classify_question,
    decision_question,
    glued,
    pair_question,
)
from kdn.rank.tree import Fork, fork_of

__all__ = [
    "RELEVANCE",
    "YES_NO",
    "Choice",
    "Conversation",
    "Fork",
    "Journal",
    "Judge",
    "LabelJob",
    "Labelled",
    "Layout",
    "RowTemplate",
    "Table",
    "Verdict",
    "classify_question",
    "decision_question",
    "fit_temperature",
    "fork_of",
    "glued",
    "label_rows",
    "make_choices",
    "make_table",
    "one_token",
    "pair_question",
    "read_rows",
    "read_verdict",
    "relevance_question",
    "share_out",
    "surprise",
    "wanted",
    "write_table",
]
