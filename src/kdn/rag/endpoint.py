"""A model behind an address that speaks OpenAI's HTTP: for profiles and for embeddings."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kdn.clock import SystemClock
from kdn.errors import BadConfig, EndpointFailed
from kdn.machine.replies import read_reply

__all__ = ["OpenAiEndpoint", "Post", "post"]

Post = Callable[[str, bytes, Mapping[str, str], float], bytes]
"""Address, body, headers and seconds to wait; gives the body of a 200. Raises OSError, HTTPException."""
_MOST_BYTES = 64 << 20


def post(url: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> bytes:
    """Send a body, and give what came back. Raises OSError (HTTPError is one) and HTTPException."""
    clock = SystemClock()
    deadline_s = clock.now() + timeout_s
    request = urllib.request.Request(url, body, dict(headers), method="POST")  # noqa: S310 - checked
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
        return bytes(read_reply(answer, _MOST_BYTES, deadline_s, clock))


@dataclass(frozen=True)
class OpenAiEndpoint:
    """Where a model answers. `url` ends where the paths of the API begin, mostly with `/v1`.

    Raises BadConfig for an address that is not one of http or https.
    """

    url: str
    model: str
    key: str | None = None
    timeout_s: float = 10.0
    send: Post = post

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise BadConfig(f"the address {self.url!r} must begin with http:// or https://")

    def call(self, path: str, body: Mapping[str, Any]) -> Any:
        """The decoded answer to a body, in which the model is named. Raises EndpointFailed."""
        url = f"{self.url.rstrip('/')}/{path}"
        headers = {"content-type": "application/json"}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        sent = msgspec.json.encode({"model": self.model, **body})
        try:
            return msgspec.json.decode(self.send(url, sent, headers, self.timeout_s))
        except urllib.error.HTTPError as error:
            said = error.read1(500).decode("utf-8", "replace")
            raise EndpointFailed(f"{url} answered {error.code}: {said}") from error
        except (OSError, http.client.HTTPException) as error:
            raise EndpointFailed(
                f"{url} did not answer within {self.timeout_s:g} s: {error}"
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EndpointFailed(f"{url} answered something that is not JSON: {error}") from error
