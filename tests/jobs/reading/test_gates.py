"""What a gate takes over from the step that it guards, and what `check` says where they differ."""

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import SpecError
from jobs.reading.effective import facts, values
from jobs.reading.gates import differences
from jobs.reading.pipeline_file import overlaid, read_pipeline
from tests.jobs.launcher import Launcher

GUARDED = {
    "train": "kind: train, settings: {train: t.jsonl, dev: d.jsonl, size: base, vocabulary: bpe, "
    "vocabulary_size: 300, ctc: {intermediate: [6], consistency: 0.2}, model: {layers: 7}}",
    "teacher": "kind: teacher, settings: {train: t.jsonl, dev: d.jsonl, preset: standard, "
    "vocabulary: bpe, vocabulary_size: 90}",
    "distill": "kind: distill, needs: [teacher], settings: {train: t.jsonl, dev: d.jsonl, "
    "teacher: '${teacher.checkpoint}', family: baseline, preset: plain}",
    "fetch": "kind: command, settings: {argv: [x]}",
}


def written(folder: Path, *steps: str) -> Path:
    file = folder / "p.yaml"
    known = [f"  {name}: {{{about}}}" for name, about in GUARDED.items()]
    file.write_text("\n".join(["steps:", *known, *steps]))
    return file


def gate(folder: Path, settings: str) -> dict[str, Any]:
    """The settings of a gate."""
    step = f"  gate: {{kind: overfit, settings: {{{settings}}}}}"
    return read_pipeline(written(folder, step), folder=folder).step("gate").settings


def test_like_takes_model_optimizer_losses_vocabulary_and_precision(tmp_path: Path) -> None:
    found = gate(tmp_path, "like: train")
    assert found["manifest"] == str(tmp_path / "t.jsonl")
    assert (found["family"], found["size"], found["model"]) == ("lact", "base", {"layers": 7})
    assert (found["vocabulary"], found["vocabulary_size"]) == ("bpe", 300)
    assert (found["precision"], found["optimizer"]["method"]) == ("auto", "muon")
    assert found["ctc"]["intermediate"] == (6,) and found["ctc"]["consistency"] == 0
    assert found["learning_rate"] == 1e-3  # the gate's own


def test_what_a_gate_writes_itself_is_its_own(tmp_path: Path) -> None:
    found = gate(tmp_path, "like: train, size: tiny, model: {}, ctc: {}, learning_rate: 3e-4")
    assert (found["size"], found["learning_rate"]) == ("tiny", 3e-4)
    assert found["vocabulary"] == "bpe"


def test_the_preset_of_a_teacher_is_part_of_its_model(tmp_path: Path) -> None:
    found = gate(tmp_path, "like: teacher")
    assert (found["family"], found["model"]["norm"]) == ("teacher", "batch")


def test_a_student_writes_as_its_teacher_does(tmp_path: Path) -> None:
    found = gate(tmp_path, "like: distill")
    assert (found["family"], found["vocabulary"], found["vocabulary_size"]) == (
        "baseline",
        "bpe",
        90,
    )
    trained = (
        GUARDED["distill"].replace("${teacher.checkpoint}", "old/best").replace("teacher]", "]")
    )
    steps = [f"  other: {{{trained}}}", "  gate: {kind: overfit, settings: {like: other}}"]
    found = read_pipeline(written(tmp_path, *steps), folder=tmp_path).step("gate").settings
    assert found["vocabulary_from"] == str(tmp_path / "old" / "best")


