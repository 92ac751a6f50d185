"""Blocks at rest under AES-256-GCM, with a key for each tenant.

A sealed file                        0   magic, 8 bytes
                                     8   length N of the tenant's sealed name, u32 little-endian
                                     12  length of the block, u64
                                     20  nonce of the name, 12 bytes; nonce prefix of the pages, 8
                                     40  the name (its salt) under the envelope key: N bytes
                                     ..  zeros up to 4096
                                     4096 pages: PAGE bytes of the block each, and a tag of 16

Every page can be read alone.  A page's tag covers the block's key, the page's number and the
block's length: pages that were moved, swapped or cut off do not open.  A tenant's key is HKDF of
the master key and the salt, unless the key ring holds one for it; without the key the file is
noise.  What stays readable is which tenants there are, and how many blocks of what size.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kdn.core import BlockKey
from kdn.errors import BadConfig, CorruptBlock, LostBlock, MissingExtra
from kdn.machine.memory import allocate
from kdn.machine.text import read_bounded
from kdn.store.block.format import MAX_BLOCK_BYTES
from kdn.store.block.reader import Handle

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = [
    "BODY",
    "MAX_SEALED_BYTES",
    "NOTE",
    "SEAL_BYTES",
    "KeyRing",
    "SealedHandle",
    "is_private",
    "is_sealed",
    "read_key_file",
]

MAGIC = b"\x89KDNSEAL"
NOTE = b"\x00sealed\x00"
PAGE = 64 << 10
TAG = 16
BODY = 4096
SEAL_BYTES = len(MAGIC)
"""How much of a file tells whether it is sealed."""
MAX_SEALED_BYTES = BODY + MAX_BLOCK_BYTES + TAG * -(-MAX_BLOCK_BYTES // PAGE)
_FRONT = struct.Struct("<8sIQ12s8s")
_MAX_NAME = 2048
KEY_BYTES = 32


def is_sealed(first: bytes | memoryview) -> bool:
    """Do these first bytes of a file begin a sealed block?"""
    return bytes(first[: len(MAGIC)]) == MAGIC


@dataclass(frozen=True)
class KeyRing:
    """The master key, and keys of tenants that have one of their own; all of 32 bytes.

    Raises BadConfig for keys of another length, MissingExtra without the library.
    """

    master: bytes
    tenants: Mapping[str, bytes] = field(default_factory=dict)
    random: Callable[[int], bytes] = os.urandom

    def __post_init__(self) -> None:
        for whose, key in [("the master key", self.master), *self.tenants.items()]:
            if len(key) != KEY_BYTES:
                raise BadConfig(f"{whose}: a key has {KEY_BYTES} bytes, this one {len(key)}")
        try:
            import cryptography  # noqa: F401  asked now, so that opening a store tells
        except ImportError as error:
            raise MissingExtra("keys at rest need: pip install 'kdn[seal]'") from error

    def seal(self, key: BlockKey, salt: str, block: memoryview) -> memoryview:
        """The sealed form of a tenant's block."""
        name_nonce, prefix = self.random(12), self.random(8)
        name = self._envelope().encrypt(name_nonce, salt.encode(), key.encode())
        pages = -(-block.nbytes // PAGE)
        sealed = allocate(BODY + block.nbytes + TAG * pages)
        _FRONT.pack_into(sealed, 0, MAGIC, len(name), block.nbytes, name_nonce, prefix)
        sealed[_FRONT.size : _FRONT.size + len(name)] = name
        cipher, at = self._cipher(salt), BODY
        for number in range(pages):
            plain = block[number * PAGE : (number + 1) * PAGE]
            page = cipher.encrypt(_nonce(prefix, number), plain, _about(key, number, block.nbytes))
            sealed[at : at + len(page)] = page
            at += len(page)
        return sealed.toreadonly()

    def open(self, key: BlockKey, handle: Handle) -> SealedHandle:
        """The block in a sealed file. Raises LostBlock when the ring has not its key."""
        return SealedHandle(self, key, handle)

    def veil(self, key: BlockKey, salt: str, tokens: bytes) -> bytes:
        """Tokens for a catalogue, hidden; veiled twice they are back.

        The block's key is different for different tokens, so it serves as the counter's start.
        """
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        start = bytes.fromhex(key[:32])
        cipher = Cipher(algorithms.AES(self._derived(f"catalogue/{salt}")), modes.CTR(start))
        return cipher.encryptor().update(tokens)

    def seal_note(self, key: BlockKey, note: bytes) -> bytes:
        """A note for a remote, readable with the master key."""
        nonce = self.random(12)
        return NOTE + nonce + self._envelope().encrypt(nonce, note, b"note/" + key.encode())

    def open_note(self, key: BlockKey, sealed: bytes) -> bytes | None:
        """The note again, or None when it was sealed otherwise."""
        from cryptography.exceptions import InvalidTag

        nonce, rest = sealed[len(NOTE) : len(NOTE) + 12], sealed[len(NOTE) + 12 :]
        try:
            return self._envelope().decrypt(nonce, rest, b"note/" + key.encode())
        except (InvalidTag, ValueError):
            return None

    def name_in(self, key: BlockKey, front: bytes) -> tuple[str, int, bytes]:
        """Whose block a sealed file holds, its length, and the pages' nonce prefix."""
        from cryptography.exceptions import InvalidTag

        _, length, size_bytes, nonce, prefix = _FRONT.unpack_from(front)
        if length > _MAX_NAME or not 0 < size_bytes <= MAX_BLOCK_BYTES:
            raise CorruptBlock(f"block {key}: its seal claims impossible sizes")
        try:
            name = self._envelope().decrypt(
                nonce, front[_FRONT.size : _FRONT.size + length], key.encode()
            )
        except InvalidTag as error:
            raise LostBlock(
                f"block {key} is sealed with another master key: give the store the one it was"
                " written with"
            ) from error
        return name.decode(), size_bytes, prefix

    def check_value(self, identity: str) -> str:
        """Tells this master key from others without giving it away, for one store."""
        return self._derived(f"check/{identity}").hex()

    def cipher_of(self, salt: str) -> AESGCM:
        """What opens and closes that tenant's pages."""
        return self._cipher(salt)

    def _cipher(self, salt: str) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self.tenants.get(salt) or self._derived(f"tenant/{salt}"))

    def _envelope(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self._derived("envelope"))

    def _derived(self, purpose: str) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        info = f"kdn-seal-1/{purpose}".encode()
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(self.master)


