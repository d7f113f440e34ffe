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

A model that came near gets half as many steps again, once, and one that still misses 0 % a second
try at a higher learning rate: a timid recipe is no defect of the model (PASSED_RELAXED).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lact_asr.config.overfit import OverfitConfig
from lact_asr.data.batch import Batch
from lact_asr.data.manifest import Utterance
from lact_asr.decoding.greedy import greedy
from lact_asr.decoding.metrics import Scores, score
from lact_asr.diagnosis import overfit_checks as checks
from lact_asr.diagnosis.overfit_checks import Defect
from lact_asr.diagnosis.overfit_learner import SETTLING, Learner, choose
from lact_asr.distributed.processes import World
from lact_asr.model.interface import CTCModel
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.objective import CTCObjective, SpeechObjective
from lact_asr.utils.errors import Interrupted

PASSED, PASSED_SLOW, PASSED_RELAXED = "PASSED", "PASSED_SLOW", "PASSED_RELAXED"
MARGINAL, FAILED = "MARGINAL", "FAILED"
HEADLINES = {
    PASSED: "✓ PASSED",
    PASSED_SLOW: "✓ PASSED (just slower)",
    PASSED_RELAXED: "✓ PASSED (relaxed: in the second try, at a higher learning rate)",
}


@dataclass
class OverfitResult:
    """What the gate came to; rates are fractions, None where it did not get that far."""

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
        return HEADLINES[self.verdict]


def overfit(
    build: Callable[[], CTCModel],
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    config: OverfitConfig,
    *,
    report: Callable[[Mapping[str, Any]], None],
    should_stop: Callable[[], bool],
    objective: Callable[[CTCModel], SpeechObjective] = CTCObjective,
    device: torch.device | None = None,
) -> OverfitResult:
    """Train fresh models from `build` (without dropout) on a few of the utterances, and judge.

    A defect of the model is a verdict, not an exception; DataError where the utterances are at
    fault. Interrupted where `should_stop()` says so: three times in a row is once too often.
    """
    batch = choose(utterances, vocabulary, config, build().video_shape)
    device = device or World().device()
    gate = _Gate(build, vocabulary, config, report, should_stop, objective, device)
    result = gate.judge(batch.to(device))
    for name, measured in result.checks.items():
        print(f"Check {name}: {measured}")
    print(result.headline(), flush=True)
    return result


