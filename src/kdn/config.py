"""Settings: one frozen struct per room, composed here, read once, never written.

A setting is found in this order: the call's own argument, the environment (`KDN_STORE_DISK_BYTES`
for `disk_bytes` of `[store]`), the file `kdn.toml`, the default below.  Unknown names are refused.
Byte counts may be written `"8 GiB"`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from kdn.errors import BadConfig

__all__ = [
    "BlendConfig",
    "Config",
    "CostConfig",
    "EngineConfig",
    "LibraryConfig",
    "ServeConfig",
    "StoreConfig",
    "home_folder",
    "load_config",
    "parse_bytes",
]

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
CodecName = Literal[
    "auto", "none", "lossless", "fp8", "int8", "int4",
    "entropy-1", "entropy-2", "entropy-3", "entropy-4",
]  # fmt: skip
_Bytes = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(ge=1)]
_Room = TypeVar("_Room", bound=msgspec.Struct)


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the engine may use."""

    kv_budget_bytes: _Bytes | None = None
    """Memory for the KV of running requests; None takes a quarter of what is free at start."""
    max_batch_tokens: _Positive = 2048
    """The most prompt tokens computed in one pass over the layers."""
    max_stall_ms: Annotated[float, Meta(ge=0)] = 60.0
    """How long a prefill may keep running streams waiting for their next token."""
    dtype: Dtype = "auto"
    """What is computed in; auto follows `kdn doctor`, else the processor's flags."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; auto takes the first GPU there is."""
    policy: Literal[
        "fcfs",
        "priority",
        "static",
        "longest-match",
        "shortest-miss",
        "calibrated",
        "families",
        "ratio",
    ] = "fcfs"
    """Who of those waiting is next; `families` and `calibrated` suit one-token jobs that share prefixes."""
    pack_tokens: _Positive | None = None
    """With a number, decide anew before every pass, and let short prompts share one up to so many tokens."""
    row_chunk: _Positive = 512
    """Rows of position-wise work at a time for one-token jobs: fewer take less memory."""
    fit_idle_s: Annotated[float, Meta(ge=0)] = 60.0
    """After so long without requests, once there were some, measure in the background how long prompts take,
    if that was never done; 0 leaves it to `kdn cost fit`."""
    threads: _Positive | None = None
    """CPU threads of tensor operations; None leaves torch's own choice."""


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where KV is kept, and how much of it."""

    folder: Path | None = None
    """The disk tier's folder; None is `store` in the home folder."""
    disk_bytes: _Bytes | None = None
    """Hard cap of the disk tier; None is the smaller of 20 GB and a tenth of what is free."""
    memory_bytes: _Bytes = 2 * 1024**3
    """Hard cap of the memory tier."""
    codec: CodecName = "none"
    """How blocks are written; lossy ones taint them; auto takes the smallest within `max_kl`."""
    max_kl: Annotated[float, Meta(ge=0)] | None = None
    """Mean KL (nats), by `kdn store calibrate`, up to which a lossy codec may be used; 0: none may."""
    policy: Literal["fifo", "lru", "s3fifo", "arc", "value"] = "lru"
    """Which blocks go when room is short."""
    ttl_s: Annotated[float, Meta(gt=0)] | None = None
    """A block goes this long after its last use, room or not; None keeps it while there is room."""
    load_within_s: Annotated[float, Meta(gt=0)] | None = None
    """By when stored KV is to be loaded: over a slow link a node then sends it smaller, with loss only
    within `max_kl`. None is before it would be computed, where that is known."""
    priorities: dict[str, int] = {}
    """By salt: blocks of a lower priority (0 where none is said) go before those of a higher one."""
    record: Path | None = None
    """Write every lookup to this file, for `kdn store simulate`; None writes nothing."""
    peer_url: str | None = None
    """A node whose blocks are read and that ours are sent to, as `https://host:8100`."""
    peer_token: str | None = None
    """What that node wants as a bearer token."""
    peer_authority: Path | None = None
    """Certificates (PEM) to trust that node by; None trusts what the system trusts."""
    redis_url: str | None = None
    """A Redis to keep blocks in, as `redis://:password@host:6379/0`."""
    objects_url: str | None = None
    """An object store to keep blocks in, as `s3://bucket/prefix`, `gs://...` or `file:///folder`."""
    object_options: dict[str, str] = {}
    """The object store's own settings (`endpoint`, `region`, ...); else its usual environment."""
    far_bytes: _Bytes | None = None
    """The most bytes to leave in each tier across the network; None leaves that to them."""
    far_timeout_s: Annotated[float, Meta(gt=0)] = 2.0
    """The most that one call across the network may take before it counts as failed."""
    far_attempts: _Positive = 2
    """How often such a call is tried in all, within that time."""
    far_read_bytes: _Positive = 1024**2
    """The least that is read across the network at once."""
    far_news_s: Annotated[float, Meta(ge=0)] = 1.0
    """How late we may learn of blocks that others put there; 0 asks at every look."""
    objects_news_s: Annotated[float, Meta(ge=0)] = 30.0
    """The same for an object store, where asking means a listing."""
    prefill_tokens_per_s: Annotated[float, Meta(gt=0)] | None = None
    """How quick a prefill is here: blocks that load more slowly are computed.
    None takes what `kdn cost fit` found; where that was never run, what is stored is always loaded."""
    disk_direct: bool = False
    """Read blocks past the operating system's cache (O_DIRECT); pays where memory is short."""
    key_file: Path | None = None
    """Keys to seal blocks with at rest (AES-GCM), as TOML: `master = HEX`; None seals nothing."""
    quota_bytes: _Bytes | None = None
    """The most that one tenant (salt) may hold in any one tier; None sets no limit."""
    quotas: dict[str, int] = {}
    """Quotas in bytes of tenants for whom `quota_bytes` is not right, by salt."""


class LibraryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where documents are kept, and how they are cut."""

    folder: Path | None = None
    """The library's folder; None is `library` in the home folder."""
    part_tokens: _Positive = 1000
    """The most tokens of a part: what enters a prompt, and is reused, as one piece."""
    passage_tokens: _Positive = 200
    """The size of a passage: what is searched for and shown as a source."""


class BlendConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How stored documents are reused where they are no exact prefix, for requests that ask for it."""

    ratio: Annotated[float, Meta(ge=0, le=1)] = 0.15
    """The least share of the reused tokens that is recomputed, however fast they load."""
    drift: Annotated[float, Meta(ge=0, le=1)] | None = None
    """The share of the keys' common drift that is taken off stored ones; 0: it is not even learnt;
    None: what was measured to be best for the model, else half."""
    guard_every: Annotated[int, Meta(ge=0)] = 50
    """One in so many blended answers is compared with a full prefill afterwards; 0 never."""
    guard_kl: Annotated[float, Meta(gt=0)] = 0.5
    """Mean KL divergence (nats, first token) beyond which more is recomputed, or blending stops."""


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the server can be reached."""

    host: str = "127.0.0.1"
    """The address to listen on; anything but loopback wants an API key."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """The TCP port; 0 takes a free one."""
    api_key: str | None = None
    """What clients must send as a bearer token; None asks for nothing."""
    store_key: str | None = None
    """The admin's bearer token for the store over HTTP; None: only a node on loopback opens it."""
    tenant_keys: tuple[str, ...] = ()
    """`NAME=KEY` of each tenant whose blocks may be read and written over HTTP; NAME is its salt."""
    certificate: Path | None = None
    """Serve over TLS with this certificate chain (PEM)."""
    private_key: Path | None = None
    """The certificate's key (PEM), if it is not in the same file."""


class CostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What money saved and spent is worked out from, and what `value` ranks blocks by."""

    prices: str = "laptop"
    """A price sheet that comes with kdn, or a .toml file."""
    speed: str = "smollm2-135m-cpu"
    """A model on a machine that comes with kdn, or a .toml file."""
    acts: bool = False
    """Blocks are written only to tiers where a use repays it, and go when keeping cost what a use saves."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings. `home` holds whatever has no folder of its own."""

    home: Path
    engine: EngineConfig = EngineConfig()
    store: StoreConfig = StoreConfig()
    library: LibraryConfig = LibraryConfig()
    serve: ServeConfig = ServeConfig()
    blend: BlendConfig = BlendConfig()
    cost: CostConfig = CostConfig()

    @property
    def store_folder(self) -> Path:
        return self.store.folder or self.home / "store"

    @property
    def library_folder(self) -> Path:
        return self.library.folder or self.home / "library"

    @property
    def guard_file(self) -> Path:
        """Where the quality guard keeps what it has seen."""
        return self.home / "blend-guard.json"

    @property
    def models_folder(self) -> Path:
        return self.home / "models"

    def effective(self) -> dict[str, Any]:
        """Every setting as plain values, for results and bug reports; no key or password is shown."""
        shown: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        shown["store"]["folder"] = str(self.store_folder)
        shown["library"]["folder"] = str(self.library_folder)
        for room, field in _SECRETS:
            if shown[room][field]:
                shown[room][field] = "(set)"
        return shown


