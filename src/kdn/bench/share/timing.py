"""Time to a receiver's first token: with nothing, its own cache, a sibling's KV from memory, disk or a link.

The link is simulated (`kdn.reuse.share.pipeline`) from the layer times and sizes that were measured here;
all other times are those of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdn import api
from kdn.bench.common.result import BenchOptions
from kdn.bench.share.arms import frontier_arm
from kdn.bench.share.pair import BASE, SharePair
from kdn.bench.share.rows import ShareRows
from kdn.bench.share.tasks import SharedContext
from kdn.core import Finish, Retention, Sampling, Share
from kdn.model import Document
from kdn.reuse.share.pairs import SharePoint
from kdn.reuse.share.pipeline import LoadOrder, SharedArrival, times_to_first_token
from kdn.store.admin.manage import Which, move, select

__all__ = ["joined", "timing_round"]

LINK_BYTES_PER_S = 125_000_000
"""1 Gbit/s."""


def joined(
    opened: api.Kdn, contexts: Sequence[SharedContext], num_tokens: int, begin: int
) -> SharedContext:
    """The documents from number `begin` on, one after the other, cut at so many tokens."""
    tokenizer, text, asked = opened.model.tokenizer, "", contexts[begin % len(contexts)].asked
    at = begin
    while len(tokenizer.encode(text)) < num_tokens:
        text += contexts[at % len(contexts)].document + "\n\n"
        at += 1
    return SharedContext(
        f"joined-{begin}", tokenizer.decode(tokenizer.encode(text)[:num_tokens]), asked
    )


def timing_round(
    options: BenchOptions,
    opened: api.Kdn,
    pair: SharePair,
    context: SharedContext,
    ways: Sequence[SharePoint],
    group: tuple[int, int] | None,
    rows: ShareRows,
    length: int,
    name: str,
) -> None:
    """One round of everything over one context, kept when it is done.

    Rounds of one `name` find what the others stored.

    `ways` are points of the pair's frontier: each is asked for by its own KL.
    """
    found: dict[str, float] = {}
    receiver, alora = pair.receiver, f"{pair.task}-alora"
    sender = None if pair.sender == BASE else pair.sender
    ask = _Asking(opened, context, f"{options.seed}-{length}-{name}")
    found["nothing"], _ = ask(receiver, "own", Share("exact"))
    found["own cache"], _ = ask(receiver, "own", Share("exact"))
    for place in ("memory", "disk"):
        ask(sender, place, Share("exact"))
        if place == "disk":
            opened.store.flush()
            move(opened.store, select(opened.store, Which(salt=ask.salt(place))), "disk", "memory")
        took_ms, shared = ask(receiver, place, Share())
        found[f"{'shared' if shared else 'not worth sharing'}, {place}"] = took_ms
    for place in dict.fromkeys(_places(ways)):
        ask(sender, place, Share("exact"))
    for place, way in zip(_places(ways), ways, strict=True):
        took_ms, shared = ask(receiver, place, Share(max_kl=way.kl * 1.0001))
        if shared:
            found[frontier_arm(way.choice.name)] = took_ms
    if alora in opened.model.adapters:
        found["alora, nothing"], _ = ask(alora, "alora", Share("exact"))
        ask(None, "alora-base", Share("exact"))
        found["alora, memory"], _ = ask(alora, "alora-base", Share("exact"))
    if group is not None:
        found |= _over_link(opened, ask.num_tokens, found["nothing"], group)
    line = {name: round(took_ms, 3) for name, took_ms in found.items()}
    rows.keep({"round": line, "pair": pair.name, "length": length, "tokens": ask.num_tokens})


def _places(ways: Sequence[SharePoint]) -> list[str]:
    """Under which salt each way finds the sender's KV: those that choose rows leave nothing behind, so that
    the next one finds the same."""
    return ["rows" if way.ratio else way.choice.name for way in ways]


class _Asking:
    """Asks about one context, under salts of this round."""

    def __init__(self, opened: api.Kdn, context: SharedContext, name: str) -> None:
        self._opened, self._context, self._name = opened, context, name
        self.num_tokens = 0

    def salt(self, place: str) -> str:
        return f"{self._name}-{place}"

    def __call__(self, adapter: str | None, place: str, share: Share) -> tuple[float, int]:
        """Milliseconds to the first token, and how many tokens came from a sibling."""
        request = self._opened.prompts.request(
            self._context.asked[0].question,
            [Document(None, self._context.document)],
            sampling=Sampling(max_tokens=1),
            salt=self.salt(place),
            adapter=adapter,
        )
        request = replace(request, retention=Retention.SHARED, techniques=(share,))
        *_, last = self._opened.submit(request)
        assert isinstance(last, Finish), "a stream ends with it"
        self.num_tokens = last.usage.prompt_tokens
        return last.usage.ttft_ms, last.usage.shared


def _over_link(
    opened: api.Kdn, num_tokens: int, prefill_ms: float, group: tuple[int, int]
) -> dict[str, float]:
    """The published group over a link of 1 Gbit/s, by how loads are ordered."""
    decoder = opened.model.decoder
    shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
    layer_bytes = num_tokens * shape.token_bytes / shape.num_layers
    states_bytes = num_tokens * decoder.config.hidden_size * decoder.dtype.itemsize
    ways = {"pipelined": LoadOrder.PIPELINED, "reused first": LoadOrder.REUSED_FIRST}
    return {
        f"group, 1 Gbit/s link, {name} (simulated)": times_to_first_token(
            [SharedArrival(0.0, *group)],
            shape.num_layers,
            order,
            load=1e3 * layer_bytes / LINK_BYTES_PER_S,
            states=1e3 * states_bytes / LINK_BYTES_PER_S,
            compute=prefill_ms / shape.num_layers,
        )[0]
        for name, order in ways.items()
    }
