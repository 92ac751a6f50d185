"""Which token broke the prefix: a date in the system prompt.

python examples/why.py
"""

import os

import kdn


def conversation(day: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": f"Today is {day}. Answer briefly and cite your source."},
        {"role": "user", "content": "How high do falcons nest?"},
    ]


with kdn.open(os.environ.get("EXAMPLE_MODEL", "smollm2-135m")) as k:
    k.generate(conversation("2026-11-27"), max_tokens=4)
    k.store.flush()
    found = k.parts.why.foresee(k.prompts.request(conversation("2026-11-28")))
    print(found.reason, found.sentence, sep="\n")
    print(f"stored: {found.stored_text[:40]!r}\nhere:   {found.text[:40]!r}")
