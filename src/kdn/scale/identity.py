"""What the KV of a foreign engine depends on, in one fingerprint.

The text that is hashed begins with the engine's name and version.  A fingerprint of kdn's own engine
has no such part, so neither engine ever finds the other's KV in an exact lookup.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from kdn.core import Cause, Fingerprint, KvShape, Recipe
from kdn.errors import WeightsError
from kdn.machine.files import system_errors

__all__ = [
    "HANDED",
    "Adapters",
    "EngineIdentity",
    "digest_config",
    "digest_files",
    "digest_weights",
    "handoff_fingerprint",
    "rope_factors",
    "salt_of",
]

HANDED = Recipe((Cause.BLEND,), "handed")
"""The recipe of KV that another engine computed for one request: no exact lookup finds it."""
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
READ_BYTES = 16 << 20
VOLATILE = ("_name_or_path", "transformers_version", "_commit_hash", "use_cache")
"""Keys of config.json that say nothing about numbers."""
LATER_PARTS = ("rope", "generation")
"""Parts of a fingerprint that older ones do not have."""


@dataclass(frozen=True)
class EngineIdentity:
    """Everything about an engine that its KV depends on, but for the adapter and the rank."""

    engine: str
    """Name and version: other versions compute with other kernels."""
    weights: str
    config: str
    dtype: str
    kv_dtype: str
    quantization: str
    device: str
    attention: str
    layout: str
    """How the KV of a token lies in a stored run."""
    tensor_ranks: int = 1
    pipeline_ranks: int = 1
    rope: str = ""
    """Which factors LongRoPE has here (`rope_factors`); empty for other models."""

    def fingerprint(self, adapter: str | None, rank: int, generation: str = "") -> Fingerprint:
        """The fingerprint of KV computed with that adapter (a digest) on that rank.

        `generation` tells weights that came into the running engine from those of its files.
        """
        said = asdict(self) | {"adapter": adapter, "rank": rank, "generation": generation}
        # left out where they tell nothing, so that names from before they were there stay
        said = {name: one for name, one in said.items() if one or name not in LATER_PARTS}
        return Fingerprint(hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest())


def handoff_fingerprint(weights: str, layout: str, shape: KvShape) -> Fingerprint:
    """The name of KV that is handed over: both engines compute it from the same files and shape.

    `weights` is the digest of the weight files.  The engine is no part of it: handed KV is another
    engine's by its nature, and its recipe says that it is not what a full prefill gives.
    """
    told = {
        "handoff": layout,
        "weights": weights,
        "layers": shape.num_layers,
        "heads": shape.num_kv_heads,
        "dim": shape.head_dim,
        "dtype": shape.dtype,
    }
    return Fingerprint(hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest())


def digest_files(files: list[Path]) -> str:
    """Hex digest of the files' names and bytes. Raises StoreError for one that cannot be read."""
    state = xxhash.xxh3_128()
    for file in sorted(files):
        with system_errors(f"reading {file}"), file.open("rb") as stream:
            state.update(f"{file.name}:{file.stat().st_size};".encode())
            while data := stream.read(READ_BYTES):
                state.update(data)
    return state.hexdigest()


def digest_weights(place: Path) -> str:
    """Hex digest of a model's weight files. Raises WeightsError when there are none."""
    files = [place] if place.is_file() else weight_files(place)
    if not files:
        raise WeightsError(
            f"{place} holds no weight files ({', '.join(WEIGHT_FILES)}), so its KV cannot be named;"
            " give the engine a folder with the weights"
        )
    return digest_files(files)


def weight_files(folder: Path) -> list[Path]:
    """The files of weights directly in a folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_FILES)


def digest_config(config: Mapping[str, Any]) -> str:
    """Hex digest of a model's published configuration, without what says nothing about numbers."""
    told = {key: value for key, value in config.items() if key not in VOLATILE}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def rope_factors(config: Mapping[str, Any], max_tokens: int) -> str:
    """Which factors an engine gives LongRoPE that takes prompts of so many tokens; empty for other models.

    vLLM chooses them once, as it starts: the short ones never see a prompt beyond the model's original
    length. The same tokens have other keys with the long ones.
    """
    if "longrope" in (config.get("rope_type"), config.get("type")):
        return "long" if max_tokens > config["original_max_position_embeddings"] else "short"
    inner = (one for one in config.values() if isinstance(one, Mapping))
    return next(filter(None, (rope_factors(one, max_tokens) for one in inner)), "")


class Adapters:
    """Digests of LoRA adapters by the number that the engine knows them under.

    An engine loads an adapter once and goes on with what it loaded.  When the files of a number change
    without a reload, nobody can say which weights its KV comes from: such an adapter has no digest
    any more, and its requests are neither loaded nor stored.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, str]] = {}
        self._lost: set[int] = set()

    def digest(self, number: int, folder: Path, *, reloaded: bool = False) -> str | None:
        """The adapter's digest, or None when its weights cannot be told."""
        files = adapter_files(folder)
        if not files:
            return None
        if reloaded:
            self._lost.discard(number)
            self._known.pop(number, None)
        if number in self._lost:
            return None
        state = "".join(_state(file) for file in files)
        known = self._known.get(number)
        if known is None:
            self._known[number] = known = (state, digest_files(files))
        if known[0] != state and digest_files(files) != known[1]:
            self._lost.add(number)
            return None
        return known[1]


def adapter_files(folder: Path) -> list[Path]:
    """The weights and the settings of an adapter; nothing when it has no weights there."""
    weights = weight_files(folder)
    return [*weights, *(path for path in [folder / "adapter_config.json"] if path.exists())] * bool(
        weights
    )


def _state(file: Path) -> str:
    about = file.stat()
    return f"{file}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns};"


def salt_of(cache_salt: str | None, kdn_salt: str | None) -> str:
    """The engine's salt and the one for kdn alone as one, so that no two pairs run together.

    A `cache_salt` alone is kept, unless it could be read as a pair: two salts behind a length.
    """
    own, other = cache_salt or "", kdn_salt or ""
    return f"{len(own)}:{own}:{other}" if other or re.match("[0-9]+:", own) else own
