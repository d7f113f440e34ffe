"""Health: what is wrong is found with its numbers, what is well is let alone, at no cost."""

import math
import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lact_asr.data.batch import Batch
from lact_asr.data.batch_plan import Position
from lact_asr.data.dataset import whole_corpus
from lact_asr.data.loader import Stream
from lact_asr.distributed.processes import World
from lact_asr.training import health, optim
from lact_asr.training.health import Pace, Scale, Vitals
from lact_asr.training.loss import Loss, Outcome, Part
from lact_asr.training.objective import CTCObjective
from tests.conftest import REPOSITORY
from tests.lact_asr.tiny_runs import VOCABULARY, RecordedEvents, run, settings, tiny, tones
from tests.lact_asr.training.test_trainer import Poisoned

SCALE = Scale(29, 1000, 1.0, "batch_seconds 14")
CALM = {"valid_every": 500, "checkpoint_every": 500, "log_every": 50}


def words(recorded: RecordedEvents, name: str = "finding") -> list[str]:
    return [facts["word"] for facts in recorded.named(name)]


def outcome(loss: float, norm: float = 1.0, **parts: Part[float]) -> Outcome:
    return Outcome(loss, 100.0, parts, {}, norm, 8.0, False, {}, math.inf, ["a"])


def judged(
    losses: Any, norms: Any = 1.0, seconds: Any = 0.1, rate: float = 1e-3, scale: Scale = SCALE
) -> dict[int, list[tuple[str, bool]]]:
    """What becomes known at which step of a run with these numbers: (word, whether it is wrong)."""
    vitals, pace, known = Vitals(), Pace(), {}
    told = np.stack(np.broadcast_arrays(losses, norms, seconds), axis=1)
    for step, (loss, norm, took) in enumerate(told.tolist(), start=1):
        each = outcome(loss, norm)
        health.note_step(vitals, step, each, rate)
        pace.add(took)
        news = {**health.of_step(vitals, scale, each, rate), **health.of_pace(pace)}
        for word, found in news.items():
            if (found is not None) != (word in vitals.open):
                known.setdefault(step, []).append((word, found is not None))
                vitals.open.pop(word, None)
                if found:
                    vitals.open[word] = found.sentence
    return known


def noisy(values: Any, share: float = 0.2) -> NDArray[Any]:
    """The values with noise as of batches that differ."""
    return np.asarray(values) * np.random.default_rng(0).lognormal(0, share, np.shape(values))


FALLING = 6 * np.exp(-np.arange(600) / 80) + 0.02  # as in the demonstration, down to nearly nothing


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_a_loss_that_falls_with_noise_as_real_batches_have_it_is_healthy(share: float) -> None:
    assert judged(noisy(FALLING, share), noisy(np.ones(600), 3 * share)) == {}
    converged = np.concatenate([FALLING, np.full(2000, 0.02)])
    assert judged(noisy(converged, share)) == {}


def test_a_loss_that_rises_is_found_and_over_when_it_has_fallen_again() -> None:
    falls = FALLING[:200]
    risen = np.concatenate([falls, np.linspace(falls[-1], 3.0, 30), np.full(60, 3.0)])
    known = judged(np.concatenate([risen, np.linspace(3.0, 0.3, 60), np.full(60, 0.3)]))
    (rise, first), (fall, last) = known.items()
    assert first == [("loss_rising", True)] and 220 < rise < 260
    assert last == [("loss_rising", False)] and 330 < fall < 400


def test_gradients_far_above_their_own_past_are_found_and_single_spikes_are_not() -> None:
    norms = np.ones(400)
    norms[100:300:20] = 40.0
    assert judged(FALLING[:400], norms) == {}
    norms[300:] = 20.0
    assert next(iter(judged(FALLING[:400], norms).values())) == [("gradient_rising", True)]
    assert judged(FALLING[:400], norms / 100) == {}, "below the limit of clipping it harms nobody"


def test_a_loss_that_swings_from_step_to_step_is_found() -> None:
    losses = np.concatenate([np.full(100, 2.0), np.tile([0.2, 5.0], 100)])
    assert [("oscillation", True)] in judged(losses).values()


def test_a_loss_that_stays_is_a_plateau_unless_the_rate_is_nearly_nothing() -> None:
    stays = np.concatenate([np.linspace(6, 2.9, 100), np.full(600, 2.9)])
    known = judged(noisy(stays, 0.1))
    assert list(known.values()) == [[("plateau", True)]] and min(known) > 300
    vitals, last = Vitals(), outcome(2.9)
    for step in range(1, 400):
        health.note_step(vitals, step, last, 1e-3)
    assert health._plateau(vitals, SCALE, 1e-3) and not health._plateau(vitals, SCALE, 4e-4)


def test_what_costs_more_than_even_probabilities_after_a_quarter_has_learned_nothing() -> None:
    losses = np.linspace(6.0, 3.4, 300)
    known = judged(losses)
    assert list(known.values()) == [[("nothing_learned", True)]] and min(known) > 250
    assert judged(losses, scale=replace(SCALE, total_steps=2000)) == {}
    assert judged(losses, scale=replace(SCALE, symbols=500)) == {}


