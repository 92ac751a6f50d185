"""The runner by itself: time that is over, a full server, a cut file, one batch that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import msgspec
import pytest

from kdn.clock import ManualClock
from kdn.errors import NoSpace, StoreError
from kdn.serve.auth import LOCAL, Caller
from kdn.serve.batch.runner import BatchRunner, Send
from kdn.serve.batch.shapes import BatchRecord, FileRecord
from kdn.serve.batch.store import BatchFolder, whole_lines
from kdn.serve.errors import Refused
from kdn.serve.settings import BatchLimits
from tests.full_disk import longest_file

URL = "/v1/completions"
RESULT = FileRecord(
    id="file-out", bytes=0, created_at=1, filename="out", purpose="batch_output", owner="local"
)


def a_line(name: str) -> bytes:
    line = {"custom_id": name, "method": "POST", "url": URL, "body": {"prompt": name}}
    return json.dumps(line).encode() + b"\n"


def add(folder: BatchFolder, names: str, clock: ManualClock) -> BatchRecord:
    """A batch of a line for each letter, with an hour left."""
    content, now = b"".join(map(a_line, names)), int(clock.wall())
    file = FileRecord(
        id="file-in",
        bytes=len(content),
        created_at=now,
        filename="in.jsonl",
        purpose="batch",
        owner="local",
    )
    folder.add_file(file, content)
    batch = BatchRecord(
        id="batch_1",
        endpoint=URL,
        input_file_id=file.id,
        completion_window="24h",
        created_at=now,
        expires_at=now + 3600,
        owner="local",
    )
    folder.add_batch(batch)
    return batch


def run(folder: BatchFolder, send: Send, clock: ManualClock, width: int = 1) -> BatchRecord:
    """The batch once it has ended."""
    numbers = count()

    async def through() -> None:
        limits = BatchLimits(width=width)
        runner = BatchRunner(
            folder, send, {"local": LOCAL}, limits, clock, lambda: str(next(numbers))
        )
        runner.resume()
        while not folder.batch("local", "batch_1").has_ended:  # noqa: ASYNC110  as a client asks
            await asyncio.sleep(0)
        await runner.close()

    asyncio.run(through())
    return folder.batch("local", "batch_1")


def results(folder: BatchFolder, file_id: str | None) -> dict[str, dict[str, object]]:
    assert file_id is not None
    lines = folder.path(file_id).read_text("utf-8").splitlines()
    return {found["custom_id"]: found for found in map(json.loads, lines)}


def test_what_has_no_answer_in_time_is_told(tmp_path: Path) -> None:
    """The first of three answers takes an hour."""
    clock = ManualClock()
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    add(folder, "abc", clock)

    async def slow(url: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
        if json.loads(body)["prompt"] != "a":
            await asyncio.Event().wait()
        clock.advance(3600)
        return 200, b"{}"

    batch = run(folder, slow, clock)
    assert (batch.status, batch.expired_at) == ("expired", batch.expires_at)
    assert results(folder, batch.output_file_id).keys() == {"a"}
    late = results(folder, batch.error_file_id)
    assert late.keys() == {"b", "c"}
    assert late["b"]["error"] == {
        "code": "batch_expired",
        "message": "there was no answer before the batch's end",
    }
    folder.close()


def test_a_line_that_found_the_server_full_is_sent_again(tmp_path: Path) -> None:
    clock, tries = ManualClock(), count()
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    add(folder, "a", clock)

    async def full_once(url: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
        return (200, b"{}") if next(tries) else (429, b'{"error": {"code": "overloaded"}}')

    batch = run(folder, full_once, clock)
    assert (batch.status, batch.request_counts.completed, next(tries)) == ("completed", 1, 2)
    folder.close()


@pytest.mark.parametrize("width", [1, 3])
def test_no_more_lines_at_one_time_than_there_are_places(tmp_path: Path, width: int) -> None:
    clock, under_way, most = ManualClock(), 0, 0
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    add(folder, "abcdefgh", clock)

    async def count_them(url: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(3):
            await asyncio.sleep(0)
        under_way -= 1
        return 200, b"{}"

    assert run(folder, count_them, clock, width).request_counts.completed == 8
    assert most == width
    folder.close()


def test_a_fault_of_the_program_fails_the_batch_alone(tmp_path: Path) -> None:
    clock = ManualClock()
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    add(folder, "a", clock)

    async def broken(url: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
        raise ZeroDivisionError("by nothing")

    batch = run(folder, broken, clock)
    assert batch.errors is not None
    assert (batch.status, batch.errors[0].code) == ("failed", "internal_error")
    folder.close()


def test_a_caller_without_a_place_for_answers_begins_no_batch(tmp_path: Path) -> None:
    """Two files at most: the lines and their answers. A second batch could write a third."""
    clock = ManualClock()
    folder = BatchFolder(tmp_path, BatchLimits(files=2), clock)
    batch = add(folder, "a", clock)

    async def answer(url: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
        return 200, b"{}"

    output = run(folder, answer, clock).output_file_id
    assert output is not None
    again = msgspec.structs.replace(batch, id="batch_2", status="validating")
    with pytest.raises(Refused, match="has 2 files"):
        folder.add_batch(again)
    folder.remove_file("local", output)
    folder.add_batch(again)
    folder.close()


def killed_in_the_end(folder: BatchFolder, batch: BatchRecord) -> None:
    """As a server leaves it that is killed after its output became a file and before it says so."""
    output, _ = folder.results(batch.id)
    output.write_bytes(b'{"custom_id": "a"}\n')
    batch.request_counts.total = batch.request_counts.completed = 1
    batch.status, batch.finalizing_at = "finalizing", batch.created_at
    batch.output_file_id, batch.error_file_id = "file-out", "file-err"
    folder.save(batch)
    folder.add_result(msgspec.structs.replace(RESULT), output)


def killed_in_a_line(folder: BatchFolder, batch: BatchRecord) -> None:
    """As a server leaves it that is killed while it writes its second answer."""
    output, _ = folder.results(batch.id)
    output.write_bytes(b'{"custom_id": "a"}\n{"custom_i')
    batch.request_counts.total = 1
    batch.status, batch.in_progress_at = "in_progress", batch.created_at
    folder.save(batch)


@pytest.mark.parametrize("leave", [killed_in_the_end, killed_in_a_line])
def test_a_killed_server_loses_no_answer(
    tmp_path: Path, leave: Callable[[BatchFolder, BatchRecord], None]
) -> None:
    clock = ManualClock()
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    leave(folder, add(folder, "a", clock))
    with pytest.raises(StoreError, match="another server works"):
        BatchFolder(tmp_path, BatchLimits(), clock)
    folder.close()
    folder = BatchFolder(tmp_path, BatchLimits(), clock)

    def never(url: str, body: bytes, caller: Caller) -> Awaitable[tuple[int, bytes]]:
        raise AssertionError("the line is answered already")

    batch = run(folder, never, clock)
    assert (batch.status, batch.request_counts.completed) == ("completed", 1)
    assert results(folder, batch.output_file_id).keys() == {"a"}
    assert batch.error_file_id is None
    folder.close()


def test_a_batch_waits_while_the_disk_is_full(tmp_path: Path) -> None:
    """b's answer is cut off, and c's is written before the batch stops: b alone is asked again."""
    clock = ManualClock()
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    batch, asked = add(folder, "abc", clock), list[str]()
    full = ExitStack()

    async def answer(url: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
        asked.append(json.loads(body)["prompt"])
        if asked == ["a", "b"]:
            held = folder.results(batch.id)[0].stat().st_size
            full.enter_context(longest_file(held + 10))
            asyncio.get_running_loop().call_soon(full.close)
        elif asked == ["a", "b", "c"]:
            await asyncio.sleep(0)  # until the disk has room
        return 200, b"{}"

    ended = run(folder, answer, clock, width=2)
    assert asked == ["a", "b", "c", "b"]
    assert (ended.status, ended.request_counts.completed) == ("completed", 3)
    assert results(folder, ended.output_file_id).keys() == {"a", "b", "c"}
    folder.close()


@pytest.mark.parametrize("restarts", [False, True])
def test_results_whose_record_finds_no_room_are_not_lost(tmp_path: Path, restarts: bool) -> None:
    clock = ManualClock()
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    batch = add(folder, "a", clock)
    batch.status, batch.output_file_id, batch.error_file_id = "finalizing", "file-out", "file-err"
    folder.save(batch)
    output, errors = folder.results(batch.id)
    output.write_bytes(b'{"custom_id": "a"}\n')
    with longest_file(50), pytest.raises(NoSpace):
        folder.add_result(msgspec.structs.replace(RESULT), output)
    if restarts:
        folder.close()
        folder = BatchFolder(tmp_path, BatchLimits(), clock)
    output.touch()
    assert folder.add_result(msgspec.structs.replace(RESULT), output)
    assert results(folder, "file-out").keys() == {"a"}
    assert folder.file("local", "file-out").bytes == 19
    errors.touch()
    assert not folder.add_result(msgspec.structs.replace(RESULT, id="file-err"), errors)
    folder.close()


def test_a_file_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    with longest_file(50), pytest.raises(NoSpace):
        folder.add_file(RESULT, b"short")
    assert list((tmp_path / "files").iterdir()) == []
    assert folder.files("local") == []
    folder.close()


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (b"", []),
        (b"a\nb\n", [b"a\n", b"b\n"]),
        (b"a\nhalf", [b"a\n"]),
        (b"half" * 40_000, []),
        (b"a\n" + b"half" * 40_000, [b"a\n"]),
    ],
)
def test_a_cut_line_is_taken_off(tmp_path: Path, written: bytes, kept: list[bytes]) -> None:
    path = tmp_path / "lines"
    path.write_bytes(written)
    assert list(whole_lines(path)) == kept
    assert path.read_bytes() == b"".join(kept)


def test_strays_and_unreadable_records_are_no_files(tmp_path: Path) -> None:
    clock = ManualClock()
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    add(folder, "a", clock)
    folder.close()
    (tmp_path / "files" / "stray.data").write_bytes(b"x")
    (tmp_path / "files" / "broken.json").write_bytes(b"{")
    folder = BatchFolder(tmp_path, BatchLimits(), clock)
    assert [one.id for one in folder.files("local")] == ["file-in"]
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [
        "file-in.data",
        "file-in.json",
    ]
    folder.close()
