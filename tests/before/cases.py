"""What was run when the recordings of this folder were made, and is run again to be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import kdn
from kdn.core import Request, Sampling, Token, Usage
from kdn.rank import packaged_adapters
from tests.before import seams

HEN = "The hen sits in the yard and counts nine eggs before noon."
BOAT = "A boat with a blue sail left the harbour at five and came back."
TOWN = "In the town hall hangs a clock that nobody has wound since spring, so it is always ten past two."
LONG = " ".join(f"Row {number} holds {number * 7} seeds." for number in range(14))
"""More than 256 tokens: two blocks."""
TEXTS = (HEN, BOAT, TOWN)

KEY = "11" * 32
"""The master key that the sealed store was written with."""
SECOND = "second tenant"


# --- answers ---------------------------------------------------------------------------------


def answer(tokens: Sequence[Token], usage: Usage) -> dict[str, Any]:
    """Token ids, their log-probabilities with the runner-up's, and where the prompt came from."""
    return {
        "ids": [one.token_id for one in tokens],
        "logprobs": [_rounded(one.logprob) for one in tokens],
        "second": [_second(one) for one in tokens],
        **accounting(usage),
    }


def accounting(usage: Usage) -> dict[str, Any]:
    """Where the tokens of a prompt came from."""
    return {
        "prompt": usage.prompt_tokens,
        "exact": usage.exact,
        "blended": usage.blended,
        "lossy": usage.lossy,
        "computed": usage.recomputed,
        "from": dict(sorted(usage.tiers.items())),
    }


def _second(token: Token) -> float | None:
    others = [one.logprob for one in token.alternatives if one.token_id != token.token_id]
    return _rounded(max(others, default=None))


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def tiny_outputs(model: Path, adapter: Path, home: Path, work: Path) -> dict[str, Any]:
    """Every way to an answer with the tiny model in fp32."""
    found: dict[str, Any] = {}
    with seams.opened(model, home, store=work / "a", adapters={"lora": adapter}) as k:
        asked = seams.request(k, "Where is the hen?", TEXTS, max_tokens=12)
        found["cold"] = answer(*seams.run(k, asked)[0])
        again = seams.request(k, "Where is the hen?", TEXTS, max_tokens=12)
        found["hit"] = answer(*seams.run(k, again)[0])
        with_it = seams.request(k, "Where is the hen?", TEXTS, max_tokens=12, adapter="lora")
        found["adapter"] = answer(*seams.run(k, with_it)[0])
        together = [seams.request(k, f"Is it {n}?", [HEN], max_tokens=6) for n in range(3)]
        found["together"] = [answer(*one) for one in seams.run(k, *together)]
        found["label"] = _verdicts(lambda: k.decide(HEN, ["Is it a hen?", "Is it noon?"]))
        found["score"] = _verdicts(lambda: k.score("Where is the boat?", TEXTS))
        for layout in ("document-first", "query-first"):
            ranked = partial(k.rerank, "A clock?", TEXTS, layout=layout)
            found[f"rerank {layout}"] = _ranking(ranked)
        found["rerank adapter"] = _ranking(lambda: k.rerank("A clock?", TEXTS, adapter="lora"))
        found["turns"] = _turns(k)
        # Without a bound nothing is sorted now, and the same seed draws other tokens.
        whole = k.model.tokenizer.vocab_size
        drawn = Sampling(max_tokens=12, temperature=1.0, seed=5, ignore_eos=True, top_k=whole)
        found["drawn"] = list(seams.said(k, "Tell.", drawn, "nothing").token_ids)
    with seams.opened(model, home, store=work / "a") as k:
        asked = seams.request(k, "Where is the hen?", TEXTS, max_tokens=12)
        found["hit after a restart"] = answer(*seams.run(k, asked)[0])
    small = {"max_batch_tokens": 32, "row_chunk": 16, "max_stall_ms": 0}
    with seams.opened(model, home, store=work / "b", engine=small) as k:
        asked = seams.request(k, "Where is the hen?", TEXTS, max_tokens=12)
        found["chunked"] = answer(*seams.run(k, asked)[0])
        found["chunked label"] = _verdicts(lambda: k.decide(HEN, ["Is it a hen?"]))
    with seams.opened(model, home, store=work / "c") as k:
        for text in TEXTS:
            k.prefill(text)
        for ratio in (0.0, 0.3, None):
            asked = seams.request(k, "Where?", TEXTS, max_tokens=8, blend=True, ratio=ratio)
            found[f"blended {ratio}"] = answer(*seams.run(k, asked)[0])
    with seams.opened(model, home, store=work / "d", codec="int8") as k:
        for name in ("cold int8", "lossy hit"):
            asked = seams.request(k, "Where?", TEXTS, max_tokens=8)
            found[name] = answer(*seams.run(k, asked)[0])
    for codec in ("lossless", "fp8", "int4", "entropy-2"):
        with seams.opened(model, home, store=work / codec, codec=codec) as k:
            for _ in range(2):
                asked = seams.request(k, "Where?", [HEN], max_tokens=4)
                found[f"found as {codec}"] = answer(*seams.run(k, asked)[0])
    with seams.opened(model, home, store=work / "e", int8=True) as k:
        asked = seams.request(k, "Where is the hen?", TEXTS, max_tokens=6)
        found["weights in int8"] = answer(*seams.run(k, asked)[0])
    packed = {"policy": "families", "pack_tokens": 512}
    with seams.opened(model, home, store=work / "f", engine=packed) as k:
        found["score, packed"] = _verdicts(lambda: k.score("Where is the boat?", TEXTS))
    for family in ("mistral", "qwen2", "qwen3"):
        other = seams.tiny(work / family, family)
        with seams.opened(other, home, store=work / f"of {family}") as k:
            for name in ("cold", "hit"):
                asked = seams.request(k, "Where is the hen?", TEXTS, max_tokens=6)
                found[f"{family}, {name}"] = answer(*seams.run(k, asked)[0])
    return found | _with_drift(model, work)


