"""A batch: utterances padded to the longest, on one device.

How long they are is known on the CPU, whatever the device: what counts them (the loop, CTC, a
cache) would wait there for all that the device is at.

Legend: B utterances, N samples, U label tokens of one text, T video frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lact_asr.data.audio import RATE

if TYPE_CHECKING:
    from lact_asr.data.specaugment import SpecAugment

TENSORS = ("waves", "targets", "video", "video_lengths")  # what lies on the device


@dataclass
class Batch:
    """Utterances padded to the longest: B of them, N samples, sum U label tokens."""

    ids: list[str]
    texts: list[str]
    waves: Tensor  # [B,N] float32, 16 kHz, zero past each length
    wave_lengths: Tensor  # [B] int64, samples; on the CPU
    targets: Tensor  # [sum U] int64, one text after the other
    target_lengths: Tensor  # [B] int64; on the CPU
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (id, why), left out
    augment: "SpecAugment | None" = None  # what hides features of it in training
    speed: float = 1.0  # it was changed to, as it is played
    video: Tensor | None = None  # [B,T,...] zero past each length; none if no utterance has any
    video_lengths: Tensor | None = None  # [B] int64, frames; 0 where there is none

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seconds(self) -> float:
        """Audio without its padding."""
        return int(self.wave_lengths.sum()) / RATE

    @property
    def amount(self) -> float:
        """What the throughput of training counts: seconds."""
        return self.seconds

    def rows(self, kept: Sequence[int]) -> "Batch":
        """Some of the utterances, without the padding that only the others need."""
        rows = list(kept)
        texts = self.targets.split(self.target_lengths.tolist())
        video, video_lengths = None, None
        if self.video is not None and self.video_lengths is not None:
            video_lengths = self.video_lengths[rows]
            video = self.video[rows, : int(video_lengths.max())]
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            waves=self.waves[rows, : int(self.wave_lengths[rows].max())],
            wave_lengths=self.wave_lengths[rows],
            targets=torch.cat([texts[row] for row in rows]),
            target_lengths=self.target_lengths[rows],
            video=video,
            video_lengths=video_lengths,
        )

    def not_finite(self) -> list[int]:
        """Rows with a sample, or a number of their video, that is NaN or infinite."""
        sound = torch.isfinite(self.waves).all(1)
        if self.video is not None:
            sound &= torch.isfinite(self.video).flatten(1).all(1).to(sound.device)
        return [row for row, fine in enumerate(sound.tolist()) if not fine]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device, but for the lengths; asynchronously where its memory is pinned."""
        return self._apply(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the data loader calls this."""
        return self._apply(Tensor.pin_memory)

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is sent to another process; of tensors outside of shared memory, the numbers.

        PyTorch would move these there in a thread of the sender's: where there is no room, or no
        file left to open, the receiver would wait forever for what nobody can send.
        """
        apart = {
            name: value.numpy()
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and not value.is_shared()
        }
        return {name: value for name, value in vars(self).items() if name not in apart}, apart

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """What has come from another process."""
        others, apart = state
        tensors = {name: torch.from_numpy(numbers) for name, numbers in apart.items()}
        vars(self).update(others | tensors)

    def _apply(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        there = {name: getattr(self, name) for name in TENSORS}
        changed: dict[str, Any] = {
            name: change(value) for name, value in there.items() if value is not None
        }
        return replace(self, **changed)
