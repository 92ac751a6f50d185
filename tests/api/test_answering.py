"""Questions answered as suits each, with a tiny model: the report, what is stored, and what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdn
from kdn.api import Answering, Query, QueryOptions
from kdn.api.foresight import Foresight
from kdn.config import AskConfig, load_config
from kdn.errors import BadConfig, BadInput, Cancelled, ProfileFailed
from kdn.rag import Library
from kdn.rag.metis import (
    ClassifierProfiler,
    FeedbackSchedule,
    LibraryNote,
    Method,
    ModelProfiler,
    OracleProfiler,
    Preference,
    ProfileExample,
    QuestionProfile,
    RuleProfiler,
)
from tests.rag.helpers import small_library

QUESTION = "Where is the brass key?"
SINGLE = QuestionProfile(False, False, 1, (30, 60))
JOINT = QuestionProfile(True, False, 2, (30, 60))
LONG = QuestionProfile(True, True, 2, (30, 40))
FEW = QueryOptions(max_tokens=4)
TEXTS = {
    "falcon.md": "# Falcon\n\nThe falcon dives at great speed from the cliff.\n",
    "boat.md": "# Boat\n\nThe boat leaves the harbour at nine with a key.\n",
    "key.md": "# Key\n\nThe brass key hangs behind the clock.\n",
}


@pytest.fixture(scope="module")
def k(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model("llama", max_position_embeddings=4096)
    with kdn.open(folder, config=config, dtype="float32") as made:
        yield made
        made.check()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    pytest.importorskip("lancedb")
    folder = tmp_path / "papers"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    opened = small_library(tmp_path / "library")
    opened.ingest(folder)
    return opened


def answering(k: kdn.Kdn, library: Library, profile: QuestionProfile = SINGLE) -> Answering:
    return Answering(k.parts, lambda: library, OracleProfiler({QUESTION: profile}))


@pytest.mark.parametrize(
    ("profile", "methods"),
    [
        (SINGLE, {Method.MAP_RERANK}),
        (JOINT, {Method.STUFF}),
        (LONG, {Method.STUFF, Method.MAP_REDUCE}),
    ],
)
def test_an_answer_carries_how_it_was_made(
    k: kdn.Kdn, library: Library, profile: QuestionProfile, methods: set[Method]
) -> None:
    shown: list[str] = []
    answer = answering(k, library, profile).answer(QUESTION, FEW, shown.append)
    report = answer.report
    assert report is not None
    assert report.configuration is not None
    assert report.configuration.method in methods
    assert report.profile == profile
    assert 1 <= report.num_chunks <= 3
    assert report.num_calls >= 1
    assert report.took_ms > 0
    assert report.predicted_ms is not None
    assert report.predicted_bytes > 0
    assert any("fit into" in reason for reason in report.reasons)
    assert report.notes == ()
    assert "".join(shown) == answer.text
    said = report.as_json()
    assert said["method"] == report.configuration.method
    assert said["profile"]["pieces_of_information"] == profile.num_pieces
    assert len(list(report.lines())) >= 5


@pytest.mark.parametrize("method", list(Method))
def test_every_method_can_be_asked_for(k: kdn.Kdn, library: Library, method: Method) -> None:
    options = QueryOptions(max_tokens=4, method=method, max_chunks=2)
    answer = answering(k, library).answer(QUESTION, options)
    report = answer.report
    assert report is not None
    assert report.configuration is not None
    assert report.configuration.method is method
    assert report.profile is None, "nothing is profiled where nothing is to be chosen"
    calls = {Method.EXTRACT: 0, Method.STUFF: 1, Method.MAP_RERANK: 2, Method.MAP_REDUCE: 3}
    assert report.num_calls == calls[method]


def test_an_extract_is_the_best_passage_and_its_source(k: kdn.Kdn, library: Library) -> None:
    answer = answering(k, library).answer(QUESTION, QueryOptions(method=Method.EXTRACT))
    assert "brass key hangs behind the clock" in answer.text
    assert answer.sources[0].text.strip() == answer.text
    assert answer.usage.prompt_tokens == 0


def test_mapping_finds_every_document_stored_the_second_time(k: kdn.Kdn, library: Library) -> None:
    options = QueryOptions(max_tokens=2, method=Method.MAP_RERANK, max_chunks=3, salt="mapping")
    asked = answering(k, library)
    first, second = asked.answer(QUESTION, options), asked.answer("And the boat?", options)
    k.store.flush()
    assert first.report is not None
    assert second.report is not None
    assert first.report.num_stored_tokens == 0
    documents = sum(len(k.model.tokenizer.encode(part.text)) for part in library.parts())
    assert second.report.num_stored_tokens >= documents
    assert second.usage.exact > documents
    assert second.report.predicted_bytes < first.report.predicted_bytes


def test_a_deadline_that_no_model_keeps_is_answered_by_a_quote(
    k: kdn.Kdn, library: Library
) -> None:
    answer = answering(k, library).answer(QUESTION, QueryOptions(deadline_ms=0.001))
    assert answer.report is not None
    assert answer.report.configuration is not None
    assert answer.report.configuration.method is Method.EXTRACT
    assert any("quoted" in reason for reason in answer.report.reasons)


# --- what goes wrong -------------------------------------------------------------------------


def test_an_empty_library_is_a_note(k: kdn.Kdn, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    answer = answering(k, small_library(tmp_path / "none")).answer(QUESTION)
    assert not answer.in_documents
    assert answer.report is not None
    assert "kdn ingest" in answer.report.notes[0]


def test_a_profiler_that_fails_is_a_note_and_the_words_are_read(
    k: kdn.Kdn, library: Library
) -> None:
    """The oracle knows one question only."""
    answer = answering(k, library).answer("What leaves at nine?", FEW)
    assert answer.report is not None
    assert answer.report.profile is not None
    assert answer.report.profile.source == "rules"
    assert "the question's words were read" in answer.report.notes[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_chunks": 0},
        {"deadline_ms": -1.0},
        {"deadline_ms": float("nan")},
        {"summary_tokens": 50},
        {"reuse": "some"},
    ],
)
def test_options_without_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        QueryOptions(**wrong)  # type: ignore[arg-type]


def test_an_empty_question_is_refused(k: kdn.Kdn, library: Library) -> None:
    with pytest.raises(BadInput, match="empty"):
        answering(k, library).answer("  ")


def test_a_cancelled_query_is_no_answer(k: kdn.Kdn, library: Library) -> None:
    """Nor is it profiled, which may be a call of a model."""
    query, learner = Query(), Learner()
    query.cancel()
    with pytest.raises(Cancelled):
        Answering(k.parts, lambda: library, learner).answer(QUESTION, FEW, query=query)
    assert learner.profiled == []


def test_a_query_is_cancelled_from_another_thread(k: kdn.Kdn, library: Library) -> None:
    query, begun, withdrawn = Query(), threading.Event(), threading.Event()

    def withdraw() -> None:
        begun.wait(60)
        query.cancel()
        withdrawn.set()

    def hold(_: object) -> None:
        begun.set()
        withdrawn.wait(60)

    thread = threading.Thread(target=withdraw)
    thread.start()
    options = QueryOptions(max_tokens=3000, method=Method.STUFF)
    with pytest.raises(Cancelled):
        answering(k, library).answer(QUESTION, options, hold, query)
    thread.join()
    assert k.engine.waiting_kv() == 0


def test_many_queries_at_one_time_all_come_back(k: kdn.Kdn, library: Library) -> None:
    asked, found = answering(k, library, LONG), list[str]()

    def ask() -> None:
        found.append(asked.answer(QUESTION, FEW).text)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6


# --- feedback --------------------------------------------------------------------------------


class Learner:
    """Remembers what it profiled, and the golden answers that it was shown."""

    name = "learner"

    def __init__(self) -> None:
        self.shown = threading.Event()
        self.profiled: list[str] = []
        self.examples: list[tuple[str, str]] = []

    def profile(self, question: str, note: LibraryNote) -> QuestionProfile:
        self.profiled.append(question)
        return SINGLE

    def learn(self, question: str, golden_answer: str, note: LibraryNote) -> ProfileExample:
        self.examples.append((question, golden_answer))
        self.shown.set()
        return ProfileExample(question, SINGLE)


def test_a_learning_profiler_is_shown_the_golden_answer(k: kdn.Kdn, library: Library) -> None:
    learner = Learner()
    asked = Answering(k.parts, lambda: library, learner, FeedbackSchedule(every=2))
    asked.answer(QUESTION, FEW)
    asked.answer("And the boat?", FEW)
    assert learner.shown.wait(120)
    asked.close()
    assert [question for question, _ in learner.examples] == ["And the boat?"]
    assert learner.examples[0][1]


def test_closing_ends_a_golden_run_that_is_going(k: kdn.Kdn, library: Library) -> None:
    asked = Answering(k.parts, lambda: library, Learner(), FeedbackSchedule(every=1))
    asked.answer(QUESTION, FEW)
    asked.close()
    asked.close()
    assert not any(thread.name == "kdn-golden" for thread in threading.enumerate())


# --- who profiles ----------------------------------------------------------------------------


def test_the_open_model_fills_the_profile_in(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Random weights, yet a profile: only what the schema allows is drawn."""
    pytest.importorskip("llguidance")
    from kdn.api.profilers import make_profiler

    patient = {"KDN_ASK_PROFILER": "model", "KDN_ASK_PROFILE_TIMEOUT_S": "250"}
    config = load_config(patient, home=tmp_path)
    with kdn.open(tiny_model("llama", max_position_embeddings=4096), config=config) as made:
        profiler = make_profiler(made.parts)
        found = profiler.profile(QUESTION, LibraryNote("Notes.", 60))
        assert 0 < found.confidence <= 1
        assert found.source.startswith("model")
    slow = load_config(
        {"KDN_ASK_PROFILER": "model", "KDN_ASK_PROFILE_TIMEOUT_S": "0.000001"}, home=tmp_path
    )
    folder = tiny_model("llama", max_position_embeddings=4096)
    with kdn.open(folder, config=slow) as made, pytest.raises(ProfileFailed):
        make_profiler(made.parts).profile(QUESTION, LibraryNote("Notes.", 60))


