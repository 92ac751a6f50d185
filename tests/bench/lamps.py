"""Twelve articles of a paragraph each, in SQuAD's form; nothing of HotpotQA."""

from __future__ import annotations

import json
from pathlib import Path


def write_lamps(folder: Path) -> Path:
    """The folder, with `squad` and `hotpotqa` in it."""
    for name in ("squad", "hotpotqa"):
        (folder / name).mkdir(parents=True)
    articles = []
    for number in range(12):
        text = f"The lamp of gate {number} is lit at {number}. " * 6
        asked = {"question": "When is it lit?", "answers": [{"text": str(number)}]}
        articles.append({"paragraphs": [{"context": text, "qas": [asked]}]})
    (folder / "squad" / "public.jsonl").write_text("\n".join(map(json.dumps, articles)))
    (folder / "hotpotqa" / "public.jsonl").write_text("")
    return folder
