"""An LSTM on the same tokens: the neural baseline (two layers of 64, read at each question)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdn.net.l4s.tokens import NUM_ASKED, NUM_FEATURES, Samples
from kdn.net.l4s.transformer import OUTPUTS
from kdn.net.world.records import MS

__all__ = ["Lstm", "guess_with"]

_DIM = 64


class Lstm(nn.Module):
    """Called as `transformer.Predictor` is, and trained by the same loss."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(NUM_FEATURES, _DIM, num_layers=2, batch_first=True)
        self.mix = nn.Linear(_DIM + NUM_ASKED + 1, _DIM)
        self.out = nn.Linear(_DIM, OUTPUTS)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, tokens: Tensor, token_ms: Tensor, questions: Tensor, asked_ms: Tensor, known: Tensor
    ) -> Tensor:
        """[B, Q, 5]; question i reads the state after token known[i] - 1."""
        states, _ = self.memory(tokens)
        place = (known - 1).clamp(0, tokens.shape[1] - 1)
        seen = torch.gather(states, 1, place[..., None].expand(-1, -1, _DIM))
        age = asked_ms - torch.gather(token_ms, 1, place)
        extra = torch.log1p(age.clamp(min=0.0)).float()[..., None]
        answer: Tensor = self.out(torch.relu(self.mix(torch.cat((seen, questions, extra), -1))))
        return answer

    @staticmethod
    def load(path: Path) -> Lstm:
        """The baseline with weights that `kdn net l4s train --lstm` wrote."""
        model = Lstm()
        with np.load(path, allow_pickle=False) as parts:
            model.load_state_dict({name: torch.from_numpy(parts[name]) for name in parts.files})
        return model.eval()


def guess_with(model: Lstm) -> Callable[[Samples], NDArray[np.float64]]:
    """Its median as a guess (ns) per question, read along the whole flow."""

    def guess(samples: Samples) -> NDArray[np.float64]:
        t = torch.from_numpy
        with torch.inference_mode():
            out = model(
                t(samples.tokens[None]),
                t(samples.token_t[None] / MS),
                t(samples.questions[None]),
                t(samples.asked_t[None] / MS),
                t(samples.known[None]),
            )
        change = out[0, :, 2].double().numpy()
        squashed = np.clip(change + np.arcsinh(samples.last / MS), 0.0, 9.0)
        return np.asarray(np.sinh(squashed) * MS)

    return guess
