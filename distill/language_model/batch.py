"""Texts as a batch: read symbol by symbol, with id 0, which no text contains, before the first one
and after the last.

Shapes: B texts, L places.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

BOUNDARY = 0  # begins and ends a text
PAD = -100  # a place that does not count


@dataclass
class TextBatch:
    """Texts padded to the longest."""

    ids: list[str]  # the texts' beginnings, for messages
    inputs: Tensor  # [B,L] int64
    targets: Tensor  # [B,L] int64: the next symbol, PAD past the end
    amount: int  # symbols that count
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # none; as a batch of audio has

    def rows(self, kept: Sequence[int]) -> "TextBatch":
        """Some of the texts, without the padding that only the others need."""
        rows = list(kept)
        counted = self.targets[rows] != PAD
        size = int(counted.sum(1).max())
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            inputs=self.inputs[rows, :size],
            targets=self.targets[rows, :size],
            amount=int(counted.sum()),
        )

    def not_finite(self) -> list[int]:
        """None: symbols are whole numbers."""
        return []

    def to(self, device: torch.device | str) -> "TextBatch":
        """The batch on a device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def text_batch(texts: Sequence[Sequence[int]], names: Sequence[str]) -> TextBatch:
    """Encoded texts as one batch."""
    size = max(map(len, texts)) + 1
    inputs = torch.zeros(len(texts), size, dtype=torch.int64)
    targets = torch.full((len(texts), size), PAD)
    for row, text in enumerate(texts):
        inputs[row, 1 : len(text) + 1] = torch.tensor(text, dtype=torch.int64)
        targets[row, : len(text) + 1] = torch.tensor([*text, BOUNDARY])
    return TextBatch(list(names), inputs, targets, sum(map(len, texts)) + len(texts))
