"""That the loop calls what it is made of: each test goes red when one call is taken out of it.

Everything is seen from outside: by an objective that notes how it is called, in the files of a run,
and in what the run reports.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lact_asr.config.augment import AugmentConfig
from lact_asr.config.training import AverageConfig, CTCConfig
from lact_asr.data.manifest import Utterance
from lact_asr.model.recognizer import Recognizer
from lact_asr.training import checkpoint
from lact_asr.training.loss import Loss
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import FitResult, fit
from lact_asr.utils.errors import Interrupted
from lact_asr.utils.files import read_json
from tests.lact_asr.tiny_runs import (
    VOCABULARY,
    RecordedEvents,
    ended,
    replace_file,
    run,
    settings,
    tiny,
    tones,
)
from tests.lact_asr.training.test_trainer import Poisoned


@dataclass(frozen=True)
class Call:
    """How an objective was called once."""

    ids: tuple[str, ...]
    progress: float
    training: bool
    seed: int
    speed: float
    masked: bool
    autocast: bool
    ruler: float


class Watched(CTCObjective):
    """CTC that notes its calls, beside a `ruler`: a number whose gradient per label is always 1.

    AdamW moves such a number by exactly its learning rate, so the ruler shows the rate in force.
    """

    def __init__(self, model: Recognizer, config: CTCConfig | None = None) -> None:
        super().__init__(model, config)
        self.ruler = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        beside = torch.nn.Module()
        beside.ruler = self.ruler
        self.trainable = torch.nn.ModuleDict({"model": model, "beside": beside})
        self.calls: list[Call] = []

    def __call__(self, batch: Any, progress: float) -> Loss:
        self.calls.append(
            Call(
                tuple(batch.ids),
                progress,
                self.model.training,
                torch.initial_seed(),
                batch.speed,
                batch.augment is not None,
                torch.is_autocast_enabled("cpu"),
                float(self.ruler.detach()),
            )
        )
        loss = super().__call__(batch, progress)
        return replace(loss, total=loss.total + loss.weight * self.ruler.sum().float())


STEADY = {"clip_norm": 1e9, "weight_decay": 0.0}  # what would move the ruler beside its rate


def watched(
    folder: Path, train: Sequence[Utterance], model: Recognizer | None = None, **changes: Any
) -> tuple[list[Call], RecordedEvents, Watched]:
    objective = Watched(model or tiny(), changes.pop("ctc", None))
    _, recorded = run(folder, list(train), objective, **changes)
    return objective.calls, recorded, objective


def fitted(folder: Path, objective: CTCObjective, **given: Any) -> FitResult | Interrupted:
    """fit with a fence, or whatever else the shared helper does not pass."""
    train = tones(folder, 4)
    asked = given.pop("should_stop", lambda: False)
    fence = given.pop("fence", lambda: None)
    return ended(
        fit, objective, train, train[:2], VOCABULARY, settings(**given), folder,
        report=lambda line: None, event=lambda name, **facts: None, should_stop=asked, fence=fence,
    )  # fmt: skip


def trainer_file(folder: Path, step: int) -> dict[str, Any]:
    return checkpoint.load(folder / f"checkpoints/{step:08d}/trainer.pt")


@pytest.mark.parametrize("decay", ["cosine", "noam", "hold", "constant"])
def test_the_weights_move_by_the_scheduled_rate_and_the_log_shows_that_rate(tmp_path, decay):
    optim = STEADY | {"learning_rate": 0.01, "warmup_steps": 3, "decay": decay}
    _, recorded, objective = watched(
        tmp_path, tones(tmp_path, 4), max_steps=6, valid_every=9, optim=optim
    )
    places = [call.ruler for call in objective.calls] + [float(objective.ruler.detach())]
    moved = [before - after for before, after in pairwise(places)]
    later = {
        "cosine": [1, 0.75, 0.25],
        "noam": [math.sqrt(3 / step) for step in (4, 5, 6)],
        "hold": [1, (6 - 4) / 2.4, (6 - 5) / 2.4],  # leaves the peak at 0.6 of 6 steps: 3.6
        "constant": [1, 1, 1],
    }[decay]
    expected = [0.01 * share for share in (1 / 3, 2 / 3, 1, *later)]
    assert moved == pytest.approx(expected, rel=1e-5)
    shown = [line["learning_rate"] for line in recorded.metrics if "learning_rate" in line]
    assert shown == pytest.approx(moved, rel=1e-5)


def test_the_log_shows_the_rate_that_the_optimizer_has_whoever_set_it(tmp_path):
    """A log that works the rate out anew shows the right one where the schedule is not applied."""

    def halve(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] /= 2

    hook = register_optimizer_step_pre_hook(halve)
    try:
        optim = STEADY | {"learning_rate": 0.01, "warmup_steps": 0, "decay": "constant"}
        _, recorded, objective = watched(tmp_path, tones(tmp_path, 4), max_steps=1, optim=optim)
    finally:
        hook.remove()
    assert float(objective.ruler.detach()) == pytest.approx(-0.005)
    assert recorded.metrics[0]["learning_rate"] == pytest.approx(0.005)


def test_a_step_is_in_training_mode_and_a_validation_is_not(tmp_path):
    model, modes = tiny(dropout=0.5), []
    model.register_forward_pre_hook(
        lambda *_: modes.append((model.training, torch.is_grad_enabled()))
    )
    objective = CTCObjective(model.eval())
    train = tones(tmp_path, 2)
    run(tmp_path, train, objective, max_steps=4, valid_every=2, dev=train[:1], batch_seconds=99.0)
    taken, measured = [(True, True)] * 2, [(False, False)]
    assert modes == taken + measured + taken + measured


def test_what_validation_reports_is_what_the_saved_model_says_without_dropout(tmp_path):
    train = tones(tmp_path, 3)
    measured = []
    for folder in ("once", "again"):
        still = {"learning_rate": 1e-30, "weight_decay": 0.0}
        _, recorded = run(
            tmp_path / folder, train, CTCObjective(tiny(dropout=0.5)), max_steps=2, valid_every=1,
            optim=still, seed=len(measured),
        )  # fmt: skip
        measured += [line["valid_loss"] for line in recorded.metrics if "valid_loss" in line]
    assert measured == pytest.approx([measured[0]] * 4, rel=1e-6)


def test_the_gradient_that_the_optimizer_sees_is_clipped(tmp_path):
    """AdamW's first running mean after one step is (1 - beta) times the gradient."""
    norms = {}
    for limit in (0.25, 1e9):
        folder = tmp_path / str(limit)
        _, recorded = run(folder, tones(tmp_path, 4), max_steps=1, optim={"clip_norm": limit})
        kept = trainer_file(folder, 1)["optimizer"]["state"].values()
        flat = torch.cat([state["exp_avg"].flatten() for state in kept])
        norms[limit] = float(flat.norm()) / (1 - 0.9)
    before = recorded.metrics[0]["grad_norm"]
    assert before > 1
    assert norms == pytest.approx({0.25: 0.25, 1e9: before}, rel=1e-3)


