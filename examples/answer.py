"""Answers from documents, and where they stand.

python examples/answer.py FOLDER "question"
"""

import os
import sys

import kdn

folder, question = sys.argv[1:3]
with kdn.open(os.environ.get("EXAMPLE_MODEL", "smollm2-135m")) as k:
    k.ingest(folder)
    answer = k.ask(question, max_tokens=32, always=True)
    print(answer)
    for source in answer.sources:
        print(f"- {source.title}: {source.text[:60]}")
    print(
        f"{answer.usage.cached_tokens} of {answer.usage.prompt_tokens} tokens came from the store"
    )
