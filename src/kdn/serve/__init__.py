"""The server: OpenAI's API over an open Kdn, and a node's blocks.

Trades in HTTP requests and responses; the only asynchronous room. Only `cli` may import it.
Start reading at `app.py`, then follow one request through `openai/chat.py`.
"""

from __future__ import annotations

from kdn.serve.app import create_app
from kdn.serve.connections import Server
from kdn.serve.run import listen, make_server, served, url_of
from kdn.serve.service import ServedEmbedder, ServedModel, StoreNumbers, Vocabulary
from kdn.serve.settings import Limits, ServeSettings, is_loopback
from kdn.serve.store.app import create_node_app, mount_store
from kdn.serve.store.grants import Grant, read_grants

__all__ = [
    "Grant",
    "Limits",
    "ServeSettings",
    "ServedEmbedder",
    "ServedModel",
    "Server",
    "StoreNumbers",
    "Vocabulary",
    "create_app",
    "create_node_app",
    "is_loopback",
    "listen",
    "make_server",
    "mount_store",
    "read_grants",
    "served",
    "url_of",
]
