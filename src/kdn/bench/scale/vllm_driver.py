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


class _Engine:
    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(**options)

    def ask(self, prompt: list[int]) -> dict[str, Any]:
        """One token: how long it took, what of the prompt was not computed, and which token it is."""
        from vllm import SamplingParams, TokensPrompt

        sampling = SamplingParams(max_tokens=1, temperature=0)
        started = time.perf_counter()
        (output,) = self._llm.generate(
            [TokensPrompt(prompt_token_ids=prompt)], sampling, use_tqdm=False
        )
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
        return {"reset": bool(self._llm.reset_prefix_cache())}


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
