"""The settings of a server, and the bounds on what it holds at one time."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from kdn.config import ServeConfig
from kdn.errors import BadConfig

__all__ = ["BatchLimits", "Limits", "ServeSettings", "is_loopback"]


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Is `host` `localhost`, or an address that only this machine can reach? Other names are not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_DEFAULTS = ServeConfig()


@dataclass(frozen=True)
class Limits:
    """What a server holds at one time. A caller is known by its API key.

    Raises BadConfig for a bound below 1.
    """

    body_bytes: int = _DEFAULTS.max_body_bytes
    """Of one HTTP request."""
    choices: int = 128
    """Answers (prompts times `n`) of one HTTP request."""
    caller_requests: int = _DEFAULTS.max_requests // 2
    """Requests that have not ended, of one caller. Each document of a ranking is one."""
    all_requests: int = _DEFAULTS.max_requests
    caller_tokens: int = _DEFAULTS.max_tokens // 2
    """Prompt tokens of requests that have not ended, of one caller. One request always fits."""
    all_tokens: int = _DEFAULTS.max_tokens
    caller_bytes: int = 256 << 20
    """Bodies of HTTP requests that have not been answered, of one caller."""
    all_bytes: int = 512 << 20
    connections: int = _DEFAULTS.max_connections
    """Open connections; those whose request is not complete give way."""
    stream_events: int = 1 << 13
    """Events that wait for a client that reads slowly; an alternative of a token counts as one."""

    @classmethod
    def of(cls, config: ServeConfig) -> Limits:
        """As the settings say."""
        return cls(
            body_bytes=config.max_body_bytes,
            connections=config.max_connections,
            caller_requests=max(config.max_requests // 2, 1),
            all_requests=config.max_requests,
            caller_tokens=max(config.max_tokens // 2, 1),
            all_tokens=config.max_tokens,
        )

    @classmethod
    def of_node(cls, config: ServeConfig) -> Limits:
        """Of a server of blocks: its callers are engines, and all of them may share one key."""
        return cls(
            body_bytes=1 << 30,
            caller_bytes=1 << 31,
            all_bytes=1 << 32,
            connections=config.max_connections,
        )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise BadConfig(f"the limit {name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class BatchLimits:
    """What batches may take. Lines and bytes of one upload are bounded by `Limits.body_bytes` too.

    Raises BadConfig for a bound below 1.
    """

    files: int = 1000
    """Of one caller."""
    caller_bytes: int = 1 << 30
    """All files of one caller."""
    lines: int = 50_000
    """Requests of one batch."""
    unfinished: int = 64
    """Batches of one caller that have not ended."""
    batches: int = 10_000
    """Of one caller; the oldest that has ended gives way."""
    width: int = 8
    """Lines of all batches that are answered at one time."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise BadConfig(f"the limit {name} of batches is {value}; it must be at least 1")


@dataclass(frozen=True)
class ServeSettings:
    """Where to listen and what to allow. Raises BadConfig for a combination that is not safe."""

    host: str = _DEFAULTS.host
    port: int = _DEFAULTS.port
    """0 takes any free port."""
    api_keys: tuple[str, ...] = ()
    """Callers must send one of these."""
    salted_keys: tuple[str, ...] = ()
    """More keys, each with the salts that it may name: `SALT=KEY`, `SALT+SALT=KEY`."""
    key_file: Path | None = None
    """More keys, by their digests: on each line the SHA-256 of a key, then its salts.
    Without any key callers are not asked for one."""
    allow_unauthenticated: bool = False
    """Must be said to listen beyond loopback without a key."""
    default_max_tokens: int = 512
    limits: Limits = field(default_factory=Limits)
    check_host: bool | None = None
    """Answer only requests to a name of this machine; None: on loopback without a key of the user."""
    certificate: Path | None = None
    """Serve over TLS with this certificate chain (PEM); None speaks plain HTTP."""
    private_key: Path | None = None
    """The certificate's key (PEM); None when it stands in the same file."""
    batch_folder: Path | None = None
    """Where files and batches lie; None: this server takes none."""
    batch: BatchLimits = field(default_factory=BatchLimits)
    adapters_folder: Path | None = None
    """Adapters may be loaded from folders in here; None: none may."""
    grace_s: int = _DEFAULTS.grace_s
    """How long running answers may go on after a stop was asked for."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise BadConfig(f"port {self.port} is not in 0..65535")
        if any(not key for key in self.api_keys):
            raise BadConfig("an API key is empty; leave the option out to serve without one")
        if not (self.loopback or self.has_keys or self.allow_unauthenticated):
            raise BadConfig(
                f"{self.host} can be reached from other machines and no API key is set: "
                "set one (--api-key, KDN_SERVE_API_KEY, a key file), or give --allow-unauthenticated "
                "if everyone there may use it"
            )

    @property
    def scheme(self) -> str:
        """`https` with a certificate, else `http`."""
        return "http" if self.certificate is None else "https"

    @property
    def loopback(self) -> bool:
        """Is the address one that only this machine can reach?"""
        return is_loopback(self.host)

    @property
    def has_keys(self) -> bool:
        """Are callers asked for a key?"""
        return bool(self.api_keys or self.salted_keys or self.key_file)

    @property
    def guards_host(self) -> bool:
        """Is the Host header checked?

        A server without keys trusts every program on this machine; a web page that points its own
        name at 127.0.0.1 is not one.
        """
        if self.check_host is not None:
            return self.check_host
        return not (self.has_keys or self.allow_unauthenticated)
