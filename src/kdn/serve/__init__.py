"""Trades in HTTP: OpenAI's API over an open Kdn, and a node's blocks. The only asynchronous room.

Only `kdn.cli` imports it. Read `app.py` first, then `openai/generate.py` along one request.
"""

from __future__ import annotations

from kdn.serve.app import create_app
from kdn.serve.limits import Limits
from kdn.serve.run import listen, make_server, url_of
from kdn.serve.service import (
    Embedded,
    Service,
    ServiceLoad,
    StoreNumbers,
    Vocabulary,
)
from kdn.serve.settings import ServeSettings
from kdn.serve.store.app import create_node_app, mount_store
from kdn.serve.store.grants import Grant, read_grants

__all__ = [
    "Embedded",
    "Grant",
    "Limits",
    "ServeSettings",
    "Service",
    "ServiceLoad",
    "StoreNumbers",
    "Vocabulary",
    "create_app",
    "create_node_app",
    "listen",
    "make_server",
    "mount_store",
    "read_grants",
    "url_of",
]
