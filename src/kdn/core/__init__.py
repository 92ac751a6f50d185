"""The nouns of every room: prompts, blocks and their keys, plans, requests and their results.

Trades in frozen values: nothing here computes, and importing it does not import torch.  Every room may
import it.  Start reading at `plans.py`.
"""

from __future__ import annotations

from kdn.core.blocks import EXACT, BlockId, Cause, KvShape, Recipe, chain_hash, chain_hashes
from kdn.core.jobs import JctModel, Job, PrefillTime
from kdn.core.many import as_many, paths_of, text_of, texts_of
from kdn.core.names import (
    BLOCK_TOKENS,
    MAX_SALT,
    PUBLIC_SALT,
    BlockKey,
    ChainHash,
    ContentId,
    Fingerprint,
    TokenIds,
)
from kdn.core.planning import Planned, Planner, RetainedKV
from kdn.core.plans import (
    ALL_ROWS,
    AllRows,
    Choose,
    ColumnScale,
    Enter,
    GivenRows,
    HiddenSource,
    LayerKV,
    LayerSource,
    LayerView,
    Observer,
    Plan,
    RetainedPrefix,
    RowRule,
    Selector,
    StoredRun,
)
from kdn.core.prompts import Prompt, Role, Segment
from kdn.core.requests import (
    Blend,
    Finish,
    FinishReason,
    Generator,
    Prefix,
    Request,
    Retention,
    Sampling,
    Stream,
    StreamEvent,
    Token,
    TokenProb,
    Usage,
)
from kdn.core.served import Served

__all__ = [
    "ALL_ROWS",
    "BLOCK_TOKENS",
    "EXACT",
    "MAX_SALT",
    "PUBLIC_SALT",
    "AllRows",
    "Blend",
    "BlockId",
    "BlockKey",
    "Cause",
    "ChainHash",
    "Choose",
    "ColumnScale",
    "ContentId",
    "Enter",
    "Fingerprint",
    "Finish",
    "FinishReason",
    "Generator",
    "GivenRows",
    "HiddenSource",
    "JctModel",
    "Job",
    "KvShape",
    "LayerKV",
    "LayerSource",
    "LayerView",
    "Observer",
    "Plan",
    "Planned",
    "Planner",
    "PrefillTime",
    "Prefix",
    "Prompt",
    "Recipe",
    "Request",
    "RetainedKV",
    "RetainedPrefix",
    "Retention",
    "Role",
    "RowRule",
    "Sampling",
    "Segment",
    "Selector",
    "Served",
    "StoredRun",
    "Stream",
    "StreamEvent",
    "Token",
    "TokenIds",
    "TokenProb",
    "Usage",
    "as_many",
    "chain_hash",
    "chain_hashes",
    "paths_of",
    "text_of",
    "texts_of",
]
