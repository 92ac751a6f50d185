"""llama.cpp as a contestant, through llama-cpp-python: the weights as the GGUF file has them."""

from __future__ import annotations

import argparse
import time

from worker import serve, take_stdout


class LlamaCpp:
    """One sequence at a time: the Python binding's high-level class has no batches."""

    def __init__(self, model: str, *, threads: int) -> None:
        import llama_cpp

        self.name = f"llama-cpp-python {llama_cpp.__version__}"
        self._llama = llama_cpp.Llama(
            model,
            n_ctx=8192,
            n_batch=2048,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def first_token(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._llama.reset()
        self._next(prompt)
        return time.perf_counter() - started

    def decode(self, prompts: list[list[int]], num_tokens: int) -> list[list[float]] | None:
        if len(prompts) > 1:
            return None
        self._llama.reset()
        tokens, times = prompts[0], []
        for _ in range(num_tokens):
            tokens = [self._next(tokens)]
            times.append(time.perf_counter())
        return [times]

    def label(
        self, prompts: list[list[int]], allowed: list[int]
    ) -> tuple[float, list[list[float]]]:
        raise NotImplementedError("labelling is not measured with llama.cpp")

    def hit(self, prefix: list[int], prompt: list[int]) -> float:
        """The prefix is what the sequence already holds; the rest is evaluated after it."""
        self._llama.reset()
        self._next(prefix)
        started = time.perf_counter()
        self._next(prompt[len(prefix) :])
        return time.perf_counter() - started

    def _next(self, tokens: list[int]) -> int:
        self._llama.eval(tokens)
        return int(self._llama.sample(temp=0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    answers = take_stdout()
    serve(LlamaCpp(options.model, threads=options.threads), answers)


if __name__ == "__main__":
    main()
