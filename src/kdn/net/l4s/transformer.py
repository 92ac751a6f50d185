"""The predictor, for training: a causal Transformer over ACKs with a question per queue.

Two layers of width 64, one head, feed-forward 256, as the published size suggests.  Two things
differ from a plain encoder so that it can run once per packet: history tokens look back only
(over `WINDOW` tokens), hence their keys and values are computed once, when the ACK arrives; and
positions are send times, entered as rotations of queries and keys (periods 1 ms to 4 s), so a
rhythm of frames looks the same wherever it stands.  `stream.py` runs the same weights compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdn.net.l4s.tokens import NUM_ASKED, NUM_FEATURES, WINDOW

__all__ = [
    "DIM",
    "FEED",
    "LAYERS",
    "OUTPUTS",
    "PERIODS_MS",
    "QUANTILES",
    "Predictor",
    "pack",
    "unpack",
]

DIM = 64
FEED = 256
LAYERS = 2
QUANTILES = (0.5, 0.9, 0.99)
OUTPUTS = 2 + len(QUANTILES)
"""Change of the delay, likelihood (logit) of a sharp one, then the quantiles of the change."""
PERIODS_MS = np.geomspace(1.0, 4000.0, DIM // 2)


@dataclass(frozen=True)
class _Named:
    """A weight's name and shape, in the order of the flat vector."""

    name: str
    shape: tuple[int, ...]


def _layout() -> tuple[_Named, ...]:
    parts = [
        _Named("token_w", (NUM_FEATURES, DIM)),
        _Named("token_b", (DIM,)),
        _Named("ask_w", (NUM_ASKED, DIM)),
        _Named("ask_b", (DIM,)),
    ]
    for layer in range(LAYERS):
        parts += [
            _Named(f"norm1_g{layer}", (DIM,)),
            _Named(f"norm1_b{layer}", (DIM,)),
            _Named(f"q_w{layer}", (DIM, DIM)),
            _Named(f"k_w{layer}", (DIM, DIM)),
            _Named(f"v_w{layer}", (DIM, DIM)),
            _Named(f"o_w{layer}", (DIM, DIM)),
            _Named(f"norm2_g{layer}", (DIM,)),
            _Named(f"norm2_b{layer}", (DIM,)),
            _Named(f"up_w{layer}", (DIM, FEED)),
            _Named(f"up_b{layer}", (FEED,)),
            _Named(f"down_w{layer}", (FEED, DIM)),
            _Named(f"down_b{layer}", (DIM,)),
        ]
    return (
        *parts,
        _Named("norm_g", (DIM,)),
        _Named("norm_b", (DIM,)),
        _Named("out_w", (DIM, OUTPUTS)),
        _Named("out_b", (OUTPUTS,)),
    )


LAYOUT = _layout()


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate halves of [..., 64] by [..., 32]."""
    a, b = x[..., : DIM // 2], x[..., DIM // 2 :]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Predictor(nn.Module):
    """Tokens and questions in, changes of delay out; about 102 thousand weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict()
        for part in LAYOUT:
            weight = torch.zeros(part.shape)
            if part.name.startswith("norm") and "_g" in part.name:
                weight.fill_(1.0)
            elif len(part.shape) == 2 and part.name != "out_w":
                nn.init.xavier_uniform_(weight)
            self.weights[part.name] = nn.Parameter(weight)

    def _norm(self, x: Tensor, name: str, layer: str) -> Tensor:
        gain, bias = self.weights[f"{name}_g{layer}"], self.weights[f"{name}_b{layer}"]
        return functional.layer_norm(x, (DIM,), gain, bias)

    def _feed(self, x: Tensor, layer: int) -> Tensor:
        w = self.weights
        h = self._norm(x, "norm2", str(layer)) @ w[f"up_w{layer}"] + w[f"up_b{layer}"]
        fed: Tensor = x + torch.relu(h) @ w[f"down_w{layer}"] + w[f"down_b{layer}"]
        return fed

    def _attend(
        self, x: Tensor, k: Tensor, v: Tensor, angle: Tensor, mask: Tensor, layer: int
    ) -> Tensor:
        w = self.weights
        q = _turn(self._norm(x, "norm1", str(layer)) @ w[f"q_w{layer}"], angle)
        scores = q @ k.transpose(1, 2) * DIM**-0.5 + mask
        seen: Tensor = x + (scores.softmax(-1) @ v) @ w[f"o_w{layer}"]
        return seen

    def forward(
        self, tokens: Tensor, token_ms: Tensor, questions: Tensor, asked_ms: Tensor, known: Tensor
    ) -> Tensor:
        """[B, Q, 5] for tokens [B, T, 8] sent at `token_ms` [B, T] and questions [B, Q, 16].

        Question i sees tokens [known[i] - WINDOW, known[i]); token j sees [j - WINDOW, j].
        """
        w = self.weights
        rate = torch.tensor(2 * np.pi / PERIODS_MS, dtype=torch.float64)
        turn_t = (token_ms[..., None] * rate).float()
        turn_q = (asked_ms[..., None] * rate).float()
        place = torch.arange(tokens.shape[1])
        back = place[:, None] - place[None, :]
        mask_t = torch.where((back >= 0) & (back < WINDOW), 0.0, -1e9)
        behind = known[..., None] - 1 - place
        mask_q = torch.where((behind >= 0) & (behind < WINDOW), 0.0, -1e9)
        x = tokens @ w["token_w"] + w["token_b"]
        y = questions @ w["ask_w"] + w["ask_b"]
        for layer in range(LAYERS):
            h = self._norm(x, "norm1", str(layer))
            k, v = _turn(h @ w[f"k_w{layer}"], turn_t), h @ w[f"v_w{layer}"]
            y = self._feed(self._attend(y, k, v, turn_q, mask_q, layer), layer)
            if layer + 1 < LAYERS:
                x = self._feed(self._attend(x, k, v, turn_t, mask_t, layer), layer)
        answer: Tensor = self._norm(y, "norm", "") @ w["out_w"] + w["out_b"]
        return answer


def pack(model: Predictor) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Every weight in one float32 vector, in `LAYOUT`'s order."""
    flat = [model.weights[part.name].detach().reshape(-1) for part in LAYOUT]
    return np.ascontiguousarray(torch.cat(flat).float().numpy())


def unpack(flat: np.ndarray[tuple[int], np.dtype[np.float32]], model: Predictor) -> None:
    """Write a vector made by `pack` into `model`. Raises ValueError for another length."""
    sizes = [int(np.prod(part.shape)) for part in LAYOUT]
    if len(flat) != sum(sizes):
        raise ValueError(f"weights hold {len(flat)} numbers, this predictor has {sum(sizes)}")
    pieces = torch.split(torch.from_numpy(flat.copy()), sizes)
    with torch.no_grad():
        for part, piece in zip(LAYOUT, pieces, strict=True):
            model.weights[part.name].copy_(piece.reshape(part.shape))
