"""What every model of the project declares: what the loop, sharding, teachers and router rely on.

Legend: B utterances, N samples, L tokens (after subsampling), D width, V symbols with the blank,
H heads, M modalities.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

Count = TypeVar("Count", int, Tensor)


class FastUse(NamedTuple):
    """What test-time training did to each utterance [B]: means over blocks, heads and matrices."""

    step_size: Tensor  # of its tokens
    change: Tensor  # of the weights at its end: |W - W before it| / |W before it|


@dataclass
class CTCOutput:
    """What every recognizer of the project answers."""

    log_probs: Tensor  # [B,L,V] float32, log-softmax over V
    lengths: Tensor  # [B] int64, valid tokens
    hidden: list[Tensor]  # [B,L,D] after each block
    attention: Tensor | None = None  # [B,H,L,L] logarithm of the last block's, where asked for
    updates: Tensor | None = None  # [B*H] inner steps of the last block's fast weights
    fast: FastUse | None = None  # in eval mode, of a model with fast weights that learn
    modality_weights: Tensor | None = None  # [B,L,M+1], the last one the null token's
    modalities: Tensor | None = None  # [B,L,M,D], before they were fused

    @property
    def updates_run(self) -> int:
        """Inner steps each fast weight made on the longest utterance; waits for the device."""
        return 0 if self.updates is None else int(self.updates.max())


class Settings(Protocol):
    """The configuration of a model: a checkpoint keeps it, and builds the model again from it."""

    def model_dump(self, *, mode: str = ...) -> dict[str, Any]:
        """Its values by name."""


class CTCSettings(Settings, Protocol):
    """The configuration of a model of speech."""

    @property
    def blocks(self) -> int:
        """Hidden states that the model gives beside its output."""

    def tokens(self, samples: Count) -> Count:
        """Tokens made from so many samples of a wave."""


class Gate(nn.Linear):
    """A linear map to scalars that each say how much, such as a step size per head."""


class Model(nn.Module):
    """What the training loop and a checkpoint ask of any model."""

    family: ClassVar[str]  # the name that a checkpoint stores, for `FAMILIES`
    config: Settings
    head: nn.Linear  # from the last states to the V symbols
    blocks: nn.ModuleList  # what sharding splits a model by; empty where it cannot be split
    attends: ClassVar[bool] = False  # whether the blocks have `log_attention`

    @property
    def one_graph(self) -> bool:
        """Whether a compiler can make one graph of a block for all lengths."""
        return len(self.blocks) > 0


class CTCModel(Model, ABC):
    """A model of speech: waves to log-probabilities of symbols, to be collapsed as CTC does.

    `forward(waves, wave_lengths)` takes waves [B,N] float32 at 16 kHz in -1..1, zero or junk past
    their lengths [B], and gives a CTCOutput. It knows `augment` too, a SpecAugment or None;
    `attention`, a flag, where the model `attends`; `video` and `video_lengths` where it has a
    `video_shape`. `lact_asr.model.forward.forward_batch` passes what a model knows.
    """

    config: CTCSettings
    modalities: tuple[str, ...] = ()  # names, in the order of M; empty where there is only one
    video_shape: tuple[int, ...] | None = None  # of a frame of the video that it looks at, if any

    def output_lengths(self, wave_lengths: Count) -> Count:
        """Tokens for so many samples, an int or an integer tensor; no model is run."""
        return self.config.tokens(wave_lengths)

    @abstractmethod
    def read_out(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities [B,L,V], float32, from states [B,L,D] of any block."""


def count_parameters(model: nn.Module) -> int:
    """Numbers to learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
