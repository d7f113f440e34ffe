"""Everything a run must not forget: written beside the weights, read back by the next process."""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lact_asr.data.batch_plan import Position
from lact_asr.distributed.fsdp import optimizer_like
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint
from lact_asr.training.averaging import Average
from lact_asr.training.health import Vitals
from lact_asr.training.length import Course
from lact_asr.training.objective import Objective
from lact_asr.training.origin import require_fit
from lact_asr.training.validation import comparison_key
from lact_asr.utils.errors import Misfit


@dataclass
class State:
    """What a run remembers, beside weights, optimizer and its place in the data."""

    step: int = 0
    validated: int = 0  # step of the last validation
    best: list[float] = field(default_factory=list)  # the order (`Measure`) of the best model
    mark: list[float] = field(default_factory=list)  # the one that early stopping waits for
    averaged: bool = False  # whether the last checkpoints' mean has been validated
    stale: int = 0  # validations that did not come below them
    skipped: int = 0  # steps dropped
    in_a_row: int = 0  # steps dropped since the last that was taken
    dropped: list[int] = field(default_factory=list)  # the steps dropped of late
    typical_norm: float = 0.0  # running mean of the gradient norm
    typical_loss: float = 0.0  # and of the loss of the steps that were taken
    lowest_loss: float = math.inf  # that mean at its lowest
    risen: int = 0  # the step from which on no loss was near that, or finite; 0: the last one was
    unreadable: dict[str, str] = field(default_factory=dict)  # id -> why
    vitals: Vitals = field(default_factory=Vitals)  # whether it is well
    quarantined: dict[str, str] = field(default_factory=dict)  # id -> why it is left out of batches
    course: Course = field(default_factory=Course)  # of a run whose length is given in epochs


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generators for one step: dropout differs between steps and ranks."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def trainer_state(
    state: State,
    objective: Objective[Any, Any],
    optimizer: torch.optim.Optimizer,
    position: Position,
    fingerprint: int,
    average: Average,
) -> dict[str, Any]:
    """The content of trainer.pt: numbers, strings and tensors only."""
    return {
        "state": asdict(state),
        "optimizer": optimizer.state_dict(),
        "beside": _beside(objective),
        "position": position.to_dict(),
        "corpus": fingerprint,
        "average": average.values,
    }


def resume(
    path: Path,
    objective: Objective[Any, Any],
    vocabulary: Vocabulary,
    optimizer: torch.optim.Optimizer,
    fingerprint: int,
    average: Average,
) -> tuple[State, Position]:
    """Load a checkpoint into the objective, the optimizer and the running mean of the weights.

    Learning rate and other settings of the optimizer are the present ones, so that a run can go on
    with others than it began with. If the training data changed, a new epoch begins. Misfit where
    the model, the vocabulary, the objective or the kind of optimizer did.
    """
    require_fit(path, objective.model, vocabulary)
    saved = checkpoint.load(path / "trainer.pt")
    _require_place(saved, path)
    checkpoint.restore(objective.model, path / checkpoint.WEIGHTS)
    present = _beside(objective)
    shapes = [{name: v.shape for name, v in each.items()} for each in (saved["beside"], present)]
    if shapes[0] != shapes[1]:
        raise Misfit(
            f"{path / 'trainer.pt'} belongs to another objective: it has "
            f"{sorted(saved['beside'])}, this one needs {sorted(present)}: write the losses of the "
            "run that it belongs to"
        )
    objective.trainable.load_state_dict(saved["beside"], strict=False)
    resume_optimizer(optimizer, saved["optimizer"], path)
    if average.decay:
        average.load(saved["average"])
    position = Position.from_dict(saved["position"])
    if saved["corpus"] != fingerprint:
        position = Position(position.epoch + 1)
    return _state(saved["state"]), position


def _require_place(saved: dict[str, Any], path: Path) -> None:
    """Misfit where a checkpoint does not say how far it was in its data."""
    if "position" not in saved:
        raise Misfit(
            f"{path} was left by a loop for language models that is no more, which kept neither "
            "its place in the texts nor which texts they were: begin anew with its weights, "
            f"init_from: {path}"
        )


def _state(saved: dict[str, Any]) -> State:
    """The state as it was saved; it used to name the best WER and loss."""
    saved = {
        **saved,
        "vitals": Vitals.loaded(saved.get("vitals", {})),
        "course": Course(**saved.get("course", {})),
    }
    if "best_wer" not in saved:
        return State(**saved)
    others = {name: value for name, value in saved.items() if name not in ("best_wer", "best_loss")}
    return State(**others, best=list(comparison_key(saved["best_wer"], saved["best_loss"])))


def judged_anew(state: State) -> State:
    """The same, with no dropped step held against what comes: other settings get a chance."""
    return replace(state, in_a_row=0, dropped=[])


def resume_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """What an optimizer remembers, with the present learning rate and other settings."""
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(optimizer_like(saved, optimizer))
    except ValueError as error:
        raise Misfit(
            f"{path / 'trainer.pt'} was left by another optimizer: write the optim.method of the "
            "run that it belongs to"
        ) from error
    for group, fresh in zip(optimizer.param_groups, settings, strict=True):
        group.update(fresh)


def _beside(objective: Objective[Any, Any]) -> dict[str, Tensor]:
    """What an objective trains or tracks outside its model: projectors, routers, running means."""
    inside = {id(value) for value in objective.model.state_dict(keep_vars=True).values()}
    everything = objective.trainable.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in everything.items() if id(value) not in inside}
