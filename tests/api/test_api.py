"""The joined rooms, with the real model: documents in, answers with sources out, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kdn
from kdn.config import Config
from kdn.core import FinishReason, Sampling
from kdn.errors import BadInput, EngineFailed, MissingExtra, UnknownModel

TEXTS = {
    "falcon.md": "# The falcon\n\nThe peregrine falcon dives at 389 kilometres per hour. It nests\n"
    "on cliffs.\n",
    "tabs.txt": "Indentation\n\nThe house style is three spaces per level. Tabs are never used.\n",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """One home for the file, so that the weights are unpacked once."""
    return tmp_path_factory.mktemp("home")


def opened(home: Path, work: Path) -> kdn.Kdn:
    from kdn.config import LibraryConfig, StoreConfig

    return kdn.open(
        config=Config(
            home=home,
            store=StoreConfig(folder=work / "store", disk_bytes=1 << 28, memory_bytes=1 << 28),
            library=LibraryConfig(folder=work / "library"),
        )
    )


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def k(home: Path, tmp_path: Path) -> Iterator[kdn.Kdn]:
    with opened(home, tmp_path) as made:
        try:
            _ = made.embedder
        except MissingExtra as missing:
            pytest.skip(str(missing))
        yield made
        made.check()


def test_a_question_brings_the_document_that_holds_the_answer(k: kdn.Kdn, documents: Path) -> None:
    """What the smallest model makes of it is its own affair; that it was shown the right page is ours."""
    k.ingest([documents])
    pieces: list[str] = []
    answer = k.ask("How fast does the peregrine falcon dive?", max_tokens=40, stream=pieces.append)
    assert answer.text
    assert "".join(pieces) == answer.text
    assert answer.sources[0].title == "The falcon"
    assert "389" in answer.sources[0].text


def test_the_second_question_reuses_the_document_and_so_does_the_next_process(
    home: Path, tmp_path: Path, documents: Path
) -> None:
    question = "Where does the falcon nest?"
    with opened(home, tmp_path) as first:
        first.ingest([documents])
        cold = first.ask("How fast does the peregrine falcon dive?", max_tokens=5)
        warm = first.ask(question, max_tokens=20)
    with opened(home, tmp_path) as second:
        again = second.ask(question, max_tokens=20)
    assert cold.usage.exact == 0
    assert warm.usage.exact > 0.5 * warm.usage.prompt_tokens
    assert again.usage.exact == warm.usage.exact
    assert set(again.usage.tiers) == {"disk"}
    assert again.text == warm.text


def test_prefilling_at_ingest_spares_the_first_question(k: kdn.Kdn, documents: Path) -> None:
    told: list[tuple[int, int]] = []
    k.ingest([documents], prefill=True, on_prefill=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0, "the bar ends at its end"
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    answer = k.ask("How many spaces per level?", max_tokens=5)
    assert answer.usage.recomputed < answer.usage.prompt_tokens / 2


def test_a_conversation_hits_its_own_past(k: kdn.Kdn) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    first = k.generate(messages, sampling=Sampling(max_tokens=12))
    messages += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Another."},
    ]
    second = k.generate(messages, sampling=Sampling(max_tokens=3))
    assert second.usage.exact >= first.usage.prompt_tokens


def test_equal_seeds_give_equal_text_and_length_is_said(k: kdn.Kdn) -> None:
    sampling = Sampling(max_tokens=10, temperature=1.0, seed=5)
    first, second = (k.generate("Tell me a story.", sampling=sampling) for _ in range(2))
    assert first.text == second.text
    assert first.finish_reason is FinishReason.LENGTH


def test_an_empty_library_and_bad_messages_are_said_plainly(k: kdn.Kdn) -> None:
    with pytest.raises(BadInput, match="kdn ingest PATH"):
        k.ask("Anything?")
    with pytest.raises(BadInput, match="a role and a content"):
        k.generate([{"role": "user", "text": "hello"}])
    with pytest.raises(UnknownModel, match="loaded adapters: document-first, query-first"):
        k.generate("hello", adapter="nobody")


def test_an_interrupted_listener_cancels_its_request(k: kdn.Kdn) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        k.generate("Count to a thousand.", stream=interrupt)
    short = k.generate("hello", sampling=Sampling(max_tokens=1))
    assert short.usage.completion_tokens == 1
    while k.engine.stat().num_decoding:
        k.generate("hello", sampling=Sampling(max_tokens=1))
    assert k.engine.free_kv() == k.engine.stat().kv_total_bytes


def test_a_closed_kdn_says_so(home: Path, tmp_path: Path) -> None:
    made = opened(home, tmp_path)
    made.close()
    with pytest.raises(EngineFailed, match="closed"):
        made.generate("hello")
