"""Short answers of the servers behind a router: read to their end, but never more than is sane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import httpx

__all__ = ["fetch", "read_up_to"]

_MOST_BYTES = 4 << 20
"""Of a list of models, or of a word on a server's health."""


async def fetch(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str], timeout_s: float
) -> httpx.Response:
    """What a server says there. Raises HTTPError, also for more than 4 MiB, or what takes longer."""
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("GET", url, headers={**headers, "accept-encoding": "identity"},
                          timeout=timeout_s) as begun,
        ):  # fmt: skip
            content = await read_up_to(begun.aiter_raw(), _MOST_BYTES)
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"it did not answer within {timeout_s:g} s") from error
    if len(content) > _MOST_BYTES:
        raise httpx.ReadError(f"it answers with more than {_MOST_BYTES} bytes")
    return httpx.Response(begun.status_code, content=content)


async def read_up_to(pieces: AsyncIterator[bytes], num_bytes: int) -> bytes:
    """What comes until there is more than `num_bytes`; the rest can still be read."""
    came = bytearray()
    async for piece in pieces:
        came += piece
        if len(came) > num_bytes:
            break
    return bytes(came)
