"""Only the newest start of a step writes: the order of starts, and real processes that leave."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from jobs.errors import Superseded
from jobs.fence import Attempt, Fence
from jobs.job import Job, no_signal
from jobs.kinds import _external, command
from jobs.step_folder import StepDir
from tests.jobs.test_worker import events, make_step, start
from tests.slurm.cluster import PATIENCE

OLD, NEW = "train.aaaa", "train.bbbb"


@pytest.fixture
def step(tmp_path: Path) -> StepDir:
    """A step that was submitted twice."""
    step = make_step(tmp_path / "train", ["touch", str(tmp_path / "ran")])
    for token in (OLD, NEW):
        step.add_submission(token)
    return step


def of(job: str, token: str, restart: int = 0) -> dict[str, str]:
    """The environment of a start."""
    names = {"SLURM_JOB_ID": job, "SLURM_JOB_NAME": token, "SLURM_RESTART_COUNT": str(restart)}
    place = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
    return {**names, **place, "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (Attempt(OLD, "9", 4), Attempt(NEW, "8", 0)),  # submitted anew: job ids may start over
        (Attempt(NEW, "8", 0), Attempt(NEW, "8", 1)),  # requeued by Slurm
        (Attempt(NEW, "8", 9), Attempt(NEW, "8", 10)),
        (Attempt("by hand", "8", 0), Attempt("by hand", "11", 0)),  # one script, submitted twice
        (Attempt(OLD, "77.train.aaaa", 0), Attempt(NEW, "8.train.bbbb", 0)),  # on this machine
        (Attempt(NEW, "8", 0), Attempt("train.cccc", "9", 0)),  # its line is not yet seen here
    ],
)
def test_the_older_of_two_starts_leaves_and_the_newer_goes_on(
    step: StepDir, older: Attempt, newer: Attempt
) -> None:
    before, after = Fence(step, older), Fence(step, newer)
    if older.token != OLD:
        before.enter(claim=True)
        before.check()
    after.enter(claim=True)
    after.check()
    with pytest.raises(Superseded):
        before.check()
    with pytest.raises(Superseded):
        before.enter(claim=True)
    after.check()


def test_a_job_that_dies_may_still_save_while_the_one_behind_it_waits(step: StepDir) -> None:
    """`resume` right after `cancel` submits behind the dying job, which is writing a checkpoint."""
    fence = Fence(step, Attempt(NEW, "8", 0))
    fence.enter(claim=True)
    step.add_submission("train.cccc")
    fence.check()


def test_a_start_of_a_job_that_was_submitted_anew_leaves_before_the_new_one_begins(
    step: StepDir,
) -> None:
    with pytest.raises(Superseded, match="was submitted anew"):
        Fence(step, Attempt(OLD, "9", 0)).enter(claim=True)
    assert step.claim() is None


def test_a_submission_that_was_refused_takes_nobodys_place(step: StepDir) -> None:
    step.add_submission(NEW, refused="Invalid account")
    Fence(step, Attempt(OLD, "9", 0)).enter(claim=True)
    assert step.claim()["token"] == OLD


def test_a_successor_whose_id_nobody_has_written_down_takes_its_place_by_itself(
    step: StepDir,
) -> None:
    """Who submitted it was killed right after sbatch."""
    step.add_submission("train.cccc", continues=NEW)
    old = Fence(step, Attempt(NEW, "8", 0))
    old.enter(claim=True)
    Fence(step, Attempt("train.cccc", "9", 0)).enter(claim=True)
    assert step.latest().job == "9"
    with pytest.raises(Superseded):
        old.check()


def test_a_successor_that_was_taken_back_leaves_if_it_starts_all_the_same(step: StepDir) -> None:
    step.add_submission("train.cccc", continues=NEW)
    step.add_submission("train.cccc", cancel_requested=True)
    with pytest.raises(Superseded):
        Fence(step, Attempt("train.cccc", "9", 0)).enter(claim=True)


def test_rank_0_claims_the_folder_for_its_start(step: StepDir) -> None:
    assert start(step, **of("8", NEW, restart=2)).wait(timeout=PATIENCE) == 0
    claim = step.claim()
    assert (claim["token"], claim["job"], claim["restart"]) == (NEW, "8", 2)
    assert claim["host"] == os.uname().nodename


def test_ranks_of_one_start_are_no_rivals(step: StepDir) -> None:
    Fence(step, Attempt(NEW, "8", 0)).enter(claim=True)
    rank = Fence(step, Attempt(NEW, "8", 1))  # before rank 0 of the same start has claimed
    rank.enter(claim=False)
    Fence(step, Attempt(NEW, "8", 1)).enter(claim=True)
    rank.check()


def test_starts_at_the_same_moment_agree_on_the_newest(step: StepDir) -> None:
    fences = [Fence(step, Attempt(NEW, "8", restart)) for restart in range(20)]
    ready = threading.Barrier(len(fences))

    def enter(fence: Fence) -> None:
        ready.wait()
        try:
            fence.enter(claim=True)
        except Superseded:
            assert fence is not fences[-1]

    threads = [threading.Thread(target=enter, args=[fence]) for fence in fences]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert step.claim()["restart"] == 19


def test_a_start_that_finds_a_newer_one_leaves_without_a_trace(step: StepDir) -> None:
    Fence(step, Attempt(NEW, "8", 1)).enter(claim=True)
    process = start(step, **of("8", NEW))
    said, wrong = process.communicate(timeout=PATIENCE)
    assert (process.returncode, wrong) == (0, "")
    assert said.startswith("train goes on elsewhere (start 2 of job 8 on ")
    assert said.endswith("): this job leaves its place\n")
    assert events(step) == [] and step.failure() is None
    assert not (step.path.parent / "ran").exists()


@pytest.mark.parametrize("script", ["true", "exit 1", "kill -TERM $$"])
def test_a_start_overtaken_while_it_runs_writes_neither_result_nor_failure(
    tmp_path: Path, script: str
) -> None:
    wait = f"touch {tmp_path}/began; until test -e {tmp_path}/go; do sleep 0.05; done; {script}"
    step = make_step(tmp_path / "train", ["sh", "-c", wait])
    process = start(step, **of("8", NEW))
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
    Fence(step, Attempt(NEW, "8", 1)).enter(claim=True)
    (tmp_path / "go").touch()
    if "TERM" in script:
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert said.splitlines()[-1].startswith("train goes on elsewhere")
    assert step.result() is None and step.failure() is None
    assert events(step) == ["started"]


def test_one_of_several_ranks_that_leaves_ends_the_others(step: StepDir) -> None:
    """A good status would let them wait for it: srun ends them after a bad one."""
    environment = {**of("8", NEW), "SLURM_NTASKS": "2"}
    process = start(step, **environment)  # waits for rank 1
    while "started" not in events(step) or not (step.path.parent / "ran").exists():
        time.sleep(0.05)
    Fence(step, Attempt(NEW, "8", 1)).enter(claim=True)
    step.mark_done("8.0", 1)
    assert process.wait(timeout=PATIENCE) == 75
    assert step.result() is None


def test_a_rank_that_leaves_before_it_begins_ends_those_who_looked_sooner(step: StepDir) -> None:
    """They wait for it in a collective: minutes, on nodes that the newer start may need."""
    Fence(step, Attempt(NEW, "8", 1)).enter(claim=True)
    process = start(step, **{**of("8", NEW), "SLURM_NTASKS": "2"})
    assert process.wait(timeout=PATIENCE) == 75
    assert events(step) == [] and not (step.path.parent / "ran").exists()


def test_a_program_whose_step_is_taken_over_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_external, "_CHECK", 0.05)
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(subprocess, "Popen", _noting(started))

    def fence() -> None:
        raise Superseded("goes on elsewhere")

    nothing = lambda *_, **__: None
    job = Job(tmp_path, 0, 1, 0, nothing, nothing, bool, no_signal, fence)
    with pytest.raises(Superseded):
        command.run(command.Settings(argv=["sleep", "60"]), job)
    assert started[0].wait(timeout=PATIENCE) == -signal.SIGTERM


def _noting(started: list["subprocess.Popen[bytes]"]) -> type["subprocess.Popen[bytes]"]:
    class Noting(subprocess.Popen):
        def __init__(self, *arguments: object, **more: object) -> None:
            super().__init__(*arguments, **more)
            started.append(self)

    return Noting
