"""aLoRA: what stands before the invocation is the base model's, bit for bit, and shared with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import kdn
from kdn.config import load_config
from kdn.core import (
    Blend,
    Finish,
    Plan,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Token,
    Usage,
)
from kdn.engine.alone import run_alone
from kdn.errors import WeightsError
from kdn.model import load_model
from kdn.model.attention import TorchAttention
from kdn.model.lora import MODULES
from kdn.serve.run import served
from tests.engine.runs import some_tokens
from tests.model.test_lora import write_adapter
from tests.serve.running import running

# PEFT asks transformers a question that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

CALL = (65, 66, 67)
"""What invokes the adapter; no other text here holds it."""
CONTEXT = tuple(100 + (t % 50) for t in some_tokens(200, 200, seed=2))
PRELUDE, DOCUMENT = Segment(Role.PRELUDE, CONTEXT[:30]), Segment(Role.DOCUMENT, CONTEXT[30:])


def question(*token_ids: int) -> Segment:
    return Segment(Role.QUESTION, (7, 8, *CALL, *token_ids))


@pytest.fixture(scope="module")
def base(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An aLoRA as PEFT writes it."""
    place = tmp_path_factory.mktemp("adapters") / "invoked"
    return write_adapter(
        base,
        place,
        target_modules=list(MODULES),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=list(CALL),
    )


@pytest.fixture(scope="module")
def k(base: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[kdn.Kdn]:
    home = tmp_path_factory.mktemp("home")
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=home)
    with kdn.open(base, config=config, dtype="float32", adapters={"invoked": folder}) as made:
        yield made
        made.check()


def ask(
    k: kdn.Kdn,
    *segments: Segment,
    adapter: str | None = "invoked",
    salt: str = "",
    reuse: bool = True,
    retention: Retention = Retention.SHARED,
    techniques: tuple[object, ...] = (),
) -> tuple[list[Token], Usage]:
    sampling = Sampling(max_tokens=6, ignore_eos=True, logprobs=0)
    events = list(
        k.submit(
            Request(
                k.prompts.new_id("t"),
                Prompt(segments),
                sampling,
                salt=salt,
                adapter=adapter,
                reuse=reuse,
                retention=retention,
                techniques=techniques,
            )
        )
    )
    last = events[-1]
    assert isinstance(last, Finish)
    return [event for event in events if isinstance(event, Token)], last.usage


@pytest.mark.parametrize(
    ("tokens", "begins"),
    [
        ((*CONTEXT, *CALL, 9, 10), 200),
        ((*CALL, *CONTEXT, *CALL, 9), 203),
        ((*CONTEXT, 9, 10), None),
        (CONTEXT[:20] + CALL[:2], None),
        (CALL, 0),
    ],
)
def test_logits_are_pefts(
    base: Path, folder: Path, model_cache: Path, tokens: tuple[int, ...], begins: int | None
) -> None:
    """The last place that invokes it counts; without one the base answers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = load_model(base, cache_dir=model_cache, dtype="float32", adapters={"a": folder})
    adapter = loaded.adapters["a"]
    assert adapter.begins(tokens) == begins
    everywhere = tuple(range(len(tokens)))
    first = len(tokens) if begins is None else begins
    plan = Plan(tokens, adapter_from=first, logits=everywhere)
    ours = run_alone(loaded, TorchAttention(), plan, adapter=adapter).logits
    reference = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager"
        ),
        folder,
    )
    with torch.no_grad():
        wanted = reference(torch.tensor([tokens])).logits[0]
    assert (ours - wanted).abs().max() < 1e-4
    plain = run_alone(loaded, TorchAttention(), Plan(tokens, logits=everywhere)).logits
    assert torch.equal(ours[:first], plain[:first])
    if begins is not None:
        assert (ours[first:] - plain[first:]).abs().max() > 1e-2


def test_documents_behind_the_invocation_are_not_blended(k: kdn.Kdn) -> None:
    """The base has read 170 tokens: they stand in before the adapter begins, and anywhere for the base."""
    call, plain = Segment(Role.HISTORY, CALL), Segment(Role.HISTORY, CALL[:2])
    ask(k, PRELUDE, DOCUMENT, question(9), adapter=None, salt="blend")

    def blended(*segments: Segment, adapter: str | None = "invoked") -> int:
        _, usage = ask(
            k, *segments, adapter=adapter, salt="blend", techniques=(Blend(0.0),),
            retention=Retention.NOTHING,
        )  # fmt: skip
        return usage.blended

    last = Segment(Role.QUESTION, (7, 8, 9))
    assert blended(PRELUDE, plain, DOCUMENT, question(9)) == 170
    assert blended(PRELUDE, call, DOCUMENT, last) == 0
    assert blended(PRELUDE, call, DOCUMENT, last, adapter=None) == 170


def test_the_engine_starts_it_where_it_is_invoked(k: kdn.Kdn) -> None:
    """Greedy tokens of the engine are those of PEFT's rule, by a pass over the whole sequence."""
    tokens, usage = ask(k, PRELUDE, DOCUMENT, question(9), reuse=False, salt="start")
    assert usage.exact == 0
    ids = (*CONTEXT, 7, 8, *CALL, 9, *(token.token_id for token in tokens[:-1]))
    adapter = k.model.adapters["invoked"]
    last = tuple(range(205, len(ids)))
    plan = Plan(ids, adapter_from=202, logits=last)
    found = run_alone(k.model, k.parts.attention, plan, adapter=adapter).logits
    assert found.argmax(-1).tolist() == [token.token_id for token in tokens]


