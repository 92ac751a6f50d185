"""Parameters of OpenAI's and vLLM's requests that change nothing here, or that kdn cannot honour."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["HARMLESS", "NEUTRAL"]

HARMLESS = frozenset(
    {
        "metadata",
        "prediction",  # a hint for speed
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",  # of OpenAI's own dashboard
        "user",
    }
)
"""Labels and hints: the answer is the same without them."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "add_special_tokens": (False,),
    "audio": (),
    "chat_template": (),
    "detokenize": (True,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "return_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
"""Known but without support here, with the values that ask for nothing (null always does)."""
