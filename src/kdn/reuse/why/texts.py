"""What two texts that part say about why they part. Judges text alone, and knows no store.

Each judge answers for one reason and says no when in doubt; the order of `judge` is from the most
particular reason to the most general one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kdn.core import Role
from kdn.reuse.why.reasons import MissReason

__all__ = ["Parting", "judge"]

_THOUGHTS = re.compile(
    r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)\s*"
    r"|\[THINK\].*?(?:\[/THINK\]|\Z)\s*"
    r"|<\|channel\|>analysis.*?(?:<\|end\|>|\Z)\s*",
    re.DOTALL,
)
_VALUE = re.compile(
    r"\d{4}-\d\d?-\d\d?|\d{1,2}:\d\d|\d{1,2}[./]\d{1,2}[./]\d{2,4}"
    r"|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-|(?<!\w)(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{12,}|\d{9,}"
    r"|(?i:(?<!\w)(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|july"
    r"|august|september|october|november|december)(?!\w))"
)
"""A date, a time of day, a UUID, a long hexadecimal or decimal number, a day or a month."""
_LIKE_ID = re.compile(r"[\w.:#/-]*\d[\w.:#/-]*")
_WORD_END = re.compile(r"[\s\"',;)\]}]|$")
_REALIGNED = 8
"""So many characters that agree again after a word that differs: the text goes on alike."""
_FAR = 160


@dataclass(frozen=True)
class Parting:
    """Two prompts from the place where they part, as text, and what the asked one holds there."""

    before: str
    """What both have, as far back as is of interest: from the segment's beginning."""
    text: str
    stored: str
    role: Role
    documents: Sequence[str] = ()
    """The asked prompt's documents that do not stand at the place."""


@dataclass(frozen=True)
class _Change:
    """The words around the place that differ."""

    own: str
    stored: str


Judge = Callable[[Parting], str | None]
"""A few words about what differs when the reason holds, else None."""


def judge(parting: Parting) -> tuple[MissReason, str]:
    """The likely reason, and what differs in a few words."""
    for reason, judges in _JUDGES:
        detail = judges(parting)
        if detail is not None:
            return reason, detail
    return _OF_ROLE[parting.role], ""


_OF_ROLE = {
    Role.PRELUDE: MissReason.SYSTEM_PROMPT,
    Role.INSTRUCTION: MissReason.SYSTEM_PROMPT,
    Role.DOCUMENT: MissReason.OTHER_DOCUMENT,
    Role.HISTORY: MissReason.HISTORY_CHANGED,
    Role.QUESTION: MissReason.NEW_QUESTION,
}


def _is_thinking(parting: Parting) -> str | None:
    """Without thoughts, do the two agree beyond the place?"""
    own, stored = parting.before + parting.text, parting.before + parting.stored
    place = len(parting.before)
    if not any(_covers(text, place) for text in (own, stored)):
        return None
    bare_own, bare_stored = _THOUGHTS.sub("", own), _THOUGHTS.sub("", stored)
    bare_before = min(len(_THOUGHTS.sub("", own[:place])), len(bare_own), len(bare_stored))
    common = _common(bare_own, bare_stored)
    shortest = min(len(bare_own), len(bare_stored))
    if common < min(bare_before + _REALIGNED, shortest):
        return None
    longer, shorter = ("stored", "own") if len(stored) - len(bare_stored) else ("own", "stored")
    whose = {"stored": "the stored prompt has", "own": "this prompt has"}
    return f"{whose[longer]} thoughts that {'this' if shorter == 'own' else 'the stored'} one lacks"


def _covers(text: str, place: int) -> bool:
    """Does a thought begin or stand at the place? The mark that begins it may itself be cut by it."""
    return any(found.start() - _MARK <= place <= found.end() for found in _THOUGHTS.finditer(text))


_MARK = 2
"""White space that a template puts before a thought."""


def _is_tools_order(parting: Parting) -> str | None:
    own, stored = _tools(parting.before + parting.text), _tools(parting.before + parting.stored)
    if len(own) < 1 or own == stored or Counter(own) != Counter(stored):
        own_whole = _with_keys_sorted(own)
        if not own or own == stored or own_whole != _with_keys_sorted(stored):
            return None
    return f"{len(own)} tools"


def _is_tools_changed(parting: Parting) -> str | None:
    """Does the place lie in the descriptions of tools, and are they others?"""
    own, stored = _tools(parting.before + parting.text), _tools(parting.before + parting.stored)
    if not own or not stored or own == stored:
        return None
    if not _in_tools(parting):
        return None
    names, others = set(map(_name_of, own)), set(map(_name_of, stored))
    differing = sorted((names ^ others) - {""})
    return ", ".join(differing[:3]) if differing else "a description differs"


