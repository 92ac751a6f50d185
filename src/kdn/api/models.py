"""Several models in one process, over one store and one budget of memory: `kdn.open_models(...)`.

with kdn.open_models({"plan": "models/planner", "work": "models/worker"}) as models:
    print(models["work"].generate("What is left to do?").text)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from kdn.api.build import join, make_common, settings_of
from kdn.api.checked import checked
from kdn.api.common import Common
from kdn.api.kdn import Kdn
from kdn.api.load import load, prepared
from kdn.api.store import open_configured_store
from kdn.clock import Clock, SystemClock
from kdn.config import Config
from kdn.core import paths_of, text_of
from kdn.errors import BadInput
from kdn.model import LoadedModel, name_of_model
from kdn.rank import adapter_folders, layout_adapters
from kdn.store import Store
from kdn.trace import Recorder, Trace

__all__ = ["OpenModels", "open_models"]


class OpenModels(Mapping[str, Kdn]):
    """Open models by name. Each is a `Kdn` of its own; closing this closes them all."""

    def __init__(self, models: Mapping[str, Kdn], common: Common) -> None:
        self._models = dict(models)
        self._common = common

    @property
    def store(self) -> Store:
        """The one store, where siblings find what one of them has read."""
        return self._common.store

    @property
    def first(self) -> Kdn:
        """The model that answers where none is named."""
        return next(iter(self._models.values()))

    def __getitem__(self, name: str) -> Kdn:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def close(self) -> None:
        """Close every model, then the store."""
        with ExitStack() as stack:
            stack.callback(self._common.close)
            for model in self._models.values():
                stack.callback(model.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@checked
def open_models(
    models: Mapping[str, str | Path] | Sequence[str | Path],
    *,
    home: Path | str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantization: str = "none",
    adapters: Mapping[str, Mapping[str, Path | str]] | None = None,
    config: Config | None = None,
    clock: Clock | None = None,
    trace: Trace | None = None,
) -> OpenModels:
    """Open models over one store, ready to answer; the first one answers where none is named.

    `models` are names or paths as `kdn.open` takes them, perhaps under names of the caller's choice.
    Equal weights are in memory once.  `engine.kv_budget_bytes` is for the KV of all of them together,
    and the store's limits hold once.  `adapters` are given by model.  Raises KdnError, BadInput for two
    models, or a model and an adapter, of one name.
    """
    config = settings_of(home, config)
    named = _named(models)
    by_model = _adapters_of(adapters)
    _refuse_equal_names(named, by_model)
    clock, trace = clock or SystemClock(), trace or Recorder()
    finders = prepared(list(named.values()), config, trace)
    known: list[LoadedModel] = []
    loaded, rerankers = {}, dict[str, list[str]]()
    for name, model in named.items():
        own = layout_adapters(model)
        chosen = own | by_model.get(name, {})
        rerankers[name] = [one for one, path in own.items() if chosen[one] == path]
        found = load(
            model,
            config,
            clock,
            finders,
            device=device,
            dtype=dtype,
            quantization=quantization,
            adapters=chosen,
            known=known,
        )
        loaded[name] = found
        known.append(found[0])
    store = open_configured_store(config, clock, trace)
    with ExitStack() as failing:
        failing.callback(store.close)
        common = make_common(store, config, clock, len(named))
        if common.recorder is not None:
            failing.callback(common.recorder.close)
        opened: dict[str, Kdn] = {}
        for name, (model_, attention) in loaded.items():
            parts = join(
                model_, attention, common, config, clock, trace, rerankers[name], name=name
            )
            opened[name] = Kdn(parts)
            failing.callback(opened[name].close)
        failing.pop_all()
    return OpenModels(opened, common)


def _named(models: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, str | Path]:
    """The models by the names that callers know them by."""
    if isinstance(models, Mapping):
        paths_of(models.values(), "models")
        named = {text_of(name, "the name of a model"): path for name, path in models.items()}
    elif isinstance(models, str):
        raise BadInput(f"models is the text {models!r}; give a list of names or paths")
    else:
        pairs = [(name_of_model(model), model) for model in paths_of(models, "models")]
        named = dict(pairs)
        if len(named) < len(pairs):
            twice = next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)
            raise BadInput(f"two models are called {twice!r}; give one another name: NAME=PATH")
    if not named:
        raise BadInput("no model was given; give at least one")
    return named


def _adapters_of(given: object) -> dict[str, dict[str, Path]]:
    """The folders of adapters by name, by model."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise BadInput(
            f"adapters is a {type(given).__name__}; it must map models to their adapters"
        )
    return {model: adapter_folders(own) for model, own in given.items()}


def _refuse_equal_names(
    named: Mapping[str, object], adapters: Mapping[str, Mapping[str, Path | str]]
) -> None:
    strange = [model for model in adapters if model not in named]
    if strange:
        raise BadInput(
            f"adapters are given for {strange[0]!r}, which is not opened; name one of {', '.join(named)}"
        )
    seen = set(named)
    for own in adapters.values():
        for name in own:
            if name in seen:
                raise BadInput(f"{name!r} names two models or adapters; requests choose by name")
            seen.add(name)