def test_profiles_store_no_question_that_stands_in_them_as_an_example(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("llguidance")
    from kdn.api.profilers import make_profiler

    patient = {"KDN_ASK_PROFILER": "model", "KDN_ASK_PROFILE_TIMEOUT_S": "250"}
    config = load_config(patient, home=tmp_path)
    note = LibraryNote("Notes.", 60)
    with kdn.open(tiny_model("llama", max_position_embeddings=4096), config=config) as made:
        profiler = make_profiler(made.parts)
        assert isinstance(profiler, ModelProfiler)
        assert profiler.learn("Where is the silver key? " * 12, "Behind the clock.", note)
        profiler.profile(QUESTION, note)
        made.store.flush()
        stored = [entry.block_id().token_ids for entry in made.store.index.entries()]
        texts = [made.model.tokenizer.decode(token_ids) for token_ids in stored]
        assert any("joint_reasoning" in text for text in texts), "what is the same for all is kept"
        assert not any("silver" in text for text in texts)


def test_settings_name_the_profiler(k: kdn.Kdn) -> None:
    from dataclasses import replace

    from kdn.api.profilers import make_profiler

    def made(**settings: str) -> object:
        home = k.config.home
        environ = {f"KDN_ASK_{name.upper()}": value for name, value in settings.items()}
        return make_profiler(replace(k.parts, config=load_config(environ, home=home)))

    assert isinstance(made(), ClassifierProfiler)
    assert isinstance(made(profiler="rules"), RuleProfiler)
    profiler = made(
        profiler="endpoint",
        about="Minutes.",
        profile_timeout_s="0.5",
        endpoint_url="http://localhost:9/v1",
        endpoint_model="m",
        endpoint_key="s",
    )
    assert getattr(profiler, "name", "") == "model m"
    with pytest.raises(BadConfig, match="endpoint_url"):
        AskConfig(profiler="endpoint")


def test_a_key_is_not_shown(tmp_path: Path) -> None:
    config = load_config({"KDN_ASK_ENDPOINT_KEY": "secret"}, home=tmp_path)
    assert "secret" not in str(config.effective())


# --- what is foreseen ------------------------------------------------------------------------


def test_free_memory_counts_what_waits(k: kdn.Kdn, library: Library) -> None:
    """Requests that wait take their worst case from what may be chosen."""
    foresight = Foresight(k.parts)
    whole = foresight.load(0.0).free_bytes
    foresight.running.begin("q", 0.0, 2.0, 1_000)
    load = foresight.load(0.5)
    assert load.free_bytes == whole - 1_000
    assert load.ahead_s == pytest.approx(1.5)
    part = next(iter(library.parts()))
    model = foresight.demand_model(QUESTION, part, FEW)
    assert model.token_bytes == foresight.token_bytes
    assert model.prelude_tokens > 0
    assert model.frame_tokens > 0
    assert model.blend_ratio is None
    blended = foresight.demand_model(QUESTION, part, QueryOptions(reuse="blend", ratio=0.3))
    assert blended.blend_ratio == 0.3


def test_a_stored_part_is_seen(k: kdn.Kdn, library: Library) -> None:
    part = next(iter(library.parts()))
    foresight, options = Foresight(k.parts), QueryOptions(salt="seen")
    assert foresight.chunk(part, options).num_stored == 0
    k.prefill(part.text, part.key, salt="seen")
    k.store.flush()
    state = foresight.chunk(part, options)
    assert state.num_stored == state.num_tokens > 0


def test_a_stored_part_is_read_in_place_of_one_nearly_as_good(k: kdn.Kdn, tmp_path: Path) -> None:
    """Two notes are read in any case.  Of the others a late one is stored, and its score is near."""
    pytest.importorskip("lancedb")
    notes, library = tmp_path / "notes", small_library(tmp_path / "library")
    notes.mkdir()
    for number, where in enumerate(("hall", "barn", "mill", "shed", "loft", "yard", "port")):
        said = f"The brass key hangs in the {where}. {'Nobody has moved it since. ' * 12}"
        (notes / f"{number}.md").write_text(f"# Note\n\n{said}\n")
    library.ingest(notes)
    parts = library.context(QUESTION, max_tokens=10_000, max_parts=6)
    place = next(i for i in range(5, 2, -1) if 1.5 * parts[i].score > parts[1].score)
    options = QueryOptions(max_tokens=4, salt="picked")
    k.prefill(parts[place].text, parts[place].key, options.salt)
    two = QuestionProfile(False, False, 2, (30, 60))
    report = answering(k, library, two).answer(QUESTION, options).report
    assert report is not None
    assert report.configuration is not None
    assert place in report.configuration.places
    assert report.num_stored_tokens >= parts[place].num_tokens


def test_quality_reaches_the_choice(k: kdn.Kdn, library: Library) -> None:
    asked = answering(k, library)
    counts = {
        quality: asked.answer(
            QUESTION, QueryOptions(max_tokens=2, quality=quality, salt=f"q-{quality}")
        ).report
        for quality in Preference
    }
    fast, best = counts[Preference.FAST], counts[Preference.BEST]
    assert fast is not None
    assert best is not None
    assert fast.num_chunks == 1
    assert best.num_chunks == 3
