"""Options in groups: a command takes a dataclass of options as one parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_origin, get_type_hints

__all__ = ["grouped"]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each keyword parameter that is a dataclass spread into the options of its fields.

    A field is an option where it is annotated as one; others keep their defaults.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters, groups = list[inspect.Parameter](), dict[str, tuple[Any, list[str]]]()
    for one in inspect.signature(command).parameters.values():
        if is_dataclass(hints[one.name]):
            options = _options(hints[one.name])
            groups[one.name] = (hints[one.name], [option.name for option in options])
            parameters += options
        else:
            parameters.append(one.replace(annotation=hints[one.name]))

    def called(*args: Any, **given: Any) -> None:
        made = {
            name: group(**{option: given.pop(option) for option in names if option in given})
            for name, (group, names) in groups.items()
        }
        command(*args, **given, **made)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__module__ = command.__module__
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=one.default,
            annotation=hints[one.name],
        )
        for one in fields(group)
        if get_origin(hints[one.name]) is Annotated
    ]
