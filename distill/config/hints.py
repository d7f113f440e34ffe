"""Settings of losses on hidden states, which students of speech and of texts share. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from distill.config.kd import RampConfig
from lact_asr.config.base import Formerly

FORMERLY = Formerly("notes", now="original")  # the recipes that docs/origin.md tells of


class HintConfig(RampConfig):
    """What is learned from the teacher's hidden states, when, and how it is weighed."""

    feature: Annotated[Literal["ln_mse", "cosine", "original"], FORMERLY] = Field(
        "ln_mse",
        description="Distance of hidden states: of layer-normed vectors, of directions, or the "
        "original mean square divided by the width, which depends on the states' scale",
    )
    feature_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the distance between the last hidden states; 0 leaves it out",
    )
    attention_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the divergence between what the last blocks attend to; 0 leaves it "
        "out",
    )
    attention: Annotated[Literal["rows", "original"], FORMERLY] = Field(
        "rows",
        description="The mean over queries and heads, or the original sum over heads, softened, "
        "times the squared temperature",
    )
    layerwise_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the mean distance between mapped layers; 0 leaves it out",
    )
    balance: Literal["static", "ema", "uncertainty"] = Field(
        "static",
        description="What the weights of the losses beside CTC multiply: the losses themselves, "
        "the losses brought to the size of CTC by their running means, or with learned scales",
    )
    curriculum: Annotated[Literal["original", "ramp_0_60", "all_on"], FORMERLY] = Field(
        "original",
        description="When the losses on hidden states set in. original: feature over 10 to 40 % of "
        "training, layerwise 40 to 70 %, contrastive 70 to 100 %; ramp_0_60: feature over the "
        "first 60 %; all_on: at once",
    )
    projector_rate: float = Field(
        5.0,
        gt=0,
        description="Learning rate of maps and projectors as a multiple of the student's",
    )
