"""The pipelines that ship: read without mistakes, gated, and within what they promise."""

import re
from pathlib import Path

import pytest
import torch

from jobs import kinds
from jobs.cluster import load_cluster
from jobs.errors import SpecError
from jobs.kinds import train
from jobs.pipeline import Pipeline, Step
from jobs.reading.pipeline_file import read_pipeline
from lact_asr.config.model import SIZES
from lact_asr.model.interface import count_parameters
from lact_asr.model.recognizer import Recognizer
from tests.conftest import REPOSITORY

FILES = sorted((REPOSITORY / "jobs" / "pipelines").glob("*.yaml"))
FOLDER = ["corpus.folder=speech"]  # what the user has to add
NEEDED = {"smoke_real": FOLDER, "distillation": FOLDER}
ORIGINAL = ["train.preset=original", "train.training={}", "train.ctc={}", "train.model={}"]
ORIGINAL += ["train.vocabulary=characters"]
INGREDIENTS = {"conv_kernel": 31, "attention_dropout": 0.1}  # what the recipes add to a size


def read(name: str, *overrides: str) -> Pipeline:
    path = REPOSITORY / "jobs" / "pipelines" / f"{name}.yaml"
    return read_pipeline(path, [*NEEDED.get(name, []), *overrides])


def of_kind(pipeline: Pipeline, kind: str) -> list[Step]:
    return [step for step in pipeline.steps if step.kind == kind]


def upstream(pipeline: Pipeline, name: str) -> set[str]:
    needs = set(pipeline.step(name).needs)
    return needs.union(*(upstream(pipeline, need) for need in needs))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_pipeline_has_no_mistakes_and_says_how_it_is_run(file: Path) -> None:
    pipeline = read(file.stem)
    assert pipeline.name == file.stem
    assert pipeline.description
    text = file.read_text()
    assert text.startswith("# ")
    assert f"python launch.py run jobs/pipelines/{file.name}" in text
    assert max(map(len, text.splitlines())) <= 100


REFERENCE = re.compile(r"\w+(?=: \"?\$\{)")  # a key that has one for its value
KEYS = [
    (file, number, found.end())
    for file in FILES
    for number, line in enumerate(file.read_text().splitlines())
    for found in REFERENCE.finditer(line.partition("#")[0])
]


def test_no_misspelt_key_is_taken_for_one_because_its_value_is_known_later(tmp_path: Path) -> None:
    """`te_cher: ${teacher.checkpoint}` was no mistake: a student would have learned without."""
    assert len(KEYS) > 100
    for file, number, end in KEYS:
        lines = file.read_text().splitlines()
        lines[number] = f"{lines[number][:end]}x{lines[number][end:]}"
        (tmp_path / "p.yaml").write_text("\n".join(lines))
        with pytest.raises(SpecError, match=f"yaml:{number + 1}: .*: unknown key '[a-z_]+x': "):
            read_pipeline(tmp_path / "p.yaml", NEEDED.get(file.stem, []))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_nothing_is_trained_before_ten_utterances_are_known_by_heart(file: Path) -> None:
    pipeline = read(file.stem)
    gates = of_kind(pipeline, "overfit")
    assert gates and all(step.gate == {"wer": "<= 0.0"} for step in gates)
    for kind in ("teacher", "distill", "train"):
        for step in of_kind(pipeline, kind):
            assert upstream(pipeline, step.name) & {gate.name for gate in gates}, step.name


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_what_is_trained_is_evaluated_on_what_it_has_not_learned_from(file: Path) -> None:
    pipeline = read(file.stem)
    corpus = pipeline.step("corpus").settings
    assert not set(corpus["test"]) & {*corpus["train"], *corpus["dev"]}
    judged = {step.settings["checkpoint"] for step in of_kind(pipeline, "evaluate")}
    assert "${train.checkpoint}" in judged
    for step in of_kind(pipeline, "evaluate"):
        manifest = step.settings["manifest"].removeprefix("${corpus.").removesuffix("}")
        assert manifest == "test" or manifest.removeprefix("manifests.") in corpus["test"]


def test_every_way_of_teaching_is_held_against_the_student_alone() -> None:
    pipeline = read("distillation")
    taught = {f"${{{step.name}.checkpoint}}" for step in of_kind(pipeline, "distill")}
    judged = {step.settings["checkpoint"]: step for step in of_kind(pipeline, "evaluate")}
    assert len(taught) == 5 and taught <= judged.keys()
    alone = judged.pop("${train.checkpoint}")
    for checkpoint, step in judged.items():
        assert step.gate == {"wer": f"<= ${{{alone.name}.wer}}"}, checkpoint
        assert alone.name in step.needs
        assert step.settings["manifest"] == alone.settings["manifest"]


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_checkpoint_is_never_many_steps_away_and_times_fit_the_example_cluster(
    file: Path,
) -> None:
    longest = load_cluster("h200").max_time
    for step in read(file.stem).steps:
        assert longest is None or step.resources.time <= longest, step.name
        if training := step.settings.get("training"):
            assert training.get("checkpoint_every", training["valid_every"]) <= 1000
            assert training["valid_every"] <= training["max_steps"]
            assert training["optim"]["warmup_steps"] <= training["max_steps"] or step.settings[
                "preset"
            ] in ("plain",)


