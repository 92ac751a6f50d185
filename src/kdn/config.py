"""Settings: one frozen struct per room, composed here, read once, never written.

A room that can be imported quickly has its struct beside the code that reads it.  Those of the others
stand here, so that commands without a model load neither torch nor a web framework.

A setting is found in this order: the call's own argument, the environment (`KDN_STORE_DISK_BYTES`
for `disk_bytes` of `[store]`), the file `kdn.toml`, the default of its struct.  Unknown names are
refused.  Byte counts may be `"8 GiB"`; in the environment a list is `a,b`, a table `a=1,b=2`, or JSON.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from kdn.core.share import ShareConfig
from kdn.cost.settings import CostConfig
from kdn.errors import BadConfig
from kdn.machine.files import expanded, home_folder, readable_folder
from kdn.schedule import POLICIES
from kdn.store.settings import StoreConfig

__all__ = [
    "AskConfig",
    "BlendConfig",
    "Config",
    "CostConfig",
    "EngineConfig",
    "LibraryConfig",
    "ServeConfig",
    "ShareConfig",
    "StoreConfig",
    "home_folder",
    "load_config",
    "parse_bytes",
]

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
_Bytes = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(ge=1)]
_Room = TypeVar("_Room", bound=msgspec.Struct)


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the engine may use."""

    kv_budget_bytes: _Bytes | None = None
    """Memory for the KV of running requests; None takes a quarter of what is free at start."""
    resident_bytes: _Bytes | None = None
    """Memory for prefixes that stay in the engine for later requests; None takes 1/16 of what is free."""
    max_batch_tokens: _Positive = 2048
    """The most prompt tokens computed in one pass over the layers."""
    max_stall_ms: Annotated[float, Meta(ge=0)] = 60.0
    """How long a prefill may keep running streams waiting for their next token."""
    dtype: Dtype = "auto"
    """What is computed in; auto follows `kdn doctor`, else the processor's flags."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; auto takes the first GPU there is."""
    policy: str = "fcfs"
    """Which waiting request is next; `families` and `calibrated` suit one-token jobs that share prefixes."""
    pack_tokens: _Positive | None = None
    """With a number, decide again before every pass, and let short prompts share one up to so many tokens."""
    speculative_tokens: Annotated[int, Meta(ge=0, le=16)] = 4
    """How many tokens of an answer are guessed at a time from what its prompt says, and checked in one step
    with the next; answers stay what they are. 0: none."""
    row_chunk: _Positive = 512
    """Rows of position-wise work at a time for one-token jobs: fewer take less memory."""
    fit_idle_s: Annotated[float, Meta(ge=0)] = 60.0
    """After so long without requests, once there were some, measure in the background how long prompts take,
    if that was never done; 0 leaves it to `kdn cost fit`."""
    threads: _Positive | None = None
    """The most CPU threads; None: as affinity and quota allow. Fewer beside busy programs."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise BadConfig(f"engine.policy is {self.policy!r}; it can be {', '.join(POLICIES)}")


class LibraryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where documents are kept, and how they are cut."""

    folder: Path | None = None
    """The library's folder; None is `library` in the home folder."""
    part_tokens: _Positive = 1000
    """The most tokens of a part: what enters a prompt, and is reused, as one piece."""
    passage_tokens: _Positive = 200
    """The size of a passage: what is searched for and shown as a source."""
    embedder: str = "minilm-l6"
    """What finds passages: a known model's name, the folder of a BERT as sentence-transformers writes it,
    or the address where OpenAI's API begins. Another embedder needs another library folder."""
    embedder_model: str = ""
    """Of an address: the embedding model's name there."""
    embedder_key: str | None = None
    """Of an address: the bearer token, if it asks for one."""

    def __post_init__(self) -> None:
        if self.embedder.startswith(("http://", "https://")) and not self.embedder_model:
            raise BadConfig("library.embedder is an address; set library.embedder_model too")


class AskConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How questions about documents are profiled, where the way of answering is chosen for each."""

    profiler: Literal["classifier", "rules", "model", "endpoint"] = "classifier"
    """Who says what a question needs: trained weights, the question's words, the open model, or a model
    behind an address."""
    endpoint_url: str | None = None
    """Of `endpoint`: where OpenAI's API begins, such as `http://localhost:8001/v1`."""
    endpoint_model: str = ""
    """Of `endpoint`: the model's name there."""
    endpoint_key: str | None = None
    """Of `endpoint`: the bearer token, if it asks for one."""
    profile_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    """A profile that takes longer is not waited for: the question's words are read."""
    about: str = "They are texts that their owner took in."
    """One sentence on the documents, for profilers that are models."""

    def __post_init__(self) -> None:
        if self.profiler == "endpoint" and not (self.endpoint_url and self.endpoint_model):
            raise BadConfig(
                "ask.profiler is endpoint; set ask.endpoint_url and ask.endpoint_model too"
            )


class BlendConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How stored documents are reused where they are no exact prefix, for requests that ask for it."""

    ratio: Annotated[float, Meta(ge=0, le=1)] = 0.15
    """The least share of the reused tokens that is recomputed, however fast they load."""
    key_bias: Annotated[float, Meta(ge=0, le=1)] | None = None
    """The share of the model's key bias that is added to stored keys; 0: it is not measured either;
    None: what was measured to be best for the model, else half."""
    layer: Annotated[int, Meta(ge=0)] | None = None
    """The one layer, from 0, whose attention chooses the rows; None: every other of the upper half."""
    guard_every: Annotated[int, Meta(ge=0)] = 50
    """One in so many blended answers is compared with a full prefill later; 0 never."""
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
    salted_keys: tuple[str, ...] = ()
    """More keys, each with the salts that it may name: `SALT=KEY`, or `SALT+SALT=KEY`."""
    key_file: Path | None = None
    """More keys by their digests: on each line the SHA-256 of a key, then its salts."""
    store_key: str | None = None
    """The admin's bearer token for the store over HTTP; None: only a node on loopback opens it."""
    tenant_keys: tuple[str, ...] = ()
    """`NAME=KEY` of each tenant whose blocks may be read and written over HTTP; NAME is its salt."""
    certificate: Path | None = None
    """Serve over TLS with this certificate chain (PEM)."""
    private_key: Path | None = None
    """The certificate's key (PEM), if it is not in the same file."""
    log_requests: Literal["never", "numbers", "why"] = "never"
    """A JSON line of each ended request to standard error; `why` also places and reasons of misses."""
    otel: bool = False
    """Send a span of each request, and of its parts, where the `OTEL_EXPORTER_OTLP_*` variables say."""
    grace_s: Annotated[int, Meta(ge=0)] = 30
    """How long running answers may go on after a stop was asked for."""
    adapters_folder: Path | None = None
    """Adapters may be loaded over HTTP from folders in here; None: none may."""
    max_connections: _Positive = 1024
    """Open connections, of all callers; fewer where the process may not have so many descriptors."""
    max_body_bytes: _Positive = 32 << 20
    """The largest body of one HTTP request."""
    max_requests: _Positive = 4096
    """Requests that have not ended, of all callers; one caller has half of it."""
    max_tokens: _Positive = 1 << 21
    """Prompt tokens of requests that have not ended, of all callers; one caller has half of it."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings. `home` holds whatever has no folder of its own."""

    home: Path
    engine: EngineConfig = EngineConfig()
    store: StoreConfig = StoreConfig()
    library: LibraryConfig = LibraryConfig()
    ask: AskConfig = AskConfig()
    serve: ServeConfig = ServeConfig()
    blend: BlendConfig = BlendConfig()
    share: ShareConfig = ShareConfig()
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
    ("ask", "endpoint_key"),
    ("library", "embedder_key"),
    ("serve", "api_key"),
    ("serve", "store_key"),
    ("serve", "tenant_keys"),
    ("serve", "salted_keys"),
    ("store", "peer_token"),
    ("store", "redis_url"),
    ("store", "object_options"),
)
_ROOMS: dict[str, type[msgspec.Struct]] = {
    room: kind for room, kind in get_type_hints(Config).items() if room != "home"
}
_RENAMED = {  # earlier names of settings, which are read as the present ones
    ("store", "far_news_s"): "far_poll_s",
    ("store", "objects_news_s"): "objects_poll_s",
    ("cost", "acts"): "enforce_prices",
    ("blend", "drift"): "key_bias",
}
# Read elsewhere, so known here: the home folder, the place of the settings file, the key of --engine.
_OTHER_VARIABLES = ("KDN_HOME", "KDN_CONFIG", "KDN_ENGINE_KEY")
# Kubernetes gives containers such NAME=VALUE for each service; one may be called kdn, or kdn-serve.
_SERVICE_LINK = re.compile(r"\w+_(SERVICE_(HOST|PORT\w*)=|PORT_\d+_\w+=|PORT=(tcp|udp|sctp)://)")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def load_config(
    environ: Mapping[str, str], *, home: Path | None = None, file: Path | None = None
) -> Config:
    """The settings of a file with those of the environment over them.

    The file is `file`, else `$KDN_CONFIG`, else `kdn.toml` in the home folder if there is one.
    Raises BadConfig for a file that was asked for, or a home folder, that cannot be read, an unknown
    name (the nearest known one is named), or an impossible value.
    """
    home = readable_folder(home_folder(environ) if home is None else expanded(home))
    named = file or (expanded(environ["KDN_CONFIG"]) if environ.get("KDN_CONFIG") else None)
    tables = _read_file(named or home / "kdn.toml", must_exist=named is not None)
    for (room, field), text in _read_environment(environ).items():
        tables.setdefault(room, {})[field] = text
    rooms: dict[str, Any] = {room: _build(kind, room, tables) for room, kind in _ROOMS.items()}
    return Config(home=home, **rooms)


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadConfig(f"{path}: not a TOML file: {error}") from error
    for room, table in tables.items():
        if room not in _ROOMS or not isinstance(table, dict):
            raise BadConfig(f"{path}: no section [{room}]{_nearest(room, _ROOMS)}")
        for field in table:
            if field not in _fields(room) and (room, field) not in _RENAMED:
                hint = _nearest(field, _fields(room))
                raise BadConfig(f"{path}: no setting {field!r} in [{room}]{hint}")
    return _with_present_names(path, tables)


