"""The nouns every room speaks: prompts, blocks and their keys, plans, requests and what becomes of them.

Nothing here computes.  Tensors are named in annotations only, so that importing the nouns does not
import torch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, NewType, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ALL_ROWS",
    "BLOCK_TOKENS",
    "EXACT",
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
    "JctModel",
    "Job",
    "Keep",
    "Keeping",
    "KeptKV",
    "KvShape",
    "LayerKV",
    "LayerSource",
    "LayerView",
    "Observer",
    "Plan",
    "Planned",
    "Planner",
    "PrefillTime",
    "Prompt",
    "Recipe",
    "Request",
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
    "chain_hash",
    "chain_hashes",
]

TokenIds = tuple[int, ...]
Fingerprint = NewType("Fingerprint", str)
"""Hex digest of everything about a model that its KV depends on."""
ChainHash = NewType("ChainHash", str)
"""Hex digest of a run of tokens counted from the start of a prompt."""
BlockKey = NewType("BlockKey", str)
"""Hex digest that names one stored block."""
ContentId = NewType("ContentId", str)
"""Hex digest of (salt, own tokens): the same text, wherever and by whatever it was computed."""

PUBLIC_SALT = "public"
"""Blocks under this salt serve every tenant; those under any other one serve that tenant alone."""

BLOCK_TOKENS = 256
"""The most tokens one block holds."""


# --- prompts ---------------------------------------------------------------------------------


class Role(StrEnum):
    """What a run of tokens is for."""

    PRELUDE = "prelude"
    DOCUMENT = "document"
    HISTORY = "history"
    INSTRUCTION = "instruction"
    QUESTION = "question"


@dataclass(frozen=True)
class Segment:
    """A run of tokens with one role; `source` names the document it came from, if any."""

    role: Role
    token_ids: TokenIds
    source: str | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Prompt:
    """Segments in order. Tokens are never joined as text and cut again."""

    segments: tuple[Segment, ...]

    @cached_property
    def token_ids(self) -> TokenIds:
        return tuple(token for segment in self.segments for token in segment.token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def spans(self) -> Iterator[tuple[Segment, int, int]]:
        """Each segment with its half-open range of positions."""
        start = 0
        for segment in self.segments:
            stop = start + segment.num_tokens
            yield segment, start, stop
            start = stop


# --- blocks and their names ------------------------------------------------------------------


class Cause(StrEnum):
    """Why KV is not what a full prefill would have given."""

    BLEND = "blend"
    SHARE = "share"
    STEER = "steer"
    CODEC = "codec"


@dataclass(frozen=True)
class Recipe:
    """How KV was made. Without causes it is exact; with any it is tainted, and so is all after it."""

    causes: tuple[Cause, ...] = ()
    detail: str = ""

    @property
    def tainted(self) -> bool:
        return bool(self.causes)

    @property
    def name(self) -> str:
        """A short text that is the same for equal recipes: `exact`, or `blend+codec:...`."""
        return "+".join(self.causes) + (f":{self.detail}" if self.detail else "") or "exact"


EXACT = Recipe()


@dataclass(frozen=True)
class KvShape:
    """What the KV of one token looks like in one model."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    """`bfloat16`, `float16` or `float32`."""

    @property
    def value_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def layer_token_bytes(self) -> int:
        """Bytes of K and V of one token at one layer."""
        return 2 * self.num_kv_heads * self.head_dim * self.value_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token at all layers."""
        return self.num_layers * self.layer_token_bytes


