"""Who may see and do what with a store over HTTP."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from kdn.core import PUBLIC_SALT
from kdn.errors import BadConfig

__all__ = ["Grant", "grant_for", "read_grants"]


@dataclass(frozen=True)
class Grant:
    """What a token allows. `salt` None sees every tenant's blocks; `admin` may also manage them."""

    name: str
    token: str
    salt: str | None = None
    admin: bool = False

    def sees(self, salt: str) -> bool:
        """Are that tenant's blocks this one's to read and write?"""
        return self.salt is None or salt == self.salt

    def reads(self, salt: str) -> bool:
        """What one may see, and what is public."""
        return self.sees(salt) or salt == PUBLIC_SALT


OPEN = Grant("anybody", "", admin=True)
"""A node that was started with --allow-unauthenticated."""


def read_grants(admin_key: str | None, tenant_keys: tuple[str, ...]) -> tuple[Grant, ...]:
    """Grants from settings: an admin's key, and `NAME=KEY` for each tenant; NAME is its salt.

    The name `*` stands for a peer that may read and write for every tenant.  Raises BadConfig.
    """
    grants = [] if admin_key is None else [Grant("admin", admin_key, admin=True)]
    for given in tenant_keys:
        name, equals, token = given.partition("=")
        if not (name and equals and token):
            raise BadConfig(f"a tenant's key {given.partition('=')[0]!r}: write NAME=KEY")
        grants.append(Grant(name, token, None if name == "*" else name))
    if len({grant.token for grant in grants}) < len(grants):
        raise BadConfig("two of the store's keys are equal: each tenant needs its own")
    if any(not grant.token for grant in grants):
        raise BadConfig("a key of the store is empty; leave it out")
    return tuple(grants)


def grant_for(authorization: str, grants: tuple[Grant, ...]) -> Grant | None:
    """The grant of a bearer token, found in time that does not tell how near a wrong one came."""
    if not grants:
        return OPEN
    scheme, _, given = authorization.partition(" ")
    token = given.strip().encode()
    found = None
    for grant in grants:
        if hmac.compare_digest(token, grant.token.encode()):
            found = grant
    return found if scheme.lower() == "bearer" else None
