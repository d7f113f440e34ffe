"""Steps that begin again in the same job, with real keepers and workers on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.fence import Attempt
from jobs.healing.heal import AGAIN, heal, main
from jobs.healing.nodes import nodes_to_exclude
from jobs.job import SAVED
from jobs.step_folder import StepDir
from tests.jobs.launcher import Launcher
from tests.jobs.test_status import make_run

TOKEN = "train.3fa9c2e1"
ATTEMPT = Attempt(TOKEN, "7", 0)
OPTIM = {"learning_rate": 1e-3, "clip_norm": 1.0}


@pytest.fixture
def step(tmp_path: Path) -> StepDir:
    """A step whose job 7 has begun."""
    step = StepDir(tmp_path / "train")
    step.write_job({"settings": {"training": {"optim": OPTIM}}, "remedies": None})
    step.add_submission(TOKEN)
    step.add_submission(TOKEN, job="7")
    return step


def failed(step: StepDir, cause: str, message: str = "it broke") -> None:
    """A rank has recorded how it failed."""
    step.write_failure({"cause": cause, "message": message, "job": "7", "rank": 0})


def remedies(step: StepDir) -> list[dict[str, Any]]:
    return [event for event in step.events() if event["event"] == "remedy"]


def test_a_failure_with_a_remedy_begins_again_and_leaves_no_failure(step: StepDir) -> None:
    failed(step, "diverged", "20 steps in a row")
    step.mark_done(str(ATTEMPT), 1)
    assert heal(step, ATTEMPT, 1) == AGAIN
    assert step.failure() is None and not step.ranks_done(str(ATTEMPT))
    [event] = remedies(step)
    assert event["changes"]["training.optim.learning_rate"] == [1e-3, 5e-4]
    assert (event["cause"], event["reason"]) == ("diverged", "20 steps in a row")


def test_a_node_that_has_failed_a_start_is_on_record_for_all_runs_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    for number in ("1", "2"):
        step = make_run(tmp_path, f"demo-{number}").step("second")
        step.write_job({"settings": {}, "remedies": None})
        step.add_submission(TOKEN, job=number)
        step.write_failure({"cause": "node_failed", "message": "", "job": number, "rank": 0})
        heal(step, Attempt(TOKEN, number, 0), 1)
    assert nodes_to_exclude(tmp_path, "") == {"n7": 2}


def test_a_failure_without_one_stays_and_says_what_was_tried(step: StepDir) -> None:
    for status in (AGAIN, AGAIN, 1):
        failed(step, "diverged")
        assert heal(step, ATTEMPT, 1) == status
    assert "tried 2 of 2 times: training.optim.learning_rate: 0.001" in step.failure()["message"]
    assert step.events()[-1]["event"] == "given_up"


def test_a_job_of_resume_may_try_as_often_as_the_first(step: StepDir) -> None:
    for _ in range(2):
        failed(step, "diverged")
        assert heal(step, ATTEMPT, 1) == AGAIN
    later = Attempt("train.00000000", "8", 0)
    step.add_submission(later.token, job="8")
    step.write_failure({"cause": "diverged", "message": "", "job": "8", "rank": 0})
    assert heal(step, later, 1) == AGAIN
    assert remedies(step)[-1]["changes"]["training.optim.learning_rate"] == [2.5e-4, 1.25e-4]


def test_what_no_rank_could_record_is_named_by_the_end_of_the_processes(step: StepDir) -> None:
    log = step.logs / "7_0_log.err"
    log.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0\n")
    assert heal(step, ATTEMPT, 137) == 137
    assert step.failure()["cause"] == "out_of_memory_host"
    step.write_claim({**ATTEMPT._asdict(), "host": "n1", "log_sizes": {log.name: 999}})
    step.forget_failure()
    assert heal(step, ATTEMPT, 137) == AGAIN, "those words were of an earlier start"
    assert remedies(step)[-1]["cause"] == "killed"


@pytest.mark.parametrize(
    "said",
    [
        "srun: error: Slurm job 7 has expired",
        "srun: error: Unable to create step for job 7: Job/step already completing or completed",
    ],
)
def test_a_job_that_was_ended_before_its_step_began_has_not_failed(
    step: StepDir, said: str
) -> None:
    log = step.logs / "7_0_log.err"
    log.write_text(f"{said}\n")
    assert heal(step, ATTEMPT, 1) == 1
    assert step.failure() is None and not step.events(), "the queue knows who has ended it"
    log.write_text(f"{said}\n".replace("job 7", "job 17"))
    assert heal(step, ATTEMPT, 1) == 1
    assert step.failure()["cause"] == "error", "a step that calls srun itself, for another job"
    step.forget_failure()
    log.write_text(f"{said}\n")
    step.write_claim({**ATTEMPT._asdict(), "host": "n1", "log_sizes": {log.name: 999}})
    assert heal(step, ATTEMPT, 1) == 1
    assert step.failure()["cause"] == "error", "those words were of an earlier start"


def test_the_rank_that_died_first_is_named_and_not_the_one_that_died_of_it(step: StepDir) -> None:
    failed(step, "collective_timeout", "Connection closed by peer")
    (step.logs / "7_0_log.err").write_text("srun: error: n1: task 1: Killed\n")
    assert heal(step, ATTEMPT, 137) == AGAIN
    assert remedies(step)[-1]["cause"] == "killed"


@pytest.mark.parametrize("end", ["saved", "cancelled", "replaced", "succeeded", "never described"])
def test_nothing_begins_again_that_was_meant_to_end(step: StepDir, end: str) -> None:
    failed(step, "killed")
    if end == "cancelled":
        step.add_submission(TOKEN, cancel_requested=True)
    if end == "replaced":
        step.write_claim({"token": TOKEN, "job": "7", "restart": 1, "host": "n2"})
    if end == "succeeded":
        step.write_result({})
    if end == "never described":
        (step.path / "job.json").unlink()
    expected = {"saved": SAVED, "succeeded": 0}.get(end, 137)
    assert heal(step, ATTEMPT, SAVED if end == "saved" else 137) == expected
    assert not remedies(step)


def test_where_the_folder_has_gone_the_log_says_so(
    step: StepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    step.path.rename(step.path.with_name("moved"))
    monkeypatch.setattr("sys.argv", ["heal", str(step.path), "1"])
    with pytest.raises(SystemExit, match=r"^train failed: missing_file: .*was the run moved\?"):
        main()
    assert not step.path.exists()


PROGRAM = """\
steps:
  first:
    kind: command
    settings: {argv: [sh, -c, 'echo x >> ran; [ $(wc -l < ran) -gt %d ] || %s']}
    remedies: {program_failed: 1}
  behind:
    kind: command
    needs: [first]
    settings: {argv: [echo, end]}
