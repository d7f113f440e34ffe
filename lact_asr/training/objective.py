"""What training minimizes: what the loop asks of a loss, and plain CTC."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lact_asr.config.training import CTCConfig
from lact_asr.data.batch import Batch
from lact_asr.distributed.device import sent
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.forward import forward_batch
from lact_asr.model.interface import CTCModel, CTCOutput, Model
from lact_asr.model.masks import length_mask
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.loss import Loss, Outcome, Part
from lact_asr.training.spelling import Spelling

AnyBatch = TypeVar("AnyBatch")
AnyModel = TypeVar("AnyModel", bound=Model)


class Objective(ABC, Generic[AnyBatch, AnyModel]):
    """A loss with its modules: what the loop trains, and all that the loop asks of it.

    It is called under autocast when the precision is bf16; losses must be computed in float32.
    Every parameter of `trainable` takes part in every total (an inactive part as 0 * its sum), or
    the objective says so with `unused_parameters`.
    """

    trainable: nn.Module  # everything with parameters to learn
    model: AnyModel  # what is validated and saved; in `trainable`, or the same
    views: int = 1  # how often it hears each utterance of a batch: as much fewer are in one
    video_shape: tuple[int, ...] | None = None  # of a frame of the video that it looks at, if any
    unused_parameters: bool = False  # whether a total may leave parameters out

    @abstractmethod
    def __call__(self, batch: AnyBatch, progress: float) -> Loss:
        """The loss of a batch on the model's device; progress runs from 0 to 1 over max_steps."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What learns at which rate: `{"params": ..., "lr": ...}` each; all at the given one."""
        return [{"params": list(self.trainable.parameters()), "lr": learning_rate}]

    def begin_step(self, batches: Sequence[AnyBatch], all_sum: Callable[[Tensor], Tensor]) -> None:
        """Called with this rank's micro-batches of a step before the first of them.

        For a loss that counts something else beside labels: `all_sum` adds up over the ranks.
        """

    def end_step(self, step: int, outcome: Outcome, logger: TrainingLogger) -> None:
        """Called after every step with what it came to on all ranks."""


SpeechObjective: TypeAlias = Objective[Batch, CTCModel]


class CTCObjective(SpeechObjective):
    """Connectionist temporal classification over one model, per label token.

        (1 - w) CTC + w mean of CTC at intermediate blocks + c CR

    Those may write characters where the output writes pieces of words (`Spelling`).
    With consistency every utterance is heard twice: CTC is the mean of both, and CR = (KL(a || b) +
    KL(b || a)) / 2 summed over frames, where the first of each pair gives no gradient (Yao et al.
    2024). All are sums over the batch, so they too are exact however a step is cut.
    """

    trainable: nn.Module

    def __init__(
        self,
        model: CTCModel,
        config: CTCConfig | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """The vocabulary is what the model writes with; it is needed where inner blocks write
        other symbols.
        """
        self.model = self.trainable = model
        self.config = config or CTCConfig()
        if self.config.intermediate:
            self.config.check(model.config.blocks)
        self.spelling: Spelling | None = None
        if self.config.intermediate_symbols == "characters":
            assert vocabulary, "what the model writes with"
            self.spelling = Spelling(model.head.in_features, vocabulary)
            self.trainable = nn.ModuleDict({"model": model, "spelling": self.spelling})
        self.views = self.config.views  # fit puts fewer utterances into a batch
        self.video_shape = model.video_shape

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        heard = repeat_batch(batch, self.views)
        return self.judge(forward_batch(self.model, heard), heard)

    def judge(self, output: CTCOutput, heard: Batch) -> Loss:
        """The loss of what the model has said of a batch repeated `views` times; `zeroed` counts
        utterances that no path fits (loss infinite).
        """
        losses, *inner = self._losses(output, heard)  # [views B] each
        spoken = sent(heard.target_lengths > 0, losses.device)
        zeroed = ((losses == 0) & spoken).sum() / self.views
        total = ctc = losses.sum() / self.views
        parts: dict[str, Tensor] = {}
        if self.config.intermediate:
            within = torch.stack([each.sum() for each in inner]).mean() / self.views
            parts["intermediate"], share = within, self.config.intermediate_weight
            total = (1 - share) * ctc + share * within
        if self.config.consistency:
            parts["consistency"] = apart = consistency(output.log_probs, output.lengths)
            total = total + self.config.consistency * apart
        if parts:
            parts = {"ctc": ctc, **parts}
        shown = {name: Part(value.detach()) for name, value in parts.items()}
        labels = heard.target_lengths.sum() // self.views
        return Loss(total, labels, shown, {"zeroed": zeroed})

    def _losses(self, output: CTCOutput, heard: Batch) -> Sequence[Tensor]:
        """CTC losses [B] of the output, then of what is read at the chosen blocks; in one call, for
        each would wait for the device.
        """
        states = [output.hidden[n - 1] for n in self.config.intermediate]
        own = (heard.targets, heard.target_lengths)
        if self.spelling:
            targets, lengths = self.spelling.labels(heard.texts)
            labels = [own] + [(sent(targets, heard.targets.device), lengths)] * len(states)
            inner = [self.spelling.read_out(each) for each in states]
        else:
            labels = [own] * (1 + len(states))
            inner = [self.model.read_out(each, output.lengths) for each in states]
        texts = replace(
            heard,
            targets=torch.cat([targets for targets, _ in labels]),
            target_lengths=torch.cat([lengths for _, lengths in labels]),
        )
        times = len(labels)
        frames = self.model.output_lengths(heard.wave_lengths).repeat(times)
        return ctc_losses(torch.cat([output.log_probs, *inner]), frames, texts).chunk(times)


def repeat_batch(batch: Batch, times: int) -> Batch:
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
        video=_times(batch.video, times),
        video_lengths=_times(batch.video_lengths, times),
    )


def _times(rows: Tensor | None, times: int) -> Tensor | None:
    return None if rows is None else torch.cat([rows] * times)


def consistency(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Divergence between the halves of a batch [2B,T,V], two views of it, summed over frames."""
    one, other = log_probs.float().chunk(2)
    both = F.kl_div(one, other.detach(), reduction="none", log_target=True)
    both = both + F.kl_div(other, one.detach(), reduction="none", log_target=True)  # [B,T,V]
    mask = length_mask(lengths[: len(one)], log_probs.shape[1])
    return both.sum(-1).masked_fill(~mask, 0).sum() / 2
