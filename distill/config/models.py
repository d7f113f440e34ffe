"""Settings of the teacher and the baseline, and their named sizes. No torch.

`SIZES` names the two models' sizes: `default` is the original size (43 M and 15.7 M parameters),
`tiny` learns ten utterances by heart on one CPU core in under a minute.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from lact_asr.config.base import Frozen, changed
from lact_asr.config.model import HOP

FRAME = (3, 112, 112)  # of video: colours, height, width
Norm = Literal["group", "batch"]
NORM = (
    "Normalization after convolutions: group is independent of the batch; batch (the first "
    "original teacher) diverges at two utterances a batch"
)


class TeacherConfig(Frozen):
    """The inflated-Inception teacher; the defaults are the audio-only one of 43 M parameters."""

    mels: int = Field(80, ge=16, description="Mel bands of the input features")
    clip_frames: int = Field(
        16, ge=2, le=64, description="Context of one clip, feature frames of 10 ms"
    )
    clip_hop: Literal[2, 4] = Field(
        2, description="Feature frames between clips; the trunk strides over the rest of 4 (25 Hz)"
    )
    trunk_width: float = Field(
        1.0, gt=0, le=2, description="Channels of the trunk as a multiple of I3D's"
    )
    trunk_blocks: tuple[int, int, int] = Field(
        (2, 5, 2), description="Inception blocks at the trunk's three scales; I3D has 2, 5, 2"
    )
    hold_edges: bool = Field(
        False,
        description="Repeat the first and last clip beyond the ends, as weights inflated from an "
        "image network expect; false is zeros",
    )
    norm: Norm = Field("group", description=NORM)
    cepstra: int = Field(40, ge=1, description="Cepstral coefficients (MFCC) beside the pitch")
    video: Literal["off", "frames", "features"] = Field(
        "off",
        description="Video at 25 Hz beside the audio, which an utterance may lack: frames, 3 x 112 "
        "x 112 through a trunk of their own, or the features of another model, as they are",
    )
    video_features: int = Field(512, ge=1, description="Width of ready video features, channels")
    video_width: float = Field(
        0.5, gt=0, le=2, description="Channels of the video trunk as a multiple of I3D's"
    )
    hidden: int = Field(512, gt=0, description="Width of fusion and transformer blocks, channels")
    heads: int = Field(8, gt=0, description="Attention heads of fusion and blocks")
    blocks: int = Field(9, gt=0, description="Transformer blocks over time")
    mlp: int = Field(2048, gt=0, description="Inner width of a block's MLP, channels")
    qk_norm: bool = Field(
        True, description="Normalize queries and keys: attention cannot saturate however deep"
    )
    logit_cap: float | None = Field(
        50.0, gt=0, description="Soft bound of the fusion's attention scores; null is no bound"
    )
    output_cap: Literal["soft", "clamp", "none"] = Field(
        "soft",
        description="Bound of 10 on the fusion's attention output: 10 tanh(x / 10), or the "
        "original clamp, whose gradient is zero where it acts",
    )
    head_std: float | None = Field(
        None,
        gt=0,
        description="Spread of the output weights at the start; null is 1 / sqrt(hidden): ten "
        "utterances by heart in 30 steps, with the original 0.001 in 110",
    )
    linear_std: float | None = Field(
        None,
        gt=0,
        description="Spread of all linear maps at the start, the output's where head_std is null "
        "included, those into the fusion not; null is PyTorch's own",
    )
    conv_scale: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor on the convolutions' weights at the start; before a norm it changes no "
        "output and, at 0.5, doubles the gradient",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Share dropped of each residual branch")
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the fusion's attention weights dropped; original 0.1"
    )
    modality_dropout: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Chance per utterance that a modality is hidden in training; never all of them",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "TeacherConfig":
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ValueError(
                f"hidden {self.hidden} must be an even multiple of heads {self.heads}: rotary "
                "positions pair channels"
            )
        if self.cepstra > self.mels:
            raise ValueError(f"cepstra {self.cepstra} cannot exceed mels {self.mels}")
        for kept, there in zip(self.trunk_blocks, (2, 5, 2), strict=True):
            if not 1 <= kept <= there:
                raise ValueError("trunk_blocks go from [1, 1, 1] to [2, 5, 2]")
        return self

    @property
    def video_shape(self) -> tuple[int, ...] | None:
        """The shape of a frame of video."""
        return {"off": None, "frames": FRAME, "features": (self.video_features,)}[self.video]

    def tokens(self, samples: Any) -> Any:
        """Output frames (25 Hz) of so many samples; takes an int or an integer tensor."""
        return -(-samples // (4 * HOP))


class BaselineConfig(Frozen):
    """The convolutional baseline, without attention; the defaults: 15.7 M parameters, 20 layers."""

    mels: int = Field(80, ge=16, description="Mel bands of the input features")
    hidden: int = Field(416, gt=0, description="Channels of the convolutions")
    layers: int = Field(20, ge=3, description="Convolutions, the output layer among them")
    kernel: int = Field(5, ge=1, description="Width of the convolutions, frames (odd)")
    norm: Norm = Field("group", description=NORM)
    dropout: float = Field(0.1, ge=0, lt=1, description="Share dropped of each residual branch")

    @property
    def blocks(self) -> int:
        """Hidden states that the model gives beside its output."""
        return self.layers - 2

    @model_validator(mode="after")
    def _odd_kernel(self) -> "BaselineConfig":
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd, to look as far ahead as back")
        return self

    def tokens(self, samples: Any) -> Any:
        """Output frames (25 Hz) of so many samples; takes an int or an integer tensor."""
        return -(-samples // (4 * HOP))


SIZES: dict[str, dict[str, Any]] = {
    "teacher": {
        "tiny": TeacherConfig(
            mels=40,
            clip_frames=8,
            clip_hop=4,
            trunk_width=0.125,
            trunk_blocks=(1, 1, 1),
            cepstra=20,
            hidden=144,
            heads=4,
            blocks=3,
            mlp=576,
        ),
        "default": TeacherConfig(),
    },
    "baseline": {
        "tiny": BaselineConfig(mels=40, hidden=128, layers=10),
        "default": BaselineConfig(),
    },
}


def named_size(family: str, size: str, changes: Mapping[str, object]) -> Any:
    """The configuration of a named size with some settings changed, checked as a whole."""
    sizes = SIZES[family]
    if size not in sizes:
        raise ValueError(f"no {family} size {size!r}; sizes are {', '.join(sizes)}")
    return changed(sizes[size], changes)
