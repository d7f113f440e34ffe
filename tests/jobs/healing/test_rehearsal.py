"""A rehearsal: what is made of a pipeline, how a fault is judged, and one from beginning to end."""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs import kinds
from jobs.errors import UserError
from jobs.healing.rehearsal import SAVED_EVERY, STEPS, UTTERANCES, judge, planned, shrink, target
from jobs.healing.usual_faults import USUAL
from jobs.pipeline import Pipeline
from jobs.reading.pipeline_file import read_pipeline
from jobs.rehearse import cut, table
from jobs.step_folder import StepDir
from lact_asr.data.manifest import Utterance, read_manifest, write_manifest
from lact_asr.utils.files import append_json
from tests.conftest import REPOSITORY
from tests.jobs.kinds.test_kinds import SMALL
from tests.jobs.launcher import Launcher
from tests.lact_asr.tiny_runs import tones

SHIPPED = sorted((REPOSITORY / "jobs" / "pipelines").glob("*.yaml"))


def same(path: Path) -> Path:
    return path


def pipeline(folder: Path, steps: dict[str, Any]) -> Pipeline:
    file = folder / "p.yaml"
    file.write_text(json.dumps({"steps": steps}))
    return read_pipeline(file)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_pipeline_that_comes_with_us_can_be_made_small(file: Path) -> None:
    folder = ["corpus.folder=/speech"] if "source: folder" in file.read_text() else []
    given = read_pipeline(file, folder)
    small, done = shrink(given, same)
    assert set(done) == {step.name for step in given.steps}
    names = [step.name for step in small.steps]
    assert target(small).name in names
    for step in small.steps:
        assert set(step.needs) <= set(names)
        assert not step.gate and not step.faults
        assert step.kind not in ("overfit", "command")
        if "training" in step.settings:
            training = step.settings["training"]
            assert training["max_steps"] <= STEPS and training["checkpoint_every"] <= 5
            assert training["accumulate"] == training["log_every"] == 1
        if not any("${" in str(value) for value in step.settings.values()):
            kinds.load(step.kind).Settings.model_validate(step.settings)


def test_what_refers_to_a_step_that_is_left_out_is_left_out_too(tmp_path: Path) -> None:
    """A need alone is no reason: an overfit gate stands before every training."""
    train = {"train": "t.jsonl", "dev": "d.jsonl"}
    used = {**train, "dev": "${make.manifest}"}
    command = {"kind": "command", "settings": {"argv": ["make"]}}
    steps = {
        "make": command,
        "first": {"kind": "train", "settings": used, "needs": ["make"]},
        "second": {"kind": "train", "settings": train, "needs": ["make"], "gate": {"wer": "<= 0"}},
    }
    small, done = shrink(pipeline(tmp_path, steps), same)
    assert [step.name for step in small.steps] == ["second"]
    assert small.steps[0].needs == ()
    assert done["first"] == "left out: it uses what make would have found"


def test_checkpoints_come_often_where_the_pipeline_leaves_their_distance_to_be_measured(
    tmp_path: Path,
) -> None:
    """What a fault costs would depend on how long a step takes on the day."""
    training = {"checkpoint_every": "auto", "valid_every": 3}
    train = {"train": "t.jsonl", "dev": "d.jsonl", "training": training}
    small, _ = shrink(pipeline(tmp_path, {"train": {"kind": "train", "settings": train}}), same)
    found = small.steps[0].settings["training"]
    assert (found["checkpoint_every"], found["valid_every"]) == (SAVED_EVERY, 3)


def test_manifests_are_cut_to_a_few_utterances_of_all_lengths_and_the_longest(
    tmp_path: Path,
) -> None:
    many = [
        Utterance(str(number), tmp_path / f"{number}.wav", 1 + number / 10, "A", "x")
        for number in range(150)
    ]
    write_manifest(tmp_path / "many.jsonl", many)
    few = read_manifest(cut(tmp_path / "many.jsonl", tmp_path / "few"))
    assert len(few) == 50 <= UTTERANCES
    assert max(each.duration for each in few) == max(each.duration for each in many)
    assert min(each.duration for each in few) < 1.3


def test_faults_come_to_the_step_that_asks_for_most_and_to_its_last_rank(tmp_path: Path) -> None:
    settings = {"train": "t.jsonl", "dev": "d.jsonl"}
    small = {"kind": "train", "settings": settings, "resources": {"time": "9h", "gpus": 1}}
    large = {**small, "resources": {"time": "3h", "gpus": 4}}
    step = target(pipeline(tmp_path, {"small": small, "large": large}))
    assert step.name == "large"
    kill, limit = planned("kill, time_limit", step, queue=True)
    assert (kill.rank, limit.rank) == (3, None)
    with pytest.raises(UserError, match="--faults kil: did you mean 'kill'"):
        planned("kil", step, queue=True)
    with pytest.raises(UserError, match="time_limit: this machine has no queue"):
        planned("kill,time_limit", step, queue=False)
    usual = [fault.fault for fault in planned(USUAL, step, queue=False)]
    assert "kill" in usual and "time_limit" not in usual


