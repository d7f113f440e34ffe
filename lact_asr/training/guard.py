"""What goes wrong in training without ending it, and when it is too much.

What is not finite is dropped always (`lact_asr.training.train_step`) and what is merely large is
clipped. A batch far above the run's usual norm can be dropped on top: at most three in a row, for
then it is the run that has changed. A fixed limit knows nothing of the run: a healthy model has
norms of 5 to 18 while it learns, and the original limit of 10 dropped 1,098 of 1,100 steps.

The norm is that of the averaged gradients, the same number on every rank: all decide alike.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

from lact_asr.config.training import GuardConfig, LoopConfig
from lact_asr.distributed.fsdp import full
from lact_asr.training.health import Scale, is_lost
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.loss import Outcome
from lact_asr.training.resume import State
from lact_asr.utils.errors import DataError, Failed

IN_A_ROW = 3  # spikes dropped before one is followed
MEMORY = 0.98  # of the running mean of the norms, per step
WINDOW = 1000  # steps in which
SHARE = 0.05  # so many may be dropped
BREAKER = 20  # steps dropped in a row before a run is given up as diverged
RISE = 2.0  # times the lowest running mean of the loss: what is above it is far above


def limit(config: GuardConfig, typical: float, spikes: int) -> float:
    """The largest norm that is followed, after so many spikes in a row; `typical` 0 is no past."""
    highest = math.inf if config.skip_above is None else config.skip_above
    if config.skip_ratio is None or not typical or spikes >= IN_A_ROW:
        return highest
    return min(highest, config.skip_ratio * typical)


def update_mean_norm(typical: float, norm: float, highest: float) -> float:
    """The running mean after a step; a spike counts no more than the limit it broke."""
    if not math.isfinite(norm):
        return typical
    norm = min(norm, highest)
    return MEMORY * typical + (1 - MEMORY) * norm if typical else norm


def recently_dropped(dropped: list[int], step: int) -> list[int]:
    """Those of the dropped steps that lie in the window ending with `step`."""
    return [each for each in dropped if each > step - WINDOW]


def note_unreadable(
    state: State, most: int, logger: TrainingLogger, news: Mapping[str, str]
) -> None:
    """Name files met for the first time (id -> why); DataError when there are more than `most`."""
    if not news:
        return
    known = state.unreadable
    known |= news
    logger.unreadable(state.step, news)
    if len(known) > most:
        named = "\n".join(f"{key}: {why}" for key, why in list(known.items())[:5])
        raise DataError(
            f"{len(known)} audio files are unreadable, max_unreadable is {most}; the first are\n"
            f"{named}"
        )


def note_quarantined(
    state: State, most: int, logger: TrainingLogger, news: Mapping[str, str]
) -> None:
    """Leave utterances out from now on (id -> why); Failed when there are more than `most`."""
    state.quarantined |= news
    logger.quarantined(state.step + 1, news)
    if len(state.quarantined) > most:
        named = "\n".join(f"{key}: {why}" for key, why in list(state.quarantined.items())[:5])
        raise Failed(
            "bad_data",
            f"{len(state.quarantined)} utterances have no finite loss, max_unreadable is {most}. "
            "Mend them or take them out of the manifest; if they sound well, lower the learning "
            f"rate. The first are\n{named}",
        )


def note_step(
    state: State, config: LoopConfig, logger: TrainingLogger, outcome: Outcome, trainable: nn.Module
) -> None:
    """Count a step that was not taken; Failed when they do not end."""
    state.typical_norm = update_mean_norm(state.typical_norm, outcome.grad_norm, outcome.highest)
    state.risen = start_of_rise(state.risen, state.step, outcome.loss, state.lowest_loss)
    if outcome.taken:
        state.in_a_row = 0
        state.typical_loss = update_mean_norm(state.typical_loss, outcome.loss, math.inf)
        state.lowest_loss = min(state.lowest_loss, state.typical_loss)
        return
    state.skipped += 1
    state.in_a_row += 1
    state.dropped = recently_dropped([*state.dropped, state.step], state.step)
    logger.dropped(state.step, outcome)
    if state.in_a_row >= BREAKER or len(state.dropped) > SHARE * WINDOW:
        _give_up(state, config, outcome, trainable)


def start_of_rise(risen: int, step: int, loss: float, lowest: float) -> int:
    """The step from which on no loss, taken or dropped, was near the lowest mean; 0: this one is.

    A loss of 1e8 with a gradient that is not finite was dropped 14 times before one was taken.
    """
    limit = RISE * lowest if lowest > 0 else math.inf
    return 0 if loss <= limit else risen or step


def _give_up(state: State, config: LoopConfig, outcome: Outcome, trainable: nn.Module) -> None:
    """Failed that says what dropped the steps and what to change."""
    often = f"{state.in_a_row} steps in a row"
    if state.in_a_row < BREAKER:
        often = f"{len(state.dropped)} of {min(state.step, WINDOW)} steps"
    if outcome.finite:
        why = (
            f"a gradient norm above {outcome.highest:g} while {state.typical_norm:.3g} is usual"
            ". A fixed guard.skip_above may lie below what a sound model needs: write "
            "guard: {skip_ratio: 10} instead, or lower the learning rate"
        )
    else:
        broken = ", ".join(non_finite(trainable)[:3]) or "none"
        why = (
            f"a loss or gradient that is not finite (weights that are not: {broken}). Lower "
            "the learning rate"
        )
    raise Failed(
        "diverged",
        f"{often}, up to step {state.step}, had {why}, now {config.optim.learning_rate:g}, or "
        f"look at {', '.join(outcome.suspects)}",
    )


def refuse_lost(state: State, scale: Scale, rate: float) -> None:
    """Failed where the loss is finite and lost all the same."""
    if is_lost(state.vitals, scale):
        loss, lowest = state.vitals.loss.value, state.vitals.lowest
        raise Failed(
            "diverged",
            f"the loss is {loss:.3g} at step {state.step}, its lowest mean was {lowest:.3g}, and "
            f"knowing nothing costs {scale.uniform:.3g}. Lower the learning rate, now "
            f"{rate:g}",
        )


def refuse_broken(step: int, rate: float, trainable: nn.Module) -> None:
    """Failed in place of a checkpoint from which nothing could go on."""
    if broken := non_finite(trainable):
        raise Failed(
            "diverged",
            f"after step {step} weights are not finite, and not saved: {', '.join(broken[:3])}. "
            f"Lower the learning rate, now {rate:g}",
        )


def non_finite(module: nn.Module, gradients: bool = False) -> list[str]:
    """Names of the parameters that hold a NaN or an infinity, or whose gradients do."""
    tensors = (
        (name, parameter.grad if gradients else parameter)
        for name, parameter in module.named_parameters()
    )
    return [
        name
        for name, value in tensors
        if value is not None and not torch.isfinite(full(value)).all()
    ]