def _digest(*parts: str | bytes) -> str:
    """SHA-256 over length-prefixed parts, so that no two lists of parts can run together."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def _token_bytes(token_ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def chain_hash(token_ids: Sequence[int]) -> ChainHash:
    """Hash of all tokens from the start of a prompt. Says nothing of how they were cut in blocks."""
    return ChainHash(hashlib.sha256(_token_bytes(token_ids)).hexdigest())


def chain_hashes(token_ids: Sequence[int], cuts: Sequence[int]) -> list[ChainHash]:
    """`chain_hash(token_ids[:cut])` for ascending `cuts`, in one pass over the tokens."""
    state, start, found = hashlib.sha256(), 0, []
    for cut in cuts:
        if cut < start:
            raise ValueError(f"cuts must ascend: {cut} after {start}")
        state.update(_token_bytes(token_ids[start:cut]))
        found.append(ChainHash(state.copy().hexdigest()))
        start = cut
    return found


@dataclass(frozen=True)
class BlockId:
    """Everything that names a block: whose KV, made how, for whom, after what, of which tokens."""

    fingerprint: Fingerprint
    recipe: Recipe
    salt: str
    behind: ChainHash
    start: int
    """How many tokens stand before the block: the position its KV was computed at."""
    token_ids: TokenIds

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @cached_property
    def key(self) -> BlockKey:
        """The exact key: equal for equal ids, in every process, on every machine."""
        return BlockKey(
            _digest(
                "kdn-block-1",
                self.fingerprint,
                self.recipe.name,
                self.salt,
                self.behind,
                _token_bytes(self.token_ids),
            )
        )

    @cached_property
    def content_id(self) -> ContentId:
        return ContentId(_digest("kdn-content-1", self.salt, _token_bytes(self.token_ids)))


# --- plans: what a technique asks of the executor ---------------------------------------------


@dataclass(frozen=True)
class LayerKV:
    """K (without rotary position, after q/k norm) and V of a run of tokens: [tokens, heads, dim]."""

    k: Tensor
    v: Tensor

    @property
    def num_tokens(self) -> int:
        return int(self.k.shape[0])


class LayerSource(Protocol):
    """Stored KV, handed over a layer at a time."""

    @property
    def name(self) -> str:
        """Equal names mean equal KV, so that sequences may share one copy in memory."""
        ...

    @property
    def num_tokens(self) -> int: ...

    def start(self, layer: int) -> None:
        """Begin to fetch `layer`; the executor asks one layer ahead. Never blocks."""
        ...

    def take(self, layer: int) -> Sequence[LayerKV]:
        """The layer as neighbouring runs of tokens, first to last, waited for if need be.

        Read-only, and valid until `close`.  Raises CorruptBlock when it cannot be had.
        """
        ...

    def close(self) -> None:
        """Let go of what was pinned. Calling it twice is harmless."""
        ...


@dataclass(frozen=True)
class StoredRun:
    """Columns [start, start + source.num_tokens) take their K and V from `source`."""

    start: int
    source: LayerSource

    @property
    def stop(self) -> int:
        return self.start + self.source.num_tokens


@dataclass(frozen=True)
class LayerView:
    """What a selector or observer may see of one layer of one sequence, read-only.

    Row-wise tensors follow `rows` (ascending positions of the rows computed at this layer);
    column-wise ones hold every position. Keys carry no rotary position in `fresh` and `stored`.
    """

    layer: int
    rows: Tensor
    """[rows] int64 positions."""
    hidden: Tensor
    """[rows, hidden] the layer's input."""
    query: Tensor
    """[rows, heads, dim] rotated."""
    fresh: LayerKV
    """[rows, kv heads, dim]."""
    stored: LayerKV | None
    """[columns, kv heads, dim] what the store supplied (zero where it supplied nothing)."""
    attend: Callable[[Tensor, Tensor], Tensor]
    """attend(row indices into `rows`, columns) -> attention mass [columns] those rows put there."""


class Selector(Protocol):
    """Chooses rows. Pure: equal views give equal choices."""

    def __call__(self, view: LayerView, count: int) -> Tensor:
        """`count` ascending indices into `view.rows`: the rows that go on."""
        ...


@dataclass(frozen=True)
class AllRows:
    """Every row that the layer before computed goes on (at layer 0: every row without stored KV)."""


@dataclass(frozen=True)
class GivenRows:
    """These positions, known beforehand. Rows absent from the layer before need `Plan.enter`."""

    positions: tuple[int, ...]


@dataclass(frozen=True)
class Choose:
    """`count` rows of the layer before go on, picked by `selector` once K and V are known."""

    selector: Selector
    count: int


RowRule = AllRows | GivenRows | Choose
ALL_ROWS = AllRows()


@dataclass(frozen=True)
class Enter:
    """Rows that join at `layer` with a supplied hidden state [len(positions), hidden]."""

    layer: int
    positions: tuple[int, ...]
    hidden: Tensor


@dataclass(frozen=True)
class ColumnScale:
    """At `layer`, attention to `columns` is scaled by `factor` before it is renormalised.

    `heads` limits it to some query heads; None means all.  Equals adding log(factor) to the scores.
    """

    layer: int
    columns: tuple[int, ...]
    factor: float
    heads: tuple[int, ...] | None = None


class Observer(Protocol):
    """Looks at layers as they are computed; must not change anything."""

    def __call__(self, view: LayerView) -> None: ...


@dataclass(frozen=True)
class Keep:
    """Which positions' KV outlive the pass, as unrotated blocks: the first `num_tokens` of them."""

    num_tokens: int
    recipe: Recipe = EXACT