"""


def test_a_worker_that_is_killed_begins_again_in_its_job(tmp_path: Path) -> None:
    launch = Launcher(tmp_path)
    text = PROGRAM % (2, "kill -9 $PPID")
    done = launch("run", launch.write(text), "--cluster", "local", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = launch.status()
    assert steps["first"]["submissions"] == 1 and steps["first"]["remedies"] == 2
    assert (tmp_path / "ran").read_text() == "x\nx\nx\n"
    assert "(2 remedies)" in launch("status").stdout


def test_a_program_that_may_be_tried_again_is_and_then_fails_with_its_cause(tmp_path: Path) -> None:
    launch = Launcher(tmp_path)
    done = launch("run", launch.write(PROGRAM % (9, "exit 3")), "--cluster", "local", "--wait")
    assert done.returncode == 1
    reason = launch.status()["first"]["reason"]
    assert reason.startswith("program_failed: sh ended with status 3: see its log (tried 1 of 1")
    assert (tmp_path / "ran").read_text() == "x\nx\n"
    assert json.loads(launch("status", "--json").stdout)["steps"][0]["cause"] == "program_failed"


def test_a_file_with_a_cause_that_there_is_not_is_told_which_there_are(tmp_path: Path) -> None:
    launch = Launcher(tmp_path)
    text = PROGRAM.replace("program_failed: 1", "divergence: 1") % (2, "true")
    done = launch("check", launch.write(text))
    assert done.returncode == 2
    assert "no cause 'divergence': did you mean 'diverged'?" in done.stderr
    none = PROGRAM.replace("{program_failed: 1}", "none") % (2, "kill -9 $PPID")
    assert launch("run", launch.write(none), "--cluster", "local", "--wait").returncode == 1
    assert launch.status()["first"]["reason"].startswith("killed: a process of it was killed")


def test_kinds_shows_which_remedies_a_kind_has(tmp_path: Path) -> None:
    said = Launcher(tmp_path)("kinds", "train").stdout
    assert "remedies, unless the step says otherwise: out_of_memory_gpu=3" in said
    assert "diverged" not in Launcher(tmp_path)("kinds", "command").stdout
