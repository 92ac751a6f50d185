"""The names everything is filed under: token ids and digests."""

from __future__ import annotations

from typing import NewType

__all__ = [
    "BLOCK_TOKENS",
    "MAX_SALT_BYTES",
    "PUBLIC_SALT",
    "VEILED",
    "BlockKey",
    "ChainHash",
    "ContentId",
    "Fingerprint",
    "TokenIds",
]

TokenIds = tuple[int, ...]
Fingerprint = NewType("Fingerprint", str)
"""Hex digest of everything about a model that its KV depends on."""
ChainHash = NewType("ChainHash", str)
"""Hex digest of a run of tokens counted from the start of a prompt."""
BlockKey = NewType("BlockKey", str)
"""Hex digest that names one stored block."""
ContentId = NewType("ContentId", str)
"""Hex digest of (salt, own tokens): the same text, wherever and by whatever it was computed."""

PUBLIC_SALT = "public"
"""Blocks under this salt serve every tenant; those under any other one serve that tenant alone."""

BLOCK_TOKENS = 256
"""The most tokens one block holds."""

MAX_SALT_BYTES = 1024
"""The most bytes of a salt in UTF-8: what a stored block has room for, sealed or not."""

VEILED = "\x01"
"""Begins no salt: in a store's catalogue it tells a sealed block's tenant from any other."""
