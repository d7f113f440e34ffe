"""Every setting of training: loss, optimizer, loop, guard, averages, early stopping. No torch.

The launcher shows these fields in `kinds` and checks pipeline files against them; checkpoints store
them as `config.json`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lact_asr.config.augment import AugmentConfig
from lact_asr.config.base import Frozen, Listed
from lact_asr.config.budget import Budget
from lact_asr.config.precision import MEANING, Precision


class GuardConfig(Frozen):
    """Steps that are not taken although loss and gradient are finite."""

    skip_ratio: float | None = Field(
        None,
        gt=1,
        description="Drop a step whose gradient norm is more than so many times the running mean, "
        "at most three in a row; null is never",
    )
    skip_above: float | None = Field(
        None,
        gt=0,
        description="Drop every step whose gradient norm, per label token and before clipping, is "
        "above this (the original rule, with 10); a healthy model may never come below it; null is "
        "never",
    )


class AverageConfig(Frozen):
    """Means of the weights, which are what is validated and kept."""

    decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Memory of a running mean of the weights (EMA), per step; it is validated and "
        "becomes the best checkpoint in their place; 0 is off",
    )
    last: int = Field(
        0,
        ge=0,
        description="At the end the mean of so many checkpoints, checkpoint_every steps apart, is "
        "validated too and becomes the best if it is; 0 is off",
    )


class CTCConfig(Frozen):
    """What is added to the CTC loss of the model's output."""

    intermediate: tuple[int, ...] = Field(
        (),
        description="Blocks (the first is 1) whose states are read out and judged by CTC too, such "
        "as [6] of 12; none is plain CTC",
    )
    intermediate_weight: float = Field(
        0.3, gt=0, lt=1, description="Share of the loss that these blocks have together"
    )
    intermediate_symbols: Literal["output", "characters"] = Field(
        "output",
        description="What these blocks write: the output's symbols; or characters, which are "
        "learned sooner than pieces of words, by an output layer that only training has",
    )
    consistency: float = Field(
        0.0,
        ge=0,
        description="CR-CTC: every utterance is heard twice, masked differently, and this much of "
        "the divergence between the two is added (published: 0.2, with time_masks 25 and "
        "time_total 0.375); a batch then has half as many utterances; 0 is off",
    )

    @model_validator(mode="after")
    def _read_somewhere(self) -> "CTCConfig":
        if self.intermediate_symbols == "characters" and not self.intermediate:
            raise ValueError(
                "intermediate_symbols: characters names no block that writes them: write "
                "intermediate: [2], or another"
            )
        return self

    @property
    def views(self) -> int:
        """How often an utterance is heard in a step."""
        return 2 if self.consistency else 1

    def check(self, blocks: int) -> None:
        """ValueError if a model of so many blocks has no such intermediate ones."""
        wrong = [layer for layer in self.intermediate if not 1 <= layer < blocks]
        if wrong:
            raise ValueError(
                f"intermediate {wrong}: the model has {blocks} blocks, and the last is read out "
                f"anyway; choose among 1 to {blocks - 1}"
            )


class StoppingConfig(Frozen):
    """Early stopping on the dev data."""

    patience: int = Field(
        0,
        ge=0,
        description="Validations without a lower WER (at equal WER: loss; of a language model: "
        "perplexity) before stopping early; 0 is never",
    )
    min_delta: float = Field(
        0.001, ge=0, description="Fall of the WER (a fraction), loss or perplexity that counts"
    )
    warmup_steps: int = Field(
        1000, ge=0, description="Validations before this step are not counted, good or bad"
    )
    not_before: float = Field(
        0.4, ge=0, le=1, description="Share of max_steps before which training is not stopped"
    )


