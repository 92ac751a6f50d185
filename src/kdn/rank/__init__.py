"""Text to scores: questions that one token answers, for ranking, deciding and labelling.

Trades in conversations, choices and their probabilities.  `calibration`, `api` and the rooms above
may import it.  Start reading at `rerank.py` along one query, then `judge.py`, which asks the engine.
"""

from __future__ import annotations

from kdn.rank.adapters import MODEL_ALONE, adapter_folders, layout_adapters, packaged_adapters
from kdn.rank.calibrate import fit_temperature, surprise
from kdn.rank.choices import (
    Choice,
    ChoiceProbabilities,
    check_choices,
    make_choices,
    name_of,
    read_logits,
    read_probabilities,
    share_out,
    wanted,
)
from kdn.rank.frames import Asking, frame_of, yes_and_no
from kdn.rank.journal import LabelJournal, name_run
from kdn.rank.judge import Judge, one_token
from kdn.rank.label import (
    AskEach,
    LabelJob,
    LabelTable,
    answer_of,
    check_rows,
    label_rows,
    make_table,
    own_columns,
    write_table,
)
from kdn.rank.layouts import Layout, relevance_question
from kdn.rank.questions import (
    YES_NO,
    Conversation,
    RowTemplate,
    classify_question,
    decision_question,
    glued,
    pair_question,
)
from kdn.rank.rerank import RankedDocument, Ranking, odds_of, rank, rank_by, worth_asking
from kdn.rank.rows import Row, check_out, columns_of, read_rows, write_rows
from kdn.rank.templates import TEMPLATES, Template, find_template
from kdn.rank.tree import fork_of

__all__ = [
    "MODEL_ALONE",
    "TEMPLATES",
    "YES_NO",
    "AskEach",
    "Asking",
    "Choice",
    "ChoiceProbabilities",
    "Conversation",
    "Judge",
    "LabelJob",
    "LabelJournal",
    "LabelTable",
    "Layout",
    "RankedDocument",
    "Ranking",
    "Row",
    "RowTemplate",
    "Template",
    "adapter_folders",
    "answer_of",
    "check_choices",
    "check_out",
    "check_rows",
    "classify_question",
    "columns_of",
    "decision_question",
    "find_template",
    "fit_temperature",
    "fork_of",
    "frame_of",
    "glued",
    "label_rows",
    "layout_adapters",
    "make_choices",
    "make_table",
    "name_of",
    "name_run",
    "odds_of",
    "one_token",
    "own_columns",
    "packaged_adapters",
    "pair_question",
    "rank",
    "rank_by",
    "read_logits",
    "read_probabilities",
    "read_rows",
    "relevance_question",
    "share_out",
    "surprise",
    "wanted",
    "worth_asking",
    "write_rows",
    "write_table",
    "yes_and_no",
]
