"""The library's promises: only what changed is redone, what is listed is whole, killed or not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kdn.clock import ManualClock
from kdn.errors import (
    BadConfig,
    BadInput,
    EndpointFailed,
    ForeignStore,
    PromptTooLong,
    StoreError,
)
from kdn.rag import (
    Cutting,
    Library,
    LibrarySettings,
    Paragraph,
    Progress,
    Vectors,
    compose,
)
from kdn.rag.lock import writing
from tests.rag.helpers import HashedWords, small_library, words

CATS = "Cats sleep sixteen hours a day and hunt at dawn."
BOATS = "Boats float because they displace their own weight of water."
TREES = "Trees drink through their roots and breathe through their leaves."


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "cats.txt").write_text(CATS)
    (folder / "boats.md").write_text(f"# Ships\n\n{BOATS}\n")
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return small_library(tmp_path / "library")


class Counting(HashedWords):
    """Remembers what it was asked to embed."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.texts.extend(texts)
        return super().embed(texts)


# --- taking in -------------------------------------------------------------------------------


def test_taken_in_found_and_listed(library: Library, docs: Path) -> None:
    report = library.ingest([docs])
    assert [Path(source).name for source in report.added] == ["boats.md", "cats.txt"]
    assert (report.num_passages, report.num_parts, report.refused) == (2, 2, ())
    assert [info.title for info in library.sources()] == ["Ships", "cats.txt"]
    (hit,) = library.search("what do boats displace", 1)
    assert (hit.passage.text, hit.passage.headings) == (BOATS, ("Ships",))
    stat = library.stat()
    assert (stat.num_sources, stat.num_passages, stat.num_parts) == (2, 2, 2)
    assert stat.size_bytes > 0
    library.check()


def test_again_only_what_changed_is_embedded(tmp_path: Path, docs: Path) -> None:
    embedder = Counting()
    library = small_library(tmp_path / "library", embedder)
    long = docs / "long.md"
    sections = [f"# S{n}\n\n" + f"word{n} " * 15 + "\n\n" for n in range(10)]
    long.write_text("".join(sections))
    library.ingest([docs])
    embedder.texts.clear()
    assert len(library.ingest([docs]).unchanged) == 3
    assert embedder.texts == []
    long.write_text("".join(sections).replace("word4 word4", "changed word4", 1))
    report = library.ingest([docs])
    assert [Path(source).name for source in report.updated] == ["long.md"]
    assert report.num_passages == 1
    assert len(embedder.texts) == 1
    assert "changed" in embedder.texts[0]
    assert library.stat().num_passages == 12
    library.check()


def test_a_file_that_left_its_folder_leaves_the_library(library: Library, docs: Path) -> None:
    library.ingest([docs])
    (docs / "cats.txt").unlink()
    report = library.ingest([docs])
    assert [Path(source).name for source in report.removed] == ["cats.txt"]
    assert [info.title for info in library.sources()] == ["Ships"]
    library.ingest([docs / "boats.md"])  # says nothing of the rest of the folder
    assert library.stat().num_sources == 1
    library.check()


def test_what_a_folder_passes_over_stays_while_its_file_is_there(
    library: Library, docs: Path
) -> None:
    plan = docs / ".plan.md"
    plan.write_text(TREES)
    library.ingest([plan])
    report = library.ingest([docs])
    assert ([Path(source).name for source in report.added], report.removed) == (
        ["boats.md", "cats.txt"],
        (),
    )
    report = library.ingest([docs], exclude="cats.txt")
    assert [Path(source).name for source in report.removed] == ["cats.txt"], "it was asked for"
    library.ingest([docs])
    (docs / ".gitignore").write_text("boats.md\n")
    assert library.ingest([docs]).removed == ()
    assert library.num_sources == 3
    plan.rename(docs / ".old.md")
    (docs / "boats.md").unlink()
    (docs / "boats.md").symlink_to("cats.txt")  # its text is that of cats.txt now
    report = library.ingest([docs])
    assert [Path(source).name for source in report.removed] == [".plan.md", "boats.md"]
    library.check()


def test_a_folder_that_cannot_be_found_removes_nothing(library: Library, docs: Path) -> None:
    library.ingest([docs])
    docs.rename(docs.with_name("elsewhere"))
    report = library.ingest([docs])
    assert report.removed == ()
    assert "no such file or folder" in report.refused[0].reason
    assert library.num_sources == 2


