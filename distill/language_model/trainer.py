"""The loop for language models: which texts a step reads is a function of its number.

Steps are those of speech (`lact_asr.training.train_step`): exact over ranks, dropped together where
a number is not finite. Killed and called again it goes on from its newest checkpoint; the order of
the texts, dropout and everything else random follow from (seed, step, rank).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.config.language_model import LMTrainingConfig
from distill.language_model.model import (
    LanguageModel,
    LMObjective,
    TextBatch,
    likelihood,
    perplexity,
    text_batch,
)
from lact_asr.config.training import TrainingConfig
from lact_asr.data.dataset import in_normal_form
from lact_asr.distributed import processes
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint, optim, train_step
from lact_asr.training.guard import refuse_broken
from lact_asr.training.loss import Outcome, shown
from lact_asr.training.origin import changes, require_fit
from lact_asr.training.resume import resume_optimizer, step_seed
from lact_asr.utils.errors import DataError, TrainingFailed
from lact_asr.utils.files import read_json
from lact_asr.utils.locks import unrivalled

BREAKER = 20  # steps dropped in a row before a run is given up as diverged
KEPT = 2  # newest checkpoints, beside the best


@dataclass(frozen=True)
class LMResult:
    """What training came to."""

    finished: bool  # false: asked to stop, saved, and can be resumed
    step: int
    checkpoint: Path  # the best by perplexity
    perplexity: float  # of that one, on the dev texts
    loss: float  # the same as nats per symbol


class Texts:
    """Encoded texts, cut into batches of about the same size."""

    def __init__(self, texts: Sequence[str], vocabulary: Vocabulary, batch_tokens: int) -> None:
        """DataError if no text can be written with the vocabulary; `foreign` counts the others."""
        self.texts: list[list[int]] = []
        self.names: list[str] = []
        for text in map(in_normal_form, texts):
            try:
                labels = vocabulary.encode(text)
            except DataError:
                continue
            if labels:
                self.texts.append(labels)
                self.names.append(text[:40])
        self.foreign = len(texts) - len(self.texts)
        if not self.texts:
            raise DataError(f"none of {len(texts)} texts can be written with the vocabulary")
        self.plan = self._planned(batch_tokens)

    def _planned(self, batch_tokens: int) -> list[list[int]]:
        """Texts of similar lengths together, one at least per batch."""
        plan: list[list[int]] = [[]]
        for index in sorted(range(len(self.texts)), key=lambda i: (len(self.texts[i]), i)):
            if plan[-1] and (len(plan[-1]) + 1) * (len(self.texts[index]) + 1) > batch_tokens:
                plan.append([])
            plan[-1].append(index)
        return plan

    def batch(self, rows: Sequence[int]) -> TextBatch:
        """These texts."""
        return text_batch([self.texts[i] for i in rows], [self.names[i] for i in rows])

    def drawn(self, number: int, seed: int) -> TextBatch:
        """Batch `number` of an endless shuffled sequence."""
        epoch, place = divmod(number, len(self.plan))
        order = np.random.default_rng([seed, epoch]).permutation(len(self.plan))
        return self.batch(self.plan[order[place]])

    def share(self, world: processes.World) -> Iterator[TextBatch]:
        """Every batch once, those of this rank."""
        return (self.batch(rows) for rows in self.plan[world.rank :: world.world_size])


def fit_texts(
    objective: LMObjective,
    train: Sequence[str],
    dev: Sequence[str],
    vocabulary: Vocabulary,
    config: LMTrainingConfig,
    directory: Path,
    *,
    report: Callable[[Mapping[str, Any]], None],
    event: Callable[..., None],
    should_stop: Callable[[], bool],
    fence: Callable[[], None] = unrivalled,
    device: torch.device | None = None,
) -> LMResult:
    """Train for max_steps or until asked to stop. Raises TrainingFailed and DataError."""
    world = processes.start()
    device = device or world.device()
    texts = [Texts(each, vocabulary, config.batch_tokens) for each in (train, dev)]
    run = _Run(objective, texts, vocabulary, config, directory / "checkpoints", world, device)
    run.fence = fence
    run.report, run.event = (report, event) if world.main else (_ignore, _ignore)
    for name, part in zip(("train", "dev"), texts, strict=True):
        if part.foreign:
            run.event("left_out", reason=f"{name}: not of the vocabulary", count=part.foreign)
    run.resume()
    return run.loop(should_stop)


def held_out(
    model: LanguageModel, texts: Texts, world: processes.World, device: torch.device
) -> tuple[float, float]:
    """Perplexity of texts and nats per symbol, over all ranks."""
    sums = torch.tensor(
        likelihood(model.to(device), texts.share(world), device), dtype=torch.float64, device=device
    )
    nll, symbols = world.all_sum(sums).tolist()
    return perplexity(nll, symbols), nll / symbols


class _Run:
    def __init__(
        self,
        objective: LMObjective,
        texts: Sequence[Texts],
        vocabulary: Vocabulary,
        config: LMTrainingConfig,
        folder: Path,
        world: processes.World,
        device: torch.device,
    ) -> None:
        self.objective, self.vocabulary, self.config = objective, vocabulary, config
        self.train, self.dev = texts
        self.folder, self.world, self.device = folder, world, device
        self.report: Callable[..., None] = _ignore
        self.event: Callable[..., None] = _ignore
        self.fence: Callable[[], None] = unrivalled
        self.state = {"step": 0, "validated": 0, "best": math.inf, "in_a_row": 0}
        objective.trainable.to(device)
        self.optimizer = optim.build(objective, config.optim)
        self.module = world.wrap(train_step.Called(objective))
        self.setting = train_step.Setting(
            TrainingConfig(
                max_steps=config.max_steps, precision=config.precision, optim=config.optim
            ),
            world,
            device,
        )
        self.since, self.saved = time.monotonic(), 0

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; rank 0 says which."""
        if self.world.main:
            checkpoint.recover(self.folder)
        path = self.world.gather(checkpoint.latest(self.folder))[0]
        if path is None:
            return
        require_fit(path, self.objective.model, self.vocabulary)
        checkpoint.restore(self.objective.model, path / checkpoint.WEIGHTS)
        saved = checkpoint.load(path / "trainer.pt")
        resume_optimizer(self.optimizer, saved["optimizer"], path)
        self.state = saved["state"]
        self.saved = self.state["step"]
        before = read_json(path / "config.json")["training"]
        changed = changes(before, self.config.model_dump(mode="json"))
        if changed:  # as in `lact_asr.training.trainer`
            self.state["in_a_row"] = 0
        self.event("resumed", step=self.saved, checkpoint=path.name, changed=changed)

    def loop(self, should_stop: Callable[[], bool]) -> LMResult:
        """Train from where the state is."""
        state, config, stop = self.state, self.config, False
        self.objective.trainable.train()
        while not stop:
            ended = state["step"] >= config.max_steps
            due = state["step"] > 0 and state["step"] % config.valid_every == 0
            if (due or ended) and state["validated"] != state["step"]:
                self._validate()
                if ended or not state["in_a_row"]:  # weights that drop steps may be the reason
                    self._save()
            if ended:
                return self._result(finished=True)
            stop = self._step(should_stop())
        self._save()
        return self._result(finished=False)

    def _step(self, stop: bool) -> bool:
        state, config = self.state, self.config
        torch.manual_seed(step_seed(config.seed, state["step"], self.world.rank))
        factor = optim.rate_factor(config.optim, state["step"], config.max_steps)
        optim.set_rate(self.optimizer, factor)
        number = state["step"] * self.world.world_size + self.world.rank
        batch = self.train.drawn(number, config.seed)
        progress = state["step"] / config.max_steps
        outcome = train_step.take(
            self.module, self.optimizer, [batch], progress, self.setting, stop, {}
        )
        state["step"] += 1
        self._note_dropped(outcome)
        if state["step"] % config.log_every == 0 or state["step"] == 1:
            self._progress(outcome, config.optim.learning_rate * factor, progress)
        return outcome.stop

    def _note_dropped(self, outcome: Outcome) -> None:
        """Count steps that were not taken; give up when they do not end."""
        state = self.state
        state["in_a_row"] = 0 if outcome.taken else state["in_a_row"] + 1
        if not outcome.taken:
            numbers = {"loss": repr(outcome.loss), "grad_norm": repr(outcome.grad_norm)}
            self.event("step_dropped", step=state["step"], **numbers)
        if state["in_a_row"] >= BREAKER:
            raise TrainingFailed(
                "divergence",
                f"{BREAKER} steps in a row, up to step {state['step']}, had a loss or gradient "
                "that is not finite. Lower the learning rate, now "
                f"{self.config.optim.learning_rate:g}",
            )

    def _progress(self, outcome: Outcome, rate: float, progress: float) -> None:
        """A line, with the founding notes' `[LM]` in it, and the same as metrics."""
        step, total = self.state["step"], self.config.max_steps
        took, self.since = time.monotonic() - self.since, time.monotonic()
        parts = outcome.parts
        weight = self.objective.weights(progress)["lm"]
        numbers = {"loss": outcome.loss, "grad_norm": outcome.grad_norm, "learning_rate": rate}
        metrics = {**numbers, **shown(parts)}
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self.report({"step": step, "total_steps": total, **finite})
        self._say(
            f"Step {step}/{total} | Loss: {outcome.loss:.4f} | grad norm {outcome.grad_norm:.3g} | "
            f"[LM] Raw: {parts['lm'].value:.4f}, Weight: {weight:.3f}, Weighted: "
            f"{parts['lm_weighted'].value:.4f} | {took:.1f} s"
        )

    def _validate(self) -> None:
        """Perplexity of the dev texts; the best model is kept."""
        state = self.state
        found, nats = held_out(self.objective.model, self.dev, self.world, self.device)
        state["validated"], best = state["step"], found < state["best"]
        self.report({"step": state["step"], "perplexity": found, "valid_loss": nats})
        self._say(
            f"Validation at step {state['step']} | Perplexity {found:.3f} | {nats:.4f} nats a "
            f"symbol{' | best so far' if best else ''}"
        )
        if best:
            state["best"] = found
            facts = {"step": state["step"], "perplexity": found, "loss": nats}
            self._write(checkpoint.BEST, facts, {})

    def _save(self) -> None:
        """Save all that is needed to go on, once per step."""
        step = self.state["step"]
        if self.saved == step:
            return
        refuse_broken(step, self.config.optim.learning_rate, self.objective.trainable)
        self.saved = step
        trainer = {"optimizer": self.optimizer.state_dict(), "state": dict(self.state)}
        self._write(f"{step:08d}", {"step": step}, {"trainer.pt": trainer})
        if self.world.main:
            self.event("checkpoint", step=step)
            checkpoint.prune(self.folder, KEPT)

    def _write(self, name: str, facts: dict[str, Any], more: dict[str, Any]) -> None:
        if self.world.main:
            model = self.objective.model
            described = checkpoint.describe(model, self.vocabulary, self.config)
            files = {checkpoint.WEIGHTS: model.state_dict(), "config.json": described, **more}
            checkpoint.save(self.folder, name, {**files, checkpoint.STATE: facts}, self.fence)

    def _result(self, finished: bool) -> LMResult:
        """The result on every rank, once rank 0 has written what it names."""
        self.world.gather(None)
        step, best = self.state["step"], self.state["best"]
        path = self.folder / checkpoint.BEST
        if not checkpoint.complete(path):
            path = self.folder / f"{step:08d}"
        return LMResult(finished, step, path, best, math.log(best))

    def _say(self, line: str) -> None:
        if self.world.main:
            print(line, flush=True)


def _ignore(*_: object, **__: object) -> None:
    """Only rank 0 keeps the record."""
