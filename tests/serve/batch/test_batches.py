"""Files and batches by OpenAI's own client, over loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

import kdn
from kdn.config import load_config
from kdn.serve import ServeSettings, served
from kdn.serve.settings import BatchLimits, Limits
from tests.serve.running import Running, running
from tests.serve.scripted import ANSWER, ScriptedService

CHAT: Any = "/v1/chat/completions"


@pytest.fixture
def scripted() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    return ServeSettings(port=0, grace_s=5, batch_folder=tmp_path / "batches")


@pytest.fixture
def server(scripted: ScriptedService, settings: ServeSettings) -> Iterator[Running]:
    with running(scripted, settings) as own:
        yield own


def chat_line(name: str, text: str = "Where?", url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": asked}


def as_file(lines: list[Any]) -> tuple[str, bytes]:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return "in.jsonl", "\n".join(texts).encode()


def begin(client: openai.OpenAI, lines: list[Any], endpoint: Any = CHAT, **more: Any) -> Any:
    file = client.files.create(file=as_file(lines), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    """The batch once it has ended; asks again and again, as clients do."""
    while True:
        found = client.batches.retrieve(batch_id)
        if found.status in ("completed", "failed", "expired", "cancelled"):
            return found


def until_one_is_answered(client: openai.OpenAI, batch_id: str) -> None:
    counts = None
    while counts is None or not counts.completed:
        counts = client.batches.retrieve(batch_id).request_counts


def lines_of(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    found = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    return {line["custom_id"]: line for line in found}


def test_a_file_comes_back_as_it_was_and_goes(server: Running) -> None:
    content = bytes(range(256)) * 3 + b"\r\n--no boundary\r\n\r\n"
    file = server.openai.files.create(file=("every byte", content), purpose="user_data")
    assert (file.bytes, file.filename, file.purpose) == (len(content), "every byte", "user_data")
    assert server.openai.files.content(file.id).read() == content
    assert [one.id for one in server.openai.files.list()] == [file.id]
    assert server.openai.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        server.openai.files.retrieve(file.id)


def test_lines_are_answered_or_refused_one_by_one(server: Running) -> None:
    """Two good lines and one with a temperature of 9: 2 in the output, 1 in the errors."""
    asked = [chat_line("a"), chat_line("bad", temperature=9), chat_line("b", max_tokens=5)]
    batch = ended(server.openai, begin(server.openai, asked, metadata={"of": "me"}).id)
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1)
    assert batch.metadata == {"of": "me"}
    answers = lines_of(server.openai, batch.output_file_id)
    assert answers.keys() == {"a", "b"}
    choice = answers["a"]["response"]["body"]["choices"][0]
    assert choice["message"]["content"] == ANSWER
    assert answers["b"]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    refused = lines_of(server.openai, batch.error_file_id)["bad"]["response"]
    assert refused["status_code"] == 400
    assert refused["body"]["error"]["param"] == "temperature"


def test_text_that_is_no_unicode_refuses_its_own_line(server: Running) -> None:
    """As JavaScript cuts a text in the middle of an emoji."""
    asked = [chat_line("a"), chat_line("cut", "Where? \ud83d"), chat_line("b")]
    batch = ended(server.openai, begin(server.openai, asked).id)
    counts = batch.request_counts
    assert (batch.status, counts.completed, counts.failed) == ("completed", 2, 1)
    refused = lines_of(server.openai, batch.error_file_id)["cut"]["response"]
    assert refused["status_code"] == 400


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "Where?"}),
        ("/v1/embeddings", {"input": "Where?"}),
        ("/v1/responses", {"input": "Where?"}),
    ],
)
def test_every_endpoint(server: Running, endpoint: str, body: dict[str, Any]) -> None:
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
    batch = ended(server.openai, begin(server.openai, [line], endpoint).id)
    assert batch.status == "completed", batch
    told = lines_of(server.openai, batch.output_file_id)["a"]["response"]
    assert told["status_code"] == 200


def test_batches_run_in_the_background(server: Running, scripted: ScriptedService) -> None:
    ended(server.openai, begin(server.openai, [chat_line("a")]).id)
    assert [request.background for request in scripted.requests] == [True]


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("{no json", "invalid_json_line", "not valid JSON"),
        ("[1]", "invalid_json_line", "no JSON object"),
        ({"method": "POST"}, "missing_required_parameter", "custom_id"),
        (chat_line("good"), "duplicate_custom_id", "earlier line"),
        (chat_line("cut \ud83d"), "invalid_custom_id", "lone surrogate"),
        (chat_line("x") | {"method": "GET"}, "invalid_method", "must be POST"),
        (chat_line("x", url="/v1/completions"), "mismatched_endpoint", CHAT),
        (chat_line("x") | {"body": 3}, "invalid_body", "JSON object"),
        (chat_line("x", stream=True), "invalid_body", "stream"),
    ],
)
def test_a_line_that_is_no_request_fails_the_batch_by_its_number(
    server: Running, line: Any, code: str, says: str
) -> None:
    batch = ended(server.openai, begin(server.openai, [chat_line("good"), line]).id)
    assert batch.status == "failed"
    (error,) = batch.errors.data
    assert (error.code, error.line) == (code, 2)
    assert says in error.message


def test_a_line_with_a_fault_of_the_program_is_one_error(
    server: Running, scripted: ScriptedService
) -> None:
    """The second line of three fails: the other two are answered, and it is told with status 500."""
    scripted.fault = "nought"
    lines = [chat_line("a"), chat_line("bad", "Divide by nought"), chat_line("b")]
    batch = ended(server.openai, begin(server.openai, lines).id)
    counts = batch.request_counts
    assert (batch.status, counts.completed, counts.failed) == ("completed", 2, 1)
    told = lines_of(server.openai, batch.error_file_id)["bad"]["response"]
    assert told["status_code"] == 500
    assert told["body"]["error"]["type"] == "server_error"


def test_an_empty_file_fails_the_batch(server: Running) -> None:
    batch = ended(server.openai, begin(server.openai, [""]).id)
    assert batch.errors.data[0].code == "empty_file"


def test_cancelling_keeps_what_was_answered(server: Running, scripted: ScriptedService) -> None:
    """The second answer stands still at 20 tokens: the first line is kept, and the rest is given up."""
    scripted.pause_at = 20
    batch = begin(server.openai, [chat_line("short", max_tokens=3), chat_line("long")])
    until_one_is_answered(server.openai, batch.id)
    assert server.openai.batches.cancel(batch.id).status == "cancelling"
    batch = ended(server.openai, batch.id)
    assert batch.status == "cancelled"
    assert lines_of(server.openai, batch.output_file_id).keys() == {"short"}
    assert all(stream.cancelled or stream.finish for stream in scripted.streams)
    with pytest.raises(openai.ConflictError, match="is cancelled"):
        server.openai.batches.cancel(batch.id)


def test_a_restarted_server_goes_on_where_it_was(
    scripted: ScriptedService, settings: ServeSettings
) -> None:
    """The first server answers one line of two and is stopped; the second answers the other alone."""
    scripted.pause_at = 20
    lines = [chat_line("short", max_tokens=3), chat_line("long")]
    with running(scripted, settings) as first:
        batch = begin(first.openai, lines)
        until_one_is_answered(first.openai, batch.id)
    scripted.pause_at = None
    before = len(scripted.requests)
    with running(scripted, settings) as second:
        found = ended(second.openai, batch.id)
        assert (found.status, found.request_counts.completed) == ("completed", 2)
        assert lines_of(second.openai, found.output_file_id).keys() == {"short", "long"}
    assert len(scripted.requests) == before + 1


def test_a_key_that_has_gone_fails_its_batches(
    scripted: ScriptedService, settings: ServeSettings
) -> None:
    scripted.gate.clear()
    with running(scripted, replace(settings, api_keys=("old", "other"))) as first:
        batch = begin(first.openai, [chat_line("a")])
    scripted.gate.set()
    with running(scripted, replace(settings, api_keys=("other",))):
        pass
    with running(scripted, replace(settings, api_keys=("old", "other"))) as third:
        found = third.openai.batches.retrieve(batch.id)
        assert (found.status, found.errors.data[0].code) == ("failed", "key_revoked")  # type: ignore[union-attr,index]


def test_callers_see_their_own_only(scripted: ScriptedService, settings: ServeSettings) -> None:
    with running(scripted, replace(settings, api_keys=("mine", "yours"))) as server:
        batch = begin(server.openai, [chat_line("a")])
        yours = openai.OpenAI(base_url=f"{server.url}/v1", api_key="yours", max_retries=0)
        with yours:
            for ask in (
                lambda: yours.batches.retrieve(batch.id),
                lambda: yours.batches.cancel(batch.id),
                lambda: yours.files.content(batch.input_file_id),
                lambda: yours.files.delete(batch.input_file_id),
                lambda: begin_with(yours, batch.input_file_id),
            ):
                with pytest.raises(openai.NotFoundError):
                    ask()
            assert list(yours.files.list()) == []
            assert list(yours.batches.list()) == []
        assert ended(server.openai, batch.id).status == "completed"


def begin_with(client: openai.OpenAI, file_id: str) -> Any:
    return client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")


def test_bounds(scripted: ScriptedService, settings: ServeSettings) -> None:
    """2 files of 400 bytes together, 1 batch that runs, 2 lines."""
    small = BatchLimits(files=4, caller_bytes=800, unfinished=1, lines=2)
    limits = Limits(body_bytes=4096)
    with running(scripted, replace(settings, batch=small, limits=limits)) as server:
        client = server.openai
        with pytest.raises(openai.BadRequestError, match="delete some first"):
            client.files.create(file=("large", b"x" * 801), purpose="batch")
        with pytest.raises(openai.APIStatusError, match="larger than 4096 bytes"):
            client.files.create(file=("larger", b"x" * 5000), purpose="batch")
        many = ended(client, begin(client, [chat_line(name) for name in "abc"]).id)
        assert many.errors.data[0].code == "too_many_requests"
        scripted.gate.clear()
        batch = begin(client, [chat_line("a")])
        with pytest.raises(openai.RateLimitError, match="have not ended"):
            begin_with(client, batch.input_file_id)
        with pytest.raises(openai.ConflictError, match="cancel it first"):
            client.files.delete(batch.input_file_id)
        scripted.gate.set()
        ended(client, batch.id)


def test_pages(server: Running) -> None:
    ids = [
        server.openai.files.create(file=as_file([chat_line("a")]), purpose="batch").id
        for _ in range(3)
    ]
    batches = [begin_with(server.openai, file_id).id for file_id in ids]
    assert {one.id for one in server.openai.batches.list(limit=1)} == set(batches)
    page = server.openai.files.list(limit=2, order="asc")
    assert (len(page.data), page.has_more) == (2, True)
    with pytest.raises(openai.BadRequestError, match="in this list"):
        server.openai.batches.list(after="batch_none")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"endpoint": "/v1/score"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "there is no file"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(
    server: Running, given: dict[str, Any], says: str
) -> None:
    file = server.openai.files.create(file=as_file([chat_line("a")]), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"} | given
    answer = server.http.post("/v1/batches", json=body)
    assert answer.status_code in (400, 404)
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"--b\r\n\r\nx\r\n--b--", "no name"),
        (
            b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nx',
            "before its last boundary",
        ),
        (b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nx\r\n--b--', "no file"),
        (b"", "before its last boundary"),
        (b"--b\r\n" * 100 + b"--b--", "fields"),
        (
            b'--b\r\ncontent-disposition: form-data; name="'
            + b";" * 300_000
            + b"\r\n\r\nx\r\n--b--",
            "up to 8192 bytes",
        ),
    ],
)
def test_a_form_that_is_none_is_refused(server: Running, body: bytes, says: str) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = server.http.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_page_of_another_site_may_not_upload(server: Running) -> None:
    headers = {"origin": "https://elsewhere.example"}
    answer = server.http.post("/v1/files", files={"file": b"x"}, headers=headers)
    assert answer.status_code == 403
    assert server.http.post("/v1/batches", files={"file": b"x"}).status_code == 415


def test_files_that_expire(server: Running) -> None:
    file = server.openai.files.create(
        file=as_file([chat_line("a")]),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert file.expires_at == file.created_at + 3600
    after: Any = {"anchor": "created_at", "seconds": 7200}
    batch = begin(server.openai, [chat_line("a")], output_expires_after=after)
    batch = ended(server.openai, batch.id)
    output = server.openai.files.retrieve(batch.output_file_id)
    assert output.expires_at == output.created_at + 7200
    with pytest.raises(openai.BadRequestError, match="3600 to"):
        server.openai.files.create(
            file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 5}
        )


def test_a_second_server_on_the_folder_says_who_has_it(
    server: Running, scripted: ScriptedService, settings: ServeSettings
) -> None:
    with running(scripted, settings) as second:
        answer = second.http.get("/v1/batches")
        assert answer.status_code == 501
        assert "another server works on the batches here" in answer.json()["error"]["message"]


def test_a_server_without_a_folder_takes_none(scripted: ScriptedService) -> None:
    with running(scripted) as server:
        assert server.http.get("/v1/files").json()["error"]["code"] == "not_available"


def test_a_tiny_model_answers_a_batch(
    tiny_model: Callable[..., Path], settings: ServeSettings, tmp_path: Path
) -> None:
    config = load_config({}, home=tmp_path / "home")
    with (
        kdn.open(tiny_model(), config=config, dtype="float32") as found,
        running(served(found), settings) as server,
    ):
        lines = [chat_line(str(n), f"Number {n}?", max_tokens=4, temperature=0) for n in range(12)]
        batch = ended(server.openai, begin(server.openai, lines).id)
        assert batch.request_counts.completed == 12
        answers = lines_of(server.openai, batch.output_file_id)
        alone = server.openai.chat.completions.create(
            model=found.name,
            messages=[{"role": "user", "content": "Number 3?"}],
            max_tokens=4,
            temperature=0,
        )
        told = answers["3"]["response"]["body"]["choices"][0]["message"]["content"]
        assert told == alone.choices[0].message.content
        found.check()
