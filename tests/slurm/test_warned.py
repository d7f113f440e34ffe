"""What becomes of a step after the warning before its time limit, on a real Slurm.

`scancel --signal=USR2` sends what Slurm itself sends some time before the limit; Slurm looks at
limits every 30 s only. The refusals of a successor, and then to requeue, are made by scripts before
Slurm's own programs.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import Launcher, sh

FOREVER = "while :; do sleep 0.1; done"
REFUSE = "echo 'Unable to contact slurm controller' >&2; exit 1"
NO_SUCCESSOR = (
    "echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy' >&2; "
    "exit 1"
)
# the launcher asks scontrol too: only requests to requeue are counted and refused
ELSE_REAL = 'test "$1" = requeue || exec "$real" "$@"'


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


def program(script: str, **settings: Any) -> dict[str, Any]:
    """A bash program that leaves a file `begins` and line `begin` in `ran` each time it starts."""
    step = sh("")
    begin = "echo begin >> ran"
    step["settings"] = {"argv": ["bash", "-c", f"{begin}; {script}"], **settings}
    return step


def facts(launcher: Launcher, name: str) -> list[dict[str, Any]]:
    """The events of the step `only` of this name."""
    path = launcher.newest() / "steps" / "only" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def warn(launcher: Launcher, starts: int) -> None:
    """Send the warning to the step, once its program has begun for the nth time."""
    launcher.slurm.wait_for(lambda: len(launcher.ran()) == starts)
    launcher.slurm.run("scancel", "--signal=USR2", job(launcher))


def job(launcher: Launcher) -> str:
    path = launcher.newest() / "steps" / "only" / "submissions.jsonl"
    lines = map(json.loads, path.read_text().splitlines())
    return str([line["job"] for line in lines if "job" in line][-1])


def done(launcher: Launcher) -> list[str]:
    path = launcher.folder / "done"
    return path.read_text().split() if path.exists() else []


def failure(launcher: Launcher) -> dict[str, Any]:
    """failure.json of the step, once it is there."""
    path = launcher.newest() / "steps" / "only" / "failure.json"
    launcher.slurm.wait_for(path.exists)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def run(launcher: Launcher, step: dict[str, Any]) -> None:
    launcher("run", launcher.write({"only": step}))


def test_a_program_that_fails_after_the_warning_is_not_started_again(launcher: Launcher) -> None:
    run(launcher, program("until test -e go; do sleep 0.1; done; exit 3"))
    warn(launcher, 1)
    launcher.touch("go")
    assert failure(launcher)["message"].startswith("bash ended with status 3")
    launcher.expect_accounts(only=["FAILED"])
    assert launcher.ran() == ["begin"]


def test_a_program_without_progress_at_three_warnings_is_not_started_a_fourth_time(
    launcher: Launcher,
) -> None:
    run(launcher, program(FOREVER, handles_warning=True))  # which is not true: it dies of it
    for start in (1, 2, 3):
        warn(launcher, start)
    failed = failure(launcher)
    assert failed["cause"] == "no_progress"
    assert "met its time limit 3 times" in failed["message"]
    assert "the file $TRAINYARD_POSITION" in failed["message"]
    launcher.expect_accounts(only=["COMPLETED", "COMPLETED", "FAILED"])


def test_a_bash_program_that_traps_the_warning_goes_on_where_it_was(launcher: Launcher) -> None:
    script = """
at=$(cat $TRAINYARD_POSITION || echo 0)
trap 'echo $at > $TRAINYARD_POSITION; exit 75' USR2
for at in $(seq $((at + 1)) 4); do echo $at >> done; until test -e go$at; do sleep 0.1; done; done
"""
    run(launcher, program(script, handles_warning=True))
    for start in (1, 2, 3, 4):  # three warnings would be too many without progress
        launcher.slurm.wait_for(lambda start=start: len(launcher.ran()) == start)
        launcher.slurm.wait_for(lambda start=start: done(launcher)[-1:] == [str(start)])
        if start < 4:
            launcher.slurm.run("scancel", "--signal=USR2", job(launcher))
    launcher.touch("go4")
    launcher.wait_for_states(only="succeeded")
    assert [event["position"] for event in facts(launcher, "interrupted")] == [1, 2, 3]
    assert done(launcher) == ["1", "2", "3", "4"]


def test_a_program_that_does_not_know_the_warning_is_not_disturbed_by_it(
    launcher: Launcher,
) -> None:
    run(launcher, program("trap 'exit 75' USR2; until test -e go; do sleep 0.1; done"))
    warn(launcher, 1)
    launcher.touch("go")
    launcher.wait_for_states(only="succeeded")
    assert launcher.ran() == ["begin"]


def test_a_requeue_that_fails_twice_is_asked_for_until_it_works(launcher: Launcher) -> None:
    run(launcher, program(f"test $(wc -l < ran) = 2 || {FOREVER}", handles_warning=True))
    launcher.wrap("sbatch", NO_SUCCESSOR)
    count = f"echo request >> {launcher.folder}/requests"
    twice = f"if test $(wc -l < {launcher.folder}/requests) -lt 3; then {REFUSE}; fi"
    launcher.wrap("scontrol", f'{ELSE_REAL}; {count}; {twice}; exec "$real" "$@"')
    warn(launcher, 1)
    launcher.wait_for_states(only="succeeded")
    assert launcher.ran() == ["begin", "begin"]
    refusals = [event["reason"] for event in facts(launcher, "not_requeued")]
    assert refusals == ["Unable to contact slurm controller"] * 2
    launcher.expect_accounts(only=["REQUEUED", "COMPLETED"])


def test_a_requeue_that_never_works_is_a_failure_that_says_why(launcher: Launcher) -> None:
    run(launcher, program(FOREVER, handles_warning=True))
    launcher.wrap("sbatch", NO_SUCCESSOR)
    launcher.wrap("scontrol", f"{ELSE_REAL}; {REFUSE}")
    warn(launcher, 1)
    launcher.slurm.wait_for(lambda: len(facts(launcher, "not_requeued")) >= 2)
    path = launcher.newest() / "steps" / "only" / "failure.json"
    assert not path.exists(), "it is still asking"
    subprocess.run(
        ["scancel", "--signal=TERM", job(launcher)], env=launcher.slurm.environment, check=True
    )  # what Slurm does at the limit
    failed = failure(launcher)
    assert failed["cause"] == "not_requeued"
    assert failed["message"].startswith("saved before its time limit, but not requeued: Unable to")
    launcher.wait_for_states(only="failed")
    assert "only failed: not_requeued: saved before" in launcher("logs", "/only")
