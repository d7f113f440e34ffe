"""What the loop asks of objectives and models, where one says nothing of its own."""

import ast
from pathlib import Path

import pytest
import torch

from lact_asr.config.training import OptimConfig
from lact_asr.data.batch import Batch
from lact_asr.model.interface import CTCModel
from lact_asr.training import optim
from lact_asr.training.loss import LEAST, Loss, Part, relative, shown
from lact_asr.training.objective import CTCObjective, SpeechObjective
from lact_asr.training.trainer import FitResult
from tests.conftest import REPOSITORY
from tests.lact_asr.tiny_runs import run, tiny, tones


class Plain(SpeechObjective):
    """No more than an objective has to have."""

    def __init__(self, model: CTCModel) -> None:
        self.model = self.trainable = model
        self.whole = CTCObjective(model)

    def __call__(self, batch: Batch, progress: float) -> Loss:
        return self.whole(batch, progress)


def test_an_objective_that_declares_nothing_trains_as_plain_ctc_does(tmp_path):
    train = tones(tmp_path, 4)
    one, first = run(tmp_path / "plain", train, Plain(tiny()), probe=True)
    two, second = run(tmp_path / "ctc", train, CTCObjective(tiny()), probe=True)
    assert isinstance(one, FitResult) and one.step == two.step
    assert first.losses() == second.losses() != {}


def test_an_objective_without_groups_of_its_own_learns_all_at_one_rate():
    model = tiny()
    optimizer = optim.build(Plain(model), OptimConfig(learning_rate=0.25))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(list(model.parameters()))
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


class Told(Plain):
    """Writes down what the loop tells it."""

    def __init__(self, model: CTCModel) -> None:
        super().__init__(model)
        self.told: list[tuple[str, int]] = []

    def begin_step(self, batches, all_sum) -> None:
        self.told.append(("begin", len(batches)))

    def end_step(self, step, outcome, logger) -> None:
        self.told.append(("end", step))


def test_the_loop_tells_an_objective_of_every_step_before_and_after_it(tmp_path):
    objective = Told(tiny())
    run(tmp_path, tones(tmp_path, 4), objective, max_steps=2, accumulate=3)
    assert objective.told == [("begin", 3), ("end", 1), ("begin", 3), ("end", 2)]


def test_an_objective_or_a_model_that_leaves_out_what_it_must_have_cannot_be_made():
    class Silent(SpeechObjective):
        pass

    class Mute(CTCModel):
        pass

    with pytest.raises(TypeError, match="__call__"):
        Silent()
    with pytest.raises(TypeError, match="read_out"):
        Mute()


def test_a_model_has_one_modality_no_video_and_no_attention_unless_it_says_so():
    class Bare(CTCModel):
        def read_out(self, states, lengths):
            return states

    model = Bare()
    assert (model.modalities, model.video_shape, model.attends) == ((), None, False)


def test_a_part_is_shown_beside_its_share_of_what_is_expected():
    parts = {"kd": Part(1.0, 4.0), "ctc": Part(2.0), "feature": Part(3.0, 0.0)}
    assert shown(parts) == {"kd": 1.0, "ctc": 2.0, "feature": 3.0, "kd_relative": 0.25}
    assert relative(parts) == {"kd": 0.25}
    assert relative({"kd": Part(0.25, LEAST), "ctc": Part(0.25, LEAST / 2)}) == {"kd": 0.5}


class Expecting(CTCObjective):
    """Its parts have an expected value, or not, and sort around each other."""

    def __call__(self, batch: Batch, progress: float) -> Loss:
        loss, one = super().__call__(batch, progress), torch.ones(())
        tokens = batch.target_lengths.sum()
        parts = {"b": Part(2 * tokens, 8 * tokens), "a": Part(3 * tokens), "c": Part(5 * tokens)}
        return Loss(loss.total, loss.weight, parts, {"batches": one})


def test_parts_and_their_expectations_go_through_a_step_without_being_mixed_up(tmp_path):
    _, recorded = run(tmp_path, tones(tmp_path, 4), Expecting(tiny()), max_steps=1, accumulate=2)
    line = next(line for line in recorded.metrics if "loss" in line)
    assert {name: line[name] for name in ("a", "b", "c", "b_relative", "batches")} == pytest.approx(
        {"a": 3.0, "b": 2.0, "c": 5.0, "b_relative": 0.25, "batches": 2.0}
    )
    assert not {"a_relative", "c_relative", "b_expected"} & line.keys()


# A string that names an attribute: of settings by their fields' names, or of what is not ours.
ALLOWED = {
    "lact_asr/config/model.py",  # a field of the settings, by name
    "lact_asr/data/batch.py",  # the tensors of a batch, by name
    "lact_asr/data/archive.py",  # tarfile of Python 3.10 and 3.11
    "lact_asr/data/synthetic/espeak.py",  # espeak-ng before 1.52
    "lact_asr/diagnosis/diagnose.py",  # the fields of any dataclass that a module returns
    "lact_asr/diagnosis/ranges.py",  # a field of the settings, by name
    "lact_asr/distributed/fsdp.py",  # DTensor, whose import takes 0.33 s
}


def asks(path: Path) -> bool:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    names = {getattr(call.func, "id", "") for call in calls}
    return bool(names & {"getattr", "hasattr"})


def test_nothing_asks_an_objective_or_a_model_by_name_what_it_can_do():
    files = [path for top in ("lact_asr", "distill") for path in (REPOSITORY / top).rglob("*.py")]
    found = {path.relative_to(REPOSITORY).as_posix() for path in files if asks(path)}
    assert found == ALLOWED
