"""One-token jobs on a server with OpenAI's API: labels and rankings without an engine of ours."""

from __future__ import annotations

from kdn.scale.remote.client import JsonClient
from kdn.scale.remote.engine import RemoteEngine

__all__ = ["JsonClient", "RemoteEngine"]
