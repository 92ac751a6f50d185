"""Parameters that other servers know: which are harmless here, and which must be refused.

A parameter that would change the answer is never silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from kdn.serve.errors import Refused

__all__ = ["refuse_unsupported"]

HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",  # means something only with tools, which are refused
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
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "audio": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "detokenize": (True,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
"""Known but without support here, with the values that ask for nothing (null always does)."""


def refuse_unsupported(extra: Mapping[str, object] | None) -> None:
    """Raise Refused for the first parameter that kdn cannot honour."""
    for name, value in (extra or {}).items():
        if name in HARMLESS or (name in NEUTRAL and (value is None or value in NEUTRAL[name])):
            continue
        known = (
            f"{name} is not supported by kdn" if name in NEUTRAL else f"unknown parameter {name}"
        )
        raise Refused(f"{known}; leave it out", param=name, code="unsupported_parameter")
