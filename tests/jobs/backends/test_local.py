"""Pipelines on this machine: the whole launcher, without Slurm."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.jobs.launcher import Launcher
from tests.slurm.cluster import PATIENCE

CHAIN = """\
steps:
  first:
    kind: command
    settings: {argv: [sh, -c, 'echo "{\\"count\\": 3}" > $TRAINYARD_RESULT']}
  second:
    kind: command
    needs: [first]
    settings: {argv: [sh, -c, 'echo got ${first.count}; test -e mended']}
  third:
    kind: command
    needs: [second]
    settings: {argv: [echo, end]}
"""

SLEEPER = """\
steps:
  sleeper:
    kind: command
    settings: {argv: [sleep, 60]}
  behind:
    kind: command
    needs: [sleeper]
    settings: {argv: [echo, never]}
"""


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def test_a_chain_runs_in_order_and_results_flow_into_settings(launch: Launcher) -> None:
    (launch.folder / "mended").touch()
    done = launch("run", launch.write(CHAIN), "--cluster", "local", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = launch.status()
    assert {step["state"] for step in steps.values()} == {"succeeded"}
    assert steps["first"]["result"]["count"] == 3
    assert "got 3" in launch("logs", "/second").stdout


def test_a_failure_stops_what_is_behind_it_and_resume_does_only_what_is_left(
    launch: Launcher,
) -> None:
    done = launch("run", launch.write(CHAIN), "--cluster", "local", "--wait")
    assert done.returncode == 1
    steps = launch.status()
    assert [step["state"] for step in steps.values()] == ["succeeded", "failed", "cancelled"]
    assert steps["second"]["reason"] == "program_failed: sh ended with status 1: see its log"
    assert steps["third"]["reason"] == "second has not succeeded"

    (launch.folder / "mended").touch()
    done = launch("resume", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    again = launch.status()
    assert {step["state"] for step in again.values()} == {"succeeded"}
    assert [step["submissions"] for step in again.values()] == [1, 2, 2]
    assert "nothing to submit" in launch("resume").stdout


def test_a_missed_gate_fails_the_step_and_says_by_how_much(launch: Launcher) -> None:
    (launch.folder / "mended").touch()
    text = CHAIN.replace("    needs: [first]", '    needs: [first]\n    gate: {seconds: "< 0"}')
    assert launch("run", launch.write(text), "--cluster", "local", "--wait").returncode == 1
    steps = launch.status()
    assert steps["second"]["state"] == "failed"
    assert "gate_missed: seconds is 0" in steps["second"]["reason"]
    assert "the gate asks for < 0" in steps["second"]["reason"]
    assert steps["third"]["state"] == "cancelled"


def test_the_run_goes_on_when_the_terminal_closes(launch: Launcher) -> None:
    """The launcher runs in a session of its own, which is hung up and killed at once."""
    (launch.folder / "mended").touch()
    text = CHAIN.replace("echo got", "sleep 1; echo got")
    command = f"{sys.executable} {REPOSITORY / 'launch.py'} run {launch.write(text)}"
    command += " --cluster local --wait"
    terminal = subprocess.Popen(
        ["sh", "-c", command],
        cwd=launch.folder,
        env=launch.environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    assert terminal.stdout is not None
    for line in terminal.stdout:
        if b"third: job" in line:  # all are submitted
            break
    os.killpg(terminal.pid, signal.SIGHUP)
    os.killpg(terminal.pid, signal.SIGKILL)
    terminal.wait()
    steps = launch.until("succeeded", "failed", "lost", step="third")
    assert {step["state"] for step in steps.values()} == {"succeeded"}


def test_cancel_ends_the_program_itself_and_resume_starts_it_again(launch: Launcher) -> None:
    launch.run(launch.write(SLEEPER), "--cluster", "local")
    launch.until("running", step="sleeper")
    done = launch("cancel", "p")
    assert done.stdout == "cancelled: sleeper, behind\n"
    steps = launch.status()
    assert [step["state"] for step in steps.values()] == ["cancelled", "cancelled"]
    assert steps["sleeper"]["reason"] == "by launch.py cancel"
    assert _processes("sleep 60", launch) == 0
    launch("resume")
    launch.until("running", step="sleeper")
    deadline = time.monotonic() + PATIENCE  # the worker runs before its program does
    while _processes("sleep 60", launch) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    launch("cancel", "p")


def test_cancelling_one_step_cancels_what_is_behind_it_and_nothing_before(
    launch: Launcher,
) -> None:
    launch.run(launch.write(SLEEPER), "--cluster", "local")
    launch.until("running", step="sleeper")
    run = launch("status", "--json").stdout.split('"run": "')[1].split('"')[0]
    assert launch("cancel", f"{run}/behind").stdout == "cancelled: behind\n"
    assert launch.status()["sleeper"]["state"] == "running"
    launch("cancel", "p")


def test_a_keeper_that_is_killed_leaves_a_failed_step_not_a_running_one(launch: Launcher) -> None:
    launch.run(launch.write(SLEEPER), "--cluster", "local")
    job = launch.until("running", step="sleeper")["sleeper"]["job"]
    os.killpg(int(job.split(".")[0]), signal.SIGKILL)
    steps = launch.until("failed", step="sleeper")
    assert steps["sleeper"]["reason"] == "its process is gone: see its log"
    launch.until("cancelled", step="behind")


def test_workers_that_outlive_their_keeper_are_running_until_cancel_has_ended_them(
    launch: Launcher,
) -> None:
    program = "trap 'sleep 1; echo end >> trace; exit 1' TERM; echo begin >> trace; "
    program += "while :; do sleep 0.1; done"
    slow = SLEEPER.replace("[sleep, 60]", f'[sh, -c, "{program}"]')
    run = launch.run(launch.write(slow), "--cluster", "local")
    trace = launch.folder / "trace"
    deadline = time.monotonic() + PATIENCE
    while not trace.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    keeper = int(launch.status()["sleeper"]["job"].split(".")[0])
    os.kill(keeper, signal.SIGKILL)
    status = launch.status()["sleeper"]
    assert (status["state"], status["reason"]) == ("running", "its keeper was killed")
    assert launch("cancel", run.name).stdout.startswith("cancelled: sleeper")
    assert trace.read_text() == "begin\nend\n"
    assert launch.status()["sleeper"]["state"] == "cancelled"


def test_a_launcher_killed_between_two_submissions_submits_nothing_twice(launch: Launcher) -> None:
    """SIGKILL at every moment of a submission: the file that says so is the one being written."""
    (launch.folder / "mended").touch()
    counted = CHAIN.replace("echo end", "echo end >> counted").replace(
        "[echo, end]", "[sh, -c, 'echo end >> counted']"
    )
    path = launch.write(counted)
    for delay in (0.22, 0.26, 0.30, 0.34):
        process = subprocess.Popen(
            [sys.executable, REPOSITORY / "launch.py", "run", path, "--cluster", "local"],
            cwd=launch.folder,
            env=launch.environment,
            stdout=subprocess.PIPE,
        )
        time.sleep(delay)
        process.kill()
        process.wait()
    runs = [file.parent.name for file in sorted((launch.folder / "runs").glob("*/run.json"))]
    for run in runs:
        assert launch("resume", run, "--wait").returncode == 0
        steps = launch.status(run)
        assert {step["state"] for step in steps.values()} == {"succeeded"}
    counted_lines = (launch.folder / "counted").read_text().splitlines() if runs else []
    assert len(counted_lines) == len(runs)


def test_queued_jobs_run_the_code_as_it_was_submitted(launch: Launcher) -> None:
    run = launch.run(launch.write(CHAIN), "--cluster", "local")
    code = run / "code"
    assert (code / "jobs" / "worker.py").is_file() and (code / "lact_asr").is_dir()
    launch.until("failed", step="second")
    worker = code / "jobs" / "kinds" / "_external.py"
    worker.write_text(worker.read_text().replace("ended with status", "stopped with status"))
    launch("resume", "--wait")
    assert "sh stopped with status 1" in launch.status()["second"]["reason"]
    launch("resume", "--fresh-code", "--wait")
    assert "sh ended with status 1" in launch.status()["second"]["reason"]
    assert (run / "code.2").is_dir()
    info = json.loads((run / "run.json").read_text())
    assert [each["folder"] for each in info["earlier_code"]] == ["code"]
    assert info["earlier_code"][0]["versions"] == info["versions"]


def _processes(words: str, launch: Launcher) -> int:
    """Processes with this command line that were started for this test."""
    found = 0
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = " ".join(process.info["cmdline"] or ())
        found += line == words and process.info["cwd"] == str(launch.folder)
    return found
