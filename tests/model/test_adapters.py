"""Names of adapters move between weights; what a request was bound to never does."""

from __future__ import annotations

import gc

import pytest

from kdn.errors import BadInput, UnknownModel
from kdn.model.adapters import AdapterSet, adapter_name
from kdn.model.lora import LoraAdapter


def adapter(digest: str) -> LoraAdapter:
    return LoraAdapter("qa", digest, 4, {})


def test_a_key_means_what_it_meant() -> None:
    old, new = adapter("1"), adapter("2")
    adapters = AdapterSet({"qa": old})
    key, held = adapters.bind("qa")
    assert (key, held, adapter_name(key)) == ("qa@1", old, "qa")
    adapters.load("qa", new)
    assert adapters["qa"] is new
    assert adapters.bind("qa") == ("qa@2", new)
    assert adapters.bind(key) == (key, old), "a running request goes on with the old weights"
    assert (adapters.known(key).digest, adapters.known("qa").digest) == ("1", "2")
    assert list(adapters) == ["qa"], "keys are not listed"


def test_weights_that_nobody_holds_go_and_their_name_stays_known() -> None:
    adapters = AdapterSet({"qa": adapter("1")})
    key, held = adapters.bind("qa")
    adapters.unload("qa")
    assert ("qa" in adapters, len(adapters)) == (False, 0)
    assert adapters.bind(key)[1] is held
    del held
    gc.collect()
    with pytest.raises(UnknownModel, match="no adapter is called 'qa'; loaded adapters: none"):
        adapters.bind(key)
    assert adapters.known(key).digest == "1", "what KV of it is called does not change"


def test_what_is_not_loaded_is_refused() -> None:
    adapters = AdapterSet({"qa": adapter("1")})
    for call in (adapters.bind, adapters.known, adapters.unload):
        with pytest.raises(UnknownModel, match="no adapter is called 'x'; loaded adapters: qa"):
            call("x")
    for name in ("", "a@b"):
        with pytest.raises(BadInput, match="give a name without @"):
            adapters.load(name, adapter("3"))
