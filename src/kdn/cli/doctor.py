"""kdn doctor: what this machine can do, measured."""

from __future__ import annotations

from kdn.cli.options import HomeOption, JsonOption, read_settings
from kdn.cli.show import emit, say, table

__all__ = ["doctor"]


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Measure this machine, and choose the number format that suits it."""
    from kdn.clock import SystemClock
    from kdn.machine.doctor import examine, format_diagnosis

    say("measuring for a few seconds")
    diagnosis = examine(read_settings(home).home, SystemClock())
    if as_json:
        emit(diagnosis)
    else:
        table("", ("what", "found"), format_diagnosis(diagnosis))
