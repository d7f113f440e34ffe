"""From manifest to batches."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Batch:
    """Utterances padded to the longest: B of them, N samples, sum U label tokens."""

    ids: list[str]
    texts: list[str]
    waves: Tensor  # [B,N] float32, 16 kHz, zero past each length
    wave_lengths: Tensor  # [B] int64, samples
    targets: Tensor  # [sum U] int64, one text after the other
    target_lengths: Tensor  # [B] int64
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (id, why), left out

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; asynchronously where its memory is pinned."""
        return self._apply(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the data loader calls this."""
        return self._apply(Tensor.pin_memory)

    def _apply(self, change) -> "Batch":
        tensors = (self.waves, self.wave_lengths, self.targets, self.target_lengths)
        return Batch(self.ids, self.texts, *map(change, tensors), unreadable=self.unreadable)
