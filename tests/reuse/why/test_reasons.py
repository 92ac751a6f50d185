"""Constructed cases, each with a real engine and store: the right reason, and never a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.config import Config, EngineConfig, StoreConfig
from kdn.core import Finish, Prefix, Prompt, Request, Retention, Role, Sampling, Segment, Usage
from kdn.reuse.steer import Steer
from kdn.reuse.why import Explanation, MissReason
from tests.engine.test_company import write_adapter

Tiny = Callable[..., Path]
LONG = "Answer briefly, cite the passage you used, and say so when you do not know. " * 2
FALCON = "The peregrine falcon dives at 389 kilometres per hour and nests on cliffs. " * 3
TABS = "The house style is three spaces a level. Tabs are never used in this project. " * 3
MOON = "The moon is on average 384,400 kilometres away and always shows the same side. " * 3
WEATHER = '{"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}}'
CLOCK = '{"type": "function", "function": {"name": "clock", "parameters": {"zone": "string"}}}'
MAIL = '{"type": "function", "function": {"name": "mail", "parameters": {"to": "string"}}}'
UUIDS = ("8c5b7f0e-1d5e-4b62-9f57-2f4f6b3a9c11", "1b9e2c4d-77aa-4d0c-8a54-5be0d1f2a333")


@dataclass(frozen=True)
class Turn:
    """One request of a case."""

    user: str = "How fast does it dive?"
    system: str | None = LONG
    documents: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    salt: str = ""
    adapter: str | None = None
    reuse: bool = True
    steer: Steer | None = None
    prompt_logprobs: int | None = None

    def request(self, k: kdn.Kdn) -> Request:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages += [{"role": role, "content": text} for role, text in self.history]
        messages.append({"role": "user", "content": self.user})
        made = k.prompts.request(
            messages,
            self.documents,
            sampling=Sampling(max_tokens=3, ignore_eos=True, prompt_logprobs=self.prompt_logprobs),
            salt=self.salt,
            adapter=self.adapter,
        )
        made = made if self.steer is None else made.using(self.steer)
        return replace(made, retention=Retention.ALL, reuse=self.reuse)


@dataclass(frozen=True)
class Case:
    """Requests that came before, the one that is asked about, and the only right reason."""

    before: tuple[Turn, ...]
    asked: Turn
    reason: MissReason
    between: Callable[[kdn.Kdn], None] = lambda _: None
    earlier: dict[str, Any] = field(default_factory=dict)
    """How the program of `before` was opened, where that is another one on the same store."""
    sees_all: bool = False


def tools(*given: str) -> str:
    return f"{LONG}\nYou may call:\n" + "\n".join(given) + "\nCall one at a time, please."


def dated(day: str) -> str:
    return f"You are a helpful assistant. Today is {day}. {LONG}"


def clear(k: kdn.Kdn) -> None:
    k.store.flush()
    k.store.clear()


def fill_up(k: kdn.Kdn) -> None:
    """Other prompts, until what came before has no room."""
    for number in range(30):
        spent(k, Turn(system=f"{number} {number} {MOON}{TABS}"))
    k.store.flush()


CASES = {
    "a date in the system prompt": Case(
        (Turn(system=dated("2026-11-27")),),
        Turn(system=dated("2026-11-28")),
        MissReason.CHANGING_VALUE,
    ),
    "a written date": Case(
        (Turn(system=dated("Friday, November 27, 2026")),),
        Turn(system=dated("Saturday, November 28, 2026")),
        MissReason.CHANGING_VALUE,
    ),
    "a time of day": Case(
        (Turn(system=f"It is 09:41:07 now. {LONG}"),),
        Turn(system=f"It is 09:41:52 now. {LONG}"),
        MissReason.CHANGING_VALUE,
    ),
    "the id of a session": Case(
        (Turn(system=f"Session {UUIDS[0]}. {LONG}"),),
        Turn(system=f"Session {UUIDS[1]}. {LONG}"),
        MissReason.CHANGING_VALUE,
    ),
    "a date in the message": Case(
        (Turn(user="[2026-11-27 10:01] Is the report of last week ready to be sent?"),),
        Turn(user="[2026-11-28 10:07] Is the report of last week ready to be sent?"),
        MissReason.CHANGING_VALUE,
    ),
    "thoughts that history lacks": Case(
        (
            Turn(
                history=(
                    ("user", "How high?"),
                    ("assistant", "<think>\nHeights of cliffs vary.\n</think>\n\nUp to 400 metres."),
                )
            ),
        ),
        Turn(history=(("user", "How high?"), ("assistant", "Up to 400 metres."))),
        MissReason.THINKING_STRIPPED,
    ),
    "another system prompt": Case(
        (Turn(system=f"You are a pirate. {LONG}"),),
        Turn(system="Translate what you are given into French, and nothing else."),
        MissReason.SYSTEM_PROMPT,
    ),
    "tools in another order": Case(
        (Turn(system=tools(WEATHER, CLOCK, MAIL)),),
        Turn(system=tools(CLOCK, WEATHER, MAIL)),
        MissReason.TOOLS_ORDER,
    ),
    "one tool more": Case(
        (Turn(system=tools(WEATHER, MAIL)),),
        Turn(system=tools(WEATHER, CLOCK, MAIL)),
        MissReason.TOOLS_CHANGED,
    ),
    "documents in another order": Case(
        (Turn(documents=(FALCON, TABS, MOON)),),
        Turn(documents=(TABS, FALCON, MOON)),
        MissReason.DOCUMENTS_ORDER,
    ),
    "another document": Case(
        (Turn(documents=(FALCON, TABS)),),
        Turn(documents=(FALCON, MOON)),
        MissReason.OTHER_DOCUMENT,
    ),
    "an earlier turn was cut out": Case(
        (
            Turn(
                history=(
                    ("user", "How high?"),
                    ("assistant", "400 metres."),
                    ("user", "Where do they live?"),
                    ("assistant", "On cliffs."),
                )
            ),
        ),
        Turn(history=(("user", "Where do they live?"), ("assistant", "On cliffs."))),
        MissReason.HISTORY_CHANGED,
    ),
    "another adapter": Case((Turn(),), Turn(adapter="terse"), MissReason.ADAPTER),
    "another salt, for one who may name both": Case(
        (Turn(salt="blue"),), Turn(salt="red"), MissReason.SALT, sees_all=True
    ),
    "another salt, for anybody else": Case(
        (Turn(salt="blue"),), Turn(salt="red"), MissReason.NOTHING_STORED
    ),
    "another number type": Case(
        (Turn(),), Turn(), MissReason.DTYPE, earlier={"dtype": "bfloat16"}
    ),
    "other weights": Case((Turn(),), Turn(), MissReason.WEIGHTS, earlier={"seed": 1}),
    "evicted for others": Case((Turn(),), Turn(), MissReason.EVICTED, between=fill_up),
    "cleared before this program began": Case(
        (Turn(),), Turn(), MissReason.EVICTED, between=clear, earlier={"seed": 0}
    ),
    "loading is slower than computing": Case(
        (Turn(), Turn()), Turn(user="And where does it nest?"), MissReason.LOAD_NOT_WORTH_IT
    ),
    "nothing like it was ever sent": Case((), Turn(), MissReason.NOTHING_STORED),
    "the next turn of a conversation": Case(
        (Turn(documents=(FALCON,), user="How fast?"),),
        Turn(
            documents=(FALCON,),
            user="And where does it nest?",
            history=(("user", "How fast?"), ("assistant", "389 km/h.")),
        ),
        MissReason.HISTORY_CHANGED,
    ),
    "another question about the same document": Case(
        (Turn(documents=(FALCON,)),),
        Turn(documents=(FALCON,), user="Where does it nest?"),
        MissReason.NEW_QUESTION,
    ),
    "numbers in two questions are no ids": Case(
        (Turn(user="What is 21 and 34?"),),
        Turn(user="What is 55 and 89?"),
        MissReason.NEW_QUESTION,
    ),
    "the same again": Case((Turn(),), Turn(), MissReason.ALL_REUSED),
    "reuse was turned off": Case((Turn(),), Turn(reuse=False), MissReason.REUSE_OFF),
    "the question is steered": Case(
        (Turn(),), Turn(steer=Steer(((12, 3.0),))), MissReason.STEERED
    ),
    "the prompt's log-probabilities are wanted, and an adapter has the same text": Case(
        (Turn(), Turn(adapter="terse")), Turn(prompt_logprobs=1), MissReason.PROMPT_LOGPROBS
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tiny_model: Tiny) -> dict[int, Path]:
    return {seed: tiny_model("llama", seed, max_position_embeddings=4096) for seed in (0, 1)}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "terse", 7, ("q_proj", "v_proj"))


@contextmanager
def opened(
    home: Path, model: Path, adapter: Path, dtype: str = "float32", **store: Any
) -> Iterator[kdn.Kdn]:
    sizes = {"disk_bytes": 1 << 25, "memory_bytes": 1 << 25} | store
    config = Config(
        home=home, store=StoreConfig(**sizes), engine=EngineConfig(threads=1, fit_idle_s=0)
    )
    with kdn.open(model, config=config, dtype=dtype, adapters={"terse": adapter}) as k:
        yield k


def spent(k: kdn.Kdn, turn: Turn) -> tuple[Request, Usage]:
    """The request run to its end."""
    request = turn.request(k)
    finish = list(k.submit(request))[-1]
    assert isinstance(finish, Finish)
    return request, finish.usage


@pytest.mark.parametrize("name", CASES)
def test_the_right_reason_on_each_case(
    name: str, models: dict[int, Path], adapter: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    sizes: dict[str, Any] = {}
    if case.reason is MissReason.LOAD_NOT_WORTH_IT:
        sizes = {"prefill_tokens_per_s": 1e12}
    if case.between is fill_up:
        sizes = {"disk_bytes": 1 << 21, "memory_bytes": 1 << 19}
    if case.earlier:
        seed = case.earlier.get("seed", 0)
        dtype = case.earlier.get("dtype", "float32")
        with opened(tmp_path, models[seed], adapter, dtype) as k:
            for turn in case.before:
                spent(k, turn)
            case.between(k)
    with opened(tmp_path, models[0], adapter, **sizes) as k:
        if not case.earlier:
            for turn in case.before:
                spent(k, turn)
            case.between(k)
        foreseen = k.parts.why.foresee(
            case.asked.request(k), (lambda _: True) if case.sees_all else None
        )
        request, usage = spent(k, case.asked)
        k.store.flush()
        found = k.parts.why.explain(
            request,
            usage,
            ended_s=k.parts.clock.now(),
            sees=(lambda _: True) if case.sees_all else None,
        )
        k.check()
    if name != "cleared before this program began":  # a running program knows what it saw leave
        assert found.reason is case.reason, found
    if case.reason is not MissReason.LOAD_NOT_WORTH_IT:  # that depends on the load
        assert foreseen.reason is case.reason, foreseen
    _check_places(found, request)


def _check_places(found: Explanation, request: Request) -> None:
    """Places and counts agree with each other, whatever the reason."""
    assert 0 <= found.reused <= found.stored <= found.num_tokens == request.prompt.num_tokens
    assert found.place in (found.reused, found.stored)
    assert found.role in {str(one.role) for one in request.prompt.segments}
    assert str(found.place) in found.sentence


def test_what_is_stored_later_explains_no_earlier_request(
    models: dict[int, Path], adapter: Path, tmp_path: Path
) -> None:
    """The first prompt of a store met nothing, whatever is stored when somebody asks about it."""
    with opened(tmp_path, models[0], adapter) as k:
        request, usage = spent(k, Turn())
        ended_s = k.parts.clock.now()
        k.store.flush()
        other = Prompt((Segment(Role.QUESTION, request.prompt.token_ids[::-1]),))
        for _ in k.submit(replace(Turn().request(k), id="other", prompt=other)):
            pass
        k.store.flush()
        now = k.parts.why.explain(request, usage)
        then = k.parts.why.explain(request, usage, ended_s=ended_s)
        assert [then.reason, now.reason == then.reason] == [MissReason.NOTHING_STORED, False]


def test_both_texts_are_told_around_the_place(
    models: dict[int, Path], adapter: Path, tmp_path: Path
) -> None:
    """One token is one byte here, so the place is that of the character."""
    with opened(tmp_path, models[0], adapter) as k:
        spent(k, Turn(system=dated("2026-11-27")))
        request, usage = spent(k, Turn(system=dated("2026-11-28")))
        found = k.parts.why.explain(request, usage)
    assert found.before.endswith("Today is 2026-11-2")
    assert found.text.startswith("8. Answer briefly")
    assert found.stored_text.startswith("7. Answer briefly")
    assert found.detail == "2026-11-27. became 2026-11-28."
    # the control token, then "system" and a line break: 8 tokens before the text begins
    text = "You are a helpful assistant. Today is 2026-11-2"
    assert found.place == usage.exact == 8 + len(text)
    assert found.reason.advice == "docs/why-not.md#changing_value"


def test_a_tenant_is_never_shown_what_another_one_stored(
    models: dict[int, Path], adapter: Path, tmp_path: Path
) -> None:
    with opened(tmp_path, models[0], adapter) as k:
        spent(k, Turn(system=f"{dated('2026-11-27')} The code word is heron.", salt="blue"))
        asked = Turn(system=dated("2026-11-28"), salt="red")
        own, all_salts = (
            k.parts.why.foresee(asked.request(k), sees) for sees in (None, lambda _: True)
        )
    assert own.reason is all_salts.reason is MissReason.NOTHING_STORED
    assert own.stored_text == all_salts.stored_text == ""


def test_blocks_of_a_codec_behind_exact_ones_are_told(
    models: dict[int, Path], adapter: Path, tmp_path: Path
) -> None:
    """One text is stored as it is and the next one by int8: a request that allows no loss finds the first."""
    asked = Turn(documents=(TABS, FALCON))
    with opened(tmp_path, models[0], adapter) as k:
        spent(k, Turn(documents=(TABS,)))
    with opened(tmp_path, models[0], adapter, codec="int8") as k:
        _, first = spent(k, asked)
        k.store.flush()
        strict = k.parts.why.foresee(asked.request(k).using(Prefix(max_kl=0.0)))
        allowing = k.parts.why.foresee(asked.request(k))
    assert (strict.reason, strict.stored) == (MissReason.LOSSY, first.exact)
    assert allowing.reason is MissReason.ALL_REUSED


def test_a_sealed_store_tells_the_place_alone(
    models: dict[int, Path], adapter: Path, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text('master = "' + "11" * 32 + '"\n')
    key_file.chmod(0o600)
    with opened(tmp_path / "home", models[0], adapter, key_file=key_file) as k:
        spent(k, Turn(system=dated("2026-11-27")))
        found = k.parts.why.foresee(Turn(system=dated("2026-11-28")).request(k))
    assert found.place == found.stored > 40
    assert found.before == found.text == found.stored_text == found.detail == ""


def test_what_cannot_be_opened_is_a_failed_load(
    models: dict[int, Path], adapter: Path, tmp_path: Path
) -> None:
    """It follows from the numbers alone: 40 are stored and 32 reused."""
    with opened(tmp_path, models[0], adapter) as k:
        request = Turn().request(k)
        usage = Usage(request.prompt.num_tokens, 1, exact=32, stored=40)
        assert k.parts.why.explain(request, usage).reason is MissReason.LOAD_FAILED
