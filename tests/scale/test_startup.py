"""What a connector says at its start about its store."""

from __future__ import annotations

from pathlib import Path

from kdn.core import Fingerprint
from kdn.scale.counts import TransferCounts
from kdn.scale.planner import SaveTask
from kdn.scale.settings import SharedStores, read_settings
from kdn.scale.startup import startup_warnings
from kdn.scale.transfers import Transfers
from kdn.store import Store, open_store
from tests.scale.engine import PRINT, paged

TOKENS = tuple(range(256))


def fill(store: Store) -> None:
    """One block, as an engine with the fingerprint PRINT saves it."""
    transfers = Transfers(store, paged(), lambda *_: PRINT, TransferCounts())
    transfers.save(SaveTask(None, "", TOKENS, 0, (0, 1)))
    assert transfers.flush(60)
    transfers.close()


def test_a_store_of_another_model_is_told_of_and_ours_is_not(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert list(startup_warnings(store, {}, [PRINT])) == [], "an empty store is nothing to tell"
        fill(store)
        assert list(startup_warnings(store, {}, [Fingerprint("other"), PRINT])) == []
        (sentence,) = startup_warnings(store, {}, [Fingerprint("other")])
    assert "1 block of 1 other models or engines and none of this model" in sentence


def test_a_wrong_address_is_told_of_with_its_reason() -> None:
    stores = SharedStores()
    store = stores.enter(
        read_settings({"redis_url": "redis://127.0.0.1:9/0", "peer_url": "http://127.0.0.1:9"})
    )
    try:
        found = list(startup_warnings(store, stores.failures(store), [PRINT]))
    finally:
        stores.leave(store)
    assert len(found) == 2
    assert {sentence.split()[2] for sentence in found} == {"redis", "peer"}
    assert all("check its address and its key" in sentence for sentence in found)