def test_demo_and_smoke_real_ask_for_no_more_than_two_cores_and_no_gpu() -> None:
    for name in ("demo", "smoke_real"):
        for step in read(name).steps:
            assert step.resources.cpus <= 2 and step.resources.world_size == 1
            assert step.resources.gpus == 0 and step.resources.memory_gb <= 4


def test_smoke_real_is_six_dependent_steps_of_six_kinds_and_wants_its_folder() -> None:
    steps = read("smoke_real").steps
    order = ["download", "overfit", "teacher", "distill", "train", "evaluate"]
    assert [step.kind for step in steps] == order
    for step, before in zip(steps[1:], steps, strict=False):
        assert before.name in step.needs
    with pytest.raises(SpecError, match=r"corpus.*source: folder needs `folder`"):
        read_pipeline(REPOSITORY / "jobs" / "pipelines" / "smoke_real.yaml")


@pytest.mark.parametrize(
    ("name", "size", "hours"),
    [("base", "base", 1), ("improved", "improved", 2), ("large", "large", 3)],
)
def test_the_librispeech_pipelines_train_the_original_sizes_in_bfloat16(
    name: str, size: str, hours: int
) -> None:
    pipeline = read(f"librispeech_{name}")
    step = pipeline.step("train")
    model = train.Settings.model_validate(step.settings).configuration()
    assert model == SIZES[size].model_copy(update=INGREDIENTS)
    assert pipeline.step("overfit").settings["size"] == size
    assert step.settings["training"]["precision"] == "auto"
    assert len(pipeline.step("corpus").settings["train"]) == hours
    assert step.resources.gpus >= 4


@pytest.mark.parametrize("name", ["base", "improved", "large"])
def test_the_original_recipe_is_one_command_away(name: str) -> None:
    text = (REPOSITORY / "jobs" / "pipelines" / f"librispeech_{name}.yaml").read_text()
    assert "--set train.preset=original --set 'train.training={}' --set 'train.ctc={}'" in text
    assert "--set 'train.model={}' --set train.vocabulary=characters" in text
    settings = read(f"librispeech_{name}", *ORIGINAL).step("train").settings
    given = train.Settings.model_validate(settings)
    assert given.configuration() == SIZES[name]
    assert (given.vocabulary, given.ctc.views, given.ctc.intermediate) == ("characters", 1, ())
    training = settings["training"]
    assert (training["batch_utterances"], training["accumulate"]) == (12, 2)
    assert (training["optim"]["learning_rate"], training["optim"]["warmup_steps"]) == (1e-4, 2000)
    assert (training["max_duration"], training["optim"]["clip_norm"]) == (20, 1)
    assert (training["valid_every"], training["checkpoint_every"]) == (1000, 5000)
    assert (training["precision"], training["augment"]["time_masks"]) == ("fp32", 0)


@pytest.mark.parametrize("name", ["base", "improved", "large"])
def test_the_librispeech_recipes_have_what_published_winners_have(name: str) -> None:
    step = read(f"librispeech_{name}").step("train")
    given = train.Settings.model_validate(step.settings)
    third = given.configuration().layers // 3
    assert (given.vocabulary, given.vocabulary_size) == ("bpe", 500)
    assert given.ctc.intermediate == (third, 2 * third)
    assert given.ctc.consistency == 0.2
    assert (given.training.augment.time_masks, given.training.augment.time_total) == (25, 0.375)
    assert given.training.augment.speeds == (0.9, 1.0, 1.1), "the preset's"
    assert given.training.average.last == 10
    assert given.training.optim.method == "muon" and not given.training.optim.decay_gains
    seconds = given.training.budget(given.ctc.views).seconds * step.resources.world_size
    assert 1_800 <= seconds <= 4_800, "audio of a step, each second of it heard twice"


def test_the_base_recipe_names_the_size_that_wins_on_100_hours() -> None:
    text = (REPOSITORY / "jobs" / "pipelines" / "librispeech_base.yaml").read_text()
    size = "model={hidden: 384, attention_heads: 6, mlp: 1152, conv_kernel: 31}"
    assert text.count(size) == 2
    step = read("librispeech_base", f"train.{size}").step("train")
    config = train.Settings.model_validate(step.settings).configuration()
    with torch.device("meta"):
        assert 29e6 < count_parameters(Recognizer(config, 500)) < 31e6


def test_settings_read_from_a_pipeline_are_those_the_worker_reads_back() -> None:
    for file in FILES:
        for step in read(file.stem).steps:
            settings = kinds.load(step.kind).Settings.model_validate(step.settings)
            again = settings.model_dump(mode="json")
            assert again == kinds.load(step.kind).Settings.model_validate(again).model_dump(
                mode="json"
            )
