"""A model's adapters, which come and go while requests run.

    name ("qa")  ─>  the weights that new requests get           changes when another folder is loaded
    key ("qa@3f…")  ─>  the weights that a request began with    never means other weights

A request is bound to a key when it begins; whatever names KV is made of keys.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from weakref import WeakValueDictionary

from kdn.errors import BadInput, UnknownModel
from kdn.model.lora import LoraAdapter

__all__ = ["AdapterSet", "adapter_name"]

_AT = "@"


def adapter_name(key: str) -> str:
    """The name that a key, or the name itself, was loaded under."""
    return key.partition(_AT)[0]


class AdapterSet(Mapping[str, LoraAdapter]):
    """Adapters by name. Safe from several threads; iterating goes over the names as they were."""

    def __init__(self, adapters: Mapping[str, LoraAdapter] | None = None) -> None:
        """Raises BadInput for a name that holds `@`."""
        self._lock = threading.Lock()
        self._named: dict[str, LoraAdapter] = {}
        self._weights: WeakValueDictionary[str, LoraAdapter] = WeakValueDictionary()
        """By key: those of names, and those that a running request still holds."""
        self._known: dict[str, LoraAdapter] = {}
        """By key, without weights: what a key meant once it means for ever."""
        for name, adapter in (adapters or {}).items():
            self.load(name, adapter)

    def __getitem__(self, name: str) -> LoraAdapter:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def load(self, name: str, adapter: LoraAdapter) -> None:
        """Give a name to weights: requests that begin from now on get them. Raises BadInput."""
        if _AT in name or not name:
            raise BadInput(f"an adapter cannot be called {name!r}; give a name without {_AT}")
        key = f"{name}{_AT}{adapter.digest}"
        with self._lock:
            self._known.setdefault(key, replace(adapter, pairs={}))
            self._weights[key] = adapter
            self._named = {**self._named, name: adapter}

    def unload(self, name: str) -> None:
        """Take a name away; requests that began with it end with it. Raises UnknownModel."""
        with self._lock:
            self._refuse_unknown(name)
            self._named = {one: what for one, what in self._named.items() if one != name}

    def bind(self, name: str) -> tuple[str, LoraAdapter]:
        """The key of a name, or a key itself, with its weights, which live as long as they are held.

        Raises UnknownModel for a name that is not loaded, and for a key whose weights are gone.
        """
        with self._lock:
            adapter = self._weights.get(name)
            if adapter is not None:
                return name, adapter
            self._refuse_unknown(name)
            adapter = self._named[name]
            return f"{name}{_AT}{adapter.digest}", adapter

    def known(self, name: str) -> LoraAdapter:
        """What a name means now, or what a key has always meant; perhaps without its weights.

        Raises UnknownModel.
        """
        with self._lock:
            found = self._known.get(name)
            if found is None:
                self._refuse_unknown(name)
                found = self._named[name]
            return found

    def _refuse_unknown(self, name: str) -> None:
        if name not in self._named:
            there = ", ".join(sorted(self._named)) or "none"
            raise UnknownModel(
                f"no adapter is called {adapter_name(name)!r}; loaded adapters: {there}"
            )
