"""An LSTM on the same tokens: the neural baseline (two layers of 64, read at each question)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdn.net.l4s.tokens import NUM_FEATURES
from kdn.net.l4s.transformer import OUTPUTS

__all__ = ["Lstm"]

_DIM = 64


class Lstm(nn.Module):
    """Called as `transformer.Predictor` is, and trained by the same loss."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(NUM_FEATURES, _DIM, num_layers=2, batch_first=True)
        self.mix = nn.Linear(_DIM + NUM_FEATURES + 1, _DIM)
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
