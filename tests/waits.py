"""A device on which nothing has a value: what a program needs to know of it, it has to wait for.

PyTorch's `meta` device stands in its place: shapes and types without numbers, so any step runs on
it, without a GPU, and whatever asks for a number has to come here.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lact_asr.config.augment import AugmentConfig
from lact_asr.config.training import LoopConfig
from lact_asr.data.batch import Batch
from lact_asr.data.specaugment import SpecAugment
from lact_asr.data.speed import change_speed
from lact_asr.distributed.processes import World
from lact_asr.training import optim, train_step
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.material import MicroBatch
from lact_asr.training.objective import Objective

DEVICE = torch.device("meta")
QUIET = 11  # a step of which nothing is said
SHAPED_BY_VALUES = {"nonzero", "masked_select", "unique", "_unique2", "bincount", "equal"}


class _Lists(TorchFunctionMode):
    """Sees `torch.tensor` with a device: a copy from the CPU."""

    def __init__(self, sent: list[str]) -> None:
        super().__init__()
        self.sent = sent

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        target = (kwargs or {}).get("device") or "cpu"
        if func in (torch.tensor, torch.as_tensor) and torch.device(target) == DEVICE:
            self.sent.append(f"{func.__name__} of a list")
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Names of the operations that wait for the device, in their order; values there are all 1."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []  # of its numbers, by the program
        self.sent: list[str] = []  # copies to it that the program waits for
        self.losses: list[int] = []  # utterances of each call of CTC, whose kernels wait too

    def __enter__(self) -> "Waits":
        self.lists = _Lists(self.sent)
        self.lists.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.lists.__exit__(*raised)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").partition(".")[0]
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = [each for each in given if each.is_meta]
        target = kwargs.get("device")
        if name == "_to_copy" and target is not None:
            return self._copied(func, args, kwargs, torch.device(target))
        if name in ("_ctc_loss", "_ctc_loss_backward") and there:
            return self._ctc(name, args)
        if name == "_local_scalar_dense" and there:
            self.reads.append(name)
            return 1.0
        if (name in SHAPED_BY_VALUES and there) or _masked(name, args):
            self.reads.append(name)
            raise AssertionError(f"{name}: how large the result is only the device knows")
        return func(*args, **kwargs)

    def _copied(self, func: Any, args: tuple, kwargs: dict, target: torch.device) -> Tensor:
        here = args[0]
        if here.is_meta and target.type == "cpu":
            self.reads.append("copied to the CPU")
            return torch.ones(here.shape, dtype=kwargs.get("dtype") or here.dtype)
        if here.is_cpu and target.type == "meta" and not kwargs.get("non_blocking"):
            self.sent.append(f"{tuple(here.shape)} {here.dtype}")
        return func(*args, **kwargs)

    def _ctc(self, name: str, args: tuple) -> Any:
        scores = args[1] if name.endswith("backward") else args[0]
        lengths = args[3:5] if name.endswith("backward") else args[2:4]
        for each in lengths:
            if isinstance(each, Tensor) and each.is_meta:
                self.reads.append("lengths of CTC")
        if name.endswith("backward"):
            return torch.empty_like(scores)
        self.losses.append(scores.shape[1])
        return scores.new_empty(scores.shape[1]), scores.new_empty(*scores.shape[1::-1], 3)


def _masked(name: str, args: tuple) -> bool:
    """Whether places are chosen by a mask that lies on the device."""
    if name not in ("index", "index_put", "index_put_"):
        return False
    chosen = [each for each in args[1] if each is not None]
    return any(each.is_meta and each.dtype in (torch.bool, torch.uint8) for each in chosen)


def without_autocast(patched: pytest.MonkeyPatch) -> None:
    """Leave autocast out: it knows no `meta`."""
    patched.setattr(torch, "autocast", lambda *given, **named: nullcontext())


def heard(batch: Batch) -> Batch:
    """Utterances on the device, slowed and masked."""
    return replace(change_speed(batch.to(DEVICE), 0.9), augment=SpecAugment(AugmentConfig()))


def step(
    objective: Objective[Any, Any],
    taken: Sequence[MicroBatch],
    config: LoopConfig,
    logger: TrainingLogger,
    monkeypatch: pytest.MonkeyPatch,
    prepared: Callable[[Any], MicroBatch] = heard,
) -> Waits:
    """What one step waits for, taken as the loop takes it, from batches of the CPU on."""
    with monkeypatch.context() as patched, Waits() as seen:
        without_autocast(patched)
        objective.trainable.to(DEVICE).train()
        optimizer = optim.build(objective, config.optim)
        module = train_step.ObjectiveModule(objective)
        seen.reads.clear()  # only what is inside a step
        seen.sent.clear()
        moved = [prepared(each) for each in taken]
        objective.begin_step(moved, World().all_sum)
        setting = train_step.Setting(config, World(), DEVICE)
        outcome = train_step.take_step(module, optimizer, moved, 0.5, setting, False, {})
        objective.end_step(QUIET, outcome, logger)
    assert outcome.taken and all(each.is_meta for each in objective.trainable.parameters())
    return seen
