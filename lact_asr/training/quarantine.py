"""Which utterances of a step have no finite loss or gradient, so that their neighbours keep theirs.

A batch whose loss is NaN is halved until the utterances that do it are alone: whatever the
objective is, and also where BatchNorm has spread one utterance over the whole batch. One in eight
costs 7 passes over parts of it, only in a step that would be dropped otherwise.

Where most of a batch has no finite loss it is not the data: weights that have diverged, a broken
GPU. Then nothing is left out and the step is dropped. Where nothing is found the fault has passed,
and the step is taken again: with the same numbers, so the same weights come of it.

A model that is split over the ranks runs on all of them or on none: they search in step, and one
that has found what it has goes on calling the model until all have. There the loss alone betrays an
utterance: a gradient comes back averaged over the ranks, and says of none whose it was. Where only
gradients are not finite the second try is not either, and the step is dropped.
"""

from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

import torch

from lact_asr.distributed.fsdp import split
from lact_asr.distributed.processes import unwrapped
from lact_asr.model.forward import autocast
from lact_asr.training.guard import non_finite
from lact_asr.training.material import MicroBatch
from lact_asr.training.train_step import ObjectiveModule, Setting

SPOILED = "its samples or video hold NaN or infinity"
NOT_FINITE = "its loss or gradient is not finite on weights that are"


def without(batch: MicroBatch, left_out: Container[str]) -> Any:
    """The batch without these utterances; as it is where nothing would be left."""
    kept = [row for row, identity in enumerate(batch.ids) if identity not in left_out]
    return batch.rows(kept) if 0 < len(kept) < len(batch.ids) else batch


def find_faulty(
    module: torch.nn.Module, batches: Sequence[MicroBatch], progress: float, setting: Setting
) -> dict[str, str] | None:
    """Utterances of all ranks to leave out (id -> why), perhaps none; None: it is not the data."""
    inner: ObjectiveModule = unwrapped(module)
    faulty: dict[str, str] | None = None
    if not non_finite(inner):
        inner.statistics.keep()
        faulty = _of_this_rank(inner, batches, progress, setting)
        while split(inner) and setting.world.all_max(False):
            _loss(inner, batches[0], progress, setting, [0])
        inner.statistics.restore()
    ranks = setting.world.gather(faulty)
    known = [each for each in ranks if each is not None]
    if len(known) < len(ranks):
        return None
    return {identity: why for each in known for identity, why in each.items()}


def _of_this_rank(
    module: ObjectiveModule, batches: Sequence[MicroBatch], progress: float, setting: Setting
) -> dict[str, str] | None:
    faulty: dict[str, str] = {}
    for batch in batches:
        spoiled = batch.not_finite()
        rest = [row for row in range(len(batch.ids)) if row not in spoiled]
        found = halve(rest, partial(_sound, module, batch, progress, setting))
        if 2 * len(found) > len(rest):
            return None
        faulty |= {batch.ids[row]: SPOILED for row in spoiled}
        faulty |= {batch.ids[row]: NOT_FINITE for row in found}
    return faulty


def halve(rows: Sequence[int], sound: Callable[[Sequence[int]], bool]) -> list[int]:
    """The single rows that are not sound."""
    if not rows or sound(rows):
        return []
    if len(rows) == 1:
        return list(rows)
    middle = len(rows) // 2
    return halve(rows[:middle], sound) + halve(rows[middle:], sound)


def _sound(
    module: ObjectiveModule,
    batch: MicroBatch,
    progress: float,
    setting: Setting,
    rows: Sequence[int],
) -> bool:
    """Whether some rows of a batch alone have a finite loss and gradient; no `.grad` is touched."""
    if split(module):
        setting.world.all_max(True)  # the others have to call it too
        return bool(torch.isfinite(_loss(module, batch, progress, setting, rows)))
    parameters = [each for each in module.parameters() if each.requires_grad]
    loss = _loss(module, batch, progress, setting, rows)
    if not torch.isfinite(loss):
        return False
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return all(bool(torch.isfinite(each).all()) for each in gradients if each is not None)


def _loss(
    module: ObjectiveModule,
    batch: MicroBatch,
    progress: float,
    setting: Setting,
    rows: Sequence[int],
) -> torch.Tensor:
    """The loss of some rows of a batch; without a graph where the model is split."""
    with (
        torch.set_grad_enabled(not split(module)),
        autocast(setting.device, setting.config.precision),
    ):
        return module(batch.rows(rows).to(setting.device), progress).total
