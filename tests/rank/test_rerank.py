"""Ranking: hand-made odds, templates and their tokens, and cached scores against full prefills."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import kdn
from kdn.config import load_config
from kdn.core import Prompt, Request, Retention, Role, Usage
from kdn.errors import BadInput, PromptTooLong, UnknownModel
from kdn.model import Document
from kdn.rank import (
    TEMPLATES,
    Layout,
    Template,
    find_template,
    frame_of,
    make_choices,
    odds_of,
    one_token,
    rank_by,
    read_logits,
    relevance_question,
    wanted,
)

OWN = Template(
    name="own",
    document_first="Text: {document}\nAsked: {query} ({instruction})\n",
    query_first="Asked: {query} ({instruction})\nText: {document}\n",
    yes="Y",
    no="N",
)


def test_the_highest_odds_stand_first_and_equals_keep_their_order() -> None:
    odds = {"a": 0.0, "b": math.log(3), "c": 0.0}
    found = rank_by(["a", "b", "c", ""], odds, [Usage(7, 1, exact=5)])
    assert [one.index for one in found] == [1, 0, 2, 3]
    assert [one.score for one in found] == pytest.approx([0.75, 0.5, 0.5, 0.0])
    assert (found.prompt_tokens, found.cached_tokens) == (7, 5)
    assert [one.document for one in rank_by(["a", "b"], {"a": 1.0, "b": 2.0}, [], top_n=1)] == ["b"]
    with pytest.raises(BadInput, match="top_n is 0"):
        rank_by(["a"], {"a": 0.0}, [], top_n=0)


def test_extreme_odds_do_not_overflow() -> None:
    assert [one.score for one in rank_by(["a", "b"], {"a": 1e4, "b": -1e4}, [])] == [1.0, 0.0]


def test_a_template_without_a_no_is_scored_by_its_logit() -> None:
    assert odds_of((2.5,)) == 2.5
    assert odds_of((2.5, 1.0)) == 1.5


def test_templates_come_by_name_or_from_a_file(tmp_path: Path) -> None:
    assert find_template(None).name == "instruct"
    assert find_template("qwen3-reranker").yes == "yes"
    file = tmp_path / "mine.toml"
    file.write_text('document_first = "D: {document} Q: {query}"\nyes = "1"\nno = "0"\n', "utf-8")
    mine = find_template(file)
    assert (mine.name, mine.yes, mine.query_first) == ("mine", "1", None)
    with pytest.raises(BadInput, match="no query-first form"):
        mine.pieces(Layout.QUERY_FIRST)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('document_first = "{query} {document}"', "must hold {document} once and then {query}"),
        ('query_first = "{query}"', "must hold {query} once and then {document}"),
        ('yes = "1"', "give document_first"),
        ('document_frist = "x"', "not a reranking template"),
        ("nonsense", "not a reranking template"),
    ],
)
def test_a_broken_template_file_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "broken.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(BadInput, match=why):
        find_template(file)


def test_an_unknown_template_names_those_there_are() -> None:
    with pytest.raises(BadInput, match="bge-reranker-v2-gemma"):
        find_template("qwen")


def test_published_templates_say_what_was_published() -> None:
    qwen = TEMPLATES["qwen3-reranker"].query_first or ""
    assert qwen.startswith("<|im_start|>system\nJudge whether the Document meets")
    assert "<Query>: {query}\n<Document>: {document}<|im_end|>" in qwen
    assert qwen.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    gemma = TEMPLATES["bge-reranker-v2-gemma"]
    assert gemma.query_first == "{bos}A: {query}\nB: {document}\n{instruction}"
    assert gemma.no is None


# --- with a model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def k(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    """A tiny model in fp32, of 600 tokens' context, a token a byte."""
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model("llama", max_position_embeddings=1200)
    with kdn.open(folder, config=config, dtype="float32") as made:
        yield made
        made.check()


TEXTS = ["the cat sat on the mat", "rain " * 60, "stones", "the cat sat on the mat"]


def full(k: kdn.Kdn, prompt: Prompt, words: tuple[str, str] = ("Yes", "No")) -> float:
    """The log-odds of a prompt computed whole, alone, without the store."""
    choices = make_choices(words, k.model.tokenizer.encode)
    sampling = replace(wanted(choices), raw_logits=True)
    request = Request("full", prompt, sampling, reuse=False, retention=Retention.NOTHING)
    token, _ = one_token(k.submit(request))
    return odds_of(read_logits(choices, token))


