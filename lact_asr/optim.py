"""AdamW, and the learning rate as a pure function of the step: nothing to save or resume."""

import math

import torch
from torch import nn

from lact_asr.config import OptimConfig
from lact_asr.objective import Objective


def rate_factor(config: OptimConfig, step: int, max_steps: int) -> float:
    """The learning rate of step 0, 1, ... max_steps - 1, as a fraction of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return 1.0
    if config.decay == "noam":
        return math.sqrt(max(config.warmup_steps, 1) / (step + 1))
    share = (step - config.warmup_steps) / max(max_steps - config.warmup_steps, 1)
    return (1 + math.cos(math.pi * min(share, 1.0))) / 2


def build(objective: Objective, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the objective's groups; weight decay for matrices only."""
    groups = [part for group in _groups(objective, config) for part in _split(group, config)]
    on_gpu = any(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, fused=True if on_gpu else None
    )


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's peak learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _groups(objective: Objective, config: OptimConfig) -> list[dict]:
    own = getattr(objective, "parameter_groups", None)
    if own is not None:
        return list(own(config.learning_rate))
    return [{"params": objective.trainable.parameters(), "lr": config.learning_rate}]


def _split(group: dict, config: OptimConfig) -> list[dict]:
    """One group as matrices (decayed) and the rest: biases, norms, scalars."""
    learning: list[nn.Parameter] = [p for p in group["params"] if p.requires_grad]
    rates = {"lr": group["lr"], "peak": group["lr"]}
    matrices = [p for p in learning if p.ndim >= 2]
    others = [p for p in learning if p.ndim < 2]
    halves = ((matrices, config.weight_decay), (others, 0.0))
    return [{"params": part, "weight_decay": decay, **rates} for part, decay in halves if part]