def test_steps_that_take_many_times_as_long_for_a_minute_are_found() -> None:
    seconds = np.full(400, 0.5)
    seconds[100:300:10] = 5.0  # now and then one waits
    assert judged(FALLING[:400], seconds=seconds) == {}
    seconds[300:350] = 3.0
    known = judged(FALLING[:400], seconds=seconds)
    assert list(known.values()) == [[("slow", True)], [("slow", False)]]
    assert min(known) >= 300 + 60 / 3


def test_a_beginning_far_above_even_probabilities_is_found() -> None:
    for value, expected in ((9.41, True), (3.6, False)):
        vitals, each = Vitals(), outcome(9.0, kd=Part(value, 3.43), feature=Part(90.0, 2.0))
        for step in range(1, 6):
            health.note_step(vitals, step, each, 1e-3)
            found = health.of_step(vitals, SCALE, each, 1e-3).get("bad_start")
            assert bool(found) is (expected and step == 5)
    begun = Vitals()
    for step in range(1, 30):  # a student that was trained before, with a teacher that says little
        each = outcome(0.5, kd=Part(9.0, 0.01))
        health.note_step(begun, step, each, 1e-3)
        assert not health.of_step(begun, SCALE, each, 1e-3).get("bad_start")


def validations(vitals: Vitals, *told: tuple[float, float, dict[str, float]]) -> list[list[str]]:
    """What each validation finds: (dev loss, level of the training loss, signs)."""
    found = []
    for loss, level, signs in told:
        vitals.level.value = level
        health.note_validation(vitals, loss, signs, best=False)
        news = health.of_validation(vitals, SCALE, loss, signs, ["a"])
        found.append([word for word, finding in news.items() if finding])
    return found


def test_a_dev_loss_that_rises_three_times_while_the_training_loss_falls_is_drift() -> None:
    calm: dict[str, float] = {}
    falls = [(1.0, 1.0, calm), (1.1, 0.9, calm), (1.2, 0.8, calm), (1.3, 0.7, calm)]
    assert validations(Vitals(), *falls) == [[], [], [], ["drift"]]
    assert validations(Vitals(), *falls[:3], (0.9, 0.7, calm)) == [[], [], [], []]
    both = [(1.0, 1.0, calm), (1.1, 1.1, calm), (1.2, 1.2, calm), (1.3, 1.3, calm)]
    assert validations(Vitals(), *both) == [[], [], [], []]


SILENT = {"blank_share": 1.0, "empty_share": 1.0, "frames_per_label": 3.0}
SPEAKS = {"blank_share": 0.6, "empty_share": 0.0, "frames_per_label": 3.0}


def test_a_model_that_is_silent_is_well_before_it_speaks_and_not_later() -> None:
    early, late, spoke = Vitals(step=100), Vitals(step=600), Vitals(step=100)
    silent, speaks = (3.0, 3.0, SILENT), (2.0, 2.0, SPEAKS)
    assert validations(early, silent, silent, silent) == [[], [], []]
    assert validations(late, silent, silent, speaks) == [[], ["blank_collapse"], []]
    assert validations(spoke, silent, speaks, silent) == [[], [], ["blank_collapse"]]


@pytest.mark.parametrize(
    ("frames", "labels", "cause"),
    [
        (1.2, 1e6, "less subsampling"),
        (14.0, 1e6, "more subsampling"),
        (3.0, 1e3, "each of 29 symbols was heard 34 times"),
        (3.0, 1e6, "half of batch_seconds 14 gives twice as many"),
    ],
)
def test_the_likely_cause_of_silence_is_named(frames: float, labels: float, cause: str) -> None:
    signs = {**SILENT, "frames_per_label": frames}
    assert cause in health.likely_cause(Vitals(labels=labels), SCALE, signs)


def test_what_is_remembered_survives_a_checkpoint() -> None:
    vitals = Vitals(open={"drift": "it drifts"})
    for step, loss in enumerate(FALLING[:80], start=1):
        health.note_step(vitals, step, outcome(loss), 1e-3)
    assert Vitals.loaded(asdict(vitals)) == vitals
    assert Vitals.loaded({}) == Vitals()


def test_a_healthy_training_is_called_so_and_every_step_has_the_digits_of_a_bare_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, steps = tones(tmp_path, 6), 80
    config = settings(max_steps=steps, **{**CALM, "valid_every": 40, "log_every": 1})
    _, recorded = run(tmp_path, train, **config.model_dump())
    assert words(recorded) == words(recorded, "healthy") == []
    assert recorded.named("watched") == [{"step": 0, "open": {}}]
    assert capsys.readouterr().out.count("\nHealth at step 40: HEALTHY\n") == 1
    assert list(recorded.losses().values()) == bare(train, config)


