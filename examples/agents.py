"""Two agents over one long conversation: what the second one waits for its first token, three ways.

python examples/agents.py [ADAPTER_FOLDER]

The planner is a model, the worker a LoRA on it: the folder of one in PEFT's format, by default the reranker
that comes with SmolLM2-135M.  The conversation is one of tau-bench's airline where that lies beside the
checkout, else the one below.
"""

import json
import os
import sys
from pathlib import Path

import kdn
from kdn.calibration.share_profile import PairSide, ShareItem
from kdn.calibration.share_run import profile_pair
from kdn.rank import packaged_adapters
from kdn.reuse.share import ShareChoice

MODEL = os.environ.get("EXAMPLE_MODEL", "smollm2-135m")
DATA = Path(__file__).parents[2] / "shared/data/tau_bench_airline/public.jsonl"
TURNS = [
    ("user", "I have to move my flight from Thursday to Friday, and I have two bags."),
    ("assistant", "Gladly. Which reservation is it, and may the new flight have a stop?"),
    (
        "user",
        "It is the one to Seattle. One stop is fine, but I do not want to leave before eleven.",
    ),
    ("assistant", "There are two flights on Friday after eleven: one at 11:40, one at 15:05."),
    ("user", "How much more is the one at 11:40, and can I pay the rest with my certificate?"),
    ("assistant", "It is 55 dollars more. One certificate can be used for each reservation."),
]
TOKENS = 1200
"""Of the conversation that both agents read."""


def conversations(tokens: int) -> list[list[dict[str, str]]]:
    """Turns of several conversations, each about so many tokens long (four characters a token)."""
    if DATA.is_file():
        rows = [json.loads(line)["traj"] for line in DATA.read_text("utf-8").splitlines()[:6]]
    else:
        rows = [[{"role": r, "content": c} for r, c in TURNS] * 10 for _ in range(6)]
    found = []
    for row in rows:
        turns, left = list[dict[str, str]](), 4 * tokens
        for turn in row:
            text = str(turn["content"])[:left]
            if turn["role"] in ("user", "assistant") and text.strip("None "):
                turns.append({"role": turn["role"], "content": text})
                left -= len(text)
        found.append([*turns, {"role": "user", "content": "What is left to do?"}])
    return found


def profile(k: kdn.Kdn, talks: list[list[dict[str, str]]]) -> float:
    """Measure the pair on conversations of its own, as `kdn share profile` does; the least work found."""
    items = []
    for talk in talks:
        prompt = k.prompts.segments(talk)
        context = [token for part in prompt.segments[:-1] for token in part.token_ids]
        answer = k.model.tokenizer.encode("The flight is still to be booked.")
        items.append(ShareItem(tuple(context), prompt.segments[-1].token_ids, answer))
    layers = k.model.decoder.config.num_layers
    upper = [ShareChoice((layers * n // 4, layers - 1)) for n in (1, 2, 3)]
    sides = [
        PairSide(name or "planner", k.model, k.parts.attention, adapter)
        for name, adapter in ((None, None), *k.model.adapters.items())
        if name in (None, "worker")
    ]
    choices = [ShareChoice(), *upper, ShareChoice(ratio=0.1), ShareChoice(ratio=0.2)]
    record = profile_pair(sides[0], sides[1], items, [], choices, k.calibration.shares)
    for point in record.usable("best"):
        print(f"  {point.choice.name:>14}: {point.work:4.0%} of the work, KL {point.kl:.4f}")
    good = [point.work for point in record.usable("best") if point.kl <= k.config.share.max_kl]
    return min(good, default=1.0)


def main() -> None:
    given = sys.argv[1] if len(sys.argv) > 1 else packaged_adapters(MODEL)["document-first"]
    with kdn.open(MODEL, adapters={"worker": given}) as k:
        talk, *others = conversations(TOKENS)
        print("the pair's profile, on other conversations:")
        least = profile(k, [one[:5] for one in others[:3]])

        def first_token_ms(salt: str, adapter: str | None = None) -> tuple[float, kdn.Answer]:
            answer = k.generate(talk, max_tokens=1, salt=salt, adapter=adapter, share="best")
            return answer.usage.ttft_ms, answer

        k.generate("Warm up.", max_tokens=1, adapter="worker")
        nothing_ms, nothing = first_token_ms("alone", "worker")
        own_ms, own = first_token_ms("alone", "worker")
        first_token_ms("together")  # the planner reads the conversation
        shared_ms, shared = first_token_ms("together", "worker")
        print(f"{nothing.usage.prompt_tokens} tokens; the worker's first token after")
        print(f"  {nothing_ms:7.1f} ms with nothing")
        print(f"  {own_ms:7.1f} ms with its own cache ({own.usage.exact} tokens)")
        print(f"  {shared_ms:7.1f} ms with the planner's ({shared.usage.shared} tokens shared)")
        if not shared.usage.shared:
            print(
                f"nothing was shared: within {k.config.share.max_kl} nats takes {least:.0%} of the work"
            )


main()
