"""kdn store simulate: which policy would have hit how often, on a recorded trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.options import JsonOption, output_file
from kdn.cli.show import emit, say, size_text, table, tell
from kdn.errors import BadInput
from kdn.machine.text import counted

if TYPE_CHECKING:
    from kdn.store.traces.recording import TraceRequest
    from kdn.store.traces.simulate import SimulatedRun

__all__ = ["capacity_bytes", "simulate"]


def simulate(
    *,
    trace: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Lookups, a JSON object a line (.jsonl or .jsonl.gz); see above.",
        ),
    ],
    capacity: Annotated[
        list[str] | None,
        typer.Option(help="Blocks of the trace (8000), or a size (64GB); may be repeated."),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="Which to try; all by default; may be repeated.")
    ] = None,
    token_bytes: Annotated[
        int, typer.Option(min=1, help="KV bytes of a token; the default is Llama-3.1-8B in bf16.")
    ] = 131_072,
    plot: Annotated[
        Path | None, typer.Option(help="Draw hit rate over capacity here.", callback=output_file)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the real eviction policies, and the optimum that knows the future, over a trace.

    With `record` under `[store]` in kdn.toml, or KDN_STORE_RECORD, kdn writes one. Mooncake's are read, too:
    a line is {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [a block each]}.
    """
    from kdn.store.policies import POLICIES
    from kdn.store.traces.recording import read_trace
    from kdn.store.traces.simulate import OPTIMUM
    from kdn.store.traces.simulate import simulate as run

    requests = read_trace(trace)
    block_bytes = requests[0].block_tokens * token_bytes
    sizes = [capacity_bytes(text, block_bytes) for text in capacity or ("2000", "8000", "30000")]
    if not any(request.hash_ids for request in requests):
        raise BadInput(
            f"{trace}: the trace names no blocks, so it does not tell what would have hit"
        )
    found = run(
        requests,
        policy or [*POLICIES, OPTIMUM],
        sizes,
        token_bytes,
        on_run=lambda one: say(f"{one.policy} at {size_text(one.capacity_bytes)}: done"),
    )
    if plot is not None:
        _draw(plot, found)
    if as_json:
        emit({"trace": str(trace.name), "runs": [_shape(one, block_bytes) for one in found]})
        return
    tell(_title(requests))
    table(
        "",
        ("policy", "capacity", "blocks", "hit rate", "read", "written"),
        _rows(found, block_bytes),
    )


def capacity_bytes(text: str, block_bytes: int) -> int:
    """Blocks, or a size with its unit, as bytes. Raises BadInput for less than one block."""
    from kdn.config import parse_bytes

    try:
        size_bytes = int(text) * block_bytes if text.isdigit() else parse_bytes(text)
    except ValueError as error:
        raise BadInput(f"--capacity {text}: {error}") from error
    if size_bytes < block_bytes:
        raise BadInput(f"--capacity {text}: not one block of {size_text(block_bytes)} fits")
    return size_bytes


def _title(requests: list[TraceRequest]) -> str:
    blocks = sum(len(request.hash_ids) for request in requests)
    minutes = requests[-1].at_s / 60
    return f"{counted(len(requests), 'request')} of {counted(blocks, 'block')} in {minutes:.0f} minutes"


def _rows(found: list[SimulatedRun], block_bytes: int) -> list[tuple[object, ...]]:
    return [
        (
            one.policy,
            size_text(one.capacity_bytes),
            one.capacity_bytes // block_bytes,
            f"{one.hit_rate:.1%}",
            size_text(one.read_bytes),
            size_text(one.written_bytes),
        )
        for one in found
    ]


def _shape(one: SimulatedRun, block_bytes: int) -> dict[str, Any]:
    return {
        "policy": one.policy,
        "capacity_bytes": one.capacity_bytes,
        "capacity_blocks": one.capacity_bytes // block_bytes,
        "hit_rate": one.hit_rate,
        "hit_blocks": one.hit_blocks,
        "blocks": one.blocks,
        "hit_tokens": one.hit_tokens,
        "tokens": one.tokens,
        "read_bytes": one.read_bytes,
        "written_bytes": one.written_bytes,
    }


def _draw(path: Path, found: list[SimulatedRun]) -> None:
    from kdn.plot import Figure, draw

    lines: dict[str, list[tuple[float, float]]] = {}
    for one in sorted(found, key=lambda run: run.capacity_bytes):
        lines.setdefault(one.policy, []).append((one.capacity_bytes / 1e9, one.hit_rate))
    what = "blocks found / blocks asked for"
    draw(Figure("What each policy would have hit", "capacity, GB", what, lines), path)
