"""Settings of language models and their distillation: default, unit, bounds. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from distill.config.hints import HintConfig
from lact_asr.config.base import Frozen
from lact_asr.config.precision import MEANING, Precision
from lact_asr.config.training import LoopConfig, StoppingConfig


class LanguageModelConfig(Frozen):
    """A decoder-only transformer over the symbols of transcripts."""

    hidden: int = Field(256, gt=0, description="Width of the residual stream, channels")
    heads: int = Field(4, gt=0, description="Attention heads")
    blocks: int = Field(6, gt=0, description="Transformer blocks")
    mlp: int = Field(1024, gt=0, description="Inner width of a block's MLP, channels")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share dropped of each residual branch")

    @model_validator(mode="after")
    def _fits_together(self) -> "LanguageModelConfig":
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ValueError(
                f"hidden {self.hidden} must be an even multiple of heads {self.heads}: rotary "
                "positions pair channels"
            )
        return self


LM_SIZES = {
    "tiny": LanguageModelConfig(hidden=64, heads=2, blocks=2, mlp=192, dropout=0.0),
    "small": LanguageModelConfig(),
    "large": LanguageModelConfig(hidden=512, heads=8, blocks=12, mlp=2048),
}


class LMDistillConfig(HintConfig):
    """What a language model learns from another: (1 - alpha) LM + kd_weight KD + hints."""

    alpha: float = Field(
        0.7, ge=0, le=1, description="Share taken from the texts' loss: its weight is 1 - alpha"
    )
    top_k: int = Field(
        256, ge=1, description="Symbols per place that are compared singly, the rest as one"
    )
    layer_map: Literal["uniform"] | tuple[tuple[int, int], ...] = Field(
        "uniform",
        description="Teacher layer of each student layer: evenly spread, or pairs [student layer, "
        "teacher layer], counted from 1",
    )


class LMTrainingConfig(LoopConfig):
    """One training run on texts."""

    max_steps: int | None = Field(
        5000, gt=0, description=LoopConfig.model_fields["max_steps"].description
    )
    batch_tokens: int = Field(
        8192,
        gt=0,
        description="Symbols of a micro-batch on one process, with its padding: texts x the "
        "longest; halve it if memory runs out, and double accumulate",
    )
    chunk: int = Field(
        1024,
        gt=0,
        description="Places whose distributions exist at the same time: 1,024 over 32,000 symbols "
        "are 131 MB",
    )
    valid_every: int = Field(250, gt=0, description="Steps between validations")
    checkpoint_every: int = Field(250, gt=0, description="Steps between checkpoints")
    stopping: StoppingConfig = Field(
        StoppingConfig(patience=20), description="as the original recipe wants it"
    )
    precision: Precision = Field("auto", description=f"Arithmetic of the forward pass, {MEANING}")