@pytest.mark.parametrize("layout", list(Layout))
def test_scores_are_those_of_the_prompts_that_are_documented(k: kdn.Kdn, layout: Layout) -> None:
    found = k.rerank("Where is the cat?", TEXTS, layout=layout)
    for one in found:
        asked = relevance_question("Where is the cat?", Document(None, one.document), layout)
        prompt = k.prompts.question(asked)
        assert one.log_odds == pytest.approx(full(k, prompt), abs=1e-4)
        assert one.score == pytest.approx(1 / (1 + math.exp(-one.log_odds)), abs=1e-9)
    assert [one.score for one in found] == sorted((o.score for o in found), reverse=True)


def test_equal_documents_are_computed_once_and_score_alike(k: kdn.Kdn) -> None:
    found = k.rerank("Twice?", TEXTS)
    alone = k.rerank("Twice?", TEXTS[:3])
    assert found.prompt_tokens == alone.prompt_tokens
    scores = {one.index: one.log_odds for one in found}
    assert scores[0] == scores[3]


def test_the_next_query_computes_no_document_again(k: kdn.Kdn) -> None:
    texts = [f"a text about number {number}, long enough" for number in range(8)]
    k.rerank("first?", texts)
    again = k.rerank("and now?", texts)
    documents = sum(len(text) for text in texts)
    assert again.cached_tokens > documents


def test_a_document_ranked_before_is_an_exact_chunk_of_an_answer(k: kdn.Kdn) -> None:
    text = "This was ranked before it was asked about."
    k.rerank("anything?", [text])
    match, tokens = k.lookup(text)
    assert match.num_tokens == tokens
    answer = k.generate("What was it?", [text], sampling=kdn.Sampling(max_tokens=1))
    assert answer.usage.exact == tokens


def test_a_template_with_words_of_its_own_has_blocks_of_its_own(k: kdn.Kdn) -> None:
    text = "Nobody else stores this one."
    assert OWN.has_own_prelude
    assert not TEMPLATES["instruct"].has_own_prelude
    k.rerank("first?", [text], template=OWN)
    match, tokens = k.lookup(text)
    assert match.num_tokens <= tokens - len(text)
    assert k.rerank("second?", [text], template=OWN).cached_tokens > len(text)


@pytest.mark.parametrize("layout", list(Layout))
def test_an_own_templates_prompt_is_its_text_filled(k: kdn.Kdn, layout: Layout) -> None:
    tokenizer = k.model.tokenizer
    frame = frame_of("why?", OWN, layout, k.model.chat, tokenizer, "say")
    prompt = frame.prompt("a text")
    text = OWN.document_first if layout is Layout.DOCUMENT_FIRST else OWN.query_first
    filled = (text or "").format(document="a text", query="why?", instruction="say")
    assert tokenizer.decode(prompt.token_ids) == filled
    roles = [segment.role for segment in prompt.segments]
    assert roles[-1] is Role.QUESTION
    found = k.rerank("why?", ["a text"], template=OWN, layout=layout, instruction="say")
    assert found[0].log_odds == pytest.approx(full(k, prompt, ("Y", "N")), abs=1e-4)


def test_an_empty_list_and_an_empty_document(k: kdn.Kdn) -> None:
    assert len(k.rerank("anything?", [])) == 0
    found = k.rerank("anything?", [" \n", "text"])
    assert [one.index for one in found] == [1, 0]
    assert (found[1].score, found[1].log_odds) == (0.0, -math.inf)


def test_a_document_beyond_the_context_is_cut_only_when_asked(k: kdn.Kdn) -> None:
    long = "word " * 400
    with pytest.raises(PromptTooLong):
        k.rerank("too long?", [long])
    for layout in Layout:
        found = k.rerank("too long?", [long, "short"], truncate=True, layout=layout)
        assert len(found) == 2
        assert max(one.log_odds for one in found) < math.inf


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"query": " "}, "the query is empty"),
        ({"layout": "sideways"}, "document-first or query-first"),
        ({"template": "qwen3-reranker"}, "needs the token '<.im_start.>'"),
        ({"template": "bge-reranker-v2-gemma"}, "'Yes', which is 3 tokens"),
        ({"top_n": -1}, "top_n is -1"),
    ],
)
def test_what_cannot_be_done_is_said(k: kdn.Kdn, options: dict[str, object], why: str) -> None:
    asked: dict[str, object] = {"query": "why?", "documents": ["a"], **options}
    with pytest.raises(BadInput, match=why):
        k.rerank(**asked)  # type: ignore[arg-type]


def test_an_unknown_adapter_is_named(k: kdn.Kdn) -> None:
    with pytest.raises(UnknownModel, match="no adapter is called 'other'"):
        k.rerank("why?", ["a"], adapter="other")
