"""What a training run says: lines for people, metrics and events for the launcher.

Rank 0 speaks; `grep "Loss:"` and `grep "Pred:"` work on its log.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lact_asr.training import health
from lact_asr.training.clock import Clock
from lact_asr.training.health import Finding, Pace, Scale, Vitals
from lact_asr.training.loss import Outcome, Part, shown
from lact_asr.training.material import Material, Measure, Terms
from lact_asr.training.utilization import Utilization
from lact_asr.training.utilization import shown as shown_use
from lact_asr.utils.progress import clock

NAMED = 100  # ids of left-out utterances in an event; all are counted
LARGE = 100.0  # a gradient norm before clipping that deserves a line

Report = Callable[[Mapping[str, Any]], None]
Event = Callable[..., None]


class TrainingLogger:
    """Progress since the last line, and where it is written."""

    def __init__(
        self,
        report: Report,
        event: Event,
        scale: Scale,
        terms: Terms,
        use: Utilization,
        loud: bool,
    ) -> None:
        self._report, self._event, self._use, self._loud = report, event, use, loud
        self._scale, self._total, self._terms = scale, scale.total_steps, terms
        self._vitals, self._pace = Vitals(), Pace()
        self.clock = Clock()
        self._first = 0  # step at which this process began
        self._started = self._since = self._last = time.monotonic()
        self._window: list[Outcome] = []

    def rescale(self, scale: Scale) -> None:
        """From now on numbers are measured by another scale."""
        self._scale, self._total = scale, scale.total_steps

    def say(self, line: str) -> None:
        """A line for people."""
        if self._loud:
            print(line, flush=True)

    def event(self, name: str, **facts: object) -> None:
        """Something happened."""
        if self._loud:
            self._event(name, **facts)

    def start(self, material: Material) -> None:
        """What is trained on, and what was left out and why."""
        self.say(f"Training on {material.summary}")
        for reason, ids in material.left_out.items():
            named = f"{reason} ({', '.join(ids[:5])} ...)"
            self.say(f"Left out {len(ids)} {self._terms.items}: {named}")
            self.event("left_out", reason=reason, count=len(ids), ids=list(ids[:NAMED]))

    def begin(self, step: int, vitals: Vitals) -> None:
        """The loop starts, at a step: times count from here."""
        self._first, self._started = step, time.monotonic()
        self._since = self._last = self._started
        self.clock.restart()
        self._vitals = vitals
        self.event("watched", step=step, open=dict(vitals.open))

    def end(self, step: int) -> None:
        """The loop has ended, saved: where the time since the last line went."""
        if step > self._first:
            self._numbers(step, {})

    def step_seconds(self, step: int) -> float:
        """Seconds a step has taken since the loop started, the waiting for its data among them."""
        return self.clock.stepping() / (step - self._first)

    def count_step(self, step: int, outcome: Outcome, rate: float) -> None:
        """One more step, at a learning rate."""
        self._window.append(outcome)
        now = time.monotonic()
        self._pace.add(now - self._last)
        self._last = now
        health.note_step(self._vitals, step, outcome, rate)
        news = health.of_step(self._vitals, self._scale, outcome, rate)
        self.judge(step, {**news, **health.of_pace(self._pace)})

    def judge(self, step: int, news: Mapping[str, Finding | None]) -> None:
        """Say what is wrong that was not, and what was wrong and is well again (None)."""
        known = self._vitals.open
        for word, found in news.items():
            if found and word not in known:
                known[word] = found.sentence
                facts = {"numbers": _finite(found.numbers), "ids": list(found.ids)}
                self.event("finding", step=step, word=word, sentence=found.sentence, **facts)
                self.say(f"Finding at step {step}: {found.sentence}")
            elif not found and word in known:
                self.event("healthy", step=step, word=word, sentence=known.pop(word))
                self.say(f"Well again at step {step}: {word.replace('_', ' ')} is over")

    def unreadable(self, step: int, files: Mapping[str, str]) -> None:
        """Audio files met for the first time that cannot be read: id -> why."""
        self.event("unreadable", step=step, files=dict(files))
        for identity, why in files.items():
            self.say(f"Left out utterance {identity}: {why}")

    def quarantined(self, step: int, utterances: Mapping[str, str]) -> None:
        """Utterances that spoil a step, found at this one and left out from now on: id -> why."""
        for identity, why in utterances.items():
            self.event("quarantined", step=step, id=identity, reason=why)
            self.say(f"Quarantined utterance {identity} at step {step}: {why}")

    def retried(self, step: int, outcome: Outcome) -> None:
        """A step that came to nothing finite at first has been tried again."""
        if outcome.taken:
            self.event("step_retried", step=step, loss=outcome.loss, grad_norm=outcome.grad_norm)
            self.say(f"Step {step} has been taken at the second try: loss {outcome.loss:.4f}")

    def dropped(self, step: int, outcome: Outcome) -> None:
        """A step that was not taken."""
        numbers = {"loss": repr(outcome.loss), "grad_norm": repr(outcome.grad_norm)}
        self.event("step_dropped", step=step, ids=outcome.suspects, **numbers)
        named = ", ".join(outcome.suspects)
        why = "loss or gradient is not finite"
        if outcome.finite:
            why = f"gradient norm {outcome.grad_norm:.4g} is above {outcome.highest:.4g}"
        self.say(f"Dropped step {step}: {why}, with {named}")

    def progress(self, step: int, epoch: int, rate: float, skipped: int) -> None:
        """A progress line about the steps since the last one, and the same as metrics."""
        now = time.monotonic()
        took = max(now - self._since, 1e-9)
        each = took / len(self._window)
        rate_of_data = sum(outcome.amount for outcome in self._window) / took
        used = self._use.metrics(rate_of_data)
        metrics = self._means() | {
            "grad_norm": self._window[-1].grad_norm,
            "learning_rate": rate,
            self._terms.rate: rate_of_data,
            **used,
            "seconds_per_step": each,
            "seconds_left": (self._total - step) * (now - self._started) / (step - self._first),
            "epoch": epoch,
            "steps_skipped": skipped,
        }
        self.say(
            f"Step {step}/{self._total} | Loss: {metrics['loss']:.4f} | "
            f"grad norm {metrics['grad_norm']:.3g} | lr {rate:.2e} | {each:.3g} s/step | "
            f"{rate_of_data:,.0f} {self._terms.throughput} | {shown_use(used)}"
            f"{clock(metrics['seconds_left'])} left"
        )
        largest = max(self._window, key=lambda outcome: outcome.grad_norm)
        if largest.grad_norm > LARGE:
            self.say(f"Large gradient norm: {largest.grad_norm:.2f}, clipped, by step {step}")
        self._numbers(step, {"total_steps": self._total, **metrics})
        self._window, self._since = [], now

    def _numbers(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics for the launcher, with where the time since the last ones went."""
        if self._loud:
            self._report({"step": step, **_finite({**metrics, **self.clock.take()})})

    def _means(self) -> dict[str, float]:
        """Loss and parts per label token, and counts in all, over the steps that were taken: of a
        part that is not in every step, and of its share of what is expected, those that have it.
        """
        taken = [outcome for outcome in self._window if outcome.taken] or self._window[-1:]
        values: dict[str, float] = {}
        measured: dict[str, Part[float]] = {}
        for name in {name: None for outcome in taken for name in outcome.parts}:
            each = [(o.parts[name], o.weight) for o in taken if name in o.parts]
            values[name] = _mean((part.value, weight) for part, weight in each)
            known = [(p.value, p.expected, w) for p, w in each if p.expected is not None]
            if known:
                value, expected = _mean((v, w) for v, _, w in known), _mean(k[1:] for k in known)
                measured[name] = Part(value, expected)
        counts = {name: sum(o.counts[name] for o in taken) for name in taken[-1].counts}
        loss = _mean((o.loss, o.weight) for o in taken)
        return {"loss": loss, **shown(measured), **values, **counts}

    def log_validation(self, step: int, measure: Measure, best: bool) -> None:
        """A validation's numbers and samples; its time does not count as training."""
        self.say(f"Validation at step {step} | {measure.line}{' | best so far' if best else ''}")
        for number, sample in enumerate(measure.samples, start=1):
            self.say(f"Sample Prediction {number} (step {step}, {sample.id})")
            self.say(f"True: {sample.true}\nPred: {sample.pred}")
        self._numbers(step, {"valid_loss": measure.loss, **measure.figures, **measure.beside})
        if measure.samples:
            self.event("samples", step=step, samples=[vars(each) for each in measure.samples])
        self._judge_validation(step, measure, best)
        self._since = self._last = time.monotonic()

    def _judge_validation(self, step: int, measure: Measure, best: bool) -> None:
        vitals, signs = self._vitals, measure.signs
        mute = [each.id for each in measure.samples if not each.pred]
        health.note_validation(vitals, measure.loss, signs, best)
        self.judge(step, health.of_validation(vitals, self._scale, measure.loss, signs, mute))
        self.say(f"Health at step {step}: {'; '.join(vitals.open.values()) or 'HEALTHY'}")


def _mean(pairs: Iterable[tuple[float, float]]) -> float:
    """The mean of values, each with its weight."""
    values, weights = zip(*pairs, strict=True)
    total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return total / (sum(weights) or 1.0)


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON can have them: what is not finite is null."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