class _Gate:
    def __init__(
        self,
        build: Callable[[], CTCModel],
        vocabulary: Vocabulary,
        config: OverfitConfig,
        report: Callable[[Mapping[str, Any]], None],
        should_stop: Callable[[], bool],
        objective: Callable[[CTCModel], SpeechObjective],
        device: torch.device,
    ) -> None:
        self.build, self.vocabulary, self.config = build, vocabulary, config
        self.report, self.should_stop, self.objective = report, should_stop, objective
        self.device, self.result, self.relaxed = device, OverfitResult(), False

    def judge(self, batch: Batch) -> OverfitResult:
        """All checks, the cheap ones first."""
        result = self.result
        try:
            self._see(batch)
            if self.config.blind_control:
                self._see_nothing(batch)
            result.verdict = self._verdict()
        except Defect as defect:
            result.reason = str(defect)
        return result

    def _verdict(self) -> str:
        result, config = self.result, self.config
        if result.wer or result.cer:
            return MARGINAL
        if self.relaxed:
            return PASSED_RELAXED
        return PASSED if result.steps <= config.slow_after * config.steps else PASSED_SLOW

    def _fresh(self, batch: Batch) -> Learner:
        torch.manual_seed(self.config.seed)
        objective = self.objective(self.build())
        objective.trainable.to(self.device)
        return Learner(objective, batch, self.config, self.device)

    def _see(self, batch: Batch) -> None:
        """Learn the utterances, in a second try if need be, and check on the way."""
        result = self.result
        learner, scores = self._try(batch)
        if (scores.wer or scores.cer) and self.config.relaxed_rate:
            self._relax(f"WER {scores.wer:.2%} after {learner.taken} steps")
            learner, scores = self._try(batch)
        result.steps, result.wer, result.cer = learner.taken, scores.wer, scores.cer
        result.checks["padding"] = checks.padding(learner.run, batch, self.config.padding_drift)
        if scores.wer > self.config.marginal_wer:
            first = f"{result.checks['relaxed']}, then " if self.relaxed else ""
            raise Defect(f"can't learn: {first}WER {scores.wer:.2%} after {learner.taken} steps")
        hear = lambda heard: self._hear(learner, heard)
        result.checks["silence"] = checks.silence(hear, batch, self.config.blind_wer)

    def _try(self, batch: Batch) -> tuple[Learner, Scores]:
        """A fresh model after its steps, half as many again where it came near."""
        config, learner = self.config, self._fresh(batch)
        watch = self._watch(learner)
        scores = self._learn(learner, config.steps, watch, self._show)
        if (scores.wer or scores.cer) and scores.wer <= config.marginal_wer:
            print(f"WER {scores.wer:.2%} after {learner.taken} steps: half as many more")
            scores = self._learn(learner, config.steps + config.steps // 2, watch, self._show)
        return learner, scores

    def _relax(self, missed: str) -> None:
        """From here on everything learns at the higher rate, the blind control too."""
        rate = self.config.learning_rate * (self.config.relaxed_rate or 1.0)
        self.config, self.relaxed = self.config.model_copy(update={"learning_rate": rate}), True
        self.result.checks["relaxed"] = said = f"{missed} at first; second try at rate {rate:g}"
        print(said, flush=True)

    def _watch(self, learner: Learner) -> Callable[[float], None]:
        """The checks on the first steps."""
        result, config = self.result, self.config
        result.checks["frames"] = checks.frames(learner.model, learner.batch)

        def watch(loss: float) -> None:
            if learner.taken == 1:
                result.checks["first loss"] = checks.first_loss(
                    learner.model,
                    learner.batch,
                    len(self.vocabulary),
                    loss,
                    config.first_loss_ratio,
                )
            if learner.taken == min(SETTLING, config.steps):
                result.checks["gradients"] = checks.gradients(learner.model, learner.moved)

        return watch

    def _see_nothing(self, batch: Batch) -> None:
        """About as many steps without audio."""
        result = self.result
        learner = self._fresh(checks.silence_batch(batch))
        budget = math.ceil(self.config.blind_steps * result.steps)
        result.blind_wer = self._learn(learner, budget, _ignore, self._show_blind).wer
        result.checks["blind control"] = checks.blind_control(
            result.blind_wer, learner.taken, self.config.blind_wer
        )

    def _learn(
        self,
        learner: Learner,
        budget: int,
        watch: Callable[[float], None],
        show: Callable[[int, float, Scores], None],
    ) -> Scores:
        """Up to `budget` steps, fewer if everything is right before that; the last scores."""
        self.budget = budget
        while True:
            if self.should_stop():
                raise Interrupted(0)  # nothing is saved: the next call starts anew
            loss = learner.step()
            watch(loss)
            if learner.taken % self.config.evaluate_every == 0 or learner.taken == budget:
                scores = score(learner.batch.texts, self._hear(learner, learner.batch))
                show(learner.taken, loss, scores)
                if learner.taken == budget or not (scores.wer or scores.cer):
                    return scores

    def _hear(self, learner: Learner, batch: Batch) -> list[str]:
        return greedy(*learner.run(batch, self.config.precision), self.vocabulary)

    def _show(self, step: int, loss: float, scores: Scores) -> None:
        total = self.budget
        print(f"Step [{step}/{total}] | Loss: {loss:.6f} | WER: {scores.wer:.2%}", flush=True)
        rates = {"wer": scores.wer, "cer": scores.cer}
        self.report({"step": step, "total_steps": total, "loss": loss, **rates})

    def _show_blind(self, step: int, loss: float, scores: Scores) -> None:
        self.report({"blind_step": step, "blind_loss": loss, "blind_wer": scores.wer})


def _ignore(loss: float) -> None:
    """Nothing to watch for in the blind control: silence gives no gradient to the front end."""
