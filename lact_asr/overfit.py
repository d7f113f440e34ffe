"""The overfit gate: ten utterances by heart, and the checks that make it a proof.

A model that cannot learn ten utterances to 0 % WER has a defect, but one that can may have one too.
With its input zeroed a transformer reached 0 % in 150 steps: it told the clips apart by their
lengths. Of nine planted defects the bare check missed four; three of those are found by the rest:

    frames          every utterance has labels + repeats output frames or more
    first loss      near that of a uniform model, which is known exactly
    gradients       every parameter gets one, all are finite
    padding         an utterance decodes alone as it does in a batch
    silence         the trained model, given silence of the same lengths, knows nothing
    blind control   a fresh model trained on silence of one length learns nothing

The fourth, a learning rate far too high, shows only in the number of steps: hence PASSED_SLOW.
Audio paired with the wrong text cannot show here at all; that needs unseen utterances.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lact_asr import checks, optim, steps
from lact_asr.checks import Defect
from lact_asr.config import OptimConfig, OverfitConfig, TrainingConfig
from lact_asr.data import Batch, Reader, whole_corpus
from lact_asr.decoding import greedy
from lact_asr.errors import DataError, Stopped
from lact_asr.health import non_finite
from lact_asr.manifest import Utterance
from lact_asr.metrics import Scores, score
from lact_asr.objective import CTCObjective, Objective, arithmetic
from lact_asr.parallel import World
from lact_asr.text import Vocabulary

PASSED, PASSED_SLOW, MARGINAL, FAILED = "PASSED", "PASSED_SLOW", "MARGINAL", "FAILED"
SETTLING = 3  # steps: a layer that starts at zero hides those before it from the first gradient


@dataclass
class OverfitResult:
    """What the gate came to; rates are fractions, None where it did not get that far."""

    finished: bool = True  # false: asked to stop; nothing is saved, the next call starts anew
    verdict: str = FAILED
    reason: str = ""  # why the verdict is FAILED, in one line
    steps: int = 0  # taken by the model that hears
    wer: float | None = None
    cer: float | None = None
    blind_wer: float | None = None
    checks: dict[str, str] = field(default_factory=dict)  # passed ones, with what they measured

    def headline(self) -> str:
        """The verdict as the log's last line."""
        if self.verdict == FAILED:
            return f"✗ FAILED ({self.reason})"
        if self.verdict == MARGINAL:
            return f"~ MARGINAL (WER {self.wer:.2%}, not 0 %, after {self.steps} steps)"
        return "✓ PASSED" if self.verdict == PASSED else "✓ PASSED (just slower)"


def overfit(
    build: Callable[[], nn.Module],
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    config: OverfitConfig,
    *,
    report: Callable[[Mapping[str, Any]], None],
    should_stop: Callable[[], bool],
    objective: Callable[[nn.Module], Objective] = CTCObjective,
    device: torch.device | None = None,
) -> OverfitResult:
    """Train fresh models from `build` (without dropout) on a few of the utterances, and judge.

    A defect of the model is a verdict, not an exception; DataError where the utterances are at
    fault.
    """
    batch = choose(utterances, vocabulary, config)
    device = device or World().device()
    gate = _Gate(build, vocabulary, config, report, should_stop, objective, device)
    result = gate.judge(batch.to(device))
    if result.finished:
        for name, measured in result.checks.items():
            print(f"Check {name}: {measured}")
        print(result.headline(), flush=True)
    return result


