"""Who only looks: how often Slurm is asked, what is said while it does not answer, and the truth.

The questions are counted by a shell script before Slurm's own programs; the jobs are real.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jobs.backends.slurm.backend import SlurmBackend
from tests.slurm.cluster import PATIENCE, PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, chain, sh

REAL = 'exec "$real" "$@"'
NO_ANSWER = 'echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1'
SAID = "Slurm does not answer: squeue failed: slurm_load_jobs error: Socket timed out"
WINDOW = 20.0  # seconds in which questions are counted
SOON = 8.0  # seconds in which files must have told what a question to Slurm would tell later


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


def calls(launcher: Launcher, program: str) -> int:
    """How often a wrapped program was called."""
    counted = launcher.folder / "bin" / f"{program}.calls"
    return len(counted.read_text().splitlines()) if counted.exists() else 0


def allowed(since: float, commands: int) -> float:
    """How often commands may have asked that ask every ten seconds, and at first."""
    return commands * ((time.monotonic() - since) / SlurmBackend.every + 1)


def read_until(process: "subprocess.Popen[str]", words: str) -> str:
    """The lines of a command up to one that holds these words."""
    assert process.stdout is not None
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, f"ended before {words!r}: {said}"
        said += line
    return said


def test_slurm_is_asked_every_ten_seconds_and_rarer_and_not_at_all_about_an_end_on_file(
    launcher: Launcher,
) -> None:
    """Three that look at once: 22 to 39 questions each were asked in this time."""
    launcher("run", launcher.write({"one": sh(f"echo begun; {UNTIL_GO}"), "two": sh("", "one")}))
    launcher.wait_for_states(one="running")
    for program in ("squeue", "sacct"):
        launcher.wrap(program, REAL)
    commands = (["logs", "/one", "-f"], ["status", "--watch"], ["resume", "--wait"])
    looking = [launcher.start(*command) for command in commands]
    read_until(looking[0], "begun")
    read_until(looking[1], "running")
    read_until(looking[2], "running")
    before = {program: calls(launcher, program) for program in ("squeue", "sacct")}
    began = time.monotonic()
    time.sleep(WINDOW)
    for program, earlier in before.items():
        asked = calls(launcher, program) - earlier
        assert asked <= allowed(began, len(commands)), f"{asked} calls of {program}"
    launcher.wrap("squeue", NO_ANSWER)
    before = calls(launcher, "squeue")
    launcher.touch("go")
    began = time.monotonic()
    looking[0].communicate(timeout=PATIENCE)
    assert looking[0].returncode == 0
    for process in looking[1:]:
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    if time.monotonic() - began < SOON:  # two jobs began and ended, and files alone told it
        assert calls(launcher, "squeue") - before <= 2
    before = calls(launcher, "squeue")
    for command in (["logs", "/one", "-f"], ["status", "--watch"], ["status"]):
        launcher(*command)
    assert calls(launcher, "squeue") == before


def test_accounts_are_asked_as_rarely_once_the_queue_has_forgotten(launcher: Launcher) -> None:
    """As seen for a job whose end is not on file: a sacct with each squeue."""
    launcher("run", launcher.write({"one": sh(f"echo begun; {UNTIL_GO}")}))
    launcher.wait_for_states(one="running")
    launcher.wrap("squeue", "exit 0")
    launcher.wrap("sacct", REAL)
    began = time.monotonic()
    watching, following = launcher.start("status", "--watch"), launcher.start("logs", "/one", "-f")
    read_until(following, "begun")
    read_until(watching, "one ")
    time.sleep(WINDOW)
    for program in ("squeue", "sacct"):
        assert calls(launcher, program) <= allowed(began, 2)
    launcher.wrap("sacct", NO_ANSWER)  # files alone tell the end
    launcher.touch("go")
    for process in (watching, following):
        assert "succeeded" in process.communicate(timeout=PATIENCE)[0] or process is following
        assert process.returncode == 0


def test_while_slurm_does_not_answer_files_are_shown_and_waiting_goes_on(
    launcher: Launcher,
) -> None:
    steps = {
        "one": sh(""),
        "two": sh(f"echo begun; touch begun; {UNTIL_GO}", "one"),
        "three": sh("", "two"),
    }
    waiting = launcher.start("run", launcher.write(steps), "--wait")
    read_until(waiting, "three: job")
    launcher.slurm.wait_for((launcher.folder / "begun").exists)
    launcher.wrap("squeue", NO_ANSWER)
    status = launcher.status(code=0)
    assert [step["state"] for step in status.values()] == ["succeeded", "running", "queued"]
    assert SAID in launcher("status")
    assert launcher("logs", "/two") == "begun\n"
    assert "no log of rank 0: queued" in (said := launcher("logs", "/three", code=2))
    assert SAID in said
    read_until(waiting, SAID)
    launcher.wrap("squeue", REAL)
    read_until(waiting, "Slurm answers again")
    launcher.touch("go")
    said, _ = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 0, said


def test_the_log_on_disk_is_printed_without_a_question(launcher: Launcher) -> None:
    launcher("run", launcher.write({"one": sh(f"echo begun; {UNTIL_GO}")}))
    launcher.wait_for_states(one="running")
    launcher.wrap("squeue", NO_ANSWER)
    launcher.wrap("scontrol", NO_ANSWER)
    launcher.slurm.wait_for(
        lambda: bool(list((launcher.newest() / "steps/one/logs").glob("*.out")))
    )
    launcher.slurm.wait_for(lambda: launcher("logs", "/one") == "begun\n")
    assert calls(launcher, "squeue") == calls(launcher, "scontrol") == 0
    launcher.touch("go")


def test_a_host_without_slurm_shows_what_the_files_know(launcher: Launcher) -> None:
    """A laptop with the shared home."""
    launcher("run", launcher.write(chain(one="echo begun", two=UNTIL_GO)))
    launcher.wait_for_states(one="succeeded", two="running")
    here, launcher.environment["PATH"] = launcher.environment["PATH"], "/nonexistent"
    said = launcher("status")
    assert "Slurm does not answer: scontrol is not installed here" in said
    assert "as far as the files say" in said
    assert launcher("logs", "/one") == "begun\n"
    following = launcher.start("logs", "/two", "-f")
    launcher.environment["PATH"] = here
    launcher.touch("go")
    following.communicate(timeout=PATIENCE)
    assert following.returncode == 0
    launcher.environment["PATH"] = "/nonexistent"
    assert "Slurm" not in launcher("status")  # every end is on file


def test_a_chain_cancelled_from_outside_is_no_success(launcher: Launcher) -> None:
    waiting = launcher.start("run", launcher.write(chain(one=UNTIL_GO, two="")), "--wait")
    read_until(waiting, "two: job")
    launcher.wait_for_states(one="running")
    job = launcher.status()["one"]["job"]
    launcher.slurm.run("scancel", job)
    said, _ = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 1, said
    assert set(launcher.states().values()) == {"cancelled"}
    assert "by scancel" in launcher("status", code=1)
    launcher("resume")
    launcher("status")
    launcher.touch("go")
    launcher("resume", "--wait")


def test_a_job_cancelled_before_its_step_began_is_cancelled_and_no_error(
    launcher: Launcher,
) -> None:
    """Its batch script lives for a moment longer than the job that it belongs to."""
    site = launcher.folder / "site.yaml"
    site.write_text("""setup: ["trap '' TERM", "scancel $SLURM_JOB_ID", sleep 1]\n""")
    launcher("run", launcher.write(chain(one="")), "--cluster", str(site), "--wait", code=1)
    log = launcher("logs", "/one")
    assert "has expired" in log or "already completing" in log, "srun was called, and refused"
    assert launcher.states() == {"one": "cancelled"}
    assert "without a word" not in log and not launcher.ran()


def test_the_end_of_a_killed_worker_is_told(launcher: Launcher) -> None:
    step = sh("echo begun >&2; kill -KILL $PPID")
    launcher("run", launcher.write({"one": step}), "--wait", code=1)
    said = next(line for line in launcher("status", code=1).splitlines() if "one " in line)
    assert "failed" in said and "killed: a process of it was killed from outside (SIGKILL)" in said
    assert "tried 2 of 2 times" in said
    assert ": Killed" in launcher("logs", "/one")


def test_a_setup_line_that_fails_is_told_by_the_log(launcher: Launcher) -> None:
    site = launcher.folder / "site.yaml"
    site.write_text("setup: ['module load cuda/99']\n")
    file = launcher.write({"one": sh("")})
    launcher("run", file, "--cluster", str(site), "--wait", code=1)
    step = launcher.status(code=1)["one"]
    assert step["last_line"] == "one: its setup failed with status 127: module load cuda/99"
    assert step["reason"] == "exit status not 0"


def test_a_job_asked_to_end_is_running_while_it_runs_and_that_is_said(launcher: Launcher) -> None:
    """A worker that is busy saving when the signal comes."""
    launcher("run", launcher.write({"one": sh("trap '' TERM; touch begun; sleep 60")}))
    launcher.slurm.wait_for((launcher.folder / "begun").exists)
    launcher.wrap("scancel", "echo 'scancel: error: Socket timed out' >&2; exit 1")
    launcher("cancel", launcher.newest().name, code=1)
    step = launcher.status(code=0)["one"]
    assert step["state"] == "running"
    assert "asked to end" in step["reason"]
    row = next(line for line in launcher("status").splitlines() if line.startswith("one"))
    assert "running" in row and "asked to end" in row
    launcher.unwrap()


def test_ctrl_c_while_submitting_keeps_what_is_queued_and_names_what_goes_on(
    launcher: Launcher,
) -> None:
    steps = chain(one=UNTIL_GO, two="", three="")
    launcher.wrap("sbatch", f"test $nth = 1 || {{ touch submitting; sleep 5; }}; {REAL}")
    submitting = launcher.start("run", launcher.write(steps))
    launcher.slurm.wait_for((launcher.folder / "submitting").exists)
    submitting.send_signal(signal.SIGINT)
    said, _ = submitting.communicate(timeout=PATIENCE)
    assert submitting.returncode == 130
    run = launcher.newest().name
    assert "stopped while submitting" in said and f"launch.py resume {run}" in said
    assert "the run goes on" not in said
    launcher.unwrap()
    assert "launch.py resume" in launcher("status", code=1)
    launcher.touch("go")
    launcher("resume", "--wait")
    launcher.expect_once("one", "two", "three")


def test_ctrl_c_while_looking_says_that_the_run_goes_on(launcher: Launcher) -> None:
    waiting = launcher.start("run", launcher.write({"one": sh(UNTIL_GO)}), "--wait")
    read_until(waiting, "running")
    waiting.send_signal(signal.SIGINT)
    said, _ = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 130
    assert "stopped looking; the run goes on" in said
    assert launcher.states() == {"one": "running"}
    launcher.touch("go")


def test_jobs_in_a_hidden_partition_are_seen_and_ended(launcher: Launcher) -> None:
    """Only root and SlurmUser, as whom a private Slurm runs, are told of them without --all."""
    launcher("run", launcher.write(chain(one=UNTIL_GO, two="")))
    launcher.wrap("squeue", f'case " $* " in *" -a "*) {REAL};; esac')
    launcher.wait_for_states(one="running", two="waiting")
    assert launcher("cancel", launcher.newest().name) == "cancelled: one, two\n"


def test_a_job_with_a_name_that_is_no_text_hides_no_other(launcher: Launcher) -> None:
    name = os.fsdecode("größe".encode("latin-1"))
    stranger = launcher.slurm.run("sbatch", "--hold", "--parsable", "-J", name, "--wrap=true")
    launcher("run", launcher.write(chain(one="")))
    launcher.wait_for_states(one="succeeded")
    launcher.slurm.run("scancel", stranger.strip())
