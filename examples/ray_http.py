"""Ray's own batches against a server of kdn: `ray.data.llm` sends each row as one request.

    kdn serve --port 8000
    python examples/ray_http.py http://127.0.0.1:8000 "What is a ferry?" "What is a harbour?"

Every row shares the system message, whose KV the server computes once.  `kdn batch` runs the engines inside
Ray instead; this way the servers stay where they are, also behind `kdn router`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor

SYSTEM = "You answer in one short sentence."


def ask(row: dict[str, Any]) -> dict[str, Any]:
    """The request of a row."""
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": row["question"]},
    ]
    return {
        "question": row["question"],
        "payload": {"messages": messages, "max_tokens": 32, "temperature": 0},
    }


def read(row: dict[str, Any]) -> dict[str, Any]:
    """The answer of a row, and how much of its prompt was not computed."""
    answer = row["http_response"]
    return {
        "question": row["question"],
        "answer": answer["choices"][0]["message"]["content"],
        "cached_tokens": answer["usage"]["prompt_tokens_details"]["cached_tokens"],
    }


def main(server: str, questions: list[str]) -> None:
    """Print a JSON line for each question."""
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", num_cpus=4)
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = HttpRequestProcessorConfig(
        url=f"{server}/v1/chat/completions",
        headers={"Content-Type": "application/json"},
        concurrency=1,
        batch_size=16,
        max_retries=3,
    )
    processor = build_processor(config, preprocess=ask, postprocess=read)
    rows = ray.data.from_items([{"question": question} for question in questions])
    for row in processor(rows).take_all():
        print(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
