"""Which versions of vLLM the connector was tried with. Imports nothing of vLLM but its version."""

from __future__ import annotations

from kdn.errors import BadConfig

__all__ = ["VERSIONS", "check_version", "installed_version"]

VERSIONS = ("0.32",)
"""The minor versions of vLLM whose interface the connector was tried with."""


def check_version(found: str) -> None:
    """Raises BadConfig for a vLLM that this folder was not tried with."""
    if not found.startswith(tuple(f"{one}." for one in VERSIONS)):
        raise BadConfig(
            f"vLLM {found} is installed, kdn's connector was tried with {', '.join(VERSIONS)};"
            " install such a version or a newer kdn"
        )


def installed_version() -> str:
    """vLLM's version as its distribution says it. Raises ImportError without vLLM."""
    import vllm

    return str(vllm.__version__).partition("+")[0]