def _with_drift(model: Path, work: Path) -> dict[str, Any]:
    """A blend whose stored keys lose half of what they drift by, in a home of its own."""
    with seams.opened(model, work / "home", store=work / "g", drift=0.5) as k:
        shift = k.calibration.learn_key_bias().shift
        for text in TEXTS:
            k.prefill(text)
        asked = seams.request(k, "Where?", TEXTS, max_tokens=6, blend=True, ratio=0.2)
        return {
            "drift": [[round(float(one), 4) for one in row[0, :6]] for row in shift],
            "blended with drift": answer(*seams.run(k, asked)[0]),
        }


def _turns(k: kdn.Kdn) -> list[dict[str, Any]]:
    """A conversation of two turns: the second finds its own past."""
    greedy = Sampling(max_tokens=8, ignore_eos=True, logprobs=2)
    said = k.generate("Say a word.", sampling=greedy)
    turns = [
        {"role": "user", "content": "Say a word."},
        {"role": "assistant", "content": said.text},
        {"role": "user", "content": "Another."},
    ]
    then = k.generate(turns, sampling=greedy)
    return [answer(one.tokens, one.usage) for one in (said, then)]


def _verdicts(ask: Callable[[], Sequence[Any]]) -> list[dict[str, Any]]:
    """Asked twice: the first time a question may or may not find what another one just stored."""
    first, then = ask(), ask()
    return [
        {
            "probabilities": [round(p, 5) for p in one.probabilities],
            "again": {
                "probabilities": [round(p, 5) for p in other.probabilities],
                **accounting(other.usage),
            },
        }
        for one, other in zip(first, then, strict=True)
    ]


def _ranking(ask: Callable[[], kdn.Ranking]) -> dict[str, Any]:
    """Asked twice, as for verdicts."""
    first, then = ask(), ask()
    return {
        "order": [one.index for one in first],
        "scores": [round(one.score, 5) for one in first],
        "again": [round(one.score, 5) for one in then],
        "prompt": then.prompt_tokens,
        "cached": then.cached_tokens,
    }


FRANCE = (
    "Which city is the capital of France? Begin with the words: The capital of France is",
    "And of Italy? Begin with the words: The capital of Italy is",
)
FALCON = "The peregrine falcon dives at 389 kilometres per hour. It nests on cliffs."
PLANTS = "The fern grows in the shade. The cactus grows in the sun and needs no water for a year."


