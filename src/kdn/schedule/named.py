"""Every policy by its name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from kdn.core import JctModel
from kdn.schedule.queue import SchedulePolicy
from kdn.schedule.shortest import Costed

__all__ = ["POLICIES", "make_policy"]

_FILES = ("queue", "shortest", "families", "preflow")
"""The files of this room that define policies: a new one is a file, and its name here."""


def _defined() -> Iterator[type[SchedulePolicy]]:
    for file in _FILES:
        for kind in vars(import_module(f"kdn.schedule.{file}")).values():
            is_policy = isinstance(kind, type) and issubclass(kind, SchedulePolicy)
            if is_policy and "name" in vars(kind):
                yield kind


POLICIES: dict[str, type[SchedulePolicy]] = {kind.name: kind for kind in _defined()}


def make_policy(name: str, model: JctModel | None = None) -> SchedulePolicy:
    """The policy of that name, with a fitted model where it can use one."""
    kind = POLICIES[name]
    return kind(model) if issubclass(kind, Costed) else kind()
