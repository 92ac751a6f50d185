"""The settings of a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdn.errors import BadConfig

__all__ = ["LOOPBACK", "ServeSettings"]

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class ServeSettings:
    """Where to listen and what to allow. Raises BadConfig for a combination that is not safe."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free port."""
    api_keys: tuple[str, ...] = ()
    """Callers must send one of these; empty means that nobody is asked."""
    allow_unauthenticated: bool = False
    """Must be said to listen beyond loopback without a key."""
    default_max_tokens: int = 512
    max_choices: int = 128
    """The most answers (prompts times `n`) one HTTP request may ask for."""
    max_body_bytes: int = 32 * 2**20
    certificate: Path | None = None
    """Serve over TLS with this certificate chain (PEM); None speaks plain HTTP."""
    private_key: Path | None = None
    """The certificate's key (PEM); None when it stands in the same file."""
    graceful_s: int = 30
    """How long running answers may go on after a stop was asked for."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise BadConfig(f"port {self.port} is not in 0..65535")
        if any(not key for key in self.api_keys):
            raise BadConfig("an API key is empty; leave the option out to serve without one")
        if not (self.loopback or self.api_keys or self.allow_unauthenticated):
            raise BadConfig(
                f"{self.host} can be reached from other machines and no API key is set: "
                "give --api-key, or --allow-unauthenticated if everyone there may use it"
            )

    @property
    def scheme(self) -> str:
        """`https` with a certificate, else `http`."""
        return "http" if self.certificate is None else "https"

    @property
    def loopback(self) -> bool:
        """Is the address one that only this machine can reach?"""
        return self.host in LOOPBACK or self.host.startswith("127.")

    @property
    def guards_host(self) -> bool:
        """Is the Host header checked?

        A server without keys trusts whoever reaches loopback; a web page that points its own name
        at 127.0.0.1 must not count as that.
        """
        return not (self.api_keys or self.allow_unauthenticated)