def smollm2_outputs(home: Path, work: Path, dtype: str = "bfloat16") -> dict[str, Any]:
    """The ways to an answer with SmolLM2, recorded in bfloat16."""
    found: dict[str, Any] = {}
    trained = packaged_adapters("smollm2-135m")
    model = "smollm2-135m"
    with seams.opened(model, home, store=work / "s", dtype=dtype, adapters=trained) as k:
        greedy = Sampling(max_tokens=6, ignore_eos=True, logprobs=2)
        first = k.generate(FRANCE[0], sampling=greedy)
        turns = [
            {"role": "user", "content": FRANCE[0]},
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": FRANCE[1]},
        ]
        second = k.generate(turns, sampling=greedy)
        found["turns"] = [answer(one.tokens, one.usage) for one in (first, second)]
        asked = [seams.request(k, "What dives?", [FALCON, PLANTS], max_tokens=6) for _ in range(2)]
        for name, one in zip(("cold", "hit"), asked, strict=True):
            found[name] = answer(*seams.run(k, one)[0])
        k.prefill(PLANTS)
        blended = seams.request(
            k, "What dives?", [FALCON, PLANTS], max_tokens=6, blend=True, ratio=0.3
        )
        found["blended"] = answer(*seams.run(k, blended)[0])
        turned = seams.request(
            k, "What dives?", [PLANTS, FALCON], max_tokens=6, blend=True, ratio=0.3
        )
        found["blended, turned"] = answer(*seams.run(k, turned)[0])
        texts = [FALCON, PLANTS, "It rains in Bergen."]
        alone = partial(k.rerank, "Which bird is fast?", texts, adapter="none")
        found["rerank"] = _ranking(alone)  # the adapter is the default now
        trained_one = partial(k.rerank, "Which bird is fast?", texts, adapter="document-first")
        found["rerank trained"] = _ranking(trained_one)
        found["label"] = _verdicts(lambda: k.decide(FALCON, ["Is it about a bird?"]))
    return found


# --- decisions -------------------------------------------------------------------------------


def decisions(model: Path, adapter: Path, home: Path, work: Path) -> list[dict[str, Any]]:
    """What was planned for requests in every situation, what they took, and what they left stored."""
    found: list[dict[str, Any]] = []

    def note(k: kdn.Kdn, situation: str, *requests: Request) -> None:
        held = [_short(block) for block in seams.blocks(k)]
        plans = [seams.planned(k, one) for one in requests]
        answers = seams.run(k, *requests)
        holds = [_short(block) for block in seams.blocks(k)]
        asked = [
            {"tokens": one.prompt.num_tokens, "planned": plan, "took": accounting(usage)}
            for one, plan, (_, usage) in zip(requests, plans, answers, strict=True)
        ]
        came = [block for block in holds if block not in held]
        went = [block for block in held if block not in holds]
        found.append({"situation": situation, "requests": asked, "came": came, "went": went})

    ask = seams.request
    with seams.opened(model, home, store=work / "exact", adapters={"lora": adapter}) as k:
        note(k, "nothing is stored", ask(k, "Where?", [HEN, BOAT]))
        note(k, "all but the question is stored", ask(k, "When?", [HEN, BOAT]))
        note(k, "the same once more, the question kept", ask(k, "When?", [HEN, BOAT], keep="all"))
        note(k, "and found", ask(k, "When?", [HEN, BOAT]))
        note(k, "one document of two is stored", ask(k, "Where?", [HEN, TOWN]))
        note(k, "a document of two blocks", ask(k, "Where?", [LONG], keep="nothing"))
        note(k, "two blocks, kept", ask(k, "Where?", [LONG]))
        note(k, "two blocks, found", ask(k, "Who?", [LONG]))
        note(k, "the request wants nothing reused", ask(k, "When?", [HEN, BOAT], reuse=False))
        note(k, "another tenant", ask(k, "When?", [HEN, BOAT], salt=SECOND))
        note(k, "an adapter", ask(k, "When?", [HEN, BOAT], adapter="lora"))
        note(k, "an adapter, found", ask(k, "Where?", [HEN, BOAT], adapter="lora"))
        note(k, "one token", ask(k, "Is it?", [HEN, BOAT], max_tokens=1))
        note(k, "one token, nothing stored", ask(k, "Is it?", [BOAT], max_tokens=1))
        group = [ask(k, f"Is it {n}?", [HEN], group="g", group_size=3) for n in range(3)]
        note(k, "three candidates of one group", *group)
    with seams.opened(model, home, store=work / "exact") as k:
        note(k, "found on the disk", ask(k, "Who?", [HEN, BOAT]))
    with seams.opened(model, home, store=work / "blend") as k:
        note(k, "a blend of nothing", ask(k, "Where?", TEXTS, blend=True, ratio=0.2))
        note(k, "blended at 0.2", ask(k, "When?", TEXTS, blend=True, ratio=0.2))
        note(k, "blended in another order", ask(k, "When?", TEXTS[::-1], blend=True, ratio=0.2))
        note(k, "blended at 0", ask(k, "When?", TEXTS, blend=True, ratio=0.0))
        note(k, "blended at 1: all is computed", ask(k, "When?", TEXTS, blend=True, ratio=1.0))
        note(k, "blended, the ratio by the controller", ask(k, "Who?", TEXTS, blend=True))
        note(k, "blended, one document is new", ask(k, "Who?", [HEN, "New.", BOAT], blend=True))
        note(k, "blended, one token", ask(k, "Who?", TEXTS, blend=True, ratio=0.2, max_tokens=1))
        whole = ask(k, "Who?", TEXTS[::-1], blend=True, ratio=0.2, keep="all")
        note(k, "blended, the turn kept", whole)
        note(k, "exact over what blends left", ask(k, "Who?", TEXTS[::-1]))
        note(k, "a blend for another tenant", ask(k, "Who?", TEXTS, blend=True, salt=SECOND))
    with seams.opened(model, home, store=work / "loss", codec="int8") as k:
        note(k, "int8 by name, cold", ask(k, "Where?", [HEN, BOAT]))
        note(k, "int8 by name, found", ask(k, "When?", [HEN, BOAT]))
        note(k, "no loss is allowed", ask(k, "When?", [HEN, BOAT], max_kl=0.0))
        note(k, "no loss is allowed, exact ones found", ask(k, "Who?", [HEN, BOAT], max_kl=0.0))
        note(k, "behind int8", ask(k, "Who?", [HEN, BOAT], keep="all"))
        note(k, "int8 and a blend", ask(k, "Who?", [BOAT, HEN], blend=True, ratio=0.2))
        seams.measured(k, kl=0.01)
    with seams.opened(model, home, store=work / "auto", codec="auto", max_kl=0.02) as k:
        note(k, "measured within the limit, cold", ask(k, "Where?", [HEN, BOAT]))
        note(k, "measured within the limit, found", ask(k, "When?", [HEN, BOAT]))
        note(k, "measured beyond the request's limit", ask(k, "When?", [HEN, BOAT], max_kl=0.005))
    with seams.opened(model, home, store=work / "loads", prefill_tokens_per_s=1e6) as k:
        note(k, "load or compute: nothing stored", ask(k, "Where?", [HEN, BOAT]))
    with seams.opened(model, home, store=work / "loads", prefill_tokens_per_s=1e6) as k:
        note(k, "load or compute: a tier of unknown speed", ask(k, "When?", [HEN, BOAT]))
    with seams.opened(model, home, store=work / "loads", prefill_tokens_per_s=1e6) as k:
        seams.slow_disk(k)
        note(k, "load or compute: compute", ask(k, "When?", [HEN, BOAT]))
    with seams.opened(model, home, store=work / "loads", prefill_tokens_per_s=1e-6) as k:
        seams.slow_disk(k)
        note(k, "load or compute: load a part", ask(k, "When?", [HEN, BOAT]))
    with seams.opened(model, home, store=work / "loads", prefill_tokens_per_s=1e-9) as k:
        seams.slow_disk(k)
        note(k, "load or compute: load", ask(k, "When?", [HEN, BOAT]))
    return found