@dataclass(frozen=True)
class Plan:
    """What to compute for one prompt, layer by layer.

    `prefix` is exact KV of the first positions (shared, read-only); `stored` supplies other columns,
    which rows may overwrite.  `rows` holds one rule per layer, or one rule for all.  `logits` are the
    positions whose logits are wanted; `allowed` restricts them to some token ids.
    """

    token_ids: TokenIds
    prefix: LayerSource | None = None
    rows: tuple[RowRule, ...] = (ALL_ROWS,)
    stored: tuple[StoredRun, ...] = ()
    enter: tuple[Enter, ...] = ()
    scale: tuple[ColumnScale, ...] = ()
    observers: tuple[Observer, ...] = ()
    keep: Keep | None = None
    logits: tuple[int, ...] | None = None
    """None means the last position only."""
    allowed: tuple[int, ...] | None = None
    row_chunk: int | None = None
    """Position-wise work runs this many rows at a time (PrefillOnly); None means all at once."""
    one_layer: bool = False
    """K and V live for one layer only; what is to outlive the pass must be kept as it goes by.
    Such a prompt runs as one pass, and nothing can be decoded after it."""
    then: Callable[[], Plan] | None = None
    """This plan only looks: asked when it is through, `then` gives the plan to run in its place.

    The second finds the columns as the first left them, so it names no stored runs of its own.
    """

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_prefix(self) -> int:
        return self.prefix.num_tokens if self.prefix is not None else 0

    @property
    def is_steady(self) -> bool:
        """True when the rows of layer 0 are the rows of every layer, and nobody looks at them."""
        return not (self.enter or self.observers) and all(rule is ALL_ROWS for rule in self.rows)

    def rule(self, layer: int) -> RowRule:
        return self.rows[layer] if len(self.rows) > 1 else self.rows[0]


# --- requests, and what becomes of them -------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The default is greedy."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means no limit."""
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """How many alternatives to report per token; 0 reports the chosen token only; None reports nothing."""
    allowed: tuple[int, ...] = ()
    """The only tokens that may be drawn, and all that probabilities are shared among; for
    answers of one token. Empty means all."""
    ranked: tuple[int, ...] = ()
    """Report exactly these tokens, in this order, where `logprobs` would report the likeliest."""


class Keeping(StrEnum):
    """Which KV of a request outlives it."""

    NOTHING = "nothing"
    SHARED = "shared"
    """Everything but the last segment: prelude, documents, instructions, history."""
    ALL = "all"
    """The question and the answer too, for a conversation that goes on."""


@dataclass(frozen=True)
class Blend:
    """Stored documents may be reused anywhere in the prompt, and are mended, not recomputed.

    `ratio` is the share of the reused tokens that is recomputed; None leaves it to kdn.
    """

    ratio: float | None = None


@dataclass(frozen=True)
class Request:
    """One thing to generate. `group` names requests that are admitted together or not at all."""

    id: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    salt: str = ""
    adapter: str | None = None
    group: str | None = None
    group_size: int = 1
    priority: int = 0
    """Lower is sooner, for policies that look at it."""
    reuse: bool = True
    """May stored KV be used for it?"""
    max_kl: float | None = None
    """How far (mean KL, nats) a codec may move answers by measurement; 0: not at all; None: as set."""
    blend: Blend | None = None
    """None: only where the answer is exactly that of a full prefill."""
    keeping: Keeping = Keeping.SHARED


@dataclass(frozen=True)
class TokenProb:
    """A token with its natural-log probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Token:
    """One generated token. `text` is what became printable with it, often but not always one piece."""

    token_id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[TokenProb, ...] = ()


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Usage:
    """Where the prompt's tokens came from, and how long things took."""

    prompt_tokens: int
    completion_tokens: int
    exact: int = 0
    """Prompt tokens whose KV came from the store and equals a full prefill."""
    blended: int = 0
    shared: int = 0
    lossy: int = 0
    """Prompt tokens whose KV went through a lossy codec, or was computed behind such."""
    recomputed: int = 0
    """Prompt tokens computed for this request."""
    queue_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    tiers: Mapping[str, int] = field(default_factory=dict)
    """Reused tokens by the tier that supplied them."""

    @property
    def cached_tokens(self) -> int:
        return self.exact + self.blended + self.shared + self.lossy


@dataclass(frozen=True)
class Finish:
    """The last event of a stream. `tail` is text that was held back as a possible stop string."""

    reason: FinishReason
    usage: Usage
    tail: str = ""
    stop: str | None = None
    """The stop string that was met, if one was."""