def make(folder: Path, weights: float = 1.0, ranks: int = 1) -> StepDir:
    """What a training has left: checkpoints at 15 and 30."""
    step = StepDir(folder)
    for name in ("00000015", "00000030"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        file = folder / "checkpoints" / name / "model.safetensors"
        save_file({"w": np.full(2, weights, np.float32)}, file)
    step.write_job({"resources": {"nodes": ranks, "gpus": 0}})
    step.write_result({"steps": 30})
    return step


def record(folder: StepDir, name: str, at: float, **facts: object) -> None:
    append_json(folder.path / f"{name}.jsonl", {"time": at, **facts})


def killed(folder: Path, weights: float = 1.0, ranks: int = 1, **remedy: object) -> StepDir:
    """A step that was killed at step 18, went on from 15 and took 17 and 18 again."""
    step = make(folder, weights, ranks)
    plan = {"fault": "kill", "at_step": 18, "rank": 0, "times": 1}
    record(step, "faults", 100.0, planned=plan, step=18, rank=0)
    record(step, "events", 50.0, event="started", host="n1")
    record(step, "events", 100.5, event="failed", cause="collective_timeout")
    record(step, "events", 101.0, event="remedy", cause="killed", **remedy)
    record(step, "events", 103.0, event="resumed", host="n1")
    record(step, "events", 104.0, event="resumed", step=15, checkpoint="00000015")
    taken = [(99.0, 16), (99.5, 17), (106.0, 16), (107.0, 17), (108.0, 18), (109.0, 19)]
    for at, number in taken:
        record(step, "metrics", at, step=number, learning_rate=1e-3)
    return step


def test_a_fault_is_judged_from_the_files_that_it_has_left(tmp_path: Path) -> None:
    came = judge("kill", make(tmp_path / "quiet"), killed(tmp_path / "k"), "succeeded")
    assert came == (
        "kill",
        "step 18, rank 0",
        "killed",
        "began again in the same job, went on from step 15",
        "succeeded",
        8.0,  # from the kill to the end of step 18
        2,  # steps 16 and 17
        "identical",
        True,
    )


def test_weights_that_differ_come_with_the_reason_on_record_or_with_none(tmp_path: Path) -> None:
    quiet = make(tmp_path / "quiet")
    unknown = judge("kill", quiet, killed(tmp_path / "one", 1.5), "succeeded")
    assert unknown.weights == "DIFFERENT by 0.5, and nothing on record says why"
    ranks = judge("kill", quiet, killed(tmp_path / "four", 1.001, ranks=4), "succeeded")
    assert ranks.weights == "rounded otherwise, as the sums of many ranks are: by 0.001 at most"
    wrong = judge("kill", quiet, killed(tmp_path / "wrong", 1.5, ranks=4), "succeeded")
    assert wrong.weights.startswith("DIFFERENT by 0.5")
    changes = {"training.batch_seconds": [14, 7]}
    mended = judge("kill", quiet, killed(tmp_path / "two", 1.5, changes=changes), "succeeded")
    assert mended.weights == "other settings: training.batch_seconds: 14 -> 7"


def test_a_fault_that_never_came_or_was_not_survived_is_not_as_expected(tmp_path: Path) -> None:
    quiet = make(tmp_path / "quiet")
    never = judge("kill", quiet, make(tmp_path / "never"), "succeeded")
    assert (never.injected, never.seconds, never.as_expected) == ("", None, False)
    assert not judge("kill", quiet, killed(tmp_path / "k"), "failed").as_expected
    assert judge("bug", quiet, killed(tmp_path / "b"), "failed").as_expected
    assert "never put in" in table([never])


def test_a_rehearsal_from_beginning_to_end(tmp_path: Path) -> None:
    """A private folder beside the runs, the cause named, the weights those of the undisturbed."""
    write_manifest(tmp_path / "tones.jsonl", tones(tmp_path, 8))
    training = {"max_steps": 5000, "batch_seconds": 8, "optim": {"warmup_steps": 2}}
    data = {"train": "tones.jsonl", "dev": "tones.jsonl"}
    settings = {**data, "preset": "plain", "model": SMALL, "training": training}
    behind = {"kind": "evaluate", "needs": ["train"]}
    behind["settings"] = {"checkpoint": "${train.checkpoint}", "manifest": "tones.jsonl"}
    steps = {"train": {"kind": "train", "settings": settings}, "behind": behind}
    launch = Launcher(tmp_path, {"OMP_NUM_THREADS": "1"})
    file = launch.write(json.dumps({"steps": steps}))
    done = launch("rehearse", file, "--cluster", "local", "--faults", "kill", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["cause"], row["ended"], row["weights"]) == ("killed", "succeeded", "identical")
    assert row["injected"] == "step 18, rank 0"
    assert row["lost"] in (2, 7), "the checkpoint of step 15 may still be on its way to the disk"
    (folder,) = (tmp_path / "runs").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} >= {"few", "undisturbed", "kill"}
    assert (folder / "kill/steps/behind/result.json").exists()
    assert "no runs" in launch("status").stderr, "the newest run is one of the user's own"