def _short(block: dict[str, Any]) -> str:
    """A block in one line: who, how, where in the prompt, how long, which key, in which tiers."""
    whose, where = block["salt"] or "public", "+".join(block["tiers"])
    stop = block["start"] + block["num_tokens"]
    return f"{block['key'][:12]} {block['start']}-{stop} {block['recipe']}, {whose}, {where}"


# --- the library -----------------------------------------------------------------------------

DOCUMENTS = {
    "falcon.md": "# The falcon\n\nThe peregrine falcon dives at 389 kilometres per hour. It nests\n"
    "on cliffs.\n",
    "tabs.txt": "Indentation\n\nThe house style is three spaces per level. Tabs are never used.\n",
}
QUERIES = ("How fast does the falcon dive?", "How many spaces are there per level?")


def library_answers(k: kdn.Kdn) -> dict[str, Any]:
    """What is found and answered over the two documents."""
    asked = {}
    for query in QUERIES:
        said = k.ask(query, max_tokens=6)
        asked[query] = {
            "passages": [hit.passage.key for hit in k.library.search(query)],
            "by meaning": [hit.passage.key for hit in k.library.search(query, mode="vector")],
            "by words": [hit.passage.key for hit in k.library.search(query, mode="text")],
            "parts": [part.key for part in k.library.context(query, max_tokens=2000)],
            "ids": list(said.token_ids),
            **accounting(said.usage),
        }
    return {"sources": [one.source for one in k.library.sources()], "asked": asked}
