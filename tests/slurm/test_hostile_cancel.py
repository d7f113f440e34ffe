"""Making a job stop, when everything is against it: nothing runs beside what was asked to end.

The trouble is made by shell scripts before Slurm's own programs; the jobs are real.
"""

import getpass
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import PATIENCE, PrivateSlurm, new_slurm
from tests.slurm.launcher import UNTIL_GO, Launcher, chain, sh

TIMED_OUT = (
    "echo 'scancel: error: Kill job error on job id 7: Socket timed out on send/recv operation'"
    " >&2; exit 1"
)
# a program told to end saves until `saved` is there, 8 s at most: `cancel` looks for 3 s, and
# KillWait is 15
SLOW_TO_END = (
    'trap \'timeout 8 sh -c "until test -e saved; do sleep 0.1; done"; '
    'echo "end $SLURM_JOB_ID" >> trace; exit 143\' TERM; '
    f'echo "begin $SLURM_JOB_ID" >> trace; {UNTIL_GO}; echo "end $SLURM_JOB_ID" >> trace'
)


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[PrivateSlurm]:
    """A second cluster, which has the same name and hands out the same ids."""
    with new_slurm(nodes=1) as cluster:
        yield cluster


def start(launcher: Launcher, **scripts: str) -> str:
    """Submit a chain and wait until its first step runs; the run's name."""
    launcher("run", launcher.write(chain(**scripts)))
    launcher.wait_for_states(**{next(iter(scripts)): "running"})
    return launcher.newest().name


def trace(launcher: Launcher) -> list[str]:
    """What the slow program has written: begin and end of each job."""
    path = launcher.folder / "trace"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_cancel_that_slurm_did_not_hear_is_no_end_and_can_be_asked_for_again(
    launcher: Launcher,
) -> None:
    run = start(launcher, one=UNTIL_GO, two="")
    launcher.wrap("scancel", TIMED_OUT)
    said = launcher("cancel", run, code=1)
    assert "asked to end, and still there: one, two" in said and "Socket timed out" in said
    assert f"to ask again: launch.py cancel {run}" in said
    status = launcher.status()
    assert status["one"]["state"] == "running" and status["two"]["state"] == "waiting"
    assert "asked to end" in status["one"]["reason"]
    assert launcher.queued() == ["one", "two"]
    launcher.unwrap()
    assert "two" in launcher("cancel", run)
    launcher.wait_for_states(one="cancelled", two="cancelled")
    assert launcher.queued() == []


def test_resume_after_a_cancel_that_slurm_did_not_hear_never_runs_beside_the_living_job(
    launcher: Launcher,
) -> None:
    run = start(launcher, one=SLOW_TO_END)
    launcher.slurm.wait_for(lambda: trace(launcher) == ["begin"])
    launcher.wrap("scancel", TIMED_OUT)
    launcher("cancel", run, code=1)
    assert "nothing is submitted beside jobs that may be alive" in launcher("resume", run, code=1)
    launcher.unwrap()
    launcher("resume", run)
    launcher.touch("saved")
    launcher.slurm.wait_for(lambda: len(trace(launcher)) == 3)
    launcher.touch("go")
    launcher.wait_for_states(one="succeeded")
    assert trace(launcher) == ["begin", "end", "begin", "end"]


def test_resume_right_after_cancel_waits_until_the_job_has_saved_and_ended(
    launcher: Launcher,
) -> None:
    run = start(launcher, one=SLOW_TO_END, two="")
    launcher.slurm.wait_for(lambda: trace(launcher) == ["begin"])
    launcher.start("cancel", run).wait(timeout=PATIENCE)
    launcher("resume", run)
    launcher.touch("saved")
    launcher.touch("go")
    launcher.wait_for_states(one="succeeded", two="succeeded")
    assert trace(launcher) == ["begin", "end", "begin", "end"]
    assert launcher.ran() == ["one", "two"]


