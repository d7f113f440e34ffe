"""Every setting of distillation: default, unit, bounds. No torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.config.hints import HintConfig
from distill.config.router import RouterConfig
from lact_asr.config.base import Formerly


class DistillConfig(HintConfig):
    """What the student learns from: (1 - alpha) CTC + kd_weight(progress) KD + features."""

    alpha: float = Field(
        0.7, ge=0, le=1, description="Share taken from the CTC loss: its weight is 1 - alpha"
    )
    kd: Literal["frames", "guided", "sequence"] = Field(
        "frames",
        description="What is taught: every frame's distribution, the teacher's peaks only, or its "
        "greedy transcript through CTC",
    )
    target: Annotated[
        Literal["outputs", "projector", "original"], Formerly("projector_notes", now="original")
    ] = Field(
        "outputs",
        description="Whose distributions are taught: the teacher's own; those of a map from its "
        "last hidden states to the student's symbols, learned from the texts beside the student, "
        "for a teacher with another vocabulary; or the original map of raw states, which the "
        "KD loss itself moves and no text corrects",
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

    @model_validator(mode="after")
    def _something_is_taught(self) -> "DistillConfig":
        if self.alpha == 1 and self.kd == "guided":
            raise ValueError(
                "alpha 1 leaves no CTC loss, and kd: guided teaches the teacher's peaks only, "
                "never silence: a student would always speak; write alpha below 1, or kd: frames"
            )
        if self.alpha == 1 and self.kd == "frames" and self.blank_policy != "all":
            raise ValueError(
                f"alpha 1 leaves no CTC loss, and blank_policy {self.blank_policy} then never "
                "teaches silence (error rates of 0.4 to 1.8 measured); use blank_policy all"
            )
        if self.top_k is not None and self.kd != "frames":
            raise ValueError(f"top_k belongs to kd: frames; kd is {self.kd}")
        compared = (self.kd, self.top_k, self.blank_policy)
        if self.target == "original" and compared != ("frames", None, "all"):
            raise ValueError("target original wants kd: frames, top_k: null and blank_policy: all")
        if self.router.kind != "off" and not self.feature_weight:
            raise ValueError("the router chooses what feature_weight weighs, and that is 0")
        if self.router.kind != "off" and self.router.alone:
            raise ValueError(
                "router.layers 1 leaves nothing to choose from: write router.kind: off, which is "
                "the last layer alone, or router.layers of 2 and more"
            )
        return self

    @property
    def needs_hidden_states(self) -> bool:
        """Whether hidden states other than the teacher's last are asked for."""
        return bool(self.layerwise_weight) or self.router.kind != "off"
