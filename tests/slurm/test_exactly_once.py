"""Whatever interrupts a submission, after `resume` every step has run once and no job is left over.

The trouble is made by a shell script before Slurm's own sbatch; the jobs are real.
"""

import re
import signal
from pathlib import Path

import pytest

from tests.slurm.cluster import PATIENCE, PrivateSlurm
from tests.slurm.launcher import SOCKET_TIMED_OUT, UNTIL_GO, Launcher, chain, sh

KILL = "kill -KILL $PPID"
QUEUE_SILENTLY = '"$real" "$@" > /dev/null'


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


def steps() -> dict[str, object]:
    return chain(one="sleep 2", two="", three="", four="")


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(f"{KILL}; exit 1", id="before the job is queued"),
        pytest.param(f"{QUEUE_SILENTLY}; {KILL}", id="after the job is queued"),
        pytest.param(f"{KILL}; sleep 2; {QUEUE_SILENTLY}", id="and sbatch lives on"),
    ],
)
def test_a_launcher_killed_between_two_submissions_leaves_nothing_twice_and_no_orphan(
    launcher: Launcher, trouble: str
) -> None:
    launcher.wrap("sbatch", f'if test $nth = 2; then {trouble}; else exec "$real" "$@"; fi')
    launcher("run", launcher.write(chain(one=UNTIL_GO, two="", three="", four="")), code=-9)
    status = launcher.status(code=1)
    assert status["two"]["state"] in ("lost", "waiting"), "waiting: sbatch did it in time"
    assert status["three"]["state"] == "new"
    launcher.touch("go")
    launcher("resume", "--wait")
    assert launcher.ran() == ["one", "two", "three", "four"]
    launcher.slurm.wait_for(lambda: launcher.queued() == [])  # a result comes before its job's end
    launcher.expect_once("one", "two", "three", "four")


def test_a_job_that_comes_into_the_queue_after_resume_leaves_its_place_to_the_new_one(
    launcher: Launcher,
) -> None:
    copy = (
        "grep -v dependency= ${!#} > late.sh"  # without it the late job would be the first to run
    )
    late = f"{copy}; setsid sh -c '{UNTIL_GO}; $0 late.sh' $real &> /dev/null &"
    launcher.wrap("sbatch", f'if test $nth = 2; then {late} {KILL}; exit; fi; exec "$real" "$@"')
    one = UNTIL_GO.replace("go", "left")
    launcher("run", launcher.write(chain(one=one, two="", three="", four="")), code=-9)
    launcher("resume")
    launcher.touch("go")
    logs = launcher.newest() / "steps" / "two" / "logs"
    words = "two was submitted anew: this job leaves its place"
    launcher.slurm.wait_for(lambda: any(words in log.read_text() for log in logs.glob("*.out")))
    launcher.touch("left")
    launcher.wait_for_states(four="succeeded")
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    assert launcher.ran() == ["one", "two", "three", "four"]


def test_a_job_queued_under_a_timed_out_answer_is_adopted_by_the_same_run(
    launcher: Launcher,
) -> None:
    answer = f"{QUEUE_SILENTLY}; echo '{SOCKET_TIMED_OUT}' >&2; exit 1"
    launcher.wrap("sbatch", f'if test $nth != 3; then {answer}; else exec "$real" "$@"; fi')
    launcher("run", launcher.write(steps()), "--wait")
    assert launcher.ran() == ["one", "two", "three", "four"]
    launcher.expect_once("one", "two", "three", "four")


def test_resume_adopts_a_job_that_nobody_could_look_for_at_the_time(launcher: Launcher) -> None:
    silent = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    answer = f"{QUEUE_SILENTLY}; echo '{SOCKET_TIMED_OUT}' >&2; exit 1"
    launcher.wrap("sbatch", f'if test $nth = 2; then {answer}; else exec "$real" "$@"; fi')
    launcher.wrap("squeue", silent)
    running = launcher.start("run", launcher.write(steps()))
    assert running.stdout is not None
    assert any("trying again in 2 s" in line for line in running.stdout)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=PATIENCE)
    assert f"resume {launcher.newest().name}" in said and running.returncode == 130
    launcher.unwrap()
    launcher("resume", "--wait")
    assert launcher.ran() == ["one", "two", "three", "four"]
    launcher.expect_once("one", "two", "three", "four")


def test_a_timed_out_answer_without_a_job_is_looked_for_and_then_submitted_again(
    launcher: Launcher,
) -> None:
    answer = f"echo '{SOCKET_TIMED_OUT}' >&2; exit 1"
    launcher.wrap("sbatch", f'if test $nth = 2; then {answer}; else exec "$real" "$@"; fi')
    said = launcher("run", launcher.write(steps()), "--wait")
    assert re.search(r"two: .*Socket timed out.*no job named two\.\w+ is in the queue", said)
    assert "trying again in 1 s, for " in said
    assert launcher.ran() == ["one", "two", "three", "four"]
    launcher.expect_once("one", "two", "three", "four")


def test_two_people_resuming_at_once_submit_once(launcher: Launcher) -> None:
    launcher.wrap("sbatch", f"{KILL}; exit 1")
    launcher("run", launcher.write(chain(one="", two="")), code=-9)
    launcher.wrap("sbatch", f'{UNTIL_GO}; exec "$real" "$@"')
    both = [launcher.start("resume"), launcher.start("resume")]
    launcher.slurm.wait_for(lambda: any(process.poll() is not None for process in both))
    launcher.touch("go")
    said = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert "is being submitted or cancelled by process" in said[0] + said[1]
    launcher.wait_for_states(two="succeeded")
    launcher.expect_once("one", "two")


def test_many_independent_steps_survive_a_kill_in_the_middle(launcher: Launcher) -> None:
    names = [f"s{i:02}" for i in range(24)]
    many = {name: sh(f"echo {name} >> ran") for name in names}
    launcher.wrap("sbatch", f'if test $nth -ge 9; then {KILL}; fi; exec "$real" "$@"')
    launcher("run", launcher.write(many), code=-9)
    launcher.unwrap()
    launcher("resume", "--wait")
    assert sorted(launcher.ran()) == names
    launcher.expect_once(*names)