def test_bad_files_never_stop_the_others(library: Library, docs: Path) -> None:
    (docs / "empty.txt").write_text("")
    (docs / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (docs / "torn.pdf").write_bytes(b"%PDF-1.4 torn")
    (docs / "photo.png").write_bytes(b"\x89PNG\0")
    report = library.ingest([docs])
    assert len(report.added) == 2
    refused = {Path(refusal.path).name for refusal in report.refused}
    assert refused == {"empty.txt", "latin.txt", "torn.pdf", "photo.png"}


def test_a_document_that_turns_bad_keeps_its_last_good_text(library: Library, docs: Path) -> None:
    library.ingest([docs])
    (docs / "cats.txt").write_bytes(b"\0\0\0")
    report = library.ingest([docs])
    assert (report.removed, len(report.refused)) == ((), 1)
    assert library.search("cats sleep", 1)[0].passage.text == CATS


def test_documents_without_files_are_taken_in_by_the_same_rules(library: Library) -> None:
    documents = [compose("cats", "Cats", [Paragraph(CATS)])]
    assert library.add(documents).added == ("cats",)
    assert library.add(documents).unchanged == ("cats",)
    with pytest.raises(BadInput, match="two documents are called 'x'"):
        library.add([compose("x", "X", [Paragraph(text)]) for text in (CATS, BOATS)])
    assert library.delete("cats") == 1
    assert library.search("cats") == []
    library.check()
    with pytest.raises(BadInput, match="no document 'cats'"):
        library.delete("cats")


def test_delete_takes_a_path_or_a_folder(library: Library, docs: Path) -> None:
    (docs / "sub").mkdir()
    (docs / "sub" / "trees.txt").write_text(TREES)
    library.ingest([docs])
    assert library.delete(str(docs / "sub")) == 1
    assert library.delete(str(docs / "cats.txt")) == 1
    assert [info.title for info in library.sources()] == ["Ships"]
    library.check()


def test_progress_ends_with_all_bytes_done(library: Library, docs: Path) -> None:
    seen: list[Progress] = []
    library.ingest([docs], on_progress=seen.append)
    assert (seen[-1].files_done, seen[-1].num_files) == (2, 2)
    assert seen[-1].bytes_done == seen[-1].num_bytes > 0
    assert seen[-1].tokens_done == len(words(CATS)) + len(words(BOATS))


# --- stopped on the way ----------------------------------------------------------------------


def test_a_cancelled_run_keeps_whole_documents_only(library: Library, docs: Path) -> None:
    asked = iter([False, False, True])  # before boats.md, after embedding it, before cats.txt
    report = library.ingest([docs], cancelled=lambda: next(asked))
    assert report.cancelled
    assert [Path(source).name for source in report.added] == ["boats.md"]
    library.check()
    assert len(library.ingest([docs]).added) == 1


class Failing(HashedWords):
    """Embeds boats, breaks on cats."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        if any("Cats" in text for text in texts):
            raise KeyboardInterrupt
        return super().embed(texts)


def test_an_interrupt_leaves_nothing_half_in(tmp_path: Path, docs: Path) -> None:
    library = small_library(tmp_path / "library", Failing())
    with pytest.raises(KeyboardInterrupt):
        library.ingest([docs])
    library.check()
    again = small_library(tmp_path / "library")
    assert len(again.ingest([docs]).added) == 2


class Unreachable(Counting):
    """An endpoint that goes away after 600 texts."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        if len(self.texts) >= 600:
            raise EndpointFailed("gone")
        return super().embed(texts)


def test_words_find_what_a_first_run_committed_before_it_failed(tmp_path: Path) -> None:
    library = small_library(tmp_path / "library", Unreachable())
    oaks = [Paragraph(f"oak {n} " * 9) for n in range(100)]  # a passage each
    with pytest.raises(EndpointFailed):
        library.add(compose(f"d{n}", f"D{n}", oaks) for n in range(7))  # 512 passages are a group
    assert (library.num_sources, library.stat().num_passages) == (6, 600)
    (hit,) = library.search("oaks 77", 1, "text")
    assert hit.passage.text == "oak 77 " * 9
    library.check()


KILLED = """
import os, signal, sys
from pathlib import Path
from kdn.rag.tables import Tables
from tests.rag.helpers import small_library

class Killed(Tables):
    def commit(self, rows):
        os.kill(os.getpid(), signal.SIGKILL)

library = small_library(Path(sys.argv[1]))
library._tables.__class__ = Killed
library.ingest([Path(sys.argv[2])])
"""


def test_a_run_killed_before_its_commit_is_swept_out(library: Library, docs: Path) -> None:
    library.ingest([docs / "boats.md"])
    folder = library._folder
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(folder), str(docs)]
    killed = subprocess.run(
        command, check=False, cwd=root, env={"PYTHONPATH": f"{root}/src:{root}"}, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(StoreError, match="1 rows are stray"):
        library.check()
    assert [hit.passage.text for hit in library.search("cats sleep")] == [BOATS]
    small_library(folder).check()  # opening has swept
    assert [Path(source).name for source in library.ingest([docs]).added] == ["cats.txt"]
    library.check()


# --- one folder, several users ---------------------------------------------------------------


def test_it_survives_a_restart_and_readers_see_what_others_write(
    library: Library, docs: Path
) -> None:
    reader = small_library(library._folder)
    assert reader.search("cats") == []
    library.ingest([docs])
    assert reader.search("cats sleep", 1)[0].passage.text == CATS
    library.delete(str(docs / "cats.txt"))
    assert [hit.passage.text for hit in reader.search("cats sleep")] == [BOATS]
    assert small_library(library._folder).stat().num_sources == 1


def test_a_second_writer_is_told_to_wait(library: Library, docs: Path) -> None:
    with writing(library._folder):
        small_library(library._folder)  # may be opened and read
        with pytest.raises(StoreError, match="wait"):
            library.ingest([docs])
    assert len(library.ingest([docs]).added) == 2


def test_a_library_that_cannot_be_written_is_read_past_its_stray_rows(
    library: Library, docs: Path
) -> None:
    library.ingest([docs])
    library._tables.retire([str(docs / "cats.txt")])  # and killed: its rows are stray
    lock = library._folder / "writer.lock"
    lock.unlink()
    lock.mkdir()  # cannot be opened to write, not even by root
    reader = small_library(library._folder)
    assert [hit.passage.text for hit in reader.search("cats sleep")] == [BOATS]
    with pytest.raises(StoreError, match=r"cannot be written \(Is a directory\); check its rights"):
        reader.ingest([docs])


def test_a_library_made_with_other_parts_is_refused(library: Library, tmp_path: Path) -> None:
    folder = library._folder
    with pytest.raises(ForeignStore, match="another embedding model"):
        small_library(folder, HashedWords(64))
    with pytest.raises(ForeignStore, match="another tokenizer"):
        Library.open(folder, HashedWords(), lambda text: list(map(ord, text)), ManualClock())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").write_text("years of work")
    with pytest.raises(ForeignStore, match="a folder of its own"):
        small_library(tmp_path / "other")
    (folder / "library.json").write_text("{}")
    with pytest.raises(ForeignStore, match="not a library"):
        small_library(folder)


def test_a_library_can_be_begun_where_another_beginning_was_killed(tmp_path: Path) -> None:
    (tmp_path / ".library.json.0123456789abcdef.tmp").write_text('{"format":')
    assert small_library(tmp_path).num_sources == 0


def test_impossible_cutting_is_refused(tmp_path: Path) -> None:
    config = LibrarySettings(Cutting(passage_tokens=100, part_tokens=50))
    with pytest.raises(BadConfig, match="passages <= parts"):
        Library.open(tmp_path, HashedWords(), words, ManualClock(), config)


def test_other_cutting_takes_all_in_anew(library: Library, docs: Path) -> None:
    library.ingest([docs])
    recut = small_library(library._folder, passage_tokens=16, part_tokens=32)
    assert len(recut.ingest([docs]).updated) == 2
    recut.check()


# --- questions -------------------------------------------------------------------------------


def test_each_mode_finds_by_its_own_means(library: Library, docs: Path) -> None:
    (docs / "trees.txt").write_text(TREES)
    library.ingest([docs])
    for mode in ("hybrid", "vector", "text"):
        assert library.search("roots and leaves of trees", 1, mode)[0].passage.text == TREES
    assert library.search("zebra", 5, "text") == []
    assert len(library.search("zebra", 5, "vector")) == 3


@pytest.mark.parametrize("query", ['"cats AND (', "it's *:~^?", "cats' \\ sleep", "ключ"])
def test_signs_in_a_query_are_only_signs(library: Library, docs: Path, query: str) -> None:
    library.ingest([docs])
    assert len(library.search(query)) == 2


def test_questions_that_cannot_be_asked(library: Library) -> None:
    with pytest.raises(BadInput, match="empty"):
        library.search("  ")
    with pytest.raises(BadInput, match="at least 1"):
        library.search("x", 0)
    with pytest.raises(BadInput, match="none of"):
        library.search("x", 1, "magic")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no document"):
        next(library.parts("nothing"))


def test_context_gives_whole_parts_best_first_within_the_budget(
    library: Library, docs: Path
) -> None:
    assert library.context("anything", max_tokens=100) == []
    (docs / "trees.txt").write_text(TREES)
    library.ingest([docs])
    sizes = {part.title: part.num_tokens for part in library.parts()}
    asked = "how do trees drink through their roots"
    best, second, third = library.context(asked, max_tokens=1000)
    assert (best.title, best.hits[0].passage.text) == ("trees.txt", TREES)
    assert best.score > second.score >= third.score
    (only,) = library.context(asked, max_tokens=sizes["trees.txt"])
    assert only.text == best.text == "trees.txt\n\n" + TREES + "\n\n"
    assert len(library.context(asked, max_tokens=1000, max_parts=2)) == 2
    with pytest.raises(PromptTooLong, match=r"no part fits in 3 tokens"):
        library.context(asked, max_tokens=3)


def test_context_gives_as_many_parts_as_are_asked_for(library: Library) -> None:
    pieces = [Paragraph(f"oak {n} " * 9) for n in range(210)]  # a passage each, two in a part
    library.add([compose("long", "Long", pieces)])
    library.add(compose(f"d{n}", f"D{n}", [Paragraph(f"oak {n}")]) for n in range(80))
    assert library.stat().num_parts == 105 + 80
    for mode in ("hybrid", "vector", "text"):
        for wanted in (1, 40, 80, 185):
            found = library.context("oak", max_tokens=10**6, max_parts=wanted, mode=mode)
            assert len(found) == wanted
    assert len(library.context("oak", max_tokens=10**6, max_parts=sys.maxsize)) == 185
    one, *_ = library.context("oak", max_tokens=10**6, max_parts=1)
    every = library.context("oak", max_tokens=10**6, max_parts=185)
    assert (every[0].key, every[0].score) == (one.key, one.score)
    assert all(a.score >= b.score for a, b in pairwise(every))
    with pytest.raises(BadInput, match="max_parts must be at least 1, not 0"):
        library.context("oak", max_tokens=1000, max_parts=0)


def test_a_part_is_the_same_bytes_at_every_use(library: Library, docs: Path) -> None:
    library.ingest([docs])
    listed = {part.key: part.text for part in library.parts()}
    for query in ("cats", "boats on water", "sixteen"):
        for part in library.context(query, max_tokens=1000):
            assert part.text == listed[part.key]
            assert part.num_tokens == len(words(part.text))


# --- any order of things ---------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """The library against a dictionary, under random edits, restarts and stops."""

    @initialize(folder=st.builds(lambda: None))
    def begin(self, folder: None) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.docs = Path(self.folder.name) / "docs"
        self.docs.mkdir()
        self.library = small_library(Path(self.folder.name) / "library")
        self.model: dict[str, str] = {}

    @rule(name=st.sampled_from("abc"), topics=st.lists(st.sampled_from("xyz"), min_size=1))
    def write(self, name: str, topics: list[str]) -> None:
        sections = (f"# {topic}\n\n{topic} is {n} words.\n\n" for n, topic in enumerate(topics))
        (self.docs / f"{name}.md").write_text("".join(sections))

    @rule(name=st.sampled_from("abc"))
    def unlink(self, name: str) -> None:
        (self.docs / f"{name}.md").unlink(missing_ok=True)

    @rule()
    def ingest(self) -> None:
        self.library.ingest([self.docs])
        self.model = {path.as_posix(): path.read_text() for path in self.docs.iterdir()}

    @rule(asks=st.integers(0, 3))
    def ingest_some(self, asks: int) -> None:
        answers = iter([False] * asks)
        report = self.library.ingest([self.docs], cancelled=lambda: next(answers, True))
        for source in (*report.added, *report.updated):
            self.model[source] = Path(source).read_text()
        for source in report.removed:
            del self.model[source]

    @rule(name=st.sampled_from("abc"))
    def delete(self, name: str) -> None:
        source = (self.docs / f"{name}.md").as_posix()
        if self.model.pop(source, None) is not None:
            self.library.delete(source)

    @rule()
    def restart(self) -> None:
        self.library = small_library(self.library._folder)

    @invariant()
    def lists_what_was_written(self) -> None:
        self.library.check()
        stored: dict[str, str] = {}
        for part in self.library.parts():
            bodies = "".join(passage.text for passage in part.passages)
            stored[part.source] = stored.get(part.source, "") + bodies
        wanted = {
            source: "".join(line for line in text.split("\n") if not line.startswith("#"))
            for source, text in self.model.items()
        }
        assert stored == wanted

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


AnyOrder.TestCase.settings = settings(
    max_examples=8,
    stateful_step_count=12,
    suppress_health_check=[HealthCheck.too_slow],
)
test_any_order = AnyOrder.TestCase
