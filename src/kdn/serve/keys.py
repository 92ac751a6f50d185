"""API keys: which salts each may name, and what becomes of a salt that is nobody's.

Keys are compared by their SHA-256 digests, all of them each time, so that neither a stored list nor
the time of a refusal tells about a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdn.core import PUBLIC_SALT
from kdn.errors import BadConfig
from kdn.serve.errors import Refused

__all__ = ["LOCAL", "ApiKey", "Caller", "find_caller", "read_key_file", "read_salted_keys"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
ANY = "*"
"""In a key's list of salts: it may name every salt but the public one."""


@dataclass(frozen=True)
class Caller:
    """The remote side of one request. `name` tells callers apart and reveals no key."""

    name: str
    salts: tuple[str, ...] = ()
    keyed: bool = True
    """False for a server without keys, where salts are taken as they are named."""

    def salt(self, named: str | None) -> str:
        """The salt under which blocks of this caller's request are stored and found.

        A salt that is granted to the key stays as it is.  Any other one is joined with the key's
        name: two keys that name it share nothing.  Without a name it is the key's first salt, or,
        for a key without salts, the one that all such keys share.  Raises Refused for `public`
        without a grant: what is stored there answers every caller.
        """
        if not named:
            return self.salts[0] if self.salts and self.salts[0] != ANY else ""
        if named in self.salts:
            return named
        if named == PUBLIC_SALT:
            raise Refused(
                f"this key may not name the salt {PUBLIC_SALT!r}, which every caller reads: "
                "leave cache_salt out, or grant it to the key",
                param="cache_salt",
                status=403,
            )
        if not self.keyed or ANY in self.salts:
            return named
        return f"{self.name}/{named}"


LOCAL = Caller("local", keyed=False)
"""Every caller of a server without keys."""


@dataclass(frozen=True)
class ApiKey:
    """A key by its digest, and the salts that it may name."""

    digest: str
    """SHA-256, 64 hexadecimal digits."""
    salts: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: str, salts: tuple[str, ...] = ()) -> ApiKey:
        return cls(hashlib.sha256(key.encode()).hexdigest(), salts)

    @property
    def caller(self) -> Caller:
        return Caller(f"key-{self.digest[:16]}", self.salts)


def find_caller(authorization: str, keys: Sequence[ApiKey]) -> Caller | None:
    """The caller of a bearer key; None for a wrong one. Takes the same time for each."""
    scheme, _, given = authorization.partition(" ")
    digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).hexdigest()
    found = None
    for key in keys:
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found.caller if found is not None and scheme.lower() == "bearer" else None


def read_salted_keys(given: Iterable[str]) -> tuple[ApiKey, ...]:
    """Keys of settings, `SALT=KEY` or `SALT,SALT=KEY`. Raises BadConfig."""
    return tuple(_salted(one) for one in given)


def _salted(given: str) -> ApiKey:
    salts, _, key = given.partition("=")
    if not (salts and key):
        raise BadConfig(f"a salted key of {salts!r}: write SALT=KEY, or SALT,SALT=KEY")
    return ApiKey.of(key, _salts(salts))


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """Keys of a file: on each line the SHA-256 of a key and, after a space, its salts by commas.

    Lines that begin with `#` are comments.  Raises BadConfig with the line at fault.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"the key file {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        digest, _, salts = line.strip().partition(" ")
        if not digest or digest.startswith("#"):
            continue
        if not _DIGEST.fullmatch(digest):
            raise BadConfig(
                f"{path}, line {number}: write the SHA-256 of a key (64 hexadecimal digits, as "
                "sha256sum prints it), then a space and its salts"
            )
        found.append(ApiKey(digest, _salts(salts.strip()) if salts.strip() else ()))
    return tuple(found)


def _salts(given: str) -> tuple[str, ...]:
    salts = tuple(one.strip() for one in given.split(","))
    if not all(salts):
        raise BadConfig(f"the salts {given!r} hold an empty one; write them as alice,team")
    return salts
