"""What the backend makes of Slurm's words: real ones, and those that are hard to provoke."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.backends import JobState, QueueState
from jobs.backends.slurm import SlurmBackend
from jobs.errors import ClusterError
from tests.slurm.cluster import REPOSITORY, PrivateSlurm
from tests.slurm.steps import is_in, make_step, put_on_path, state


def test_a_job_is_found_in_the_accounts_when_the_queue_has_forgotten_it(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue without `-t all` shows what the controller still knows MinJobAge after the end."""
    done, failed = make_step(tmp_path, "done"), make_step(tmp_path, "failed", "exit 3")
    ids = [backend.submit(done, []), backend.submit(failed, [])]
    gone = backend.submit(make_step(tmp_path, "gone", "sleep 60"), [])
    slurm.wait_for(lambda: is_in(backend, gone, QueueState.RUNNING))
    backend.cancel([gone])
    slurm.wait_for(lambda: slurm.run("squeue", "-h") == "")
    put_on_path(tmp_path / "bin", "squeue", 'exec $real "${@/#all/PENDING,RUNNING}"', monkeypatch)
    wanted = [QueueState.SUCCEEDED, QueueState.FAILED, QueueState.CANCELLED]
    submitted = dict.fromkeys([*ids, gone], time.time())
    slurm.wait_for(lambda: [seen.state for seen in backend.states(submitted).values()] == wanted)
    assert backend.states(submitted)[ids[1]].reason == "exit status 1"
    slurm.wait_for(lambda: backend.find(done) == ids[0])


def test_without_accounting_the_queue_alone_is_asked(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Slurm accounting storage is disabled"
    put_on_path(tmp_path / "bin", "sacct", f'echo "{said}" >&2; exit 1', monkeypatch)
    job = make_step(tmp_path, "train", "sleep 60")
    known = backend.submit(job, [])
    seen = backend.states({known: time.time(), "99999": time.time()})
    assert seen[known].state in (QueueState.PENDING, QueueState.RUNNING)
    assert seen["99999"] == JobState(QueueState.UNKNOWN, f"sacct failed: {said}")
    assert backend.find(job) == known
    assert backend.find(make_step(tmp_path, "other")) is None


def test_a_single_job_that_slurm_never_had_is_unknown(backend: SlurmBackend) -> None:
    assert state(backend, "99999") == JobState(QueueState.UNKNOWN, "unknown to Slurm")


def test_states_that_a_later_slurm_invents_are_unknown(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", "squeue", 'echo "7|TELEPORTING|None|1-02:03:04"', monkeypatch)
    assert state(backend, "7") == JobState(QueueState.UNKNOWN, "Slurm says TELEPORTING", 93784.0)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("PREEMPTED|None|0:01", JobState(QueueState.PENDING, "preempted", 1.0)),
        ("SUSPENDED|None|0:01", JobState(QueueState.RUNNING, "suspended", 1.0)),
        ("COMPLETING|None|0:01", JobState(QueueState.RUNNING, "", 1.0)),
        ("REQUEUED|None|0:00", JobState(QueueState.PENDING, "", 0.0)),
        ("PENDING|Dependency|0:00", JobState(QueueState.WAITING, "", 0.0)),
        ("PENDING|None|0:00", JobState(QueueState.PENDING, "", 0.0)),
        (
            "PENDING|DependencyNeverSatisfied|0:00",
            JobState(QueueState.CANCELLED, "a step before it failed", 0.0),
        ),
        ("TIMEOUT|TimeLimit|2:00:00", JobState(QueueState.FAILED, "time limit reached", 7200.0)),
        ("RUNNING|None|INVALID", JobState(QueueState.RUNNING)),
    ],
)
def test_what_squeue_says_becomes_a_state(
    slurm: PrivateSlurm,
    backend: SlurmBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    wanted: JobState,
) -> None:
    put_on_path(tmp_path / "bin", "squeue", f'echo "7|{line}"', monkeypatch)
    assert state(backend, "7") == wanted


def test_a_requeued_job_is_judged_by_its_last_record(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = "7|PREEMPTED|00:00:09|0:0\\n7|NODE_FAIL|00:00:01|1:0\\n7|COMPLETED|00:10:00|0:0"
    put_on_path(tmp_path / "bin", "squeue", "exit 0", monkeypatch)
    put_on_path(tmp_path / "bin", "sacct", f"printf '{records}\\n'", monkeypatch)
    assert state(backend, "7") == JobState(QueueState.SUCCEEDED, "", 600.0)


def test_nothing_is_concluded_while_the_controller_does_not_answer(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    put_on_path(tmp_path / "bin", "squeue", f'echo "{said}" >&2; exit 1', monkeypatch)
    with pytest.raises(ClusterError, match="Unable to contact"):
        backend.states({"7": time.time()})
    with pytest.raises(ClusterError, match="Unable to contact"):
        backend.find(make_step(tmp_path, "train"))


def test_the_time_limit_is_reported(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    """A program that goes on after the warning; Slurm looks every 30 s for those that are over."""
    running = tmp_path / "running"  # before that the worker cannot answer the warning
    found = backend.submit(make_step(tmp_path, "train", f"touch {running}; sleep 600"), [])
    slurm.wait_for(running.exists)
    slurm.run("scontrol", "update", f"jobid={found}", "EndTime=now+1")
    slurm.wait_for(lambda: is_in(backend, found, QueueState.FAILED), seconds=60)
    assert state(backend, found).reason == "time limit reached"


def test_status_and_cancel_import_neither_submitit_nor_pydantic(backend: SlurmBackend) -> None:
    code = "import sys; from jobs.backends.slurm import SlurmBackend; b = SlurmBackend({});"
    code += "b.states({'99999': 0.0}); b.cancel(['99999']);"
    code += "print([m for m in ('submitit', 'pydantic', 'torch', 'rich') if m in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert said.stdout.strip() == "[]", said.stderr
