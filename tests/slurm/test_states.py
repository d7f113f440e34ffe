"""What the backend makes of Slurm's words: real ones, and those that are hard to provoke."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.backends.base import JobState, QueueState
from jobs.backends.slurm.backend import SlurmBackend
from jobs.causes import told
from jobs.errors import ClusterError
from tests.slurm.cluster import REPOSITORY, PrivateSlurm
from tests.slurm.steps import is_in, make_step, put_on_path, state


def test_a_job_is_found_in_the_accounts_when_the_queue_has_forgotten_it(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue without `-t all` shows what the controller still knows MinJobAge after the end."""
    done, failed = make_step(tmp_path, "done"), make_step(tmp_path, "failed", "exit 3")
    gone = make_step(tmp_path, "gone", "sleep 60")
    ids = {job.token: backend.submit(job, []) for job in (done, failed, gone)}
    slurm.wait_for(lambda: is_in(backend, gone, QueueState.RUNNING))
    backend.cancel([ids[gone.token]])
    slurm.wait_for(lambda: slurm.run("squeue", "-h") == "")
    put_on_path(tmp_path / "bin", "squeue", 'exec $real "${@/#all/PENDING,RUNNING}"', monkeypatch)
    expected = [QueueState.SUCCEEDED, QueueState.FAILED, QueueState.CANCELLED]
    slurm.wait_for(lambda: [seen.state for seen in backend.states(ids).values()] == expected)
    assert backend.states(ids)[failed.token].reason == "exit status 1"
    slurm.wait_for(lambda: backend.find(done) == ids[done.token])


def test_without_accounting_the_queue_alone_is_asked(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Slurm accounting storage is disabled"
    put_on_path(tmp_path / "bin", "sacct", f'echo "{said}" >&2; exit 1', monkeypatch)
    job = make_step(tmp_path, "train", "sleep 60")
    known = backend.submit(job, [])
    seen = backend.states({job.token: known, "other.1": "99999"})
    assert seen[job.token].state in (QueueState.PENDING, QueueState.RUNNING)
    assert seen["other.1"] == JobState(QueueState.UNKNOWN, f"sacct failed: {said}")
    assert backend.find(job) == known
    assert backend.find(make_step(tmp_path, "other")) is None


def test_a_single_job_that_slurm_never_had_is_unknown(
    backend: SlurmBackend, tmp_path: Path
) -> None:
    unknown = JobState(QueueState.UNKNOWN, "unknown to Slurm")
    assert backend.states({"train.1": "99999"}) == {"train.1": unknown}


def test_a_job_of_our_id_with_another_name_is_not_ours(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of a second cluster, or of one whose ids began anew, mean other people's jobs."""
    foreign = make_step(tmp_path, "foreign", "sleep 60")
    found = backend.submit(foreign, [])
    assert backend.states({"ours.1": found})["ours.1"].state is QueueState.UNKNOWN
    backend.cancel([found])
    slurm.wait_for(lambda: slurm.run("sacct", "-n", "-X", "-j", found, "-o", "state").strip())
    put_on_path(tmp_path / "bin", "squeue", "exit 0", monkeypatch)
    assert backend.states({"ours.1": found})["ours.1"].state is QueueState.UNKNOWN


@pytest.mark.parametrize(
    ("elapsed", "state_of_it"), [("1-02:03:04", QueueState.RUNNING), ("0:00", QueueState.PENDING)]
)
def test_a_job_in_a_state_that_a_later_slurm_invents_is_alive_while_squeue_lists_it(
    slurm: PrivateSlurm,
    backend: SlurmBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    elapsed: str,
    state_of_it: QueueState,
) -> None:
    line = f"7|EXPEDITING|{elapsed}|train.1|None"
    put_on_path(tmp_path / "bin", "squeue", f'echo "{line}"', monkeypatch)
    seen = backend.states({"train.1": "7"})["train.1"]
    assert (seen.state, seen.reason, seen.job) == (state_of_it, "Slurm says EXPEDITING", "7")
    assert seen.alive


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("PREEMPTED|None|0:01", JobState(QueueState.PENDING, told("preempted"), 1.0)),
        ("SUSPENDED|None|0:01", JobState(QueueState.RUNNING, "suspended", 1.0)),
        ("COMPLETING|None|0:01", JobState(QueueState.RUNNING, "", 1.0)),
        ("REQUEUED|None|0:00", JobState(QueueState.PENDING, "", 0.0)),
        ("PENDING|Dependency|0:00", JobState(QueueState.WAITING, "", 0.0)),
        ("PENDING|None|0:00", JobState(QueueState.PENDING, "", 0.0)),
        (
            "PENDING|DependencyNeverSatisfied|0:00",
            JobState(QueueState.STUCK, "a step before it failed", 0.0),
        ),
        ("TIMEOUT|TimeLimit|2:00:00", JobState(QueueState.FAILED, told("time_limit"), 7200.0)),
        ("RUNNING|None|INVALID", JobState(QueueState.RUNNING)),
    ],
)
def test_what_squeue_says_becomes_a_state(
    slurm: PrivateSlurm,
    backend: SlurmBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    expected: JobState,
) -> None:
    word, reason, elapsed = line.split("|")
    said = f"7|{word}|{elapsed}|train.1|{reason}"
    put_on_path(tmp_path / "bin", "squeue", f'echo "{said}"', monkeypatch)
    assert backend.states({"train.1": "7"}) == {"train.1": expected._replace(job="7")}


def test_a_requeued_job_is_judged_by_its_last_record(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = ("PREEMPTED|00:00:09|0:0", "NODE_FAIL|00:00:01|1:0", "COMPLETED|00:10:00|0:0")
    records = "\\n".join(f"7|train.1|{end}" for end in ends)
    put_on_path(tmp_path / "bin", "squeue", "exit 0", monkeypatch)
    put_on_path(tmp_path / "bin", "sacct", f"printf '{records}\\n'", monkeypatch)
    expected = JobState(QueueState.SUCCEEDED, "", 600.0, "7")
    assert backend.states({"train.1": "7"}) == {"train.1": expected}


def test_nothing_is_concluded_while_the_controller_does_not_answer(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    put_on_path(tmp_path / "bin", "squeue", f'echo "{said}" >&2; exit 1', monkeypatch)
    with pytest.raises(ClusterError, match="Unable to contact"):
        backend.states({"train.1": "7"})
    with pytest.raises(ClusterError, match="Unable to contact"):
        backend.find(make_step(tmp_path, "train"))


def test_the_time_limit_is_reported(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    """A program that goes on after the warning; Slurm looks every 30 s for those that are over."""
    running = tmp_path / "running"  # before that the worker cannot answer the warning
    job = make_step(tmp_path, "train", f"touch {running}; sleep 600")
    found = backend.submit(job, [])
    slurm.wait_for(running.exists)
    slurm.run("scontrol", "update", f"jobid={found}", "EndTime=now+1")
    slurm.wait_for(lambda: is_in(backend, job, QueueState.FAILED))
    assert state(backend, job).reason == told("time_limit")


def test_status_and_cancel_import_neither_submitit_nor_pydantic(backend: SlurmBackend) -> None:
    code = "import sys; from jobs.backends.slurm.backend import SlurmBackend; b = SlurmBackend({});"
    code += "b.states({'train.1': '99999'}); b.cancel(['99999']);"
    code += "print([m for m in ('submitit', 'pydantic', 'torch', 'rich') if m in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert said.stdout.strip() == "[]", said.stderr