def test_first_weights_bring_their_pieces_of_words_unless_the_output_layer_is_new(
    tmp_path: Path,
) -> None:
    (tmp_path / "old").mkdir()
    for more, brought in (("", str(tmp_path / "old")), (", new_head: true", None)):
        trained = f"{{{GUARDED['train'][:-1]}, init_from: old{more}}}}}"
        steps = [f"  other: {trained}", "  gate: {kind: overfit, settings: {like: other}}"]
        found = read_pipeline(written(tmp_path, *steps), folder=tmp_path).step("gate").settings
        assert found.get("vocabulary_from") == brought


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ("trian", r"p\.yaml:6: steps\.gate\.settings\.like: no step 'trian': did you mean 'train'"),
        ("gate", "no step 'gate': "),
        ("fetch", "fetch trains no recognizer: write a step of kind train, teacher or distill"),
    ],
)
def test_a_gate_like_nothing_that_is_trained_is_a_mistake(
    tmp_path: Path, like: str, said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        gate(tmp_path, f"like: {like}, manifest: m")


def test_gates_that_are_like_each_other_are_mistakes_and_no_endless_search(tmp_path: Path) -> None:
    one = "  one: {kind: overfit, settings: {like: two, manifest: m}}"
    two = "  two: {kind: overfit, settings: {like: one, manifest: m}}"
    with pytest.raises(SpecError, match="trains no recognizer"):
        read_pipeline(written(tmp_path, one, two))


def test_a_recipe_that_is_known_later_is_neither_taken_over_nor_compared(tmp_path: Path) -> None:
    later = (
        "{kind: train, needs: [fetch, gate], settings: {train: t, dev: d, size: '${fetch.size}'}}"
    )
    steps = ["  later: " + later, "  gate: {kind: overfit, settings: {like: later}}"]
    with pytest.raises(SpecError, match="the recipe of later has results of other steps in it"):
        read_pipeline(written(tmp_path, *steps))
    steps[1] = "  gate: {kind: overfit, settings: {manifest: m}}"
    file = written(tmp_path, *steps)
    pipeline, document = read_pipeline(file), overlaid(file, ())
    assert differences(pipeline, document) == []
    (said,) = facts(pipeline.step("later"))
    assert said.startswith("size, steps an epoch: known when")
    assert any(value.name == "size" for value in values(pipeline.step("later"), document))


def told(folder: Path, settings: str) -> list[str]:
    """What is said of a gate in front of a step like `train`."""
    steps = [
        f"  gate: {{kind: overfit, settings: {{{settings}}}}}",
        f"  last: {{needs: [gate], {GUARDED['train']}}}",
    ]
    file = written(folder, *steps)
    return differences(read_pipeline(file), overlaid(file, ()))


def test_check_says_where_a_gate_differs_from_what_it_guards(tmp_path: Path) -> None:
    assert told(tmp_path, "like: last") == []
    assert told(tmp_path, "like: last, steps: 500, learning_rate: 2e-3") == []
    (line,) = told(tmp_path, "manifest: m, size: base")
    assert line == (
        f"{tmp_path}/p.yaml:6: gate is another recipe than last, which it guards: vocabulary "
        "characters, not bpe, precision fp32, not auto, vocabulary_size None, not 300, "
        "optimizer.method adamw, not muon, model.layers 12, not 7; write like: last in a gate of "
        "its own"
    )
    (line,) = told(tmp_path, "manifest: m, family: teacher")
    assert "which it guards: family teacher, not lact; write" in line


def test_check_says_which_gate_stops_nothing(tmp_path: Path) -> None:
    gate = "  gate: {kind: overfit, settings: {like: train}}"
    launch = Launcher(tmp_path)
    told = launch("check", written(tmp_path, gate))
    assert told.returncode == 0 and told.stderr.splitlines()[-1] == (
        f"{tmp_path}/p.yaml:6: no step needs gate, which so stops nothing: write it into the needs "
        "of train or teacher or distill"
    )
    guarded = f"  last: {{needs: [gate], {GUARDED['train']}}}"
    assert "stops nothing" not in launch("check", written(tmp_path, gate, guarded)).stderr


def test_dropout_is_no_difference(tmp_path: Path) -> None:
    assert told(tmp_path, "like: last, model: {layers: 7, dropout: 0.3}") == []