def bare(train: list[Any], config: Any) -> list[float]:
    """The losses of a loop that does nothing but train."""
    objective = CTCObjective(tiny())
    corpus = whole_corpus(train, VOCABULARY)
    stream = Stream(corpus, config, World(), 0, Position())
    optimizer, losses = optim.build(objective, config.optim), []
    objective.trainable.train()
    for step in range(config.max_steps):
        factor = optim.rate_factor(config.optim, step, config.max_steps)
        optim.set_rate(optimizer, factor)
        optimizer.zero_grad()
        loss = objective(stream.take(), 0.0)
        loss.total.backward()
        weight = float(loss.weight)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.get_total_norm(gradients)) * (1 / weight)
        for gradient in gradients:
            gradient.mul_(1 / weight * min(1.0, config.optim.clip_norm / (norm + 1e-6)))
        optimizer.step()
        losses.append(float(loss.total.detach()) / weight)
    return losses


def test_a_step_without_a_finite_loss_is_found_with_its_utterances_and_is_over_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tones(tmp_path, 4)
    _, recorded = run(tmp_path, train, Poisoned(tiny(), at={3}), max_steps=30, **CALM)
    (found,) = recorded.named("finding")
    assert (found["word"], found["step"]) == ("not_finite", 3)
    assert set(found["ids"]) == {each.id for each in train}
    assert [(each["word"], each["step"]) for each in recorded.named("healthy")] == [
        ("not_finite", 23)
    ]
    said = capsys.readouterr().out
    assert "Finding at step 3: the loss or gradient of step 3 was not finite" in said
    assert "Well again at step 23: not finite is over" in said


def test_a_rate_a_hundred_times_too_high_is_found_after_a_resumption_too(tmp_path: Path) -> None:
    train, long = tones(tmp_path, 6), {**CALM, "max_steps": 160, "checkpoint_every": 5}
    run(tmp_path, train, stop_at=80, **long)
    wild = {"learning_rate": 0.4, "decay": "constant"}
    _, recorded = run(tmp_path, train, optim=wild, stop_at=60, **long)
    assert words(recorded)[:1] == ["loss_rising"]
    (found,) = (each for each in recorded.named("finding") if each["word"] == "loss_rising")
    assert found["numbers"]["loss"] > 1.5 * found["numbers"]["lowest"]
    assert found["numbers"]["learning_rate"] == pytest.approx(0.4)
    _, again = run(tmp_path, train, optim=wild, stop_at=2, **long)
    assert again.named("watched")[0]["open"]["loss_rising"] == found["sentence"]


def test_a_model_that_says_nothing_but_blanks_is_found_with_examples(tmp_path: Path) -> None:
    model, train = tiny(), tones(tmp_path, 4)
    with torch.no_grad():
        model.head.bias[0] = 50.0
    slow = {"optim": {"learning_rate": 1e-6}, "max_steps": 8, "valid_every": 4, "samples": 2}
    _, recorded = run(tmp_path, train, CTCObjective(model), **{**CALM, **slow})
    (found,) = recorded.named("finding")
    assert (found["word"], found["step"]) == ("blank_collapse", 8)
    assert found["ids"] == [each.id for each in train[:2]]
    corpus = whole_corpus(train[:2], VOCABULARY)
    frames = sum(int(model.output_lengths(round(s * 16_000))) for s in corpus.durations)
    assert found["numbers"]["frames_per_label"] == frames / len(corpus.labels.flat)
    assert found["numbers"]["blank_share"] == found["numbers"]["empty_share"] == 1.0


def test_learning_four_utterances_by_heart_is_drift_on_others(tmp_path: Path) -> None:
    train, dev = tones(tmp_path, 4), tones(tmp_path, 2, seed=1)
    short = {**CALM, "max_steps": 200, "valid_every": 20}
    _, recorded = run(tmp_path, train, dev=dev, **short)
    assert "drift" in words(recorded)


def test_a_machine_that_becomes_slow_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waiting(CTCObjective):
        calls = 0

        def __call__(self, batch: Batch, progress: float) -> Loss:
            self.calls += 1
            if self.calls > 65:
                time.sleep(1.0)
            return super().__call__(batch, progress)

    monkeypatch.setattr(health, "STALLED", 2.0)  # a minute would be too long for a test
    _, recorded = run(tmp_path, tones(tmp_path, 2), Waiting(tiny()), max_steps=75, **CALM)
    assert "slow" in words(recorded)


def test_watching_costs_microseconds_a_step() -> None:
    vitals, each = Vitals(), outcome(1.0)
    began = time.process_time()
    for step in range(1, 2001):
        health.note_step(vitals, step, each, 1e-3)
        health.of_step(vitals, SCALE, each, 1e-3)
    assert (time.process_time() - began) / 2000 < 1e-3  # 8 microseconds here


def test_the_page_about_health_has_every_word_of_the_code() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", (REPOSITORY / "docs/health.md").read_text(), re.M))
    sources = [Path(health.__file__), REPOSITORY / "distill/objective.py"]
    code = "\n".join(path.read_text() for path in sources)
    judged = re.findall(r'"(\w+)"\]?(?::| =) _\1\(|judge\(step, {"(\w+)"', code)
    assert told == {"".join(word) for word in judged}
