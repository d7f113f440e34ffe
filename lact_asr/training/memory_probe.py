"""The worst batches, before the first step: memory that will not do shows here, with nothing lost.

An epoch's plan is known in advance, and so are its worst batches: the longest utterance, the most
utterances, the most pairs of frames (attention over all of a batch). Each goes forward and backward
once at the slowest speed, beside room for what the optimizer has not made yet. Weights, statistics
and the order of the data stay as they are. No rank waits for another in between, so one that runs
out of memory can say so to all. Where the model is split over the ranks they do wait: one that runs
out ends at once and says so itself, and those that wait for it end with it.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lact_asr.config.training import LoopConfig
from lact_asr.distributed.fsdp import split
from lact_asr.distributed.processes import World, no_sync
from lact_asr.model.forward import autocast
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.material import Material, Worst
from lact_asr.training.objective import Objective
from lact_asr.utils.errors import Failed

MOMENTS = 2  # tensors of its size that AdamW keeps beside each weight, from its first step on


def should_probe(config: LoopConfig, device: torch.device) -> bool:
    """Whether to probe: as set, else on GPUs, where memory that runs out can be caught."""
    return device.type == "cuda" if config.probe is None else config.probe


def worst(lengths: NDArray[Any], batches: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The batches with the longest item, most items, most pairs of places in one; each once."""
    longest = np.array([lengths[batch].max() for batch in batches])
    sizes = np.array([len(batch) for batch in batches])
    measures = (longest, sizes, sizes * longest**2)
    return [batches[place] for place in dict.fromkeys(int(each.argmax()) for each in measures)]


def probe(
    module: nn.Module,  # the objective called as a module, perhaps wrapped
    objective: Objective[Any, Any],
    optimizer: torch.optim.Optimizer,
    material: Material,
    config: LoopConfig,
    world: World,
    device: torch.device,
    logger: TrainingLogger,
) -> None:
    """Run the worst batches of the first epoch; Failed if a rank cannot."""
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    room = [] if optimizer.state else [torch.empty_like(p) for p in learning * MOMENTS]
    buffers = [(buffer, buffer.clone()) for buffer in objective.trainable.buffers()]
    objective.trainable.train()
    shapes = []
    for each in material.worst():
        shapes.append([each.count, round(each.longest, 2)])
        error = _try_batch(module, objective, each.batch, config, world, device)
        optimizer.zero_grad(set_to_none=True)
        if (error and split(module)) or world.all_max(bool(error)):
            raise Failed("out_of_memory_gpu", _explain(each, material, error))
    for buffer, before in buffers:
        buffer.copy_(before)
    del room
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    logger.event("probed", batches=shapes, peak_bytes=peak)
    unit = material.terms.unit
    tried = ", ".join(f"{count} x {longest:g} {unit}" for count, longest in shapes)
    used = f", {peak / 2**30:.1f} GiB at most" if peak else ""
    logger.say(f"The worst batches fit into memory: {tried}{used}")


def _try_batch(
    module: nn.Module,
    objective: Objective[Any, Any],
    batch: Any,
    config: LoopConfig,
    world: World,
    device: torch.device,
) -> str:
    """Forward and backward; why memory ran out, if it did."""
    objective.begin_step([batch], world.all_sum)
    try:
        with no_sync(module):
            with autocast(device, config.precision):
                loss = module(batch, 0.0)
            loss.total.backward()
    except torch.OutOfMemoryError as error:
        return str(error)
    return ""


def _explain(each: Worst, material: Material, error: str) -> str:
    terms, why = material.terms, error or "it did so on another rank"
    return (
        f"memory would run out: {each.count} {terms.items} of up to {each.longest:.4g} "
        f"{terms.unit} are one of the worst batches that {terms.budget} {material.budget:g} "
        f"allows, and were tried before the first step; halve {terms.budget} and double "
        f"accumulate ({why})"
    )
