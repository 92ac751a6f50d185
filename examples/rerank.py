"""Passages ordered by a query. The second query computes no passage again.

python examples/rerank.py
"""

import os

import kdn

PASSAGES = [
    "The lock of the red door opens with the brass key.",
    "The boat leaves the harbour at nine.",
    "Bread is baked on Mondays.",
]
with kdn.open(os.environ.get("EXAMPLE_MODEL", "smollm2-135m")) as k:
    for query in ("How is the lock opened?", "When does the boat leave?"):
        for one in k.rerank(query, PASSAGES, top_n=2):
            print(f"{one.score:.2f} {PASSAGES[one.index]}")
