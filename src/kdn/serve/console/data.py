"""What the console shows, read from an open model. All of it may wait for the store."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kdn.api import Kdn
from kdn.clock import Clock
from kdn.core import BlockKey
from kdn.cost import load_sheet, load_speed, use_saving
from kdn.engine import kv_shape
from kdn.errors import BadInput
from kdn.serve.console.texts import StoredText, TextRow, stored_texts, text_rows
from kdn.serve.metrics import RecentRequests, RequestRecord
from kdn.store import Store
from kdn.store.admin.manage import Done, copy, forget, move_each, warm

__all__ = ["ACTIONS", "ConsoleData"]

ACTIONS = ("pin", "unpin", "warm", "copy", "move", "clear")
_ELSEWHERE = ("copy", "move")
"""The actions that name a tier."""
SORTS = ("tokens", "size_bytes", "age_s", "uses", "saved_usd", "value_usd", "start")


class ConsoleData:
    """The numbers and the acts of open models over one store. Safe from several threads."""

    def __init__(
        self, kdn: Kdn, recent: RecentRequests, clock: Clock, *, others: Sequence[Kdn] = ()
    ) -> None:
        self._kdn = kdn
        self._all = {one.name: one for one in (kdn, *others)}
        self._recent = recent
        self._clock = clock
        self._began_s = clock.now()
        self._lock = threading.Lock()
        self._cursor = ""
        self._texts: list[StoredText] = []

    def overview(self) -> dict[str, Any]:
        """One look at everything: tiers, counts, load, quality, money."""
        kdn = self._kdn
        stat, ledger = kdn.store.stat(), kdn.cost.ledger()
        engines = [one.engine.stat() for one in self._all.values()]
        supplied = self._supplied()
        return {
            "model": ", ".join(self._all),
            "adapters": sorted(name for one in self._all.values() for name in one.model.adapters),
            "uptime_s": round(self._clock.now() - self._began_s, 1),
            "may_act": True,
            "tiers": [
                {
                    "name": name,
                    "blocks": usage.blocks,
                    "tokens": usage.tokens,
                    "size_bytes": usage.size_bytes,
                    "capacity_bytes": usage.capacity_bytes,
                    "evicted": usage.evicted,
                    "bytes_per_s": stat.bytes_per_s.get(name),
                    "errors": stat.errors.get(name, 0),
                    "is_open": name not in stat.open_circuits,
                    "outlives_process": kdn.store.tiers.named(name).outlives_process,
                    "supplied_tokens": supplied.get(name, 0),
                }
                for name, usage in stat.tiers.items()
            ],
            "counts": {
                "lookups": stat.lookups,
                "hits": stat.hits,
                "misses": stat.misses,
                "corrupt": stat.corrupt,
                "evicted": stat.evicted,
                "written": stat.puts,
            },
            "engine": {
                "waiting": sum(one.num_waiting for one in engines),
                "prefilling": sum(one.num_prefilling for one in engines),
                "decoding": sum(one.num_decoding for one in engines),
                "kv_total_bytes": engines[0].kv_total_bytes,
                "kv_free_bytes": engines[0].kv_free_bytes,
            },
            "guard": [
                {"collection": f"{salt}: {name}" if salt else name or "(none)"} | asdict(seen)
                for (salt, name), seen in kdn.parts.guard.all_stats().items()
            ],
            "money": {"saved_usd": ledger.saved.value, "spent_usd": ledger.spent.value},
            "time_model": {
                "source": kdn.calibration.jct.source,
                "error": kdn.calibration.jct.error,
            },
        }

    def _supplied(self) -> dict[str, int]:
        """Tokens that each tier gave to the requests that are remembered."""
        found: dict[str, int] = {}
        for record in self._recent.all():
            if record.finish is not None:
                for tier, tokens in record.finish.usage.tiers.items():
                    found[tier] = found.get(tier, 0) + tokens
        return found

    def predicted_ms(self, record: RequestRecord) -> float | None:
        """What the time model says of a request's prompt, as it was reused; None while it runs."""
        if record.finish is None:
            return None
        usage = record.finish.usage
        kdn = self._all.get(record.model, self._kdn)
        seconds = kdn.calibration.jct.seconds(usage.recomputed, usage.cached_tokens)
        return round(1e3 * seconds, 3)

    def rows(self, wanted: str = "", sort: str = "size_bytes") -> list[TextRow]:
        """Every stored text that has `wanted` in its title, model, tenant or tier; largest first.

        Raises BadInput for an order that there is none of.
        """
        if sort not in SORTS:
            raise BadInput(f"texts are sorted by one of {', '.join(SORTS)}, not {sort!r}")
        kdn, settings = self._kdn, self._kdn.config.cost
        shows = kdn.config.store.key_file is None
        rows = text_rows(
            self._current(),
            lives={tier.name: tier.lives_by_key() for tier in kdn.store.tiers},
            where=kdn.store.tiers.where,
            pinned=kdn.store.tenancy.persistent_pins.all(),
            saving=use_saving(load_speed(settings.speed), load_sheet(settings.prices)),
            token_bytes=kv_shape(self._kdn.model).token_bytes,
            decode=kdn.model.tokenizer.decode if shows else None,
            model_name=self._model_name,
        )
        wanted = wanted.lower()
        found = [row for row in rows if not wanted or wanted in _searched(row)]
        found.sort(key=lambda row: getattr(row, sort), reverse=True)
        return found

    def act(self, action: str, ids: list[str], to: str = "") -> dict[str, int]:
        """Do something with the texts of these ids. Raises BadInput for what is not there.

        `missing` counts blocks that were gone, and texts of which nothing was found.
        """
        if action not in ACTIONS:
            raise BadInput(f"the console can {', '.join(ACTIONS)}, not {action!r}")
        if to and action not in _ELSEWHERE:
            raise BadInput(
                f"to names the tier {to!r}, and {action} goes to none; leave it out, or "
                f"{' or '.join(_ELSEWHERE)}"
            )
        wanted = set(ids)
        texts = [text for text in self._current() if text.head.key in wanted]
        if not texts:
            raise BadInput("none of these texts is stored any more; look again")
        done = self._done(action, [block.key for text in texts for block in text.blocks], to)
        return {"blocks": done.blocks, "missing": done.missing + len(wanted) - len(texts)}

    def _done(self, action: str, keys: list[BlockKey], to: str) -> Done:
        store = self._kdn.store
        pins = store.tenancy.persistent_pins
        if action == "pin":
            pins.pin(keys, None)
        elif action == "unpin":
            return Done(pins.unpin(keys))
        elif action == "warm":
            return warm(store, keys)
        elif action == "clear":
            return forget(store, keys)
        elif action == "copy":
            return copy(store, keys, to)
        elif action == "move":
            return _move(store, keys, to)
        return Done(len(keys))

    def _current(self) -> list[StoredText]:
        """The texts as they are now, put together again only where blocks came or went."""
        with self._lock:
            index = self._kdn.store.index
            pages = index.pages(self._cursor)
            if pages.whole or pages.added or pages.removed:
                self._texts = stored_texts(index.entries())
            self._cursor = pages.cursor
            return self._texts

    def _model_name(self, fingerprint: str) -> str:
        """The name of a model that is open here; the beginning of the fingerprint of another one."""
        names = {
            kdn.model.fingerprints.of(name): name or kdn.name
            for kdn in self._all.values()
            for name in (None, *kdn.model.adapters)
        }
        return next((name for own, name in names.items() if own == fingerprint), fingerprint[:8])


def _move(store: Store, keys: list[BlockKey], to: str) -> Done:
    """Each block from the fastest other tier that holds it; one that is in `to` alone stays there."""
    target = store.tiers.named(to).name
    missing, places = 0, list[tuple[BlockKey, str]]()
    for key in keys:
        held = store.tiers.where(key)
        missing += not held
        places += [(key, name) for name in held if name != target][:1]
    done = move_each(store, places, target)
    return Done(done.blocks, missing=missing + done.missing)


def _searched(row: TextRow) -> str:
    return " ".join((row.title, row.model, row.tenant, row.kind, *row.tiers)).lower()