StreamEvent = Token | Finish


class Stream(Protocol):
    """A running request: iterate for its events; the last one is a Finish."""

    def __iter__(self) -> Iterator[StreamEvent]: ...

    def cancel(self) -> None:
        """Stop as soon as the current step is over; the stream then ends with CANCELLED."""
        ...

    def on_event(self, listener: Callable[[StreamEvent | Exception | None], None]) -> None:
        """Have events pushed to `listener` (from the engine's thread) in place of iterating.

        After the Finish, or an Exception, None is pushed and nothing more.
        """
        ...


class Generator(Protocol):
    """Anything that runs requests: the engine, or a stand-in for tests."""

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises PromptTooLong before anything is computed."""
        ...


@dataclass(frozen=True)
class Planned:
    """A plan, and how many prompt tokens it takes from where."""

    plan: Plan
    exact: int = 0
    blended: int = 0
    shared: int = 0
    lossy: int = 0
    tiers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptKV:
    """KV of positions [start, start + tokens) of a request, ready to be stored."""

    start: int
    token_ids: TokenIds
    """All tokens from position 0 up to the end of what is kept."""
    kv: Tensor
    """[layers, 2, tokens, kv heads, dim]: K without rotary position, and V."""
    recipe: Recipe
    is_answer: bool
    """True for the question and the generated tokens, False for the prompt before them."""


class Planner(Protocol):
    """Turns requests into plans, and takes what they leave behind."""

    def cached_tokens(self, request: Request) -> int:
        """How much of the prompt could be reused now. Moves no bytes."""
        ...

    def plan(self, request: Request) -> Planned:
        """What to compute. Called when the request is about to run, and again after a failed load."""
        ...

    def keep(self, request: Request, kept: KeptKV) -> None:
        """Store KV. Must return quickly and never raise."""
        ...


# --- scheduling: integers only -----------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A waiting request as a policy sees it."""

    id: str
    arrival_ns: int
    num_tokens: int
    num_cached: int
    """Prompt tokens that the store holds now, as of the last look."""
    max_new_tokens: int
    priority: int = 0
    group: str | None = None
    group_size: int = 1
    num_cached_at_arrival: int = 0
    """What the store held when the job came: all that a policy without calibration knows."""

    @property
    def num_missing(self) -> int:
        """Prompt tokens that must be computed."""
        return self.num_tokens - self.num_cached


@dataclass(frozen=True)
class JctModel:
    """How long computing a prompt takes: seconds, from the tokens to compute and those reused.

    A quadratic form over (new, cached): a fixed part per pass, work per token, attention of new
    tokens to what stands before them, and bringing the reused ones in.
    """

    pass_s: float
    """What every pass costs, however little is in it."""
    token_s: float
    """Position-wise work of one new token."""
    pair_s: float
    """Attention of one new token to one column."""
    cached_s: float
    """Bringing in one reused token."""
    error: float | None = None
    """Median relative error over the measured grid; None for a count of operations."""
    source: str = "flops"
    """`flops`: counted, not measured; `fit`: fitted to measurements."""

    def seconds(self, num_new: int, num_cached: int = 0) -> float:
        """One prompt of `num_cached` reused and `num_new` computed tokens, alone in its pass."""
        return self.pass_s + self.share(num_new, num_cached)

    def share(self, num_new: int, num_cached: int = 0) -> float:
        """What the prompt adds to a pass that runs anyway."""
        pairs = num_new * (num_cached + (num_new + 1) / 2)
        return self.token_s * num_new + self.pair_s * pairs + self.cached_s * num_cached

    def microseconds(self, num_new: int, num_cached: int = 0) -> int:
        """`seconds` as schedulers want it: whole microseconds."""
        return round(1e6 * self.seconds(num_new, num_cached))


# --- traces: what a store did, for those who put a price on it ----------------------------------


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one request of a trace in a store, replayed or real."""

    at_s: float
    """Seconds since the trace began."""
    num_tokens: int
    """Prompt tokens."""
    output_tokens: int
    hit_tokens: int
    """Prompt tokens whose KV the store had."""
    read_bytes: int
    written_bytes: int
    held_bytes: int
    """What the store holds after the request."""
    num_blocks: int
    hit_blocks: int


class PrefillTime(Protocol):
    """How long a prefill takes."""

    def seconds(self, num_new: int, num_cached: int) -> float:
        """Seconds to compute `num_new` tokens behind `num_cached` whose KV is at hand."""
        ...
