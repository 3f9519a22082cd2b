"""Choosing the next token: greedy, or temperature, top-k and top-p with one number in [0, 1) per sample and
step.

The number comes from the sample's key (`recap.randomness.uniform`), so a text depends on its own request
alone. Works on any device, with fixed shapes and without synchronising: it is part of the captured decode
step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recap.engine.settings import WriterConfig
from recap.randomness import uniform


@dataclass(frozen=True)
class Sampler:
    """How tokens are chosen. In the order of transformers' warpers: temperature, then top-k, then top-p."""

    greedy: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @staticmethod
    def of(config: WriterConfig) -> Sampler:
        """The sampler that the settings ask for."""
        return Sampler(config.decoding == "greedy", config.temperature, config.top_k, config.top_p)

    def random_numbers(self, seed: int, key: str, format: str, count: int) -> torch.Tensor:
        """float32 [count] in [0, 1): the numbers that choose the tokens of one caption; zeros when greedy."""
        if self.greedy:
            return torch.zeros(count)
        numbers = uniform(seed, key, f"tokens/{format}", count)
        return torch.from_numpy(numbers).float().clamp(max=1 - 2**-24)

    def choose(self, logits: torch.Tensor, random_numbers: torch.Tensor) -> torch.Tensor:
        """Next tokens.

        Args:
            logits: [rows, vocabulary], any float type.
            random_numbers: float32 [rows] in [0, 1); unused when greedy.

        Returns:
            int64 [rows].
        """
        if self.greedy:
            return logits.max(-1).indices  # the first of equal ones, as argmax, and 3x faster on CPUs
        scores = logits.float() / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            values, order = torch.topk(scores, self.top_k, dim=-1)
        else:
            values, order = torch.sort(scores, dim=-1, descending=True, stable=True)
        probabilities = torch.softmax(values, dim=-1)
        sums = probabilities.cumsum(-1)
        # Keep the tokens before which less than p is reached; the first is always kept.
        probabilities = probabilities * ((sums - probabilities) < self.top_p)
        sums = probabilities.cumsum(-1)
        rank = (sums <= random_numbers[:, None] * sums[:, -1:]).sum(-1).clamp(max=values.shape[-1] - 1)
        return order.gather(1, rank[:, None]).squeeze(1)