class OptimConfig(Frozen):
    """The optimizer and its learning rate over the steps."""

    method: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw, or muon for the linear maps of the blocks (their updates are "
        "orthogonalized, and scaled so that the same learning rate fits) and adamw for the rest: "
        "convolutions, gates, embedding, output, projectors",
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
    betas: Annotated[tuple[float, float], Listed] = Field(
        (0.9, 0.98), description="Memory of AdamW's two running means, per step"
    )
    weight_decay: float = Field(
        1e-2, ge=0, description="Decoupled weight decay of matrices; biases and norms have none"
    )
    decay_gains: bool = Field(
        True,
        description="Whether gains of two axes and the first fast weights decay as matrices do",
    )
    clip_norm: float = Field(
        1.0, gt=0, description="Largest gradient norm, per label token; larger is scaled down"
    )


class LoopConfig(Frozen):
    """One training run of any model: how long, how often it is measured and saved."""

    # settings of which exactly one counts
    EITHER: ClassVar[tuple[tuple[str, str], ...]] = (("max_steps", "epochs"),)

    max_steps: int | None = Field(
        25_000, gt=0, description="Optimizer steps in all; this or epochs"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="In place of max_steps: how often everything is heard; what that is in steps "
        "is reckoned when the data and the number of processes are known",
    )
    accumulate: int = Field(1, gt=0, description="Micro-batches per optimizer step and process")
    valid_every: int = Field(500, gt=0, description="Steps between validations")
    checkpoint_every: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        500,
        description="Steps between checkpoints; auto is what loses least time to saving and to "
        "repeating, by what a checkpoint and a step are measured to take",
    )
    failure_every: float = Field(
        24.0, gt=0, description="Hours between two cuts of a run, for checkpoint_every: auto"
    )
    keep_checkpoints: int = Field(2, gt=0, description="Newest checkpoints kept, beside the best")
    log_every: int = Field(50, gt=0, description="Steps between progress lines")
    seed: int = Field(0, ge=0, description="Order of the data, dropout and augmentation")
    precision: Precision = Field("fp32", description=f"Arithmetic of the forward pass, {MEANING}")
    tf32: bool = Field(
        False,
        description="On GPUs compute what stays float32 in the passes (gates, output, orthogonal "
        "updates; with precision fp32 all) with factors of 11 bits, several times as fast; off, a "
        "GPU's products agree with a CPU's, as they do in the other kinds",
    )
    sharded: bool | Literal["node"] = Field(
        False,
        description="Split weights, gradients and optimizer state over all processes (FSDP) "
        "instead of a copy on each, for models whose 16 bytes a weight do not fit beside a batch; "
        "costs traffic at every micro-batch, changes results by rounding only; node is over those "
        "of a node, with a copy on every node: less between nodes, more memory",
    )
    compile: bool | None = Field(
        None,
        description="Compile the blocks (torch.compile) in the first step, which takes a minute or "
        "two; changes results by rounding only; unset is on GPUs, for models that do not learn in "
        "chunks and where a C compiler is found",
    )
    flex_attention: bool = Field(
        False,
        description="Let compiled blocks on a GPU attend by FlexAttention, whose kernel passes "
        "over what lies outside the window; for the recognizer, without attention_dropout; changes "
        "results by rounding only",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Keep only the input of each block for the backward pass and compute the rest "
        "again there: memory for a batch several times as large, a third more time, the same "
        "gradient",
    )
    probe: bool | None = Field(
        None,
        description="Try the worst batches of an epoch before the first step, so that memory that "
        "will not do shows at once; unset is on GPUs only",
    )
    average: AverageConfig = AverageConfig()
    optim: OptimConfig = OptimConfig()
    guard: GuardConfig = GuardConfig()
    stopping: StoppingConfig = StoppingConfig()

    @classmethod
    def others_off(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is given replaces the default of what says the same in another way."""
        ways = [pair for each in cls.EITHER for pair in (each, each[::-1])]
        off = {other: None for one, other in ways if given.get(one) is not None}
        return {**off, **given}

    @model_validator(mode="before")
    @classmethod
    def _others_are_off(cls, given: Any) -> Any:
        return cls.others_off(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _one_way(self) -> "LoopConfig":
        values = self.model_dump(include={name for pair in self.EITHER for name in pair})
        for one, other in self.EITHER:
            given = [name for name in (one, other) if values[name] is not None]
            if len(given) != 1:
                also = ", not both" if given else ": both are null"
                raise ValueError(f"write either {one} or {other}{also}")
        return self

    @model_validator(mode="after")
    def _mean_of_known_steps(self) -> "LoopConfig":
        if self.average.last and self.checkpoint_every == "auto":
            raise ValueError(
                "average.last takes checkpoints that are a known number of steps apart: write "
                "checkpoint_every as a number, not auto"
            )
        return self


class TrainingConfig(LoopConfig):
    """One training run on speech: in what batches, on what of it, heard how."""

    EITHER: ClassVar[tuple[tuple[str, str], ...]] = (
        *LoopConfig.EITHER,
        ("batch_seconds", "batch_utterances"),
    )

    batch_seconds: float | None = Field(
        320.0,
        gt=0,
        description="Audio of a micro-batch on one process with its padding, seconds: utterances x "
        "the longest; halve it if memory runs out, and double accumulate; this or batch_utterances",
    )
    batch_utterances: int | None = Field(
        None,
        gt=0,
        description="In place of batch_seconds: utterances of a micro-batch on one process, "
        "however long; memory must do for so many of max_duration",
    )
    max_duration: float = Field(
        20.0,
        gt=0,
        description="Training utterances longer than this are left out, seconds; validation "
        "always takes every utterance",
    )
    samples: int = Field(3, ge=0, description="Predictions printed at each validation")
    workers: int | None = Field(
        None,
        ge=0,
        description="Processes that decode audio, per GPU; unset is one per core up to 8 on a GPU "
        "and none on a CPU",
    )
    max_unreadable: int = Field(
        20, ge=0, description="Unreadable audio files that are skipped before training stops"
    )
    augment: AugmentConfig = AugmentConfig()

    @property
    def most_seconds(self) -> float:
        """Audio that a micro-batch may hold, with its padding."""
        return self.batch_seconds or (self.batch_utterances or 1) * self.max_duration

    def budget(self, views: int = 1) -> Budget:
        """A micro-batch as read: at the slowest speed, heard `views` times, it is what is set."""
        if self.batch_seconds is None:
            return Budget(None, max(1, (self.batch_utterances or 1) // views))
        return Budget(self.batch_seconds * min(1.0, *self.augment.speeds) / views)
