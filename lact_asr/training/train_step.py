"""One optimizer step over all micro-batches and all processes, exact and decided together.

Backward passes add up gradients of sums; after the last one the labels of all micro-batches and
ranks are counted and everything is divided once. What the ranks must agree on (counts, the wish to
stop, news of unreadable files) travels in the same single all-reduce. Whether a step is sound
needs no vote: a NaN on one rank is in the averaged gradients of all, so all drop the step.

A GPU works behind the program, which must not wait for it: a step reads one tensor, once, behind
the last backward pass. In it are the sums of all ranks and the norm of the gradients.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lact_asr.config.training import LoopConfig
from lact_asr.distributed import fsdp
from lact_asr.distributed.device import made
from lact_asr.distributed.processes import World, no_sync, unwrapped
from lact_asr.model.forward import autocast
from lact_asr.training.loss import Loss, Outcome, Part, detached
from lact_asr.training.material import MicroBatch
from lact_asr.training.objective import Objective

NAMED = 20  # utterances of a dropped step that are named


@dataclass(frozen=True)
class Setting:
    """What stays the same from step to step."""

    config: LoopConfig
    world: World
    device: torch.device
    highest: float = math.inf  # gradient norm above which a step is not taken


class RunningStatistics:
    """What a forward pass changes in a model (BatchNorm's means), to be put back if need be.

    Tables that a model can make anew are not among it.
    """

    def __init__(self, module: nn.Module, model: nn.Module) -> None:
        """Of all that learns; the model's own differ from rank to rank, as what it heard does."""
        self._present = _kept_buffers(module)
        self._differing = [each for each in _kept_buffers(model) if each.is_floating_point()]
        self._before = [value.clone() for value in self._present]

    def keep(self) -> None:
        """Remember them as they are now."""
        if self._present:
            torch._foreach_copy_(self._before, self._present)

    def restore(self) -> None:
        """Put back what was remembered."""
        if self._present:
            torch._foreach_copy_(self._present, self._before)

    def agree(self, world: World) -> None:
        """The mean over all ranks, on each of them: of running means what they would have with all
        that was heard, of running variances that without what the ranks' means differ by.

        Without it every rank would validate with statistics of its own, and rank 0's be saved.
        """
        if world.world_size == 1 or not self._differing:
            return
        together = torch.cat([each.flatten() for each in self._differing])
        parts = (
            world.all_sum(together)
            .div_(world.world_size)
            .split([each.numel() for each in self._differing])
        )
        for each, mean in zip(self._differing, parts, strict=True):
            each.copy_(mean.view_as(each))


def _kept_buffers(module: nn.Module) -> list[Tensor]:
    """Those that a checkpoint keeps."""
    saved = module.state_dict(keep_vars=True)
    return [value for name, value in module.named_buffers() if name in saved]


class ObjectiveModule(nn.Module):
    """An objective as a module, so that a data-parallel wrapper can stand around its call."""

    def __init__(self, objective: Objective[Any, Any]) -> None:
        """The objective's modules lie on their device already."""
        super().__init__()
        self.trainable = objective.trainable
        self.statistics = RunningStatistics(objective.trainable, objective.model)
        self._call = objective.__call__  # a bound method: its other modules are no part of this

    def forward(self, batch: MicroBatch, progress: float) -> Loss:
        """The objective's loss."""
        return self._call(batch, progress)


def take_step(
    module: nn.Module,  # ObjectiveModule, perhaps wrapped
    optimizer: torch.optim.Optimizer,
    batches: Sequence[MicroBatch],  # the micro-batches of this rank
    progress: float,
    setting: Setting,
    stop: bool,  # whether this rank was asked to stop
    known: dict[str, str],  # unreadable files that all ranks have heard of
) -> Outcome:
    """Forward, backward, normalize, clip, and move the weights if everything is finite.

    If not, the model is what it was before.
    """
    config, world, device = setting.config, setting.world, setting.device
    optimizer.zero_grad(set_to_none=True)
    statistics: RunningStatistics = unwrapped(module).statistics
    statistics.keep()
    losses: list[Loss] = []
    for number, batch in enumerate(batches, start=1):
        last = number == len(batches)
        with nullcontext() if last else no_sync(module):
            with autocast(device, config.precision):
                loss = module(batch.to(device), progress)
            loss.total.backward()
        losses.append(detached(loss))
    news = {key: why for batch in batches for key, why in batch.unreadable if key not in known}
    amount = sum(batch.amount for batch in batches)
    sums = _row(losses, [amount, float(stop), float(len(news))], device)
    gradients = _gradients(optimizer)
    read = torch.cat([world.all_sum(sums), fsdp.norm(gradients).to(sums)[None]]).tolist()
    total, weight, *shown, amount, stops, unheard, summed = read
    scale = world.world_size / weight if weight else math.nan
    norm = _normalize(gradients, summed, scale, config)
    if unheard:
        news = {key: why for part in world.gather(news) for key, why in part.items()}
    parts, counts = _name_sums(losses[0], shown, weight)
    outcome = Outcome(
        total / weight if weight else math.nan,
        weight,
        parts,
        counts,
        norm,
        amount,
        stops > 0,
        news,
        setting.highest,
        [],
    )
    if outcome.taken:
        optimizer.step()
        statistics.agree(world)
        return outcome
    statistics.restore()
    return replace(outcome, suspects=_suspects(batches, losses, world))


def _row(losses: Sequence[Loss], others: Sequence[float], device: torch.device) -> Tensor:
    """Everything that is summed over micro-batches and ranks, in one float64 vector."""
    rows = [torch.stack([_number(value, device) for value in _sums(x)]) for x in losses]
    return torch.cat([torch.stack(rows).sum(0), made(others, device)])


def _number(value: Tensor, device: torch.device) -> Tensor:
    """A sum in float64 on the device; what is counted on the CPU comes without a copy."""
    if value.device.type == device.type:
        return value.to(torch.float64)
    return made([float(value)], device)[0]


def _sums(loss: Loss) -> Iterator[Tensor]:
    """Total and weight, then the parts by name, each before what is expected of it; then counts."""
    yield from (loss.total, loss.weight)
    for name in sorted(loss.parts):
        part = loss.parts[name]
        yield part.value
        if part.expected is not None:
            yield part.expected
    for name in sorted(loss.counts):
        yield loss.counts[name]


def _name_sums(
    loss: Loss, values: Sequence[float], weight: float
) -> tuple[dict[str, Part[float]], dict[str, float]]:
    """Summed parts per label token, and summed counts, from the order of `_sums`."""
    rest = iter(values)
    mean: Callable[[], float] = lambda: next(rest) / (weight or math.nan)
    parts = {
        name: Part(mean(), None if loss.parts[name].expected is None else mean())
        for name in sorted(loss.parts)
    }
    return parts, dict(zip(sorted(loss.counts), rest, strict=True))


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Those that there are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.grad for p in parameters if p.grad is not None]


def _normalize(gradients: Sequence[Tensor], norm: float, scale: float, config: LoopConfig) -> float:
    """Scale gradients of this common norm, clip it, and return it as scaled, before clipping.

    Wrapped gradients are averages over ranks, so the scale is ranks / labels of all of them.
    """
    norm *= scale
    if math.isfinite(norm):
        shares = [fsdp.local(each) for each in gradients]
        torch._foreach_mul_(shares, scale * min(1.0, config.optim.clip_norm / (norm + 1e-6)))
    return norm


def _suspects(batches: Sequence[MicroBatch], losses: Sequence[Loss], world: World) -> list[str]:
    """Ids of micro-batches with a loss that is not finite, else of all, on all ranks."""
    pairs = list(zip(batches, losses, strict=True))
    bad = [batch.ids for batch, loss in pairs if not math.isfinite(float(loss.total))]
    gathered = [ids for rank in world.gather(bad) for ids in rank]
    if not gathered:
        gathered = [ids for rank in world.gather([batch.ids for batch in batches]) for ids in rank]
    return [identity for ids in gathered for identity in ids][:NAMED]
