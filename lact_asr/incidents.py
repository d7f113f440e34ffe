"""What goes wrong in training without ending it: counted, on record, and in the end too much."""

import math
from collections.abc import Mapping

from torch import nn

from lact_asr import guard
from lact_asr.config import TrainingConfig
from lact_asr.errors import DataError, TrainingFailed
from lact_asr.health import non_finite
from lact_asr.journal import Journal
from lact_asr.resume import State
from lact_asr.steps import Outcome

BREAKER = 20  # steps dropped in a row before a run is given up as diverged


def note_unreadable(
    state: State, config: TrainingConfig, journal: Journal, news: Mapping[str, str]
) -> None:
    """Name files met for the first time (id -> why); DataError when there are too many."""
    if not news:
        return
    known = state.unreadable
    known |= news
    journal.unreadable(state.step, news)
    if len(known) > config.max_unreadable:
        named = "\n".join(f"{key}: {why}" for key, why in list(known.items())[:5])
        raise DataError(
            f"{len(known)} audio files are unreadable, max_unreadable is "
            f"{config.max_unreadable}; the first are\n{named}"
        )


def note_step(
    state: State, config: TrainingConfig, journal: Journal, outcome: Outcome, trainable: nn.Module
) -> None:
    """Count a step that was not taken; TrainingFailed when they do not end."""
    state.typical_norm = guard.remembered(state.typical_norm, outcome.grad_norm, outcome.highest)
    if outcome.taken:
        state.in_a_row = 0
        state.typical_loss = guard.remembered(state.typical_loss, outcome.loss, math.inf)
        state.lowest_loss = min(state.lowest_loss, state.typical_loss)
        return
    state.skipped += 1
    state.in_a_row += 1
    state.dropped = guard.recent([*state.dropped, state.step], state.step)
    journal.dropped(state.step, outcome)
    if state.in_a_row >= BREAKER or len(state.dropped) > guard.SHARE * guard.WINDOW:
        _give_up(state, config, outcome, trainable)


def _give_up(state: State, config: TrainingConfig, outcome: Outcome, trainable: nn.Module) -> None:
    """TrainingFailed that says what dropped the steps and what to change."""
    often = f"{state.in_a_row} steps in a row"
    if state.in_a_row < BREAKER:
        often = f"{len(state.dropped)} of {min(state.step, guard.WINDOW)} steps"
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
    raise TrainingFailed(
        "divergence",
        f"{often}, up to step {state.step}, had {why}, now {config.optim.learning_rate:g}, or "
        f"look at {', '.join(outcome.suspects)}",
    )


def refuse_broken(step: int, rate: float, trainable: nn.Module) -> None:
    """TrainingFailed in place of a checkpoint from which nothing could go on."""
    if broken := non_finite(trainable):
        raise TrainingFailed(
            "divergence",
            f"after step {step} weights are not finite, and not saved: {', '.join(broken[:3])}. "
            f"Lower the learning rate, now {rate:g}",
        )