_SECRETS = (
    ("serve", "api_key"),
    ("serve", "store_key"),
    ("serve", "tenant_keys"),
    ("store", "peer_token"),
    ("store", "redis_url"),
    ("store", "object_options"),
)
_ROOMS: dict[str, type[msgspec.Struct]] = {
    "engine": EngineConfig,
    "store": StoreConfig,
    "library": LibraryConfig,
    "serve": ServeConfig,
    "blend": BlendConfig,
    "cost": CostConfig,
}
# Read elsewhere, so known here: the home folder and the place of the settings file.
_OTHER_VARIABLES = ("KDN_HOME", "KDN_CONFIG")
# Kubernetes gives every container such variables for each service; one may be called kdn.
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT\w*)$|_PORT(_\d+_\w+)?$")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def home_folder(environ: Mapping[str, str]) -> Path:
    """`$KDN_HOME`, or the user's cache folder for kdn."""
    chosen = environ.get("KDN_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "kdn"


def load_config(
    environ: Mapping[str, str], *, home: Path | None = None, file: Path | None = None
) -> Config:
    """The settings of a file with those of the environment over them.

    The file is `file`, else `$KDN_CONFIG`, else `kdn.toml` in the home folder if there is one.
    Raises BadConfig for a file that was asked for and cannot be read, an unknown name (the nearest
    known one is named), or an impossible value.
    """
    home = home or home_folder(environ)
    named = file or (Path(environ["KDN_CONFIG"]) if environ.get("KDN_CONFIG") else None)
    tables = _read_file(named or home / "kdn.toml", must_exist=named is not None)
    for (room, field), text in _read_environment(environ).items():
        tables.setdefault(room, {})[field] = text
    return Config(
        home=home,
        engine=_build(EngineConfig, "engine", tables),
        store=_build(StoreConfig, "store", tables),
        library=_build(LibraryConfig, "library", tables),
        serve=_build(ServeConfig, "serve", tables),
        blend=_build(BlendConfig, "blend", tables),
        cost=_build(CostConfig, "cost", tables),
    )


def parse_bytes(text: str) -> int:
    """`"20 GB"`, `"512MiB"` or `"1048576"` as a number of bytes. Raises ValueError for others."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    if found is None:
        raise ValueError(f"{text!r} is no size in bytes; write a number, or one like '8 GiB'")
    return int(float(found[1]) * (_UNITS | _BINARY_UNITS)[found[2] or ""])


def _read_file(path: Path, *, must_exist: bool) -> dict[str, dict[str, Any]]:
    """The tables of a settings file, all names known; empty when there need be none."""
    if not must_exist and not path.exists():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"{path}: settings cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: not a TOML file: {error}") from error
    for room, table in tables.items():
        if room not in _ROOMS or not isinstance(table, dict):
            raise BadConfig(f"{path}: no section [{room}]{_nearest(room, _ROOMS)}")
        for field in table:
            if field not in _fields(room):
                hint = _nearest(field, _fields(room))
                raise BadConfig(f"{path}: no setting {field!r} in [{room}]{hint}")
    return tables


def _read_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """The variables that are settings, by room and field."""
    names = {
        f"KDN_{room}_{field}".upper(): (room, field) for room in _ROOMS for field in _fields(room)
    }
    found = {}
    for variable, text in environ.items():
        if variable in names:
            found[names[variable]] = text
        elif _looks_like_ours(variable):
            hint = _nearest(variable, [*names, *_OTHER_VARIABLES])
            raise BadConfig(f"environment: no setting {variable}{hint}")
    return found


def _looks_like_ours(variable: str) -> bool:
    ours = variable.startswith("KDN_") and variable not in _OTHER_VARIABLES
    return ours and _SERVICE_LINK.search(variable) is None


def _build(kind: type[_Room], room: str, tables: Mapping[str, Mapping[str, Any]]) -> _Room:
    values = dict(tables.get(room, {}))
    try:
        for field, value in values.items():
            if field.endswith("_bytes") and isinstance(value, str):
                values[field] = parse_bytes(value)
        # not strict: the environment has only texts
        return msgspec.convert(values, kind, strict=False, dec_hook=_decode)
    except (msgspec.ValidationError, ValueError) as error:
        raise BadConfig(f"settings of [{room}]: {error}") from error


def _decode(kind: type[Any], value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    raise ValueError(f"expected a path as text, got {value!r}")


def _fields(room: str) -> tuple[str, ...]:
    return _ROOMS[room].__struct_fields__


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
