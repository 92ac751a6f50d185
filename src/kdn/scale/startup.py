"""What an operator should hear when a connector starts: one sentence for each thing that will cost hits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kdn.core import Fingerprint
from kdn.errors import BadConfig
from kdn.machine.files import expanded
from kdn.machine.text import counted
from kdn.scale.identity import adapter_files
from kdn.store import Store

__all__ = ["check_adapters", "startup_warnings"]


def startup_warnings(
    store: Store, failures: Mapping[str, str], fingerprints: Sequence[Fingerprint]
) -> Iterator[str]:
    """Tiers that do not answer (`failures`), and a store with nothing of this model as this engine runs it.

    Neither stops the engine: a tier may come back, and a store is filled by use.
    """
    for tier, reason in failures.items():
        yield (
            f"the tier {tier} does not answer ({reason}); it is asked again, and what it holds is"
            " computed meanwhile: check its address and its key"
        )
    store.index.refresh()
    entries = store.index.entries()
    if entries and not any(entry.family.fingerprint in fingerprints for entry in entries):
        models = len({entry.family.fingerprint for entry in entries})
        yield (
            f"the store holds {counted(len(entries), 'block')} of {models} other models or engines and none"
            " of this model as this engine runs it (weights, dtype, vLLM's version and parallel sizes count):"
            " its first prompts are computed; if it should have hit, compare these with the engine"
            " that filled the store"
        )


def check_adapters(given: Sequence[str]) -> dict[str, Path]:
    """LoRA adapters as NAME=FOLDER. Raises BadConfig for one without files, whose KV would have no name."""
    found = dict[str, Path]()
    for one in given:
        name, equals, folder = one.partition("=")
        if not (name and equals and folder):
            raise BadConfig(f"the adapter {one!r}: write NAME=FOLDER")
        path = expanded(folder)
        if not adapter_files(path):
            raise BadConfig(
                f"the adapter {name} has no weights in {path}, so its KV could be neither stored nor"
                " loaded; give the folder with adapter_model.safetensors"
            )
        found[name] = path
    return found
