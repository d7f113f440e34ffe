"""What training minimises: the protocol between the loop and a model's loss, and plain CTC.

An objective turns a micro-batch into sums. `fit` adds the sums of all micro-batches and processes
of a step and divides once, so the gradient is that of one big batch (to 1e-7). The usual mean of
means is not: micro-batches hold different numbers of labels (relative error 2.3 seen, cosine
0.994).
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lact_asr.data import Batch
from lact_asr.model import CTCOutput


@dataclass
class Loss:
    """The loss of one micro-batch, as sums.

    `parts` are shown divided by the weight of the step, `counts` as they are; their names are the
    same in every micro-batch of a step, on every process.
    """

    total: Tensor  # differentiable scalar
    weight: float | Tensor  # what the total is divided by, once per step: label tokens
    parts: dict[str, float | Tensor] = field(default_factory=dict)
    counts: dict[str, float | Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss with its modules.

    It is called under autocast when the precision is bf16; losses must be computed in float32.
    Every parameter of `trainable` takes part in every total (an inactive part as 0 * its sum), or
    the objective says `unused_parameters = True`. It may also have `parameter_groups(learning_rate)
    -> [{"params": ..., "lr": ...}, ...]`; without it all parameters learn at the same rate. And
    `begin_step(batches, all_sum)`, called with this rank's micro-batches before the first of them,
    for a loss that counts something else beside labels.
    """

    trainable: nn.Module  # everything with parameters to learn
    model: nn.Module  # the CTC model that is validated and saved; in `trainable`, or the same

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch on the model's device; progress runs from 0 to 1 over max_steps."""
        ...


class CTCObjective:
    """Connectionist temporal classification over one model, per label token."""

    def __init__(self, model: nn.Module) -> None:
        self.model = self.trainable = model

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The CTC loss of a batch; `zeroed` counts utterances that no path fits (loss infinite)."""
        output = listen(self.model, batch)
        losses = ctc_losses(output.log_probs, output.lengths, batch)
        zeroed = ((losses == 0) & (batch.target_lengths > 0)).sum()
        return Loss(losses.sum(), batch.target_lengths.sum(), counts={"zeroed": zeroed})


def listen(model: nn.Module, batch: Batch) -> CTCOutput:
    """The model's output on a batch, through the batch's augmentation if it has one."""
    hidden = {"augment": batch.augment} if batch.augment else {}
    return model(batch.waves, batch.wave_lengths, **hidden)


def ctc_losses(log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """CTC losses [B] of normalised log_probs [B,T,V] of `lengths` valid frames, float32, in nats.

    An infeasible utterance gives 0 and no gradient. Targets are int64: int32 on the CPU would
    select cuDNN's loss, which ignores zero_infinity (pytorch#176910).
    """
    with torch.autocast(log_probs.device.type, enabled=False):
        return F.ctc_loss(
            log_probs.float().transpose(0, 1),  # [T,B,V]
            batch.targets,
            lengths,
            batch.target_lengths,
            blank=0,
            reduction="none",
            zero_infinity=True,
        )


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a forward pass, in training and decoding alike."""
    wanted = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
