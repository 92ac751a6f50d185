"""Which requests share a pass: prompts, cut and packed, a layer at a time; one token for all that decode."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from kdn.core import Plan
from kdn.engine.batch import SequenceSlice, most_rows
from kdn.engine.executor import Pass, fill_prefix
from kdn.engine.kv import PrefixKV, retains_answer
from kdn.engine.prompt_scores import SCORED_ROWS
from kdn.engine.request import RunningRequest
from kdn.engine.states import RequestState
from kdn.model import LoadedModel
from kdn.model.attention import ROW_BLOCK, Attention

__all__ = ["SMALL_PREFIX", "DecodeBatch", "DecodeStep", "PassOutcome", "PrefillQueue"]

SMALL_PREFIX = 4
"""A stored beginning is small where so many times its tokens are to be computed."""
_GUESSED_ROWS = 8
"""Guessed rows in a step of all requests together: so many cost little beside reading the weights."""


@dataclass
class DecodeStep:
    """Requests on their way to their next token, in a pass of their own or in a prompt's."""

    members: list[RunningRequest] = field(default_factory=list)
    slices: list[SequenceSlice] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    """Columns of each suffix when the step began."""

    def prepare(self, guessed_rows: int) -> None:
        """Make the slices, with at most `guessed_rows` guessed tokens together; `undo` after a failure."""
        for running in self.members:
            assert running.kv is not None, "a decoding request has KV"
            most = guessed_rows // len(self.members)
            if running.capture is not None and retains_answer(running):  # all is noted
                most = min(most, running.capture.stop - running.kv.num_columns - 1)
            running.guess(most)
            self.before.append(running.kv.suffix.num_columns)
            self.slices.append(
                SequenceSlice.decode(
                    running.kv,
                    (running.generated[-1], *running.guessed),
                    adapter=running.adapter,
                    capture=running.capture,
                )
            )

    def undo(self) -> None:
        """The step broke off: sequences are as long as they were; what was written is written over."""
        for one, num_columns in zip(self.slices, self.before, strict=False):
            one.kv.suffix.num_columns = num_columns

    def count(self) -> None:
        """The step is over. Columns of guessed tokens do not count until they turn out right."""
        for one, num_columns in zip(self.slices, self.before, strict=True):
            one.kv.suffix.num_columns = num_columns + 1


@dataclass(frozen=True)
class PassOutcome:
    """What a pass that has ended gives, with fp32 logits."""

    finished: list[tuple[RunningRequest, Tensor]]
    """Prompts that are through, with the logits after their last token."""
    decoded: list[tuple[RunningRequest, Tensor]]
    """Those that rode along, as `DecodeBatch.step` gives them."""


