"""A step of distillation waits once for its device, whatever is taught; see `tests.waits`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distill.config.distillation import DistillConfig
from distill.objective import DistillObjective
from distill.teachers import Live
from lact_asr.config.training import CTCConfig
from lact_asr.model.interface import CTCModel
from lact_asr.training.objective import CTCObjective, SpeechObjective
from tests.distill.tiny_models import tiny_baseline, tiny_teacher
from tests.lact_asr.tiny_runs import VOCABULARY, quiet_logger, settings, tiny
from tests.lact_asr.training.test_waits import batches
from tests.waits import DEVICE, step


def teaching(student: CTCModel, ctc: CTCConfig | None = None, **config: object) -> SpeechObjective:
    source = Live(tiny_teacher(seed=1, blocks=2, mlp=144), VOCABULARY)
    taught = DistillConfig.model_validate(config)
    made = DistillObjective(student, source, taught, vocabulary=VOCABULARY, ctc=ctc, log_every=50)
    source.teacher.to(DEVICE)  # else in the first step
    return made


HINTS = {
    "feature_weight": 0.5,
    "layerwise_weight": 0.3,
    "attention_weight": 0.1,
    "contrastive_weight": 0.1,
    "curriculum": "all_on",
}
ROUTER = {"feature_weight": 0.5, "curriculum": "all_on", "router": {"kind": "recommended"}}
OBJECTIVES: dict[str, Callable[[], SpeechObjective]] = {
    "the teacher": lambda: CTCObjective(tiny_teacher(blocks=1, mlp=144)),
    "the baseline": lambda: CTCObjective(tiny_baseline(norm="batch")),
    "KD": lambda: teaching(tiny(layers=2), CTCConfig(intermediate=(1,))),
    "KD at half the frame rate": lambda: teaching(tiny(conv_layers=3, subsampling=8)),
    "KD and hints, balanced": lambda: teaching(tiny(layers=2), **HINTS, balance="ema"),
    "KD and a router": lambda: teaching(tiny(), **ROUTER),
    "a projector": lambda: teaching(tiny(), target="projector", balance="uncertainty"),
}


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_a_step_reads_one_tensor_and_sends_nothing_that_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], SpeechObjective]
) -> None:
    seen = step(make(), batches(tmp_path), settings(), quiet_logger(DEVICE), monkeypatch)
    assert seen.reads == ["copied to the CPU"]
    assert seen.sent == []
