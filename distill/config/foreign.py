"""Settings of a teacher that another library built. No torch."""

from typing import Any, Literal

from pydantic import Field

from lact_asr.config.base import Frozen


class ForeignConfig(Frozen):
    """How a CTC model of another library is built, and how it is read."""

    library: Literal["torchaudio", "transformers"] = Field(description="Library that builds it")
    arguments: dict[str, Any] = Field(
        description="What it builds it from: arguments of torchaudio's `wav2vec2_model`, or a "
        "configuration of transformers"
    )
    convolutions: tuple[tuple[int, int], ...] = Field(
        description="Width and stride of the convolutions over samples, which make the frames"
    )
    symbols: tuple[int, ...] = Field(
        description="The library's number of each symbol of the vocabulary, the blank's first"
    )
    normalize: bool = Field(
        description="Whether samples are brought to mean 0 and variance 1, utterance by utterance"
    )
    blocks: int = Field(description="Hidden states that the model gives beside its output")

    @property
    def least(self) -> int:
        """Samples that make one frame; shorter waves are filled up with silence."""
        samples = 1
        for width, stride in self.convolutions[::-1]:
            samples = (samples - 1) * stride + width
        return samples

    def tokens(self, samples: Any) -> Any:
        """Output frames of so many samples; takes an int or an integer tensor."""
        frames = samples + (self.least - samples) * (samples < self.least)
        for width, stride in self.convolutions:
            frames = (frames - width) // stride + 1
        return frames
