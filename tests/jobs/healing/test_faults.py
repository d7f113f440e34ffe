"""Faults put into a training on purpose: what is declared happens, once, and nothing else does."""

import json
import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import torch

from jobs.errors import SpecError
from jobs.healing.faults import FAULTS, Faults
from jobs.pipeline import Fault
from jobs.reading.json_schema import json_schema
from jobs.reading.pipeline_file import read_pipeline
from jobs.step_folder import StepDir
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import FitResult, fit
from lact_asr.utils.errors import Failed
from tests.jobs.kinds.test_kinds import SMALL
from tests.jobs.test_worker import make_step, start
from tests.lact_asr.tiny_runs import VOCABULARY, RecordedEvents, manifest, settings, tiny

AT = 4


def planned(name: str, **more: Any) -> dict[str, Any]:
    """A fault as job.json has it."""
    return Fault.model_validate({"fault": name, "at_step": AT, **more}).model_dump(mode="json")


def train(folder: Path, *faults: Mapping[str, Any]) -> tuple[FitResult, RecordedEvents]:
    """A training of six steps into which these faults are put."""
    recorded, step = RecordedEvents(), StepDir(folder)
    utterances = manifest(folder)
    result = fit(
        CTCObjective(tiny()),
        utterances,
        utterances[:2],
        VOCABULARY,
        settings(),
        folder,
        report=lambda line: recorded.metrics.append(dict(line)),
        event=recorded.event,
        should_stop=lambda: False,
        disturb=Faults(faults, step, rank=0),
    )
    return result, recorded


def test_every_fault_that_a_file_may_name_can_be_put_in() -> None:
    assert set(get_args(Fault.model_fields["fault"].annotation)) == set(FAULTS)


@pytest.mark.parametrize("name", ["nan_gradient", "inf_gradient", "nan_data"])
def test_a_nan_costs_no_step(name: str, tmp_path: Path) -> None:
    """A gradient is computed anew, an utterance left out: training goes on as if nothing was."""
    result, recorded = train(tmp_path, planned(name))
    assert result.steps_skipped == 0
    assert all(math.isfinite(loss) for step, loss in recorded.losses().items() if step >= AT)
    assert len(recorded.named("quarantined")) == (name == "nan_data")
    (line,) = StepDir(tmp_path).faults()
    assert (line["planned"]["fault"], line["step"], line["rank"]) == (name, AT, 0)


def test_a_fault_meant_for_two_steps_is_put_into_two(tmp_path: Path) -> None:
    train(tmp_path, planned("nan_gradient", times=2))
    assert [line["step"] for line in StepDir(tmp_path).faults()] == [AT, AT + 1]


def test_a_weight_that_is_nan_ends_the_training_before_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="weights are not finite"):
        train(tmp_path, planned("nan_weight"))


def test_the_rate_is_a_thousand_times_what_it_should_be_for_one_step(tmp_path: Path) -> None:
    rates = {
        line["step"]: line["learning_rate"]
        for line in train(tmp_path, planned("rate"))[1].metrics
        if "learning_rate" in line
    }
    (tmp_path / "quiet").mkdir()
    usual = {
        line["step"]: line["learning_rate"]
        for line in train(tmp_path / "quiet")[1].metrics
        if "learning_rate" in line
    }
    assert rates == {**usual, AT: pytest.approx(1000 * usual[AT])}


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("out_of_memory_gpu", Failed, f"memory ran out at step {AT}"),
        ("out_of_memory_host", MemoryError, None),
        ("disk_full", OSError, "No space left on device"),
        ("missing_file", FileNotFoundError, "not/there"),
        ("import_error", ModuleNotFoundError, "a_package_that_is_not_there"),
        ("port_in_use", OSError, "Address already in use"),
        ("bug", IndexError, "list index out of range"),
    ],
)
def test_what_ends_a_program_ends_it_as_it_would_without_us(
    name: str, error: type[Exception], said: str | None, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        train(tmp_path, planned(name))


def test_a_fault_is_put_into_its_own_rank_only_or_into_all(tmp_path: Path) -> None:
    step = StepDir(tmp_path)
    for rank in range(2):
        faults = Faults([planned("rate", rank=1), planned("rate", rank=None)], step, rank)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        faults(AT, None, optimizer, [])
        assert optimizer.param_groups[0]["lr"] == 1000 ** (rank + 1)
    assert [line["rank"] for line in step.faults()] == [0, 1, 1]


def test_a_step_that_was_killed_on_purpose_is_not_killed_again_and_ends_as_if_nothing_had_been(
    tmp_path: Path,
) -> None:
    """Through job.json, the worker, the kind and the loop: a real process gets a real SIGKILL."""
    manifest(tmp_path)
    weights = []
    for name, faults in (("quiet", []), ("killed", [planned("kill")])):
        step = make_step(tmp_path / name, [], **learning(tmp_path), faults=faults)
        statuses = [start(step, OMP_NUM_THREADS="1").wait() for _ in range(1 + len(faults))]
        assert statuses == [*[-signal.SIGKILL] * len(faults), 0]
        assert len(step.faults()) == len(faults)
        weights.append((step.path / "checkpoints/00000006/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def learning(folder: Path) -> dict[str, Any]:
    """Kind and settings of a training of six steps."""
    data = {name: str(folder / "tones.jsonl") for name in ("train", "dev")}
    training = settings().model_dump(mode="json")
    return {
        "kind": "train",
        "settings": {**data, "preset": "plain", "model": SMALL, "training": training},
    }


def test_a_file_declares_faults_of_steps_that_train_and_an_editor_knows_them(
    tmp_path: Path,
) -> None:
    manifest(tmp_path)
    faults = [{"fault": "kill", "at_step": 20}, {"fault": "nan_data", "at_step": 3, "times": 2}]
    train = {"kind": "train", "settings": {"train": "tones.jsonl", "dev": "tones.jsonl"}}
    steps = {"train": {**train, "faults": faults}}
    file = tmp_path / "p.yaml"
    file.write_text(json.dumps({"steps": steps}))
    (step,) = read_pipeline(file).steps
    assert [each.model_dump(exclude_defaults=True) for each in step.faults] == faults
    jsonschema.validate({"steps": steps}, json_schema())
    wrong = {"steps": {"train": {**train, "faults": [{"fault": "kil"}]}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())
    file.write_text(json.dumps(wrong))
    with pytest.raises(SpecError, match=r"faults\.0\.at_step"):
        read_pipeline(file)


def test_faults_of_a_step_that_does_not_train_are_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    faults = [{"fault": "kill", "at_step": 1}]
    command = {"kind": "command", "settings": {"argv": ["true"]}, "faults": faults}
    file.write_text(json.dumps({"steps": {"one": command}}))
    with pytest.raises(SpecError, match=r"command does not train: faults go with kinds that do"):
        read_pipeline(file)
