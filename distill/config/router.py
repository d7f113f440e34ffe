"""Settings of the router over the teacher's states. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from lact_asr.config.base import Formerly, Frozen


class RouterConfig(Frozen):
    """Which of the teacher's states the feature loss is about, chosen frame by frame."""

    kind: Annotated[
        Literal["off", "recommended", "original"], Formerly("notes", now="original")
    ] = Field(
        "off",
        description="off is the last layer alone; recommended predicts every expert and learns "
        "from the task which matter; original mixes mapped experts, and maps and mix learn to be "
        "easy to predict",
    )
    experts: Literal["layers", "modalities", "both"] = Field(
        "layers", description="What is chosen from; only the teacher's own family has modalities"
    )
    layers: int = Field(
        4, ge=1, description="Teacher layers among the experts, evenly spread, the last included"
    )
    top_k: int = Field(2, ge=1, description="Experts with a share of a frame beside the floor's")
    floor: float = Field(
        0.05, ge=0, le=1, description="Share of a frame spread evenly over all experts"
    )
    balance: float = Field(
        0.1,
        ge=0,
        description="Weight of the balance loss, 1 if all experts are used alike (0.01, the usual "
        "choice, was not enough)",
    )
    z_loss: float = Field(1e-3, ge=0, description="Weight of the squared size of the scores")
    rate: float = Field(
        2.0, gt=0, description="Learning rate of the choice as a multiple of the student's"
    )

    @property
    def alone(self) -> bool:
        """Whether there is one expert, whatever the teacher."""
        return self.experts == "layers" and self.layers == 1