def test_the_optimizer_has_the_memory_that_is_asked_for(tmp_path):
    run(tmp_path, tones(tmp_path, 4), max_steps=1, optim={"betas": (0.7, 0.8)})
    groups = trainer_file(tmp_path, 1)["optimizer"]["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.7, 0.8)}


class Idle(CTCObjective):
    """CTC beside a matrix and a vector whose gradients are zero: only decay can move them."""

    def __init__(self, model: Recognizer) -> None:
        super().__init__(model)
        self.beside = torch.nn.Linear(3, 3)
        self.trainable = torch.nn.ModuleDict({"model": model, "beside": self.beside})

    def __call__(self, batch: Any, progress: float) -> Loss:
        loss = super().__call__(batch, progress)
        return replace(loss, total=loss.total + 0 * self.beside(torch.zeros(3)).sum())


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_matrices_decay_by_rate_times_decay_and_vectors_stay(tmp_path, method):
    objective = Idle(tiny())
    matrix, vector = (each.detach().clone() for each in objective.beside.parameters())
    decayed = {"learning_rate": 0.1, "warmup_steps": 0, "weight_decay": 0.5, "decay": "constant"}
    run(tmp_path, tones(tmp_path, 2), objective, max_steps=2, optim={**decayed, "method": method})
    torch.testing.assert_close(objective.beside.weight.detach(), matrix * 0.95**2)
    assert torch.equal(objective.beside.bias, vector)


def test_muon_moves_the_matrices_between_the_ends_if_it_is_asked_for(tmp_path):
    run(tmp_path, tones(tmp_path, 2), max_steps=1, optim={"method": "muon"})
    states = trainer_file(tmp_path, 1)["optimizer"]["state"].values()
    assert {"sum" in state for state in states} == {True, False}


def test_a_step_takes_as_many_micro_batches_as_are_asked_for_each_of_other_utterances(tmp_path):
    train = tones(tmp_path, 6)
    calls, _, _ = watched(tmp_path, train, max_steps=2, accumulate=3, batch_seconds=3.0)
    assert [call.progress for call in calls] == [0.0] * 3 + [0.5] * 3
    assert len({call.ids for call in calls[:3]}) == 3
    moved = {round(call.ruler, 6) for call in calls[:3]}
    assert len(moved) == 1, "the weights move once a step"


def test_an_objective_is_told_how_far_the_training_is(tmp_path):
    calls, _, _ = watched(tmp_path, tones(tmp_path, 2), max_steps=5)
    assert [call.progress for call in calls] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_every_step_has_a_seed_of_its_own_that_nothing_before_it_can_disturb(tmp_path):
    train, seeds = tones(tmp_path, 2), []
    for number in range(2):
        torch.manual_seed(1000 + number)
        calls, _, _ = watched(tmp_path / str(number), train, max_steps=4, valid_every=2)
        seeds.append([call.seed for call in calls])
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 4
    other, _, _ = watched(tmp_path / "other", train, max_steps=4, seed=1)
    assert not set(seeds[0]) & {call.seed for call in other}


def test_training_hears_masks_and_changed_speeds_where_they_are_asked_for_and_validation_does_not(
    tmp_path,
):
    train, model, heard = tones(tmp_path, 4), tiny(), []
    model.register_forward_pre_hook(
        lambda _, given, more: heard.append("augment" in more), with_kwargs=True
    )
    augment = AugmentConfig(speeds=(0.9, 1.1), time_masks=2, frequency_masks=1)
    calls, _, _ = watched(tmp_path / "a", train, model, max_steps=8, valid_every=8, augment=augment)
    assert {call.masked for call in calls} == {True}
    assert {call.speed for call in calls} == {0.9, 1.1}
    assert heard[:8] == [True] * 8 and not any(heard[8:]) and len(heard) > 8
    plain, _, _ = watched(tmp_path / "b", train, max_steps=2)
    assert {(call.masked, call.speed) for call in plain} == {(False, 1.0)}


@pytest.mark.parametrize(("precision", "half"), [("bf16", True), ("fp32", False)])
def test_forward_passes_have_the_precision_that_is_asked_for_losses_are_float32(
    tmp_path, precision, half
):
    model, seen = tiny(), []
    model.register_forward_pre_hook(
        lambda *_: seen.append((model.training, torch.is_autocast_enabled("cpu")))
    )
    objective = CTCObjective(model, CTCConfig(consistency=0.2))
    train = tones(tmp_path, 2)
    augment = AugmentConfig(time_masks=2)
    run(
        tmp_path, train, objective, max_steps=2, valid_every=2, precision=precision, augment=augment
    )
    assert set(seen) == {(True, half), (False, half)}


def test_validation_batches_keep_the_budget_and_each_utterance_is_heard_once(tmp_path):
    train, model, sizes = tones(tmp_path, 6), tiny(), []

    def note(_: Any, given: tuple[torch.Tensor, ...], more: dict[str, Any]) -> None:
        if not model.training:
            sizes.append(given[0].shape)

    model.register_forward_pre_hook(note, with_kwargs=True)
    objective = CTCObjective(model)
    run(tmp_path, train, objective, dev=train, max_steps=1, batch_seconds=4.0)
    assert sum(rows for rows, _ in sizes) == len(train)
    assert all(rows == 1 or rows * samples <= 4.0 * 16_000 for rows, samples in sizes)
    assert len(sizes) > 1


def test_the_fence_is_asked_before_anything_is_written_and_ends_the_run(tmp_path):
    class NewerStart(Exception):
        """Somebody else has the folder."""

    def fence() -> None:
        raise NewerStart

    with pytest.raises(NewerStart):
        fitted(tmp_path, CTCObjective(tiny()), fence=fence, max_steps=1)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_asked_to_stop_a_run_saves_where_it_is_and_takes_no_further_step(tmp_path):
    objective = Watched(tiny())
    result = fitted(
        tmp_path, objective, max_steps=9, checkpoint_every=9, valid_every=9,
        should_stop=lambda: len(objective.calls) >= 2,
    )  # fmt: skip
    assert isinstance(result, Interrupted) and result.position == 3
    assert len(objective.calls) == 3
    assert checkpoint.latest(tmp_path / "checkpoints").name == "00000003"


def test_progress_validations_and_checkpoints_come_as_often_as_they_are_asked_for(tmp_path):
    often = {"log_every": 3, "valid_every": 4, "checkpoint_every": 5}
    _, recorded = run(tmp_path, tones(tmp_path, 2), max_steps=10, samples=0, **often)
    assert [line["step"] for line in recorded.metrics if "loss" in line] == [1, 3, 6, 9]
    assert [line["step"] for line in recorded.metrics if "wer" in line] == [4, 8, 10]
    assert [facts["step"] for facts in recorded.named("checkpoint")] == [5, 10]
    assert all(facts["samples"] == [] for facts in recorded.named("samples"))


def test_the_best_checkpoint_is_the_best_and_not_the_last(tmp_path):
    wild = {"learning_rate": 0.5, "warmup_steps": 3, "decay": "constant"}
    result, recorded = run(
        tmp_path, tones(tmp_path, 4), max_steps=6, valid_every=1, optim=wild, keep_checkpoints=9
    )
    losses = {line["step"]: line["valid_loss"] for line in recorded.metrics if "wer" in line}
    wers = [line["wer"] for line in recorded.metrics if "wer" in line]
    assert min(wers) >= 1, "models that say nothing are compared by their loss"
    best = min(losses, key=losses.__getitem__)
    assert best < 6, "this rate is to spoil the model"
    assert read_json(result.checkpoint / "state.json")["step"] == best
    assert result.loss == losses[best]


@pytest.mark.parametrize(
    ("wer", "loss", "replaced"), [(0.0, 99.0, False), (9.9, 99.0, True), (9.9, 0.0, False)]
)
def test_a_model_is_kept_for_its_wer_and_from_100_percent_on_for_its_loss(
    tmp_path, wer, loss, replaced
):
    """The counters of a run are changed between two starts: what it has seen as the best so far."""
    train = tones(tmp_path, 2)
    run(tmp_path, train, max_steps=4, stop_at=2, valid_every=9)
    newest = tmp_path / "checkpoints/00000002"
    trainer = checkpoint.load(newest / "trainer.pt")
    trainer["state"]["best"] = [min(wer, 1.0), loss]
    replace_file(newest / "trainer.pt", trainer)
    run(tmp_path, train, max_steps=4, valid_every=9)
    assert checkpoint.complete(tmp_path / "checkpoints/best") is replaced


def test_a_resumed_run_has_the_optimizer_the_place_in_the_data_and_the_counters_of_before(tmp_path):
    train = tones(tmp_path, 8)
    short = {"max_steps": 6, "batch_seconds": 3.0, "valid_every": 2, "checkpoint_every": 9}
    short |= {"average": AverageConfig(decay=0.9)}
    whole, _, _ = watched(tmp_path / "whole", train, **short)
    first, _, _ = watched(tmp_path / "cut", train, stop_at=3, **short)
    rest, _, _ = watched(tmp_path / "cut", train, tiny(seed=9), **short)
    assert [call.ids for call in first + rest] == [call.ids for call in whole]
    assert [call.ruler for call in first + rest] == [call.ruler for call in whole]
    states = [trainer_file(tmp_path / each, 6) for each in ("whole", "cut")]
    assert states[0]["state"] == states[1]["state"]
    means = [state["average"] for state in states]
    assert all(torch.equal(means[0][name], means[1][name]) for name in means[0])
    steps = [float(each["step"]) for each in states[1]["optimizer"]["state"].values()]
    assert set(steps) == {6.0}


def test_early_stopping_is_told_every_validation_and_waits_for_its_share(tmp_path):
    still = {"learning_rate": 1e-30, "weight_decay": 0.0}
    patient = {"patience": 1, "warmup_steps": 0, "not_before": 0.5}
    result, _ = run(
        tmp_path, tones(tmp_path, 2), optim=still, max_steps=8, valid_every=1, stopping=patient
    )
    assert result.step == 4


def test_the_guard_remembers_the_norms_of_the_run(tmp_path):
    class Spiked(CTCObjective):
        """The third loss is a hundred times as large."""

        count = 0

        def __call__(self, batch: Any, progress: float) -> Loss:
            loss = super().__call__(batch, progress)
            self.count += 1
            return replace(loss, total=loss.total * (100 if self.count == 3 else 1))

    result, recorded = run(
        tmp_path, tones(tmp_path, 4), Spiked(tiny()), max_steps=4, guard={"skip_ratio": 10.0}
    )
    assert [facts["step"] for facts in recorded.named("step_dropped")] == [3]
    assert result.steps_skipped == 1


def test_the_running_mean_follows_taken_steps_only_and_is_what_is_validated(tmp_path):
    train, average = tones(tmp_path, 4), AverageConfig(decay=0.9)
    fixed, broken = {"learning_rate": 0.01, "warmup_steps": 0}, Poisoned(tiny(), at={2})
    run(tmp_path, train, broken, max_steps=2, average=average, optim=fixed, valid_every=2)
    own = checkpoint.load(tmp_path / "checkpoints/00000002/model.safetensors")
    best = checkpoint.load(tmp_path / "checkpoints/best/model.safetensors")
    start, decay = tiny().state_dict(), 2 / 11  # after one step that was taken
    for name, value in own.items():
        torch.testing.assert_close(best[name], decay * start[name] + (1 - decay) * value)
    assert any(not torch.equal(best[name], own[name]) for name in own)


def test_the_mean_of_the_last_checkpoints_is_measured_with_its_own_weights(tmp_path):
    train = tones(tmp_path, 4)
    every = {"max_steps": 4, "checkpoint_every": 1, "valid_every": 4, "keep_checkpoints": 1}
    _, recorded = run(tmp_path, train, average=AverageConfig(last=3), **every)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("0*"))
    assert kept == ["00000002", "00000003", "00000004"], "the mean needs them"
    own, mean = (line["valid_loss"] for line in recorded.metrics if "valid_loss" in line)
    states = [checkpoint.load(tmp_path / f"checkpoints/{name}/model.safetensors") for name in kept]
    model = tiny()
    model.load_state_dict({k: sum(s[k] for s in states) / 3 for k in states[0]})
    still = {"learning_rate": 1e-30, "weight_decay": 0.0}
    _, check = run(tmp_path / "mean", train, CTCObjective(model), max_steps=1, optim=still)
    (again,) = (line["valid_loss"] for line in check.metrics if "valid_loss" in line)
    assert mean == pytest.approx(again, rel=1e-5) and mean != pytest.approx(own, rel=1e-5)