def choose(utterances: Sequence[Utterance], vocabulary: Vocabulary, config: OverfitConfig) -> Batch:
    """The same few utterances every time, spread over the lengths up to `longest`, as one batch."""
    corpus = whole_corpus(utterances, vocabulary)
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
    batch = Reader(corpus)[[pool[i * (len(pool) - 1) // (count - 1)] for i in range(count)]]
    for identity, why in batch.unreadable:
        raise DataError(f"utterance {identity}: {why}")
    return batch


class _Learner:
    """A fresh model and one batch, learned step by step."""

    def __init__(
        self, objective: Objective, batch: Batch, config: OverfitConfig, device: torch.device
    ) -> None:
        self.objective, self.model, self.batch = objective, objective.model, batch
        self.device, self.taken = device, 0
        self.config = TrainingConfig(
            max_steps=config.steps,
            precision=config.precision,
            optim=OptimConfig(
                learning_rate=config.learning_rate,
                warmup_steps=config.warmup_steps,
                decay="constant",
                weight_decay=0.0,
            ),
        )
        self.optimizer = optim.build(objective, self.config.optim)

    def step(self) -> float:
        """One step of the real training loop on the whole batch; its loss per label token."""
        self.model.train()
        factor = optim.rate_factor(self.config.optim, self.taken, self.config.max_steps)
        optim.set_rate(self.optimizer, factor)
        setting = steps.Setting(self.config, World(), self.device)
        module = steps.Called(self.objective)
        outcome = steps.take(module, self.optimizer, [self.batch], 0.0, setting, False, {})
        self.taken += 1
        if not outcome.taken:
            where = checks.some(non_finite(self.model, gradients=True)) or "none"
            raise Defect(
                f"gradients: not finite at step {self.taken}: loss {outcome.loss:g}, parameters "
                f"{where}"
            )
        return outcome.loss

    def run(self, waves: Tensor, lengths: Tensor, precision: str = "fp32") -> tuple[Tensor, Tensor]:
        """Log-probabilities and lengths in eval mode, without TF32."""
        self.model.eval()
        with (
            torch.no_grad(),
            arithmetic(self.device, precision),
            torch.backends.cudnn.flags(allow_tf32=False),
        ):
            output = self.model(waves, lengths)
        return output.log_probs, output.lengths


class _Gate:
    def __init__(
        self,
        build: Callable[[], nn.Module],
        vocabulary: Vocabulary,
        config: OverfitConfig,
        report: Callable[[Mapping[str, Any]], None],
        should_stop: Callable[[], bool],
        objective: Callable[[nn.Module], Objective],
        device: torch.device,
    ) -> None:
        self.build, self.vocabulary, self.config = build, vocabulary, config
        self.report, self.should_stop, self.objective = report, should_stop, objective
        self.device, self.result = device, OverfitResult()

    def judge(self, batch: Batch) -> OverfitResult:
        """All checks, the cheap ones first."""
        result = self.result
        try:
            self._see(batch)
            if self.config.blind_control:
                self._see_nothing(batch)
            right = result.wer == 0 and result.cer == 0
            prompt = result.steps <= self.config.slow_after * self.config.steps
            result.verdict = (PASSED if prompt else PASSED_SLOW) if right else MARGINAL
        except Defect as defect:
            result.reason = str(defect)
        except Stopped:
            result.finished = False
        return result

    def _fresh(self, batch: Batch) -> _Learner:
        torch.manual_seed(self.config.seed)
        objective = self.objective(self.build().to(self.device))
        return _Learner(objective, batch, self.config, self.device)

    def _see(self, batch: Batch) -> None:
        """Learn the utterances, and check on the way."""
        result, config = self.result, self.config
        learner = self._fresh(batch)
        result.checks["frames"] = checks.frames(learner.model, batch)
        moved: set[str] = set()

        def watch(loss: float) -> None:
            moved.update(checks.moving(learner.model) if learner.taken <= SETTLING else ())
            if learner.taken == 1:
                result.checks["first loss"] = checks.first_loss(
                    learner.model, batch, len(self.vocabulary), loss, config.first_loss_ratio
                )
            if learner.taken == min(SETTLING, config.steps):
                result.checks["gradients"] = checks.gradients(learner.model, moved)

        scores = self._learn(learner, config.steps, watch, self._show)
        result.steps, result.wer, result.cer = learner.taken, scores.wer, scores.cer
        result.checks["padding"] = checks.padding(learner.run, batch, config.padding_drift)
        if scores.wer > config.marginal_wer:
            raise Defect(f"can't learn: WER {scores.wer:.2%} after {learner.taken} steps")
        hear = lambda heard: self._hear(learner, heard)
        result.checks["silence"] = checks.silence(hear, batch, config.blind_wer)

    def _see_nothing(self, batch: Batch) -> None:
        """About as many steps without audio."""
        result = self.result
        learner = self._fresh(checks.blinded(batch))
        budget = math.ceil(self.config.blind_steps * result.steps)
        result.blind_wer = self._learn(learner, budget, _ignore, self._show_blind).wer
        result.checks["blind control"] = checks.blind_control(
            result.blind_wer, learner.taken, self.config.blind_wer
        )

    def _learn(
        self,
        learner: _Learner,
        budget: int,
        watch: Callable[[float], None],
        show: Callable[[int, float, Scores], None],
    ) -> Scores:
        """Up to `budget` steps, fewer if everything is right before that; the last scores."""
        while True:
            if self.should_stop():
                raise Stopped
            loss = learner.step()
            watch(loss)
            if learner.taken % self.config.evaluate_every == 0 or learner.taken == budget:
                scores = score(learner.batch.texts, self._hear(learner, learner.batch))
                show(learner.taken, loss, scores)
                if learner.taken == budget or not (scores.wer or scores.cer):
                    return scores

    def _hear(self, learner: _Learner, batch: Batch) -> list[str]:
        output = learner.run(batch.waves, batch.wave_lengths, self.config.precision)
        return greedy(*output, self.vocabulary)

    def _show(self, step: int, loss: float, scores: Scores) -> None:
        total = self.config.steps
        print(f"Step [{step}/{total}] | Loss: {loss:.6f} | WER: {scores.wer:.2%}", flush=True)
        rates = {"wer": scores.wer, "cer": scores.cer}
        self.report({"step": step, "total_steps": total, "loss": loss, **rates})

    def _show_blind(self, step: int, loss: float, scores: Scores) -> None:
        self.report({"blind_step": step, "blind_loss": loss, "blind_wer": scores.wer})


def _ignore(loss: float) -> None:
    """Nothing to watch for in the blind control: silence gives no gradient to the front end."""
