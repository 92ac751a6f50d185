"""How long a machine takes: prefill, decode, loading. The times that money is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdn.core import PrefillTime
from kdn.cost.tables import read_table
from kdn.cost.units import Seconds, SizeBytes
from kdn.errors import BadInput
from kdn.machine.text import counted

__all__ = ["PairJct", "Speed", "load_speed", "measured_prefill"]


@dataclass(frozen=True)
class PairJct:
    """Prefill as a fixed time, a time per new token, and one per pair of a new token and a column
    that it attends to: what a decoder computes."""

    fixed_s: float
    token_s: float
    pair_s: float

    def __post_init__(self) -> None:
        if min(self.fixed_s, self.token_s, self.pair_s) < 0:
            raise BadInput(f"{self}: times cannot be negative")

    def seconds(self, num_new: int, num_cached: int) -> float:
        pairs = num_new * num_cached + num_new * (num_new + 1) / 2
        return self.fixed_s * (num_new > 0) + self.token_s * num_new + self.pair_s * pairs


@dataclass(frozen=True)
class Speed:
    """A model on a machine."""

    prefill: PrefillTime
    decode_token_s: float
    """Of one more token after an empty context."""
    decode_column_s: float = 0.0
    """What each token of context adds to that."""
    token_bytes: int = 131_072
    """KV of a token at all layers."""
    decode_batch: float = 1.0
    """How many sequences share a decoding step, and so its GPU time."""

    def __post_init__(self) -> None:
        if min(self.decode_token_s, self.decode_column_s) < 0 or self.token_bytes < 1:
            raise BadInput(f"{self}: times cannot be negative, a token has at least a byte")
        if self.decode_batch < 1:
            raise BadInput(
                f"a decoding batch of {self.decode_batch}: at least one sequence decodes"
            )

    def context(self, context: int, prompt: int) -> Seconds:
        """What a context adds to the prefill of a prompt: the time that stored KV saves."""
        whole = self.prefill.seconds(context + prompt, 0)
        return Seconds(max(0.0, whole - self.prefill.seconds(prompt, context)))

    def prompt(self, prompt: int, context: int) -> Seconds:
        """Prefill of a prompt whose context is at hand."""
        return Seconds(self.prefill.seconds(prompt, context))

    def decode(self, output: int, context: int) -> Seconds:
        """All tokens of an answer but the first, which the prefill gives."""
        steps = max(0, output - 1)
        columns = steps * (context + steps / 2)
        return Seconds(self.decode_token_s * steps + self.decode_column_s * columns)

    def size(self, tokens: int) -> SizeBytes:
        return SizeBytes(float(tokens * self.token_bytes))


def measured_prefill(tokens: int, seconds: float, quadratic_share: float = 0.0) -> PairJct:
    """A model through one measured point, with that share of the time in attention's pairs."""
    if tokens < 1 or seconds < 0 or not 0 <= quadratic_share <= 1:
        raise BadInput(
            f"{counted(tokens, 'token')} in {seconds} s, share {quadratic_share}: no such prefill"
        )
    pairs = tokens * (tokens + 1) / 2
    linear_s = seconds * (1 - quadratic_share) / tokens
    return PairJct(0.0, linear_s, seconds * quadratic_share / pairs)


def load_speed(name: str | Path) -> Speed:
    """A model on a machine, by name or from a file. Raises BadInput for what makes no sense."""
    table = read_table("speeds", "speed", name)
    table.date("date")
    table.text("source")
    speed = Speed(
        prefill=measured_prefill(
            int(table.number("prefill_tokens", least=1, most=1e7)),
            table.number("prefill_s", most=1e5),
            table.number("quadratic_share", 0.0, most=1),
        ),
        decode_token_s=table.number("decode_ms", most=1e5) / 1000,
        decode_column_s=table.number("decode_ms_per_1k_context", 0.0, most=1e4) / 1e6,
        token_bytes=int(table.number("token_bytes", least=1, most=1e8)),
        decode_batch=table.number("decode_batch", 1.0, least=1, most=1e4),
    )
    table.close()
    return speed
