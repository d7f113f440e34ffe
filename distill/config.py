"""Every setting of the teacher, the baseline and distillation: default, unit, bounds. No torch.

`SIZES` names the two models' sizes: `default` is the founding notes' (43 M and 15.7 M parameters),
`tiny` learns ten utterances by heart on one CPU core in under a minute.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from distill.ramp import RampConfig
from distill.router_config import RouterConfig
from lact_asr.config import HOP
from lact_asr.frozen import Frozen

FRAME = (3, 112, 112)  # of video: colours, height, width
Norm = Literal["group", "batch"]
NORM = (
    "Normalisation after convolutions: group is independent of the batch; batch (the notes' first "
    "teacher) diverges at two utterances a batch"
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
        True, description="Normalise queries and keys: attention cannot saturate however deep"
    )
    logit_cap: float | None = Field(
        50.0, gt=0, description="Soft bound of the fusion's attention scores; null is no bound"
    )
    output_cap: Literal["soft", "clamp", "none"] = Field(
        "soft",
        description="Bound of 10 on the fusion's attention output: 10 tanh(x / 10), or the notes' "
        "clamp, whose gradient is zero where it acts",
    )
    head_std: float | None = Field(
        None,
        gt=0,
        description="Spread of the output weights at the start; null is 1 / sqrt(hidden): ten "
        "utterances by heart in 30 steps, with the notes' 0.001 in 110",
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
    def sees(self) -> tuple[int, ...] | None:
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


class DistillConfig(RampConfig):
    """What the student learns from: (1 - alpha) CTC + kd_weight(progress) KD + features."""

    alpha: float = Field(
        0.7, ge=0, le=1, description="Share taken from the CTC loss: its weight is 1 - alpha"
    )
    kd: Literal["frames", "guided", "sequence"] = Field(
        "frames",
        description="What is taught: every frame's distribution, the teacher's peaks only, or its "
        "greedy transcript through CTC",
    )
    target: Literal["outputs", "projector", "projector_notes"] = Field(
        "outputs",
        description="Whose distributions are taught: the teacher's own; those of a map from its "
        "last hidden states to the student's symbols, learned from the texts beside the student, "
        "for a teacher with another vocabulary; or the notes' map of raw states, which the KD "
        "loss itself moves and no text corrects",
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="Symbols per frame that are compared singly, the rest as one; null is all",
    )
    blank_policy: Literal["all", "nonblank", "selected", "drop_class"] = Field(
        "all",
        description="Frames of the KD loss: all, those where the teacher says a symbol, those "
        "within blank_radius of one, or all with the blank left out of both distributions",
    )
    blank_radius: float = Field(
        80.0, ge=0, description="Reach of `selected` around a symbol of the teacher, milliseconds"
    )
    feature: Literal["ln_mse", "cosine", "notes"] = Field(
        "ln_mse",
        description="Distance of hidden states: of layer-normed vectors, of directions, or the "
        "notes' mean square divided by the width, which depends on the states' scale",
    )
    feature_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the distance between the last hidden states; 0 leaves it out",
    )
    router: RouterConfig = Field(
        RouterConfig(), description="which of the teacher's states the feature loss is about"
    )
    attention_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the divergence between what the last blocks attend to, inside the "
        "student's window; student lact, teacher lact or teacher, not from a cache; 0 leaves it "
        "out",
    )
    attention: Literal["rows", "notes"] = Field(
        "rows",
        description="The mean over queries and heads, or the notes' sum over heads, softened, "
        "times the squared temperature",
    )
    layerwise_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the mean distance between mapped layers; 0 leaves it out",
    )
    layer_map: Literal["uniform", "cka"] | tuple[tuple[int, int], ...] = Field(
        "uniform",
        description="Teacher layer of each student layer: evenly spread, by the likeness of their "
        "states on cka_utterances, or pairs [student layer, teacher layer], counted from 1",
    )
    cka_utterances: int = Field(
        8, ge=1, description="Training utterances that layer_map: cka looks at"
    )
    contrastive_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of telling the teacher's last state of a frame from those of other "
        "frames of the utterance; 0 leaves it out",
    )
    contrastive_temperature: float = Field(
        0.07, gt=0, description="Sharpness of that choice, in cosines"
    )
    contrastive_apart: float = Field(
        100.0, ge=0, description="Frames nearer than this are not told apart, milliseconds"
    )
    balance: Literal["static", "ema", "uncertainty"] = Field(
        "static",
        description="What the weights of the losses beside CTC multiply: the losses themselves, "
        "the losses brought to the size of CTC by their running means, or with learned scales",
    )
    curriculum: Literal["notes", "ramp_0_60", "all_on"] = Field(
        "notes",
        description="When the losses on hidden states set in. notes: feature over 10 to 40 % of "
        "training, layerwise 40 to 70 %, contrastive 70 to 100 %; ramp_0_60: feature over the "
        "first 60 %; all_on: at once",
    )
    projector_rate: float = Field(
        5.0,
        gt=0,
        description="Learning rate of maps and projectors as a multiple of the student's",
    )

    @model_validator(mode="after")
    def _something_is_taught(self) -> "DistillConfig":
        if self.alpha == 1 and self.kd == "frames" and self.blank_policy != "all":
            raise ValueError(
                f"alpha 1 leaves no CTC loss, and blank_policy {self.blank_policy} then never "
                "teaches silence (error rates of 0.4 to 1.8 measured); use blank_policy all"
            )
        if self.top_k is not None and self.kd != "frames":
            raise ValueError(f"top_k belongs to kd: frames; kd is {self.kd}")
        compared = (self.kd, self.top_k, self.blank_policy)
        if self.target == "projector_notes" and compared != ("frames", None, "all"):
            raise ValueError(
                "target projector_notes wants kd: frames, top_k: null and blank_policy: all"
            )
        if self.router.kind != "off" and not self.feature_weight:
            raise ValueError("the router chooses what feature_weight weighs, and that is 0")
        return self

    @property
    def looks_inside(self) -> bool:
        """Whether hidden states other than the teacher's last are asked for."""
        return bool(self.layerwise_weight) or self.router.kind != "off"


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


def sized(family: str, size: str, changes: Mapping[str, object]) -> Any:
    """The configuration of a named size with some settings changed, checked as a whole."""
    sizes = SIZES[family]
    if size not in sizes:
        raise ValueError(f"no {family} size {size!r}; sizes are {', '.join(sizes)}")
    return type(sizes[size]).model_validate({**sizes[size].model_dump(), **changes})
