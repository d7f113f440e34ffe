"""Settings of the overfit gate. No torch."""

from pydantic import Field

from lact_asr.config.base import Frozen
from lact_asr.config.precision import MEANING, Precision
from lact_asr.config.training import OptimConfig


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
        300, gt=0, description="Budget in optimizer steps; sound models need 50 to 130"
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
    evaluate_every: int = Field(5, gt=0, description="Steps between measurements of the WER")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate after the warm-up")
    warmup_steps: int = Field(20, ge=0, description="Steps of linear rise to the learning rate")
    optimizer: OptimConfig = Field(
        OptimConfig(),
        description="of the step that is guarded; rate, warm-up and decay are the gate's own",
    )
    precision: Precision = Field("fp32", description=f"Arithmetic of the forward pass, {MEANING}")
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
