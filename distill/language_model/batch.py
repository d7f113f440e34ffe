"""Texts as a batch: read symbol by symbol, with id 0, which no text contains, before the first one
and after the last.

Shapes: B texts, L places of each, N of all of them that count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lact_asr.distributed.device import sent

BOUNDARY = 0  # begins and ends a text
PAD = -100  # a place that does not count


@dataclass
class TextBatch:
    """Texts padded to the longest."""

    ids: list[str]  # the texts' beginnings, for messages
    texts: list[list[int]]  # their symbols, which stay on the CPU
    inputs: Tensor  # [B,L] int64
    targets: Tensor  # [B,L] int64: the next symbol, PAD past the end
    places: Tensor  # [N] int64: those that count among all B * L; to ask a mask there is to wait
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # none; as a batch of audio has

    @property
    def amount(self) -> int:
        """Symbols that count."""
        return len(self.places)

    def rows(self, kept: Sequence[int]) -> "TextBatch":
        """Some of the texts, without the padding that only the others need."""
        chosen = text_batch([self.texts[row] for row in kept], [self.ids[row] for row in kept])
        return chosen.to(self.inputs.device)

    def not_finite(self) -> list[int]:
        """None: symbols are whole numbers."""
        return []

    def counted(self, values: Tensor) -> Tensor:
        """What counts of the values [B,L,...] of all places: [N,...]."""
        return values.flatten(0, 1)[self.places]

    def to(self, device: torch.device | str) -> "TextBatch":
        """The batch on a device, but for its texts."""
        there = torch.device(device)
        return replace(
            self,
            inputs=sent(self.inputs, there),
            targets=sent(self.targets, there),
            places=sent(self.places, there),
        )


def text_batch(texts: Sequence[Sequence[int]], names: Sequence[str]) -> TextBatch:
    """Encoded texts as one batch."""
    size = max(map(len, texts)) + 1
    inputs = torch.zeros(len(texts), size, dtype=torch.int64)
    targets = torch.full((len(texts), size), PAD)
    for row, text in enumerate(texts):
        inputs[row, 1 : len(text) + 1] = torch.tensor(text, dtype=torch.int64)
        targets[row, : len(text) + 1] = torch.tensor([*text, BOUNDARY])
    places = (targets != PAD).flatten().nonzero()[:, 0]
    return TextBatch(list(names), list(map(list, texts)), inputs, targets, places)