def _in_tools(parting: Parting) -> bool:
    """Have the tools begun in front of the place, without an end before it?"""
    text, place = parting.before + parting.text, len(parting.before)
    spans = [span for span, _ in _objects(text) if span[0] - _FAR <= place <= span[1] + _FAR]
    return bool(spans) or '"function"' in parting.before[-_FAR:]


def _tools(text: str) -> list[str]:
    """Descriptions of tools in a text, each as the JSON text that stands there."""
    return [text[start:stop] for (start, stop), found in _objects(text) if _describes(found)]


def _objects(text: str) -> list[tuple[tuple[int, int], Any]]:
    """JSON objects in a text that do not stand inside others, with where they stand."""
    decoder, found, at = json.JSONDecoder(), [], text.find("{")
    while at >= 0:
        try:
            value, stop = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            stop = at + 1
        else:
            found.append(((at, stop), value))
        at = text.find("{", stop)
    return found


def _describes(value: Any) -> bool:
    inner = value.get("function", value) if isinstance(value, dict) else None
    return isinstance(inner, dict) and isinstance(inner.get("name"), str) and len(inner) > 1


def _name_of(tool: str) -> str:
    value = json.loads(tool)
    return str(value.get("function", value).get("name", ""))


def _with_keys_sorted(tools: Sequence[str]) -> list[str]:
    return sorted(json.dumps(json.loads(one), sort_keys=True) for one in tools)


def _is_documents_order(parting: Parting) -> str | None:
    """Does the stored prompt go on with another document of this prompt?"""
    stored = parting.before + parting.stored
    for document in parting.documents:
        wanted = document[: max(_FAR, len(parting.before) + _REALIGNED)].rstrip()
        if wanted and stored.startswith(wanted):
            return f"the stored prompt has {_short(document)} here"
    return None


def _is_value(parting: Parting) -> str | None:
    """Is it a date or an id that differs, and does the text go on alike after it?"""
    change, after_own, after_stored = _change(parting)
    if not change.own or not change.stored:
        return None
    strict = _has_value(parting, change)
    loose = parting.role in (Role.INSTRUCTION, Role.PRELUDE) and all(
        _LIKE_ID.fullmatch(word) for word in (change.own, change.stored)
    )
    if not (strict or loose) or not _goes_on_alike(after_own, after_stored):
        return None
    return f"{change.stored} became {change.own}"


def _change(parting: Parting) -> tuple[_Change, str, str]:
    """The differing words whole, and what follows each."""
    start = max(parting.before.rfind(space) for space in " \n\t\"'(") + 1
    head = parting.before[start:]
    own, after_own = _cut_word(parting.text)
    stored, after_stored = _cut_word(parting.stored)
    return _Change(head + own, head + stored), after_own, after_stored


def _cut_word(text: str) -> tuple[str, str]:
    found = _WORD_END.search(text)
    end = found.start() if found else len(text)
    return text[:end], text[end:]


def _has_value(parting: Parting, change: _Change) -> bool:
    """Is each word a date, a time, an id, or a number that belongs to one?"""
    if all(_VALUE.search(word) for word in (change.own, change.stored)):
        return True
    near = parting.before[-24:]
    ends = [near + change.own + " ", near + change.stored + " "]
    numbers = all(re.fullmatch(r"\d{1,4}\W*", word) for word in (change.own, change.stored))
    return numbers and all(_VALUE.search(end) for end in ends)


def _goes_on_alike(own: str, stored: str) -> bool:
    """Do the two agree again, now or after a few more differing words of the same value?"""
    if not own.strip() or not stored.strip():
        return False
    for skip in range(8):
        rest_own, rest_stored = _after_words(own, skip), _after_words(stored, skip)
        wanted = min(_REALIGNED, len(rest_own), len(rest_stored))
        if wanted >= _REALIGNED and _common(rest_own, rest_stored) >= wanted:
            return True
    return False


def _after_words(text: str, count: int) -> str:
    parts = text.lstrip().split(maxsplit=count)
    return parts[count] if len(parts) > count else ""


def _common(left: str, right: str) -> int:
    shortest = min(len(left), len(right))
    return next((at for at in range(shortest) if left[at] != right[at]), shortest)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return f"“{line[:40]}…”" if len(line) > 40 else f"“{line}”"


_JUDGES: tuple[tuple[MissReason, Judge], ...] = (
    (MissReason.THINKING_STRIPPED, _is_thinking),
    (MissReason.TOOLS_ORDER, _is_tools_order),
    (MissReason.DOCUMENTS_ORDER, _is_documents_order),
    (MissReason.CHANGING_VALUE, _is_value),
    (MissReason.TOOLS_CHANGED, _is_tools_changed),
)
