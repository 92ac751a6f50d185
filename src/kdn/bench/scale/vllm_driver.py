"""A vLLM that is told what to do in lines of JSON, in the environment where vLLM lives.

python -m kdn.bench.scale.vllm_driver '{"model": ..., "kv_transfer_config": ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

__all__: list[str] = []

_WRITE_BEHIND_S = 0.3
"""How long a store in another process gets to write: it cannot be asked."""


class _Engine:
    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(**options)

    def ask(
        self, prompt: list[int], salt: str | None, params: dict[str, Any] | None
    ) -> dict[str, Any]:
        """One token: how long it took, what of the prompt was not computed, and which token it is."""
        from vllm import SamplingParams, TokensPrompt

        extra = None if params is None else {"kv_transfer_params": params}
        sampling = SamplingParams(max_tokens=1, temperature=0, extra_args=extra)
        salted: Any = {} if salt is None else {"cache_salt": salt}
        given = TokensPrompt(prompt_token_ids=prompt, **salted)
        started = time.perf_counter()
        (output,) = self._llm.generate([given], sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        token = int(output.outputs[0].token_ids[0])
        return {"seconds": seconds, "cached": int(output.num_cached_tokens or 0), "token": token}

    def settle(self) -> dict[str, Any]:
        """Have everything stored, and vLLM's own cache emptied."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

        if has_kv_transfer_group():
            transfers = getattr(get_kv_transfer_group(), "transfers", None)
            if transfers is not None:
                transfers.flush(60)
        else:
            time.sleep(_WRITE_BEHIND_S)
        for _ in range(100):  # blocks that a store still reads are not free yet
            if self._llm.reset_prefix_cache():
                return {"reset": True}
            time.sleep(0.02)
        return {"reset": False}


def main() -> None:
    """Answer until there is nothing more to do."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM prints where replies would go

    def say(told: dict[str, Any]) -> None:
        replies.write(json.dumps(told) + "\n")

    try:
        engine = _Engine(json.loads(sys.argv[1]))
    except Exception as error:  # noqa: BLE001  the benchmark says why an arm is absent
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ready": "vllm"})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            say(getattr(engine, asked.pop("op"))(**asked))
        except Exception as error:  # noqa: BLE001
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
