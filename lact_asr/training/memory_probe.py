"""The worst batches, before the first step: memory that will not do shows here, with nothing lost.

An epoch's plan is known in advance, and so are its worst batches: the longest utterance, the most
utterances, the most pairs of frames (attention over all of a batch). Each goes forward and backward
once at the slowest speed, beside room for what the optimiser has not made yet. Weights, statistics
and the order of the data stay as they are. No rank waits for another in between, so one that runs
out of memory can say so to all. Where the model is split over the ranks they do wait: one that runs
out ends at once and says so itself, and those that wait for it end with it.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lact_asr.config.model import SAMPLE_RATE
from lact_asr.config.training import TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.data.batch_plan import epoch_plan
from lact_asr.data.dataset import Corpus, Reader
from lact_asr.data.specaugment import SpecAugment
from lact_asr.data.speed import change_speed
from lact_asr.distributed.fsdp import split
from lact_asr.distributed.processes import World, no_sync
from lact_asr.model.forward import arithmetic
from lact_asr.training.logger import Journal
from lact_asr.training.objective import Objective
from lact_asr.utils.errors import TrainingFailed

MOMENTS = 2  # tensors of its size that AdamW keeps beside each weight, from its first step on


def wanted(config: TrainingConfig, device: torch.device) -> bool:
    """Whether to probe: as set, else on GPUs, where memory that runs out can be caught."""
    return device.type == "cuda" if config.probe is None else config.probe


def worst(durations: np.ndarray, batches: list[np.ndarray]) -> list[np.ndarray]:
    """The batches with the longest utterance, most utterances, most pairs of frames; each once."""
    longest = np.array([durations[batch].max() for batch in batches])
    sizes = np.array([len(batch) for batch in batches])
    measures = (longest, sizes, sizes * longest**2)
    return [batches[place] for place in dict.fromkeys(int(each.argmax()) for each in measures)]


def probe(
    module: nn.Module,  # the objective called as a module, perhaps wrapped
    objective: Objective[Any, Any],
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    config: TrainingConfig,
    world: World,
    device: torch.device,
    journal: Journal,
) -> None:
    """Run the worst batches of the first epoch; TrainingFailed if a rank cannot."""
    budget = config.planned_seconds(objective.views)
    plan = epoch_plan(corpus.durations, budget, config.seed, 0, world.world_size)
    chosen = worst(corpus.durations, [batch for rank in plan for batch in rank])
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    room = [] if optimizer.state else [torch.empty_like(p) for p in learning * MOMENTS]
    buffers = [(buffer, buffer.clone()) for buffer in objective.trainable.buffers()]
    objective.trainable.train()
    for indices in chosen:
        batch = _slowest(Reader(corpus, spare=True)[indices], config, device)
        error = _tried(module, objective, batch, config, world)
        optimizer.zero_grad(set_to_none=True)
        if (error and split(module)) or world.all_max(bool(error)):
            raise TrainingFailed("out_of_memory", _explained(batch, config, error))
    for buffer, before in buffers:
        buffer.copy_(before)
    del room
    shapes = [[len(each), round(float(corpus.durations[each].max()), 2)] for each in chosen]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    journal.event("probed", batches=shapes, peak_bytes=peak)
    tried = ", ".join(f"{count} x {seconds:g} s" for count, seconds in shapes)
    used = f", {peak / 2**30:.1f} GiB at most" if peak else ""
    journal.say(f"The worst batches fit into memory: {tried}{used}")


def _slowest(batch: Batch, config: TrainingConfig, device: torch.device) -> Batch:
    """The batch as long as it can become, on the device."""
    batch = change_speed(batch.to(device), min(config.augment.speeds))
    return replace(batch, augment=SpecAugment(config.augment)) if config.augment.hides else batch


def _tried(
    module: nn.Module,
    objective: Objective[Any, Any],
    batch: Batch,
    config: TrainingConfig,
    world: World,
) -> str:
    """Forward and backward; why memory ran out, if it did."""
    objective.begin_step([batch], world.all_sum)
    try:
        with no_sync(module):
            with arithmetic(batch.waves.device, config.precision):
                loss = module(batch, 0.0)
            loss.total.backward()
    except torch.OutOfMemoryError as error:
        return str(error)
    return ""


def _explained(batch: Batch, config: TrainingConfig, error: str) -> str:
    count, samples = batch.waves.shape
    why = error or "it did so on another rank"
    return (
        f"memory would run out: {count} utterances of up to {samples / SAMPLE_RATE:.1f} s are one "
        f"of the worst batches that batch_seconds {config.batch_seconds:g} allows, and were tried "
        f"before the first step; halve batch_seconds and double accumulate ({why})"
    )
