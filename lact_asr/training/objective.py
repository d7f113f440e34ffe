"""What training minimises: the protocol between the loop and a model's loss, and plain CTC.

An objective turns a micro-batch into sums. `fit` adds the sums of all micro-batches and processes
of a step and divides once, so the gradient is that of one big batch (to 1e-7). The usual mean of
means is not: micro-batches hold different numbers of labels (relative error 2.3 seen, cosine
0.994).
"""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lact_asr.config.training import CTCConfig
from lact_asr.data.batch import Batch
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.forward import listen, sees
from lact_asr.model.interface import CTCOutput
from lact_asr.model.masks import valid

EXPECTED = "_expected"  # end of the name of a part: what another part would be before learning


@dataclass
class Loss:
    """The loss of one micro-batch, as sums.

    `parts` are shown divided by the weight of the step, `counts` as they are; their names are the
    same in every micro-batch of a step, on every process. Beside a part `x` there may be
    `x_expected`: shown is `x_relative`, the one over the other.
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
    for a loss that counts something else beside labels. And `end_step(step, outcome, journal)`,
    told what all ranks together came to. And `views`, how often it hears each utterance of a batch:
    as much fewer are in one. And `sees`, the shape of a frame of the video it looks at.
    """

    trainable: nn.Module  # everything with parameters to learn
    model: nn.Module  # the CTC model that is validated and saved; in `trainable`, or the same

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch on the model's device; progress runs from 0 to 1 over max_steps."""
        ...


class CTCObjective:
    """Connectionist temporal classification over one model, per label token.

        (1 - w) CTC + w mean of CTC at intermediate blocks + c CR

    With consistency every utterance is heard twice: CTC is the mean of both, and CR = (KL(a || b) +
    KL(b || a)) / 2 summed over frames, where the first of each pair gives no gradient (Yao et al.
    2024). All are sums over the batch, so they too are exact however a step is cut.
    """

    def __init__(self, model: nn.Module, config: CTCConfig | None = None) -> None:
        self.model = self.trainable = model
        self.config = config or CTCConfig()
        if self.config.intermediate:
            self.config.check(model.config.blocks)
        self.views = self.config.views  # fit puts fewer utterances into a batch
        self.sees = sees(model)

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch; `zeroed` counts utterances that no path fits (loss infinite)."""
        heard = repeated(batch, self.views)
        output = listen(self.model, heard)
        losses = ctc_losses(output.log_probs, output.lengths, heard)  # [views B]
        zeroed = ((losses == 0) & (heard.target_lengths > 0)).sum() / self.views
        total = ctc = losses.sum() / self.views
        parts = {}
        if self.config.intermediate:
            parts["intermediate"] = inner = self._intermediate(output, heard)
            share = self.config.intermediate_weight
            total = (1 - share) * ctc + share * inner
        if self.config.consistency:
            parts["consistency"] = apart = consistency(output.log_probs, output.lengths)
            total = total + self.config.consistency * apart
        if parts:
            parts = {name: part.detach() for name, part in {"ctc": ctc, **parts}.items()}
        return Loss(total, batch.target_lengths.sum(), parts, {"zeroed": zeroed})

    def _intermediate(self, output: CTCOutput, heard: Batch) -> Tensor:
        """Mean over the chosen blocks of the CTC loss of what the model's head reads there."""
        lengths = output.lengths
        each = [
            ctc_losses(self.model.read_out(output.hidden[n - 1], lengths), lengths, heard).sum()
            for n in self.config.intermediate
        ]
        return torch.stack(each).mean() / self.views


def repeated(batch: Batch, times: int) -> Batch:
    """The utterances of a batch so many times over."""
    if times == 1:
        return batch
    return replace(
        batch,
        ids=batch.ids * times,
        texts=batch.texts * times,
        waves=batch.waves.repeat(times, 1),
        wave_lengths=batch.wave_lengths.repeat(times),
        targets=batch.targets.repeat(times),
        target_lengths=batch.target_lengths.repeat(times),
        video=None if batch.video is None else torch.cat([batch.video] * times),
        video_lengths=None if batch.video is None else batch.video_lengths.repeat(times),
    )


def consistency(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Divergence between the halves of a batch [2B,T,V], two views of it, summed over frames."""
    one, other = log_probs.float().chunk(2)
    both = F.kl_div(one, other.detach(), reduction="none", log_target=True)
    both = both + F.kl_div(other, one.detach(), reduction="none", log_target=True)  # [B,T,V]
    mask = valid(lengths[: len(one)], log_probs.shape[1])
    return both.sum(-1).masked_fill(~mask, 0).sum() / 2