class SealedHandle(Handle):
    """A sealed block, opened page by page as it is read."""

    def __init__(self, ring: KeyRing, key: BlockKey, inner: Handle) -> None:
        sealed_bytes = inner.buffer.nbytes
        front = bytes(inner.read(0, min(BODY, sealed_bytes)))
        if len(front) < BODY:
            raise CorruptBlock(f"block {key}: its seal is cut short")
        salt, size_bytes, self._prefix = ring.name_in(key, front)
        if sealed_bytes != BODY + size_bytes + TAG * -(-size_bytes // PAGE):
            raise CorruptBlock(f"block {key}: {sealed_bytes} bytes are not what its seal says")
        self._cipher = ring.cipher_of(salt)
        self._key = key
        self._inner = inner
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self.buffer = allocate(size_bytes)

    def read(self, start: int, stop: int) -> memoryview:
        first, last = start // PAGE, -(-stop // PAGE)
        with self._lock:
            missing = [number for number in range(first, last) if number not in self._open]
            if missing:
                self._fetch(missing[0], missing[-1] + 1)
        return self.buffer[start:stop]

    def close(self) -> None:
        self._inner.close()

    @property
    def at_once(self) -> int:
        return self._inner.at_once

    def _fetch(self, first: int, last: int) -> None:
        from cryptography.exceptions import InvalidTag

        step, size = PAGE + TAG, self.buffer.nbytes
        begin = BODY + first * step
        sealed = self._inner.read(begin, min(BODY + last * step, self._inner.buffer.nbytes))
        for number in range(first, last):
            page = sealed[(number - first) * step : (number - first + 1) * step]
            about = _about(self._key, number, size)
            try:
                plain = self._cipher.decrypt(_nonce(self._prefix, number), page, about)
            except InvalidTag as error:
                raise CorruptBlock(
                    f"block {self._key}: page {number} does not open: damaged, or its tenant's key"
                    " was changed"
                ) from error
            self.buffer[number * PAGE : number * PAGE + len(plain)] = plain
            self._open.add(number)


def is_private(mode: int, uid: int, euid: int) -> bool:
    """Is a file of that mode and owner a secret of the user `euid`?

    Nobody else may have any right to a file of ours.  One of another owner, such as a Secret that
    Kubernetes mounts, may be read through a group, and no more.
    """
    return not mode & (0o077 if uid == euid else 0o037)


def read_key_file(path: Path) -> KeyRing:
    """A key ring from a file: `master = HEX` and, for tenants with keys of their own, `[tenants]`
    with `NAME = HEX` each (TOML). Raises BadConfig, also for a file that others may read."""
    import tomllib

    try:
        about, euid = path.stat(), os.geteuid()
        if not is_private(about.st_mode, about.st_uid, euid):
            cure = f"chmod 600 {path}"
            if about.st_uid != euid:
                cure = "its owner gives it mode 440 (a Secret of Kubernetes: defaultMode: 0440)"
            raise BadConfig(f"{path} holds keys and others may read it: {cure}")
        found = tomllib.loads(read_bounded(path).decode())
        tenants = {name: bytes.fromhex(text) for name, text in found.pop("tenants", {}).items()}
        master = bytes.fromhex(found.pop("master"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadConfig(f"{path}: no key file that can be used: {error}") from error
    if found:
        raise BadConfig(f"{path}: unknown name {next(iter(found))!r}; known are master, tenants")
    return KeyRing(master, tenants)


def _nonce(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(4, "little")


def _about(key: BlockKey, number: int, size_bytes: int) -> bytes:
    return f"{key}/{number}/{size_bytes}".encode()
