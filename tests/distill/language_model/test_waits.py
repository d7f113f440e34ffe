"""A step of a language model waits once for its device, whatever it is taught: `tests.waits`."""

from collections.abc import Callable

import pytest

from distill.config.language_model import LMDistillConfig, LMTrainingConfig
from distill.language_model.across import Across
from distill.language_model.batch import TextBatch
from distill.language_model.model import LanguageModel, LMObjective, likelihood
from distill.language_model.trainer import TERMS
from tests.distill.language_model.test_across import PIECES, by_pieces
from tests.distill.language_model.test_inside import AT_ONCE
from tests.distill.language_model.test_language_model import VOCABULARY, batch, model
from tests.lact_asr.tiny_runs import quiet_logger
from tests.waits import DEVICE, Waits, step, without_autocast

CHUNK = 16


def teaching(teacher: LanguageModel, across: Across | None = None, **config: object) -> LMObjective:
    taught = LMDistillConfig.model_validate({"top_k": 5, **config})
    return LMObjective(model(), CHUNK, teacher.to(DEVICE), taught, log_every=50, across=across)


OBJECTIVES: dict[str, Callable[[], LMObjective]] = {
    "alone": lambda: LMObjective(model(), CHUNK),
    "KD": lambda: teaching(model(seed=1)),
    "KD and hints": lambda: teaching(model(seed=1, blocks=3), **AT_ONCE, balance="ema"),
    "KD across symbols": lambda: teaching(by_pieces(), Across(VOCABULARY, PIECES)),
}


def texts() -> list[TextBatch]:
    return [batch(["CAT SAT", "ON A MAT"]), batch(["SO DID HER DOG", "AND"])]


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_a_step_reads_one_tensor_and_sends_nothing_that_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], LMObjective]
) -> None:
    logger = quiet_logger(DEVICE, TERMS)
    config = LMTrainingConfig(max_steps=9)
    seen = step(make(), texts(), config, logger, monkeypatch, lambda each: each.to(DEVICE))
    assert seen.reads == ["copied to the CPU"]
    assert seen.sent == []


def test_texts_are_measured_without_a_wait_until_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_autocast(monkeypatch)
    there = model().to(DEVICE)
    with Waits() as seen:
        found = likelihood(there, texts(), DEVICE)
    assert seen.reads == ["_local_scalar_dense"]
    assert found[1] == sum(map(len, ["CAT SAT", "ON A MAT", "SO DID HER DOG", "AND"])) + 4
