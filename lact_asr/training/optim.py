"""AdamW or Muon, and the learning rate as a pure function of the step: it needs no saving."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from lact_asr.config.training import OptimConfig
from lact_asr.distributed.processes import ALONE, World
from lact_asr.model.interface import Gate, Model
from lact_asr.training.muon import Muon
from lact_asr.training.objective import Objective


def rate_factor(config: OptimConfig, step: int, max_steps: int) -> float:
    """The learning rate of step 0, 1, ... max_steps - 1, as a fraction of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return 1.0
    if config.decay == "noam":
        return math.sqrt(max(config.warmup_steps, 1) / (step + 1))
    if config.decay == "hold":
        held = max(config.hold * max_steps, config.warmup_steps)
        return min(1.0, max(max_steps - step, 0) / max(max_steps - held, 1))
    share = (step - config.warmup_steps) / max(max_steps - config.warmup_steps, 1)
    return (1 + math.cos(math.pi * min(share, 1.0))) / 2


def build(
    objective: Objective[Any, Any], config: OptimConfig, world: World = ALONE
) -> torch.optim.AdamW:
    """The optimizer over the objective's groups; what is Muon's and what decays goes by role.

    The ranks of the world share Muon's work: all of them take every step.
    """
    muon = _hidden_maps(objective.model) if config.method == "muon" else set()
    spared = set() if config.decay_gains else _gains(objective.trainable)
    wanted = objective.parameter_groups(config.learning_rate)
    groups = [part for group in wanted for part in _split(group, config, muon, spared)]
    on_gpu = any(p.is_cuda for group in groups for p in group["params"])
    kind = partial(Muon, world=world) if config.method == "muon" else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=config.betas, fused=True if on_gpu else None)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's peak learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _hidden_maps(model: Model) -> set[int]:
    """Linear maps of the model's blocks, from states to states.

    Not what reads symbols or writes them, not a projector beside the model, not a gate: there every
    row stands for something of its own, however many rows a model's size makes of them.
    """
    maps = (module for module in model.blocks.modules() if isinstance(module, nn.Linear))
    return {id(module.weight) for module in maps if not isinstance(module, Gate)}


def _gains(trainable: nn.Module) -> set[int]:
    """Parameters that are no map's, kernel's or embedding's: gains, offsets, first fast weights."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    maps = {id(module.weight) for module in trainable.modules() if isinstance(module, kinds)}
    return {id(parameter) for parameter in trainable.parameters()} - maps


def _split(
    group: dict[str, Any], config: OptimConfig, muon: set[int], spared: set[int]
) -> list[dict[str, Any]]:
    """One group as what decays, the rest (biases, norms, scalars, what is spared), and Muon's."""
    learning: list[nn.Parameter] = [p for p in group["params"] if p.requires_grad]
    still: Callable[[nn.Parameter], bool] = lambda p: p.ndim < 2 or id(p) in spared
    parts = (
        ([p for p in learning if not still(p) and id(p) not in muon], config.weight_decay, False),
        ([p for p in learning if still(p)], 0.0, False),
        ([p for p in learning if id(p) in muon], config.weight_decay, True),
    )
    rates = {"lr": group["lr"], "peak": group["lr"]}
    return [
        {"params": part, "weight_decay": decay, "muon": orthogonal, **rates}
        for part, decay, orthogonal in parts
        if part
    ]
