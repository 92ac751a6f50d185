"""Documents that were computed in one order, reused in another.

python examples/blend.py
"""

import os

import kdn

ONE = "The peregrine falcon dives at 389 kilometres per hour. " * 6
TWO = "The house style is three spaces a level. " * 6
with kdn.open(os.environ.get("EXAMPLE_MODEL", "smollm2-135m")) as k:
    k.prefill(ONE)
    k.prefill(TWO)
    k.store.flush()
    answer = k.generate("How fast is it?", [TWO, ONE], max_tokens=8, reuse="blend", ratio=0.15)
    usage = answer.usage
    print(answer)
    print(f"exact {usage.exact}, blended {usage.blended}, computed {usage.recomputed}")