def _with_present_names(path: Path, tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for (room, old), new in _RENAMED.items():
        table = tables.get(room, {})
        if old in table and new in table:
            raise BadConfig(f"{path}: [{room}] has {new} and its earlier name {old}: keep {new}")
        if old in table:
            table[new] = table.pop(old)
    return tables


def _read_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    """The variables that are settings, by room and field."""
    ours = {name: text for name, text in environ.items() if _looks_like_ours(name, text)}
    names = {
        f"KDN_{room}_{field}".upper(): (room, field) for room in _ROOMS for field in _fields(room)
    }
    earlier = {f"KDN_{r}_{old}".upper(): (r, new) for (r, old), new in _RENAMED.items()}
    found = {
        place: _read_variable(variable, ours[variable], *place)
        for variable, place in (earlier | names).items()  # a present name wins
        if variable in ours
    }
    for variable in ours.keys() - names.keys() - earlier.keys():
        hint = _nearest(variable, [*names, *_OTHER_VARIABLES])
        raise BadConfig(f"environment: no setting {variable}{hint}")
    return found


def _read_variable(variable: str, text: str, room: str, field: str) -> Any:
    """A variable as its setting wants it: lists `a,b`, tables `a=1,b=2`, or either as JSON."""
    kind = get_origin(get_type_hints(_ROOMS[room])[field])
    if kind not in (tuple, dict):
        return text
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadConfig(f"environment: {variable} is not JSON: {error}") from error
    items = [item.strip() for item in text.split(",") if item.strip()]
    if kind is tuple:
        return items
    pairs = [item.partition("=") for item in items]
    if not all(name and equals for name, equals, _ in pairs):
        raise BadConfig(f"environment: {variable} is no table; write NAME=VALUE,NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _looks_like_ours(variable: str, text: str) -> bool:
    ours = variable.startswith("KDN_") and variable not in _OTHER_VARIABLES
    return ours and _SERVICE_LINK.match(f"{variable}={text}") is None


def _build(kind: type[_Room], room: str, tables: Mapping[str, Mapping[str, Any]]) -> _Room:
    values = {field: _sized(room, field, value) for field, value in tables.get(room, {}).items()}
    try:
        # not strict: the environment has only texts
        return msgspec.convert(values, kind, strict=False, dec_hook=_decode)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise BadConfig(_explained(room, kind, values, str(error))) from error


def _sized(room: str, field: str, value: Any) -> Any:
    """Sizes such as `8 GiB` as numbers; what is no text stays as it is."""
    if isinstance(value, dict) and field == "quotas":
        return {name: _sized(room, "quota_bytes", size) for name, size in value.items()}
    if not field.endswith("_bytes") or not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise BadConfig(f"{room}.{field}: {error}") from error


def _explained(room: str, kind: type[_Room], values: Mapping[str, Any], said: str) -> str:
    """What is wrong with a setting, its name and value first, and what it can be."""
    reason, _, place = said.partition(" - at `$.")
    field = re.split(r"[\[`.]", place)[0]
    if field not in values:
        return f"settings of [{room}]: {said}"
    allowed = get_type_hints(kind)[field]
    choices = get_args(allowed) if get_origin(allowed) is Literal else ()
    wanted = f"it can be {', '.join(choices)}" if choices else reason[:1].lower() + reason[1:]
    shown = "(not shown)" if (room, field) in _SECRETS else repr(values[field])
    return f"{room}.{field} is {shown}; {wanted}"


def _decode(kind: type[Any], value: object) -> object:
    if kind is Path and isinstance(value, str):
        return expanded(value)
    raise ValueError(f"expected a path as text, got {value!r}")


def _fields(room: str) -> tuple[str, ...]:
    return _ROOMS[room].__struct_fields__


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