@pytest.mark.parametrize(
    "trouble",
    ["kill -KILL $PPID; exit 1", '"$real" "$@"; kill -KILL $PPID'],
    ids=["before", "after"],
)
def test_a_launcher_killed_around_scancel_leaves_a_truthful_record(
    launcher: Launcher, trouble: str
) -> None:
    run = start(launcher, one=UNTIL_GO, two="")
    launcher.wrap("scancel", trouble)
    launcher("cancel", run, code=-signal.SIGKILL)
    launcher.unwrap()
    if "real" in trouble:
        launcher.wait_for_states(one="cancelled", two="cancelled")
    else:
        assert launcher.states() == {"one": "running", "two": "waiting"}
        launcher("cancel", run)
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    launcher.touch("go")
    launcher("resume", run, "--wait")
    assert launcher.ran() == ["one", "two"]


def test_what_the_users_shell_sets_for_scancel_changes_nothing(launcher: Launcher) -> None:
    run = start(launcher, one=UNTIL_GO)
    launcher.environment["SCANCEL_STATE"] = "PENDING"  # it would leave running jobs alone
    launcher("cancel", run)
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    assert launcher.states() == {"one": "cancelled"}


def test_cancel_and_resume_refuse_the_run_of_another_user(launcher: Launcher) -> None:
    run = start(launcher, one=UNTIL_GO)
    record = launcher.newest() / "run.json"
    info = json.loads(record.read_text())
    record.write_text(json.dumps({**info, "user": "nobody"}))
    for command in ("cancel", "resume"):
        assert f"{run} belongs to nobody, and you are" in launcher(command, run, code=2)
    assert launcher.queued() == ["one"]
    record.write_text(json.dumps(info))


def test_a_bare_cancel_names_the_newest_run_and_cancels_nothing(launcher: Launcher) -> None:
    run = start(launcher, one=UNTIL_GO)
    assert launcher("cancel", code=2) == (
        f"say what to cancel; the newest run is: launch.py cancel {run}\n"
    )
    assert launcher.queued() == ["one"]


def test_the_job_of_a_killed_launcher_is_seen_by_status_and_ended_by_cancel(
    launcher: Launcher,
) -> None:
    launcher.wrap(
        "sbatch",
        'if test $nth = 2; then "$real" "$@" > /dev/null; kill -KILL $PPID; '
        'else exec "$real" "$@"; fi',
    )
    launcher("run", launcher.write(chain(one=UNTIL_GO, two="", three="")), code=-signal.SIGKILL)
    launcher.wait_for_states(one="running")
    status = launcher.status()
    assert status["two"]["state"] == "waiting" and status["two"]["job"]
    assert status["three"]["reason"] == "never submitted: launch.py resume"
    launcher("cancel", launcher.newest().name)
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    assert launcher.states()["two"] == "cancelled"


def test_a_status_during_a_submission_says_that_it_is_under_way(launcher: Launcher) -> None:
    launcher.wrap("sbatch", f'if test $nth = 2; then {UNTIL_GO}; fi; exec "$real" "$@"')
    running = launcher.start("run", launcher.write(chain(one="", two="", three="")))
    calls = launcher.folder / "bin" / "sbatch.calls"
    launcher.slurm.wait_for(lambda: calls.exists() and len(calls.read_text().split()) == 2)
    status = launcher.status()
    assert status["two"]["state"] == "queued"
    assert status["two"]["reason"].startswith(f"being submitted by process {running.pid} on ")
    assert status["three"]["state"] == "new"
    launcher.touch("go")
    assert running.wait(timeout=PATIENCE) == 0


def test_on_another_slurm_the_jobs_of_a_run_are_not_looked_for_and_not_ended(
    launcher: Launcher, elsewhere: PrivateSlurm
) -> None:
    """Both are called "mini": only their controllers differ."""
    run = start(launcher, one=UNTIL_GO, two="")
    ids = {step["job"] for step in launcher.status().values()}
    foreign = set()
    while not ids <= foreign:
        submitted = ["--time=5", "--mem=10M", "--output=/dev/null", "--wrap=sleep 600"]
        foreign.add(elsewhere.run("sbatch", "--parsable", *submitted).strip())
        assert len(foreign) < 3000
    there = Launcher(launcher.folder, elsewhere)
    for command in ("cancel", "resume"):
        said = there(command, run, code=1)
        assert re.search(r"belongs to the Slurm mini at \S+, and here is mini at \S+,", said)
    for job in ids:
        assert elsewhere.run("squeue", "-h", "-j", job, "-o", "%T").strip() in (
            "RUNNING",
            "PENDING",
        )
    assert launcher.queued() == ["one", "two"]
    elsewhere.run("scancel", "--full", *sorted(foreign))
    launcher.touch("go")
    launcher.wait_for_states(two="succeeded")
    assert launcher.ran() == ["one", "two"]


