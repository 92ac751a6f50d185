"""Arguments of public verbs are held against their annotations, before anything is done with them.

What takes many (texts, messages, documents, rows) reads its items itself; see `kdn.core.as_many`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from kdn.core import text_of
from kdn.errors import BadInput

__all__ = ["checked", "checked_verbs"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Owner = TypeVar("_Owner")

_WORDS: dict[object, str] = {
    str: "a text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    NoneType: "None",
}


def checked(verb: Callable[_P, _R]) -> Callable[_P, _R]:
    """The verb, which raises BadInput for an argument of another kind than its annotation says.

    Arguments that may hold many things are left to the verb.
    """
    signature = inspect.signature(verb)

    @functools.cache
    def kinds() -> Mapping[str, tuple[object, ...]]:
        hints = get_type_hints(verb)
        found = {name: _kinds(hints[name]) for name in signature.parameters if name in hints}
        return {name: kinds for name, kinds in found.items() if kinds}

    @functools.wraps(verb)
    def call(*args: _P.args, **named: _P.kwargs) -> _R:
        try:
            given = signature.bind(*args, **named).arguments
        except TypeError:
            return verb(*args, **named)  # which says what is missing, or is too much
        for name, allowed in kinds().items():
            if name not in given:
                continue
            if isinstance(given[name], str):
                text_of(given[name], name)
            if not any(_fits(given[name], kind) for kind in allowed):
                wanted = " or ".join(map(_words, allowed))
                raise BadInput(f"{name} is {_shown(given[name])}; it must be {wanted}")
        return verb(*args, **named)

    return call


def checked_verbs(owner: type[_Owner]) -> type[_Owner]:
    """The class, each public method of it `checked`."""
    for name, verb in list(vars(owner).items()):
        if inspect.isfunction(verb) and not name.startswith("_"):
            setattr(owner, name, checked(verb))
    return owner


def _kinds(hint: object) -> tuple[object, ...]:
    """What the annotation allows; nothing where it allows many items."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds(one) for one in get_args(hint)]
        return tuple(kind for part in parts for kind in part) if all(parts) else ()
    if hint is None or get_origin(hint) is Literal or get_origin(hint) in _CALLABLE:
        return (NoneType if hint is None else hint,)
    return (hint,) if isinstance(hint, type) and get_origin(hint) is None else ()


_CALLABLE = (Callable, get_origin(Callable[[], None]))


def _fits(given: Any, kind: object) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(given, str) and given in get_args(kind)
    if get_origin(kind) in _CALLABLE:
        return callable(given)
    assert isinstance(kind, type), "only such kinds are made"
    if kind in (int, float):
        is_number = isinstance(given, Integral if kind is int else Real)
        return is_number and not isinstance(given, bool) and not _is_huge(given)
    if _is_protocol(kind):
        can = (callable(getattr(given, name, None)) for name in _methods(kind))
        return not isinstance(given, type) and all(can)
    return isinstance(given, kind)


def _is_protocol(kind: object) -> bool:
    return bool(getattr(kind, "_is_protocol", False))


def _methods(protocol: type) -> list[str]:
    """What an object of the protocol can be asked to do."""
    declared = [name for one in protocol.__mro__ if _is_protocol(one) for name in vars(one)]
    return [name for name in declared if name[0] != "_" and callable(getattr(protocol, name))]


def _is_huge(number: Any) -> bool:
    """Of more digits than a float or a message takes."""
    return isinstance(number, Integral) and abs(int(number)) >= 1 << 128


def _words(kind: object) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) in _CALLABLE:
        return "a function"
    if isinstance(kind, type) and _is_protocol(kind):
        return f"an object with {' and '.join(f'{name}()' for name in _methods(kind))}"
    return _WORDS.get(kind, f"a kdn.{getattr(kind, '__name__', kind)}")


def _shown(given: object) -> str:
    if given is None or isinstance(given, bool | float):
        return repr(given)
    if isinstance(given, int):
        return "a number of more than 128 bits" if _is_huge(given) else str(given)
    if isinstance(given, str):
        return repr(given if len(given) < 40 else given[:40] + "...")
    return f"a {type(given).__name__}"
