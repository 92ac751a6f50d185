"""Every operation of the OpenAPI document, asked at random: schemathesis, with and without keys.

No answer is a 5xx but those that say what is not here, and every refusal has OpenAI's shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from kdn.serve import Grant, ServeSettings, create_app, create_node_app
from kdn.store import open_store
from tests.serve.scripted import ScriptedService

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

QUICK = settings(
    max_examples=6,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
GRANTS = (Grant("admin", "root", admin=True), Grant("alice", "a-key", "alice"))
NOT_HERE = (501, 507)


@pytest.fixture(scope="module")
def service() -> Iterator[ScriptedService]:
    service = ScriptedService(max_context=64)
    yield service
    service.close()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask_all(app: Any, known: str, key: str) -> list[int]:
    """Every operation with what its schema allows, and with what it does not; the statuses."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=bearer(known))
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    statuses = []
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in modes:
            cases = operation.as_strategy(generation_mode=mode)

            @QUICK
            @given(case=cases)
            def check(case: Any) -> None:
                answer = case.call(headers=bearer(key))
                statuses.append(answer.status_code)
                assert answer.status_code < 500 or answer.status_code in NOT_HERE, answer.text
                if answer.status_code >= 400:
                    error = answer.json()["error"]
                    assert set(error) == {"message", "type", "param", "code"}
                    assert error["message"]

            with suppress(Unsatisfiable):  # there is nothing to get wrong about it
                check()
    return statuses


@pytest.mark.parametrize("key", [None, "right", "wrong"])
def test_the_server(service: ScriptedService, key: str | None) -> None:
    keys = () if key is None else ("right",)
    app = create_app(service.served(), ServeSettings(api_keys=keys, check_host=False))
    statuses = ask_all(app, "right", key or "none")
    if key == "wrong":
        assert set(statuses) <= {401, 415, 200}, "only /health is answered"
    else:
        assert {200, 400} <= set(statuses)


@pytest.mark.parametrize("key", ["root", "wrong"])
def test_the_node(key: str) -> None:
    settings = ServeSettings(api_keys=tuple(grant.token for grant in GRANTS), check_host=False)
    with open_store(None) as store:
        statuses = ask_all(create_node_app(store, settings, GRANTS), "root", key)
        store.check()
    if key == "wrong":
        assert set(statuses) <= {401, 415, 200}, "only /health is answered"
    else:
        assert 200 in statuses