def test_after_the_first_refusal_nothing_more_is_asked_and_what_is_queued_goes_on(
    launcher: Launcher,
) -> None:
    limit = ["sacctmgr", "-i", "modify", "user", getpass.getuser(), "set"]
    launcher.slurm.run(*limit, "MaxSubmitJobs=5")
    try:
        many = {f"s{i:02}": sh(f"{UNTIL_GO}; echo s{i:02} >> ran") for i in range(24)}
        launcher.wrap("sbatch", 'exec "$real" "$@"')
        said = launcher("run", launcher.write(many))
        assert "Slurm takes no more jobs of yours for now; they follow by themselves" in said
        assert len(launcher.queued()) == 5
        calls = (launcher.folder / "bin" / "sbatch.calls").read_text().split()
        assert len(calls) <= 5 + 4, "four at a time, and none after a refusal"
        assert len(said.splitlines()) < 10
        left = launcher.status()["s23"]
        assert left["state"] == "new" and left["reason"].startswith("follows by itself: ")
    finally:
        launcher.slurm.run(*limit, "MaxSubmitJobs=-1")
    launcher.touch("go")
    launcher("resume", "--wait")
    assert sorted(launcher.ran()) == sorted(many)


def test_a_step_that_succeeds_while_it_is_asked_to_end_is_not_called_cancelled(
    launcher: Launcher,
) -> None:
    _start_what_answers_cancel_with(0, launcher)
    assert launcher("cancel", launcher.newest().name) == "cancelled: two\n"
    assert launcher.states() == {"one": "succeeded", "two": "cancelled"}


def test_a_program_that_answers_cancel_with_a_bad_status_is_cancelled_and_has_not_failed(
    launcher: Launcher,
) -> None:
    _start_what_answers_cancel_with(1, launcher)
    assert launcher("cancel", launcher.newest().name) == "cancelled: one, two\n"
    assert (launcher.newest() / "steps" / "one" / "failure.json").exists()
    assert launcher.states() == {"one": "cancelled", "two": "cancelled"}


def test_ctrl_c_after_jobs_were_asked_to_end_says_where_to_look(launcher: Launcher) -> None:
    run = start(launcher, one=SLOW_TO_END)
    launcher.slurm.wait_for(lambda: trace(launcher) == ["begin"])
    record = launcher.newest() / "steps" / "one" / "submissions.jsonl"
    asking = launcher.start("cancel", run)
    launcher.slurm.wait_for(lambda: "cancel_requested" in record.read_text())
    asking.send_signal(signal.SIGINT)
    said, _ = asking.communicate(timeout=PATIENCE)
    assert asking.returncode == 130
    assert said == f"stopped; what was asked to end may still be there: launch.py status {run}\n"
    launcher("cancel", run)
    launcher.touch("saved")
    launcher.wait_for_states(one="cancelled")


def test_other_jobs_of_the_same_user_may_have_any_name(launcher: Launcher) -> None:
    run = start(launcher, one=UNTIL_GO, two="")
    for name in ("a|b|c", "two\nlines", "two\n7|RUNNING|0:01|lines"):
        submitted = ["--time=5", "--mem=10M", "--output=/dev/null", "--wrap=sleep 600"]
        launcher.slurm.run("sbatch", f"--job-name={name}", *submitted)
    assert launcher.states() == {"one": "running", "two": "waiting"}
    assert launcher("cancel", run) == "cancelled: one, two\n"


def _start_what_answers_cancel_with(status: int, launcher: Launcher) -> None:
    """A step that ends with a status of its own choice when asked to end, and one behind it."""
    trap = f"trap 'exit {status}' TERM; touch traps; {UNTIL_GO}"
    launcher("run", launcher.write({"one": sh(trap), "two": sh(":", "one")}))
    launcher.slurm.wait_for((launcher.folder / "traps").exists)
