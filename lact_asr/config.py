"""Every setting of the recogniser and its training: default, unit, bounds and meaning. No torch.

`ModelConfig` and the named sizes come first, then the optimiser and the training loop. The launcher
shows these fields in `kinds` and checks pipeline files against them; checkpoints store them as
`config.json`.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from lact_asr.frozen import Frozen
from lact_asr.guard import GuardConfig
from lact_asr.recipe import AugmentConfig, AverageConfig
from lact_asr.stopping import StoppingConfig

SAMPLE_RATE = 16_000  # Hz, of every wave inside the project
HOP = 160  # samples between two feature frames: 10 ms


class ModelConfig(Frozen):
    """Shape and behaviour of the LaCT recogniser; the defaults are the offline one."""

    hidden: int = Field(gt=0, description="Width D of the residual stream, channels")
    layers: int = Field(gt=0, description="Blocks, each window attention + fast weights + MLP")
    attention_heads: int = Field(gt=0, description="Heads of the window attention")
    lact_heads: int = Field(gt=0, description="Fast-weight heads; fewer heads, larger state")
    mlp: int = Field(gt=0, description="Inner width of the SwiGLU MLP, channels")
    conv_layers: int = Field(gt=0, description="Convolutions before the blocks")
    mels: int = Field(80, gt=0, description="Mel bands of the input features")
    subsampling: Literal[1, 2, 4, 8] = Field(
        4, description="Feature frames (10 ms) per token: 4 gives 25 tokens/s"
    )
    window: int = Field(
        128, gt=0, description="Attention window W, tokens: |i-j| <= W/2, or the last W if causal"
    )
    qk_norm: bool = Field(True, description="RMS norm of queries and keys over the whole width")
    schedule: Literal["set", "update_then_apply", "apply_then_update", "off"] = Field(
        "set",
        description="When the fast weights learn: once from the whole utterance (set), per chunk "
        "including itself, per chunk for later chunks only (causal), or never (off)",
    )
    chunk: int | None = Field(
        None, gt=0, description="Tokens per update of the two chunked schedules"
    )
    fast_width: float = Field(
        1.0, gt=0, description="Inner width of the fast MLP, as a multiple of its head width"
    )
    base_step: float = Field(
        1e-2, gt=0, description="Step size of the fast weights before training, per token"
    )
    orthogonalize: Literal["none", "five_stage", "fixed"] = Field(
        "none",
        description="Newton-Schulz on each update; wants more than 2 x head width tokens an update",
    )
    momentum: bool = Field(False, description="Carry fast gradients from chunk to chunk")
    prenorm: bool = Field(False, description="Keep an unnormalised master of the fast weights")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of each residual branch dropped")

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelConfig":
        for name in ("attention_heads", "lact_heads"):
            if self.hidden % getattr(self, name):
                raise ValueError(f"hidden {self.hidden} is not a multiple of {name}")
        if self.hidden // self.attention_heads % 2:
            raise ValueError(
                "hidden / attention_heads must be even: rotary positions pair channels"
            )
        if self.fast_width * self.hidden < self.lact_heads:
            raise ValueError(f"fast_width {self.fast_width} leaves the fast MLP no inner channel")
        if 2**self.conv_layers < self.subsampling:
            raise ValueError(
                f"subsampling {self.subsampling} needs {self.subsampling.bit_length() - 1} "
                f"conv_layers or more, each halves the frame rate once"
            )
        chunked = self.schedule in ("update_then_apply", "apply_then_update")
        if chunked != (self.chunk is not None):
            raise ValueError(
                f"schedule {self.schedule} {'needs a chunk' if chunked else 'takes no chunk'} "
                "(tokens per update)"
            )
        if self.momentum and not chunked:
            raise ValueError(f"momentum has nothing to carry with schedule {self.schedule}")
        if self.causal and self.window < (self.chunk or 0):
            raise ValueError(
                f"window {self.window} is shorter than chunk {self.chunk}: a token sees its own "
                "chunk through attention only, so window must be at least chunk"
            )
        return self

    @property
    def blocks(self) -> int:
        """Hidden states that the model gives beside its output."""
        return self.layers

    @property
    def causal(self) -> bool:
        """Whether attention looks back only, as the causal schedule does."""
        return self.schedule == "apply_then_update"

    def tokens(self, samples: Any) -> Any:
        """Tokens made from so many samples of a wave; takes an int or an integer tensor."""
        frames = -(-samples // HOP)
        return -(-frames // self.subsampling)

    def check_updates(self, longest: float) -> None:
        """Refuse a causal schedule that never updates on utterances of up to `longest` seconds.

        The one public LaCT recogniser used chunks of 41 s on utterances of at most 35 s: its fast
        weights never changed once. Warns where orthogonalised updates see too few tokens.
        """
        tokens = self.tokens(round(longest * SAMPLE_RATE))
        width = self.hidden // self.lact_heads
        if self.orthogonalize != "none" and min(tokens, self.chunk or tokens) < 2 * width:
            warnings.warn(
                f"orthogonalize wants more than {2 * width} tokens an update (2 x head width), "
                f"and gets at most {min(tokens, self.chunk or tokens)}",
                stacklevel=2,
            )
        if self.causal and tokens <= (self.chunk or 0):
            raise ValueError(
                f"chunk {self.chunk} would never be updated from: the longest utterance has "
                f"{tokens} tokens ({longest:.1f} s); choose a chunk below that, or schedule: set"
            )


# Counts of parameters with 1,024 output symbols: 1.5 M, 100 M, 204 M, 492 M.
SIZES: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        hidden=144, layers=4, attention_heads=4, lact_heads=2, mlp=432, conv_layers=2
    ),
    "base": ModelConfig(
        hidden=768, layers=12, attention_heads=12, lact_heads=4, mlp=2304, conv_layers=2
    ),
    "improved": ModelConfig(
        hidden=1024, layers=18, attention_heads=16, lact_heads=8, mlp=2048, conv_layers=3
    ),
    "large": ModelConfig(
        hidden=1536, layers=24, attention_heads=24, lact_heads=12, mlp=2048, conv_layers=4
    ),
}


def sized(size: str, changes: Mapping[str, object]) -> ModelConfig:
    """The named size with some settings changed, checked as a whole."""
    if size not in SIZES:
        raise ValueError(f"no model size {size!r}; sizes are {', '.join(SIZES)}")
    return ModelConfig.model_validate({**SIZES[size].model_dump(), **changes})


class OptimConfig(Frozen):
    """The optimiser and its learning rate over the steps."""

    method: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw, or muon for matrices between the first and the last layer (their "
        "updates are orthogonalised, and scaled so that the same learning rate fits) and adamw for "
        "the rest",
    )

    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate, after the warm-up")
    warmup_steps: int = Field(500, ge=0, description="Steps of linear rise from 0 to the peak rate")
    decay: Literal["cosine", "noam", "hold", "constant"] = Field(
        "cosine",
        description="After the warm-up: cosine to 0 at max_steps, noam (falls with the square root "
        "of the step), hold (at the peak, then in a straight line to 0 at max_steps), or constant",
    )
    hold: float = Field(
        0.6, ge=0, lt=1, description="Share of max_steps at which decay: hold leaves the peak"
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.98), description="Memory of AdamW's two running means, per step"
    )
    weight_decay: float = Field(
        1e-2, ge=0, description="Decoupled weight decay of matrices; biases and norms have none"
    )
    clip_norm: float = Field(
        1.0, gt=0, description="Largest gradient norm, per label token; larger is scaled down"
    )


class TrainingConfig(Frozen):
    """One training run: how long, in what batches, how often it is looked at and saved."""

    max_steps: int = Field(25_000, gt=0, description="Optimiser steps in all")
    batch_seconds: float = Field(
        320.0,
        gt=0,
        description="Audio of a micro-batch on one process with its padding, seconds: utterances x "
        "the longest; halve it if memory runs out, and double accumulate",
    )
    accumulate: int = Field(1, gt=0, description="Micro-batches per optimiser step and process")
    max_duration: float = Field(
        20.0,
        gt=0,
        description="Training utterances longer than this are left out, seconds; validation "
        "always takes every utterance",
    )
    valid_every: int = Field(500, gt=0, description="Steps between validations")
    checkpoint_every: int = Field(500, gt=0, description="Steps between checkpoints")
    keep_checkpoints: int = Field(2, gt=0, description="Newest checkpoints kept, beside the best")
    samples: int = Field(3, ge=0, description="Predictions printed at each validation")
    log_every: int = Field(50, gt=0, description="Steps between progress lines")
    seed: int = Field(0, ge=0, description="Order of the data, dropout and augmentation")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "fp32",
        description="Arithmetic of the forward pass, auto is bf16 on GPUs and fp32 elsewhere; "
        "weights and losses stay float32",
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="Processes that decode audio, per GPU; unset is one per core up to 8 on a GPU "
        "and none on a CPU",
    )
    sharded: bool = Field(
        False,
        description="Split weights, gradients and optimiser state over all processes (FSDP) "
        "instead of a copy on each, for models whose 16 bytes a weight do not fit beside a batch; "
        "costs traffic at every micro-batch, changes results by rounding only",
    )
    probe: bool | None = Field(
        None,
        description="Try the worst batches of an epoch before the first step, so that memory that "
        "will not do shows at once; unset is on GPUs only",
    )
    max_unreadable: int = Field(
        20, ge=0, description="Unreadable audio files that are skipped before training stops"
    )
    augment: AugmentConfig = AugmentConfig()
    average: AverageConfig = AverageConfig()
    optim: OptimConfig = OptimConfig()
    guard: GuardConfig = GuardConfig()
    stopping: StoppingConfig = StoppingConfig()

    def planned_seconds(self, views: int = 1) -> float:
        """Padded seconds of a micro-batch as read: at the slowest speed, heard `views` times, it
        keeps the budget.
        """
        return self.batch_seconds * min(1.0, *self.augment.speeds) / views


class OverfitConfig(Frozen):
    """The overfit gate: a few utterances learned by heart, and what makes that a proof."""

    utterances: int = Field(10, ge=2, description="Utterances learned by heart, of different texts")
    longest: float = Field(
        5.0,
        gt=0,
        description="They are spread over the lengths up to this one, seconds; the shortest are "
        "taken if there are too few",
    )
    steps: int = Field(
        300, gt=0, description="Budget in optimiser steps; sound models need 50 to 130"
    )
    slow_after: float = Field(
        0.67, gt=0, le=1, description="Share of the budget after which 0 % is PASSED_SLOW"
    )
    marginal_wer: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="WER at the end of the budget up to which half as many steps more are allowed, "
        "and up to which the end of the last try is MARGINAL instead of a failure",
    )
    relaxed_rate: float | None = Field(
        3.0,
        gt=1,
        description="Learning rate of a second try as a multiple of the first one's, for a model "
        "that missed 0 %; null is no second try",
    )
    evaluate_every: int = Field(5, gt=0, description="Steps between looks at the WER")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate after the warm-up")
    warmup_steps: int = Field(20, ge=0, description="Steps of linear rise to the learning rate")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass")
    seed: int = Field(0, ge=0, description="Initial weights")
    first_loss_ratio: tuple[float, float] = Field(
        (0.5, 2.0),
        description="Bounds of the first loss as a multiple of a uniform model's, known exactly",
    )
    padding_drift: float = Field(
        1e-3,
        gt=0,
        description="Largest change of a log-probability when an utterance is decoded in a batch "
        "instead of alone (2e-6 is sound, 1 is a missing mask)",
    )
    blind_control: bool = Field(
        True,
        description="Train the same model on silence of one length: it must not learn the texts",
    )
    blind_steps: float = Field(
        1.0, gt=0, description="Its steps, as a multiple of those that the hearing model needed"
    )
    blind_wer: float = Field(
        0.5, ge=0, le=1, description="WER above which a model that hears silence must stay"
    )