def test_base_and_adapter_share_the_context(k: kdn.Kdn) -> None:
    """A base request leaves 200 tokens of context; the adapter's computes its 6 of the question."""
    cold, _ = ask(k, PRELUDE, DOCUMENT, question(9), salt="shared", reuse=False)
    ask(k, PRELUDE, DOCUMENT, question(10), adapter=None, salt="shared")
    warm, usage = ask(k, PRELUDE, DOCUMENT, question(9), salt="shared")
    assert (usage.exact, usage.recomputed) == (200, 6)
    assert warm == cold


def test_the_adapters_context_is_the_bases_byte_for_byte(k: kdn.Kdn) -> None:
    stored = {}
    for adapter, salt in ((None, "bytes-base"), ("invoked", "bytes-adapter")):
        ask(k, PRELUDE, DOCUMENT, question(9), adapter=adapter, salt=salt)
        match = k.store.match(k.model.fingerprints.of(None), kdn.core.EXACT, salt, CONTEXT)
        assert match.num_tokens == 200
        runs = []
        for hit in match.hits:
            with k.store.open(hit) as reader:  # type: ignore[union-attr]
                runs += [bytes(run) for run in reader.layers(0, k.model.decoder.config.num_layers)]
        stored[adapter] = runs
    assert stored[None] == stored["invoked"]


def test_rows_of_the_question_and_the_answer_are_the_adapters_own(k: kdn.Kdn) -> None:
    """Kept whole: asked again, all but the last token is found; the base finds what stands before."""
    first, _ = ask(k, PRELUDE, DOCUMENT, question(9), salt="own", retention=Retention.ALL)
    again, usage = ask(k, PRELUDE, DOCUMENT, question(9), salt="own")
    assert (usage.exact, usage.recomputed) == (205, 1)
    assert again == first
    plain, usage = ask(k, PRELUDE, DOCUMENT, question(9), adapter=None, salt="own")
    assert usage.exact == 202
    assert plain == ask(k, PRELUDE, DOCUMENT, question(9), adapter=None, reuse=False)[0]


def test_a_later_invocation_takes_earlier_turns_from_the_base(k: kdn.Kdn) -> None:
    """Turn one's question and answer were the adapter's rows; as history they are the base's (PEFT)."""
    said, _ = ask(k, PRELUDE, DOCUMENT, question(9), salt="turns", retention=Retention.ALL)
    history = Segment(Role.HISTORY, question(9).token_ids)
    answer = Segment(Role.HISTORY, tuple(token.token_id for token in said))
    talk = (PRELUDE, DOCUMENT, history, answer, question(11))
    cold, _ = ask(k, *talk, salt="cold turns", reuse=False)
    warm, usage = ask(k, *talk, salt="turns")
    assert usage.exact == 202
    assert warm == cold


def test_the_same_tokens_invoked_elsewhere_are_other_kv(k: kdn.Kdn) -> None:
    """An answer that holds the invocation again: rows between the two places differ by who asks."""
    ids = (*CONTEXT, 7, 8, *CALL, 9, *CALL, 12, 13)
    adapter, decoder = k.model.adapters["invoked"], k.model.decoder
    assert adapter.begins(ids[:206]) == 202
    assert adapter.begins(ids) == 206
    assert decoder.fingerprint_with(adapter, 202) != decoder.fingerprint_with(adapter, 206)


def test_without_an_invocation_the_answer_is_the_bases(k: kdn.Kdn) -> None:
    asked = Segment(Role.QUESTION, (7, 8, 9))
    tuned, _ = ask(k, PRELUDE, DOCUMENT, asked, salt="none", retention=Retention.ALL)
    plain, usage = ask(k, PRELUDE, DOCUMENT, asked, adapter=None, salt="none")
    assert tuned == plain
    assert usage.exact == 202


def test_a_server_shares_the_context_between_base_and_adapter(k: kdn.Kdn) -> None:
    """`usage` says that the adapter's answer reused what the base read."""
    called = k.model.tokenizer.decode(CALL)
    assert k.model.tokenizer.encode(called) == CALL
    with running(served(k)) as server:

        def chat(model: str) -> int:
            answer = server.openai.chat.completions.create(
                model=model,
                messages=[
                    {"role": "system", "content": "The lamp is lit at dusk. " * 20},
                    {"role": "user", "content": f"Ask {called}"},
                ],
                max_tokens=2,
            )
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            return answer.usage.prompt_tokens_details.cached_tokens or 0

        assert chat(k.name) == 0
        assert chat("invoked") > 100


@pytest.mark.parametrize("wrong", [[], "abc", [1, -1], [10**9], [True], {}])
def test_an_invocation_that_is_no_list_of_tokens_is_refused(
    base: Path, folder: Path, model_cache: Path, tmp_path: Path, wrong: object
) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    said = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    said["alora_invocation_tokens"] = wrong
    (tmp_path / "adapter_config.json").write_text(json.dumps(said), "utf-8")
    with pytest.raises(WeightsError, match="must list token ids below"):
        load_model(base, cache_dir=model_cache, dtype="float32", adapters={"a": tmp_path})
