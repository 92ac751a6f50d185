"""What a fault quotes was sent by somebody: its message is one short line of JSON, whatever that was."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from kdn.errors import BadInput, UnknownModel
from kdn.serve import ServeSettings, create_app
from kdn.serve.auth import LOCAL, own_scope
from kdn.serve.errors import Refused, fault_of
from tests.serve.running import statuses_of_a_hang_up
from tests.serve.scripted import ScriptedService

MOST_CHARS = 1_005
"""500 of each end, and what stands for the middle."""


@pytest.mark.parametrize(
    ("quoted", "told"),
    [
        ("plain, \u00fcn\u00efcode", "plain, \u00fcn\u00efcode"),
        ("\ud7fc", r"\ud7fc"),  # no character has this number
        ("\ud83d", r"\ud83d"),  # half of a pair, which UTF-8 cannot hold
        ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
        ("exe.\u202efdp", r"exe.\u202efdp"),
        ("\U0001f600", "\U0001f600"),
    ],
)
def test_what_does_not_print_is_told_as_an_escape(quoted: str, told: str) -> None:
    for error in (BadInput(quoted), UnknownModel(quoted), Refused(quoted, param=quoted)):
        said = json.loads(fault_of(error).body())["error"]
        assert said["message"] == told
        assert said["param"] in (None, told)


@given(st.text(st.characters()) | st.text(st.characters(), min_size=1).map(lambda one: one * 2_000))
def test_any_text_becomes_one_line(quoted: str) -> None:
    said = json.loads(fault_of(Refused(quoted, param=quoted)).body())["error"]
    for text in (said["message"], said["param"]):
        assert text.isprintable()
        assert len(text) <= MOST_CHARS


def test_a_server_tells_a_foreign_name_in_one_line() -> None:
    service = ScriptedService(max_context=64)
    name = "a\nb\ud7fc" + "c" * 3_000
    with TestClient(create_app(service.served(), ServeSettings(check_host=False))) as http:
        answer = http.post("/v1/completions", json={"model": "m", "prompt": "p", name: 1})
    service.close()
    assert answer.status_code == 400
    said = answer.json()["error"]
    assert said["message"].startswith(r"unknown parameter a\nb\ud7fcccc")
    assert said["param"].startswith(r"a\nb\ud7fcccc")
    assert len(said["message"]) <= MOST_CHARS
    assert len(said["param"]) <= MOST_CHARS


def test_a_client_that_hangs_up_in_its_question_is_no_fault_of_its_own() -> None:
    service = ScriptedService()
    app = create_app(service.served(), ServeSettings(check_host=False))
    asked = own_scope("/v1/completions", b"x" * 100, LOCAL)
    assert statuses_of_a_hang_up(app, asked) == [499, None]
    service.close()