class PrefillQueue:
    """Requests that were admitted and have no first token yet, in order of admission.

    Requests that decode ride along in passes of plain prompts (chunked prefill, Sarathi-Serve, arXiv
    2403.02310, section 4): their rows cost little where the weights are read anyway.
    """

    def __init__(self, model: LoadedModel, attention: Attention, max_batch_tokens: int) -> None:
        self._decoder = model.decoder
        self._attention = attention
        self._max_batch_tokens = max(max_batch_tokens // ROW_BLOCK, 1) * ROW_BLOCK
        self._requests: list[RunningRequest] = []
        self._pass: Pass | None = None
        self._in_pass: list[RunningRequest] = []
        self._riding = DecodeStep()
        self.num_rows = 0
        """Rows of the pass begun last."""

    @property
    def is_under_way(self) -> bool:
        """Is a pass begun and not ended?"""
        return self._pass is not None

    @property
    def num_riding(self) -> int:
        """Requests that decode in the pass under way."""
        return len(self._riding.members)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def num_tokens_left(self) -> int:
        """Prompt tokens that those in the queue have still to compute."""
        return sum(one.request.prompt.num_tokens - one.num_computed for one in self._requests)

    @property
    def requests(self) -> Sequence[RunningRequest]:
        """Those in the queue, in order of admission."""
        return self._requests

    def add(self, running: RunningRequest) -> None:
        """Put an admitted request at the end of the queue."""
        self._requests.append(running)

    def advance(self, decodes: DecodeBatch, most_rows: int) -> PassOutcome | None:
        """Some layers of the current pass, as `most_rows` rows would take for all of them, but one at least;
        what came of it after the last.

        A new pass takes all of `decodes` along if it can, and has then about `most_rows` rows of prompts:
        a block of rows at least, and never half a block for want of the other half.
        """
        current = self._pass or self._begin(decodes, most_rows)
        others_wait = self._read_ahead(current.layer) or bool(decodes)
        share = 0 if others_wait else most_rows * self._decoder.config.num_layers
        done = current.advance(max(share // max(self.num_rows, 1), 1))
        return self._end(current) if done else None

    def _end(self, done: Pass) -> PassOutcome:
        all_logits = done.logits()
        finished = []
        count = len(self._in_pass)
        own = done.slices[:count]
        thens = [_after_probe(one) for one in own]
        for running, one, logits, then in zip(
            self._in_pass, own, all_logits[:count], thens, strict=True
        ):
            if then is not None:
                _end_probe(running, then)
                continue
            if running.scores is not None:
                running.scores.note(one.first, logits)
            running.num_computed = one.stop
            if running.is_prefilled:
                self._requests.remove(running)
                finished.append((running, logits[-1]))
        riding = self._riding
        riding.count()
        decoded = list(zip(riding.members, all_logits[count:], strict=True))
        self._pass, self._in_pass, self._riding = None, [], DecodeStep()
        return PassOutcome(finished, decoded)

    def _read_ahead(self, layer: int) -> bool:
        """Have the layer read for those of the next pass too, after what this pass waits for. True if so."""
        reads = False
        for running in self._requests[len(self._in_pass) :]:
            if running.request.single_use and running.planned is not None:
                prefix = running.planned.plan.prefix
                if prefix is not None and running.kv is not None and _is_to_load(running.kv.prefix):
                    prefix.start(layer)
                    reads = True
        return reads

    def abandon(self, decodes: DecodeBatch) -> list[RunningRequest]:
        """Give up the current pass and forget the requests in it; without a pass, all in the queue.

        Those that rode along go back to `decodes`.
        """
        gone = list(self._in_pass or self._requests)
        self._requests = [one for one in self._requests if one not in gone]
        self._break_off(decodes)
        return gone

    def _break_off(self, decodes: DecodeBatch) -> None:
        self._riding.undo()
        for running in self._riding.members:
            decodes.add(running)
        self._pass, self._in_pass, self._riding = None, [], DecodeStep()

    def drop_cancelled(self, decodes: DecodeBatch) -> list[RunningRequest]:
        """Let cancelled requests go. A pass with others in it goes on, and sheds them at its end."""
        if all(one.stream.is_cancelled for one in self._in_pass):
            self._break_off(decodes)
        gone = [
            one for one in self._requests if one.stream.is_cancelled and one not in self._in_pass
        ]
        self._requests = [one for one in self._requests if one not in gone]
        return gone

    def _begin(self, decodes: DecodeBatch, most_rows: int) -> Pass:
        """Fill a pass: whole prompts while they fit, and the next part of one that does not."""
        assert self._requests, "there is a pass when a request is in the queue"
        slices: list[SequenceSlice] = []
        filled: list[PrefixKV | None] = []
        rows_left = self._max_batch_tokens
        takes_along = bool(decodes) and _takes_riders(self._requests[0])
        if takes_along:
            rows_left = min(rows_left, max(most_rows // ROW_BLOCK, 1) * ROW_BLOCK)
        for running in self._requests:
            if slices and (running.runs_alone or self._in_pass[0].runs_alone):
                break
            if takes_along and not _takes_riders(running):
                break
            self._in_pass.append(running)
            wanted = sum(len(one.logit_positions) for one in slices)
            one = self._slice(running, rows_left, SCORED_ROWS - wanted, filled)
            if one is None or (slices and not _goes_with(one, slices[0], rows_left)):
                self._in_pass.pop()
                break
            filled.append(one.new_prefix)
            slices.append(one)
            most = self._max_batch_tokens - sum(one.most_rows for one in slices)
            rows_left = _whole_block(rows_left - one.most_rows, most)
            if rows_left <= 0:
                break
        if takes_along:
            self._riding = decodes.leave()  # first: they go back when preparing them fails
            self._riding.prepare(_GUESSED_ROWS)
        self._pass = Pass(self._decoder, self._attention, [*slices, *self._riding.slices])
        self.num_rows = self._pass.num_rows
        for running in self._in_pass:
            if running.state is RequestState.ADMITTED:
                running.move(RequestState.PREFILLING)
        return self._pass

    def _slice(
        self,
        running: RunningRequest,
        num_rows: int,
        scored_rows: int,
        filled: Sequence[PrefixKV | None],
    ) -> SequenceSlice | None:
        """The next part of a prompt, at most `num_rows` rows, and `scored_rows` where each is scored; None
        if not even a block of rows fits.

        The first in a pass fills a prefix that is not complete, for all who share it: as the pass goes
        along, or, where it is small, before it.  The pass is plain then: several layers in one call, and
        others may ride along.
        """
        planned, kv, first = running.planned, running.kv, running.num_computed
        assert planned is not None, "admitted requests have a plan"
        assert kv is not None, "admitted requests have KV"
        plan, stop = planned.plan, running.request.prompt.num_tokens
        if running.scores is not None:
            num_rows = min(num_rows, scored_rows)
        if plan.can_be_cut and stop - first > num_rows:
            stop = _cut(plan, first, stop, num_rows)
            if stop <= first:
                return None
        new_prefix = kv.prefix if _is_to_load(kv.prefix) else None
        if any(new_prefix is one for one in filled):
            new_prefix = None
        if new_prefix is not None and not _loads_in_pass(running):
            fill_prefix(self._decoder, self._attention, plan, kv)
            new_prefix = None
        if new_prefix is not None:
            new_prefix.start_over()
        return SequenceSlice.prefill(
            plan,
            kv,
            first,
            stop,
            adapter=running.adapter,
            capture=running.capture,
            new_prefix=new_prefix,
        )


class DecodeBatch:
    """Requests that get a token a step, and more where what follows was guessed."""

    def __init__(self, model: LoadedModel, attention: Attention) -> None:
        self._decoder = model.decoder
        self._attention = attention
        self._requests: list[RunningRequest] = []
        self.num_in_step = 0
        """Requests of the step under way, for other threads that count."""

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, running: RunningRequest) -> None:
        """The request takes part in the next step."""
        self._requests.append(running)

    def drop_cancelled(self) -> list[RunningRequest]:
        """Let cancelled requests go."""
        gone = [one for one in self._requests if one.stream.is_cancelled]
        self._requests = [one for one in self._requests if one not in gone]
        return gone

    def leave(self) -> DecodeStep:
        """All of them, to be prepared for a pass with others; those that go on are added again."""
        members, self._requests = self._requests, []
        return DecodeStep(members)

    def step(self) -> list[tuple[RunningRequest, Tensor | Exception]]:
        """Each request with fp32 logits after its last token and after each of its `guessed` ones,
        [1 + guessed, vocabulary], or why there are none.

        A step that fails is tried again for each request alone, with nothing guessed.  All leave the batch;
        those that go on are added again.
        """
        members, self._requests = self._requests, []
        self.num_in_step = len(members)
        try:
            return list(zip(members, self._logits(members, _GUESSED_ROWS), strict=True))
        except Exception as error:  # noqa: BLE001  it ends requests, not the engine
            if len(members) == 1 and not members[0].guessed:
                return [(members[0], error)]
        return [(running, self._alone(running)) for running in members]

    def _alone(self, running: RunningRequest) -> Tensor | Exception:
        try:
            return self._logits([running], 0)[0]
        except Exception as error:  # noqa: BLE001  it ends the request, not the engine
            return error

    def _logits(self, members: list[RunningRequest], guessed_rows: int) -> list[Tensor]:
        """When it raises, the sequences are as long as they were."""
        step = DecodeStep(members)
        try:
            step.prepare(guessed_rows)
            own = Pass(self._decoder, self._attention, step.slices)
            own.run()
            logits = own.logits()
        except Exception:
            step.undo()
            raise
        step.count()
        return logits


def _takes_riders(running: RunningRequest) -> bool:
    """May requests that decode share its pass? Not while it waits for a source, or may be at fault."""
    assert running.planned is not None, "admitted requests have a plan"
    return (
        _is_plain(running.planned.plan) and not running.runs_alone and not _loads_in_pass(running)
    )


def _is_plain(plan: Plan) -> bool:
    return plan.computes_in_order and not plan.one_layer and plan.row_chunk is None


def _loads_in_pass(running: RunningRequest) -> bool:
    """Is its stored beginning brought in layer by layer, while others are computed? Not where the prompt is
    plain and most of it is to be computed: then loading is too short to be hidden."""
    planned, kv = running.planned, running.kv
    assert planned is not None, "admitted requests have a plan"
    assert kv is not None, "admitted requests have KV"
    if not _is_to_load(kv.prefix):
        return False
    num_rows = planned.plan.num_tokens - planned.plan.num_prefix
    return not _is_plain(planned.plan) or planned.plan.num_prefix * SMALL_PREFIX > num_rows


def _whole_block(rows_left: int, most: int) -> int:
    """A block in place of half a one, within `most`: a prompt's last rows alone would cost half a pass."""
    return min(ROW_BLOCK, most) if ROW_BLOCK // 2 <= rows_left < ROW_BLOCK else rows_left


def _is_to_load(prefix: PrefixKV | None) -> bool:
    return prefix is not None and not prefix.is_complete


def _after_probe(one: SequenceSlice) -> Plan | None:
    """The plan to run after a probe pass, when all of that is done; None after any other."""
    then = one.plan.then
    return then() if then is not None and one.stop == one.plan.num_tokens else None


def _end_probe(running: RunningRequest, plan: Plan) -> None:
    """Go on with the plan that was waited for. What the first one loaded lies in its place."""
    running.num_computed = plan.num_prefix
    assert running.planned is not None, "a probe pass follows a plan"
    for run in running.planned.plan.stored:
        run.source.close()
    running.planned = replace(running.planned, plan=running.completed(plan))


def _cut(plan: Plan, first: int, stop: int, num_rows: int) -> int:
    """The furthest end of a part that computes at most `num_rows` at any layer; `first` if none does."""
    if plan.computes_in_order:
        return (first + num_rows) // ROW_BLOCK * ROW_BLOCK
    edges = [*range((first // ROW_BLOCK + 1) * ROW_BLOCK, stop, ROW_BLOCK), stop]
    fitting = bisect_right(edges, num_rows, key=lambda edge: most_rows(plan, first, edge))
    return edges[fitting - 1] if fitting else first


def _goes_with(one: SequenceSlice, first: SequenceSlice, rows_left: int) -> bool:
    """May it join a pass that begins with `first`? What cannot be cut must find rows for all of it."""
    return one.plan.row_chunk == first.plan.row_chunk and one.most_rows <= rows_left
