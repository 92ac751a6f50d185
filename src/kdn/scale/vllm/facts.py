"""Whose KV a request of vLLM would use: its salt, its adapter, and what its client asks for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kdn.errors import KdnError
from kdn.scale.identity import HANDED, Adapters, salt_of
from kdn.scale.planner import PromptFacts

__all__ = ["RequestReader"]

logger = logging.getLogger("vllm.kdn")

HINTS = {"kdn_salt", "kdn_load", "kdn_save", "kdn_handoff"}
"""What `kv_transfer_params` may hold for kdn."""


class RequestReader:
    """Reads vLLM's requests. What makes a request's KV impossible to name is a warning, and None."""

    def __init__(self, *, save: bool, takes_handed: bool) -> None:
        """`save` False stores nothing; `takes_handed` False computes KV that was handed over."""
        self._save, self.takes_handed = save, takes_handed
        self._adapters = Adapters()

    def facts(self, request: Any) -> PromptFacts | None:
        """Whose KV the request would use, or None when its KV has no name that others could find."""
        if request.mm_features or request.prompt_embeds is not None:
            return None
        params = request.kv_transfer_params or {}
        unknown = {name for name in params if name.startswith("kdn_")} - HINTS
        if unknown:
            logger.warning("kdn: kv_transfer_params may hold %s, not %s", sorted(HINTS), unknown)
        adapter = None
        if request.lora_request is not None:
            adapter = self._adapter(request.lora_request)
            if adapter is None:
                return None
        if params.get("kdn_handoff"):
            return self._handed(request, adapter)
        kdn_salt = params.get("kdn_salt")
        if not isinstance(kdn_salt, str | None):  # an error here would end vLLM's engine
            logger.warning(
                "kdn: the kdn_salt of request %s is a %s, no text: its KV is neither stored nor loaded",
                request.request_id,
                type(kdn_salt).__name__,
            )
            return None
        return PromptFacts(
            request.request_id,
            request.num_prompt_tokens,
            salt=salt_of(request.cache_salt, kdn_salt),
            adapter=adapter,
            load=bool(params.get("kdn_load", True)) and not request.skip_reading_prefix_cache,
            save=bool(params.get("kdn_save", True)) and self._save,
        )

    def _handed(self, request: Any, adapter: str | None) -> PromptFacts | None:
        """Those of a request whose KV kdn's engine made for it; None when it could reach another one."""
        if not self.takes_handed or adapter is not None or not request.cache_salt:
            logger.warning(
                "kdn: request %s names KV that was handed over; that needs a cache_salt of its own (else"
                " vLLM's cache would give it to others), no adapter, one worker, and the weights that vLLM"
                " began with: it is computed",
                request.request_id,
            )
            return None
        return PromptFacts(
            request.request_id,
            request.num_prompt_tokens,
            salt=request.cache_salt,
            save=False,
            recipe=HANDED,
        )

    def _adapter(self, lora: Any) -> str | None:
        """The adapter's digest; None where its files say nothing of the weights that are loaded."""
        try:
            found = self._adapters.digest(
                lora.lora_int_id, Path(lora.lora_path), reloaded=lora.load_inplace
            )
        except (KdnError, OSError) as error:
            logger.warning("kdn: the adapter %s cannot be read: %s", lora.lora_name, error)
            return None
        if found is None:
            logger.warning(
                "kdn: the weights of adapter %s are not (or no more) those in %s; its KV is neither"
                " stored nor loaded. Give a folder with the files, and reload it after training.",
                lora.lora_name,
                lora.lora_path,
            )
        return found