def test_a_run_made_longer_measures_the_mean_of_its_last_checkpoints_again(tmp_path):
    train, every = tones(tmp_path, 2), {"checkpoint_every": 1, "average": AverageConfig(last=2)}
    for steps in (2, 4):
        _, recorded = run(tmp_path, train, max_steps=steps, valid_every=steps, **every)
        measured = [line["step"] for line in recorded.metrics if "valid_loss" in line]
        assert measured == [steps, steps], "its own weights, then the mean"


def test_heard_twice_a_batch_has_half_as_many_utterances_and_long_ones_are_left_out(tmp_path):
    train = tones(tmp_path, 8)
    longest = max(each.duration for each in train)
    views = {"ctc": CTCConfig(consistency=0.2), "augment": AugmentConfig(time_masks=1)}
    calls, recorded, _ = watched(
        tmp_path, train, max_steps=3, batch_seconds=1.9 * longest, max_unreadable=0, **views
    )
    left_out = [each for facts in recorded.named("left_out") for each in facts["ids"]]
    assert left_out == [each.id for each in train if each.duration > 0.95 * longest]
    durations = {each.id: each.duration for each in train}
    for call in calls:
        assert 2 * len(call.ids) * max(durations[name] for name in call.ids) <= 1.9 * longest


def test_an_unreadable_file_is_named_once_wherever_it_is_met(tmp_path):
    train = tones(tmp_path, 4)
    for each in train[:2]:
        each.audio.write_bytes(b"")
    _, recorded = run(
        tmp_path, train, dev=[train[0], train[3]], max_steps=4, valid_every=2, batch_seconds=99.0
    )
    named = [name for facts in recorded.named("unreadable") for name in facts["files"]]
    assert sorted(named) == [each.id for each in train[:2]]
    dev = [train[1], train[3]]
    _, recorded = run(tmp_path / "dev", train[2:], dev=dev, max_steps=1)
    assert [list(facts["files"]) for facts in recorded.named("unreadable")] == [[train[1].id]]


def test_a_replacement_of_the_best_checkpoint_that_was_cut_short_is_finished_by_the_next_start(
    tmp_path,
):
    train = tones(tmp_path, 2)
    run(tmp_path, train, max_steps=3)
    best = tmp_path / "checkpoints" / "best"
    best.rename(best.with_name(".old.best"))
    result, recorded = run(tmp_path, train, max_steps=3)
    assert result.checkpoint == best and checkpoint.complete(best)
    assert recorded.metrics == [], "it was finished, and made no new one"


def test_an_objective_is_told_what_a_step_came_to_after_it(tmp_path):
    told = []

    class Told(Watched):
        """Notes what it is told."""

        def end_step(self, step: int, outcome: Any, *_: Any) -> None:
            told.append((step, outcome.loss, float(self.ruler.detach())))

    objective = Told(tiny())
    _, recorded = run(tmp_path, tones(tmp_path, 2), objective, max_steps=3)
    assert [(step, loss) for step, loss, _ in told] == list(recorded.losses().items())
    assert [place for _, _, place in told[:-1]] == [call.ruler for call in objective.calls[1:]]
