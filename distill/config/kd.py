"""How much a teacher's distributions count: settings that every distillation shares. No torch."""

from pydantic import Field

from lact_asr.config.base import Frozen


class RampConfig(Frozen):
    """The weight of the KD loss over training, and how soft the distributions are."""

    kd_start: float = Field(0.1, ge=0, description="Weight of the KD loss at the first step")
    kd_end: float = Field(0.7, ge=0, description="Weight of the KD loss after the ramp")
    kd_ramp: float = Field(
        0.2, ge=0, le=1, description="Share of training over which the KD weight rises linearly"
    )
    temperature: float = Field(
        2.0, gt=0, description="Softening of both distributions; the loss is scaled by its square"
    )
