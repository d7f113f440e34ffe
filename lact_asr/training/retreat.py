"""Where a run that has diverged goes on: before the weights, and the loss, that were its end.

Before every loss is NaN it mostly rises for some steps. A checkpoint from that time can be gone on
from without any step being dropped, and never learns again: after a rise from 3 to 1,500 nats a
sane learning rate moved the loss by 1 in 10,000 over 46 steps.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lact_asr.training import checkpoint
from lact_asr.training.checksums import facts
from lact_asr.training.guard import BREAKER, RISE
from lact_asr.training.loss import Outcome
from lact_asr.training.resume import State
from lact_asr.utils.errors import Damaged


def retreat(folder: Path, state: State, outcome: Outcome) -> tuple[list[Path], str]:
    """Put checkpoints of no use aside; which they were, and where the next start goes on.

    None is put aside where all would be: what looks like bad weights may be a bad GPU, and a run
    never begins anew unasked.
    """
    losses = _losses(folder)
    if not losses:
        return [], "Nothing was saved before: the next start begins anew"
    if outcome.taken:  # the loss has risen
        return _before_the_rise(folder, newest_sound(losses, _useless(state), state.lowest_loss))
    usable = outcome.finite or state.in_a_row < BREAKER  # gradients, of the present weights
    if usable and not 0 < state.risen < state.step:
        return [], f"The next start goes on from step {max(losses)}"
    sound = newest_sound(losses, _useless(state), state.lowest_loss)
    if sound is None:
        return [], (
            "No checkpoint is from before the weights that do this: let the step begin anew, from "
            "the best weights so far with init_from"
        )
    return checkpoint.put_aside(folder, sound), f"The next start goes on from step {sound}"


def _before_the_rise(folder: Path, sound: int | None) -> tuple[list[Path], str]:
    """As `retreat`. A checkpoint from before the rise is spared (`sound_step`): where there is none
    the loss has risen from the start.
    """
    if sound is None:
        return checkpoint.put_aside(folder, 0), "It has risen from the start: all begins anew"
    return checkpoint.put_aside(folder, sound), f"The next start goes on from step {sound}"


def sound_step(folder: Path, state: State) -> int | None:
    """The step of the newest checkpoint from before the loss rose from its lowest running mean."""
    return newest_sound(_losses(folder), _useless(state), state.lowest_loss)


def _useless(state: State) -> float:
    """The first step whose weights gave nothing but bad losses; inf where none did.

    The loss of a checkpoint is that of the weights before it: one bad update, saved at once, had a
    sound loss of its own, and was gone on from (2 of 3 times where it fell on such a step).
    """
    dropped = state.step - state.in_a_row if state.in_a_row else math.inf
    return min(dropped, state.risen - 1) if state.risen else dropped


def _losses(folder: Path) -> dict[int, float]:
    """The loss at each step with a checkpoint; a damaged one is for the next start to tell of."""
    found = {}
    for path in checkpoint.by_step(folder):
        with suppress(Damaged):
            found[int(path.name)] = facts(path).get("loss", math.inf)
    return found


def newest_sound(losses: Mapping[int, float], useless: float, lowest: float) -> int | None:
    """The newest step of those with a checkpoint, before `useless` and before the loss rose.

    The weights of step `useless` have dropped every batch since, or had losses far too high:
    another learning rate does not change what a forward pass gives.
    """
    limit = RISE * lowest if lowest > 0 else math.inf
    return max((s for s, loss in losses.items() if s < useless and loss <= limit), default=None)
