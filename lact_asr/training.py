"""The one training loop of the project."""

from dataclasses import dataclass
from pathlib import Path

from lact_asr.objective import CTCObjective, Loss, Objective

__all__ = ["CTCObjective", "FitResult", "Loss", "Objective"]


@dataclass(frozen=True)
class FitResult:
    """What a call of `fit` came to."""

    finished: bool  # false: asked to stop, saved, and can be resumed
    step: int
    checkpoint: Path  # the best one, by WER on the dev utterances
    wer: float  # of the best checkpoint, as a fraction
    loss: float  # validation loss of the best checkpoint, nats per label token
    steps_skipped: int  # steps dropped because a loss or gradient was not finite
