"""JSON bodies that readers understand differently, at every route that reads one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from kdn.serve import Grant, ServeSettings, create_app, create_node_app
from kdn.store import open_store
from tests.serve.scripted import ScriptedService

SETTINGS = ServeSettings(api_keys=("root",), check_host=False)
READS_NO_JSON = {
    "/v1/batches/{batch_id}/cancel",
    "/v1/files",
    "/v1/store/import",
    "/v1/store/verify",
}
"""POST without a body, with a form, or with a bundle."""


@pytest.fixture(scope="module")
def apps() -> Iterator[list[Any]]:
    service = ScriptedService(max_context=64)
    with open_store(None) as store:
        node = create_node_app(store, SETTINGS, (Grant("admin", "root", admin=True),))
        yield [create_app(service.served(), SETTINGS), node]
    service.close()


@pytest.mark.parametrize(
    ("body", "says", "param"),
    [
        (b'{"x": 1, "y": 2, "x": 3}', "the key 'x' stands twice in one object", "x"),
        (b'{"x": [{"y": 1, "y": 1}]}', "the key 'y' stands twice", "y"),
        (b'{"x": NaN}', "NaN is no number in JSON", None),
        (b'{"x": 1e999}', "1e999 is beyond the largest number", None),
    ],
)
def test_each_route_refuses_it_and_names_the_key(
    apps: list[Any], body: bytes, says: str, param: str | None
) -> None:
    headers = {"authorization": "Bearer root", "content-type": "application/json"}
    asked = 0
    for app in apps:
        client = TestClient(app, headers=headers)
        paths = app.openapi()["paths"]
        for path in {one for one, verbs in paths.items() if "post" in verbs} - READS_NO_JSON:
            answer = client.post(re.sub(r"\{.*?\}", "any", path), content=body)
            assert answer.status_code == 400, (path, answer.text)
            assert says in answer.json()["error"]["message"]
            assert answer.json()["error"]["param"] == param
            asked += 1
    assert asked > 25
