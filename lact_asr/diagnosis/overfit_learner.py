"""A few utterances learned by heart: which ones, and the model that learns them step by step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lact_asr.config.overfit import OverfitConfig
from lact_asr.config.training import TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import Utterance
from lact_asr.diagnosis import overfit_checks
from lact_asr.diagnosis.overfit_checks import Defect
from lact_asr.distributed.processes import World
from lact_asr.model.forward import autocast, forward_batch
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import optim, train_step
from lact_asr.training.guard import non_finite
from lact_asr.training.objective import SpeechObjective
from lact_asr.utils.errors import DataError
from lact_asr.utils.spread import spread

SETTLING = 3  # steps: a layer that starts at zero hides those before it from the first gradient


def choose(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    config: OverfitConfig,
    video_shape: tuple[int, ...] | None = None,
) -> Batch:
    """The same few utterances every time, spread over the lengths up to `longest`, as one batch."""
    corpus = whole_corpus(utterances, vocabulary, video_shape)
    spelt = [index for index in range(len(corpus)) if len(corpus.labels[index])]
    first = {corpus.texts.text(index): index for index in reversed(spelt)}
    order = sorted(first.values(), key=lambda index: (corpus.durations[index], index))
    count = config.utterances
    if len(order) < count:
        raise DataError(
            f"the overfit check needs {count} utterances with different texts, and there are "
            f"{len(order)}: name a larger manifest, or fewer utterances"
        )
    short = [index for index in order if corpus.durations[index] <= config.longest]
    pool = short if len(short) >= count else order[:count]
    batch = Reader(corpus)[spread(pool, count)]
    for identity, why in batch.unreadable:
        raise DataError(f"utterance {identity}: {why}")
    return batch


class Learner:
    """A fresh model and one batch, learned step by step."""

    def __init__(
        self, objective: SpeechObjective, batch: Batch, config: OverfitConfig, device: torch.device
    ) -> None:
        self.objective, self.model, self.batch = objective, objective.model, batch
        self.device, self.taken, self.steps = device, 0, config.steps
        own = {"learning_rate": config.learning_rate, "warmup_steps": config.warmup_steps}
        by_heart = {**own, "decay": "constant", "weight_decay": 0.0}
        self.config = TrainingConfig(
            max_steps=config.steps,
            precision=config.precision,
            optim=config.optimizer.model_copy(update=by_heart),
        )
        self.optimizer = optim.build(objective, self.config.optim)
        self.moved: set[str] = set()  # parameters that have had a gradient in the first steps
        self.optimizer.register_step_pre_hook(self._look)
        self.module = train_step.ObjectiveModule(objective)

    def _look(self, *_: object) -> None:
        """Before the weights move: Muon leaves no gradients behind."""
        if self.taken < SETTLING:
            self.moved |= overfit_checks.with_gradient(self.model)

    def step(self) -> float:
        """One step of the real training loop on the whole batch; its loss per label token."""
        self.model.train()
        factor = optim.rate_factor(self.config.optim, self.taken, self.steps)
        optim.set_rate(self.optimizer, factor)
        setting = train_step.Setting(self.config, World(), self.device)
        outcome = train_step.take_step(
            self.module, self.optimizer, [self.batch], 0.0, setting, False, {}
        )
        self.taken += 1
        if not outcome.taken:
            where = overfit_checks.some(non_finite(self.model, gradients=True)) or "none"
            raise Defect(
                f"gradients: not finite at step {self.taken}: loss {outcome.loss:g}, parameters "
                f"{where}"
            )
        return outcome.loss

    def run(self, batch: Batch, precision: str = "fp32") -> tuple[Tensor, Tensor]:
        """Log-probabilities and lengths in eval mode, without TF32."""
        self.model.eval()
        with (
            torch.no_grad(),
            autocast(self.device, precision),
            torch.backends.cudnn.flags(allow_tf32=False),
        ):
            output = forward_batch(self.model, batch)
        return output.log_probs, output.lengths
