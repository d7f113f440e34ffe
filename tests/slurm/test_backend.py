"""The Slurm backend against a real Slurm."""

import os
import pickle
import stat
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from jobs.backends import JobState, QueueState, StepJob, SubmitUnclear
from jobs.backends.slurm import SlurmBackend
from jobs.errors import ClusterError
from jobs.store import StepDir
from tests.slurm.cluster import REPOSITORY, PrivateSlurm
from tests.slurm.steps import as_stored, make_step


@pytest.fixture
def backend(slurm: PrivateSlurm) -> SlurmBackend:
    return SlurmBackend(as_stored(partition="gpu"))


def state(backend: SlurmBackend, job: str) -> JobState:
    return backend.states({job: time.time()})[job]


def is_in(backend: SlurmBackend, job: str, wanted: QueueState) -> bool:
    return state(backend, job).state is wanted


def put_on_path(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that comes before the one of that name; `$real` in its text is that one."""
    real = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/bash\nreal={real.strip()}\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def jobs_named(slurm: PrivateSlurm, job: StepJob) -> list[str]:
    return slurm.run("squeue", "-h", "-t", "all", "-n", job.token, "-o", "%A").split()


def test_three_steps_run_in_their_order(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    order, ids = tmp_path / "order", []
    for name in ("first", "second", "third"):
        ids.append(backend.submit(make_step(tmp_path, name, f"echo {name} >> {order}"), ids[-1:]))
    before = backend.states(dict.fromkeys(ids, time.time()))
    assert [before[job].state for job in ids[1:]] == [QueueState.WAITING] * 2
    slurm.wait_for(lambda: is_in(backend, ids[2], QueueState.SUCCEEDED))
    assert order.read_text().split() == ["first", "second", "third"]
    result = StepDir(tmp_path / "steps" / "third").result()
    assert result is not None and result["seconds"] >= 0


def test_the_steps_behind_a_failed_one_leave_the_queue(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    first = backend.submit(make_step(tmp_path, "first"), [])
    middle = backend.submit(make_step(tmp_path, "middle", "exit 3"), [first])
    behind = backend.submit(make_step(tmp_path, "behind", f"touch {tmp_path}/ran"), [middle])
    last = backend.submit(make_step(tmp_path, "last"), [behind])
    slurm.wait_for(lambda: is_in(backend, last, QueueState.CANCELLED))
    seen = backend.states(dict.fromkeys([first, middle, behind], time.time()))
    assert seen[first].state is QueueState.SUCCEEDED
    assert seen[middle] == JobState(QueueState.FAILED, "exit status not 0", seen[middle].elapsed)
    assert seen[behind].state is QueueState.CANCELLED
    assert seen[behind].reason == "a step before it failed"
    assert slurm.run("squeue", "-h") == ""
    assert not (tmp_path / "ran").exists()


def test_a_job_that_sbatch_queued_before_it_timed_out_is_found_and_runs(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    put_on_path(tmp_path / "bin", "sbatch", f'$real "$@"; echo "{said}" >&2; exit 1', monkeypatch)
    job = make_step(tmp_path, "train")
    with pytest.raises(SubmitUnclear, match="Socket timed out"):
        backend.submit(job, [])
    found = backend.find(job)
    assert found is not None
    slurm.wait_for(lambda: is_in(backend, found, QueueState.SUCCEEDED))
    assert jobs_named(slurm, job) == [found]
    assert StepDir(job.directory).result() is not None


def test_a_job_runs_although_its_launcher_was_killed_right_after_sbatch(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", "sbatch", '$real "$@"; kill -9 $PPID', monkeypatch)
    job = make_step(tmp_path, "train")
    (tmp_path / "call.pickle").write_bytes(pickle.dumps((backend, job)))
    code = f"""\
    import pickle, pathlib
    backend, job = pickle.loads(pathlib.Path({str(tmp_path / "call.pickle")!r}).read_bytes())
    backend.submit(job, [])"""
    killed = subprocess.run([sys.executable, "-c", dedent(code)], cwd=REPOSITORY)
    assert killed.returncode == -9
    found = backend.find(job)
    assert found is not None
    slurm.wait_for(lambda: is_in(backend, found, QueueState.SUCCEEDED))
    assert jobs_named(slurm, job) == [found]


def test_a_job_that_was_never_queued_is_not_found(
    backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", "sbatch", "kill -9 $$", monkeypatch)
    job = make_step(tmp_path, "train")
    with pytest.raises(SubmitUnclear):
        backend.submit(job, [])
    assert backend.find(job) is None


def test_words_of_sbatch_that_nobody_understands_leave_it_unclear(
    backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", "sbatch", "echo Welcome to the cluster", monkeypatch)
    with pytest.raises(SubmitUnclear, match="Welcome"):
        backend.submit(make_step(tmp_path, "train"), [])


@pytest.mark.parametrize(
    ("cluster", "resources", "message"),
    [
        ({"partition": "nope"}, {}, "Invalid partition"),
        ({"account": "nope"}, {}, "Invalid account"),
        ({"constraint": "nope"}, {}, "Invalid feature"),
        ({}, {"gpus": 9}, "node configuration is not available"),
        ({"extra": {"nonsense": True}}, {}, "unrecognized option"),
        ({"extra": {"begin": "nonsense"}}, {}, "Invalid --begin"),
    ],
)
def test_a_clear_refusal_is_an_error_of_the_cluster(
    slurm: PrivateSlurm, tmp_path: Path, cluster: dict, resources: dict, message: str
) -> None:
    job = make_step(tmp_path, "train", **resources)
    with pytest.raises(ClusterError, match=message):
        SlurmBackend(as_stored(**cluster)).submit(job, [])
    assert slurm.run("squeue", "-h") == ""


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
    assert backend.find(done) == ids[0]


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


def test_cancel_ends_running_and_waiting_jobs_in_one_call(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    ended = backend.submit(make_step(tmp_path, "ended"), [])
    running = backend.submit(make_step(tmp_path, "running", "sleep 60"), [])
    waiting = backend.submit(make_step(tmp_path, "waiting"), [running])
    slurm.wait_for(lambda: is_in(backend, running, QueueState.RUNNING))
    slurm.wait_for(lambda: is_in(backend, ended, QueueState.SUCCEEDED))
    backend.cancel([waiting, running, ended, "99999"])
    slurm.wait_for(lambda: slurm.run("squeue", "-h") == "")
    seen = backend.states(dict.fromkeys([ended, running, waiting], time.time()))
    wanted = [QueueState.SUCCEEDED, QueueState.CANCELLED, QueueState.CANCELLED]
    assert [seen[job].state for job in (ended, running, waiting)] == wanted


def test_a_step_runs_the_snapshot_in_the_launch_folder_even_from_a_checkout(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    """The launch folder holds a package `jobs` too; the job must import the snapshot's."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise ImportError('the live checkout')")
    job = make_step(tmp_path, "train", f"pwd > {tmp_path}/folder; echo $PYTHONPATH >> folder")
    found = backend.submit(job, [])
    slurm.wait_for(lambda: is_in(backend, found, QueueState.SUCCEEDED))
    assert (tmp_path / "folder").read_text().split() == [str(tmp_path), str(REPOSITORY)]


def test_a_setup_line_that_fails_ends_the_job(slurm: PrivateSlurm, tmp_path: Path) -> None:
    backend = SlurmBackend(as_stored(setup=["module load nonsense"]))
    job = make_step(tmp_path, "train", f"touch {tmp_path}/ran")
    found = backend.submit(job, [])
    slurm.wait_for(lambda: is_in(backend, found, QueueState.FAILED))
    assert "module" in (job.logs / f"{found}_0_log.err").read_text()
    assert not (tmp_path / "ran").exists()


def test_setup_and_environment_reach_every_rank(slurm: PrivateSlurm, tmp_path: Path) -> None:
    cluster = as_stored(setup=["export FROM_SETUP=1"], environment={"GREETING": "it's 5 o'clock"})
    script = 'echo "$FROM_SETUP $GREETING $SLURM_CPUS_PER_TASK" > rank$SLURM_PROCID\n'
    script += "until [ -s rank0 -a -s rank1 -a -s rank2 -a -s rank3 ]; do sleep 0.1; done"
    job = make_step(tmp_path, "train", script, nodes=2, gpus=2, cpus=2)
    backend = SlurmBackend(cluster)
    found = backend.submit(job, [])
    slurm.wait_for(lambda: is_in(backend, found, QueueState.SUCCEEDED))
    said = [(tmp_path / f"rank{rank}").read_text() for rank in range(4)]
    assert said == ["1 it's 5 o'clock 2\n"] * 4


def test_a_launcher_inside_a_job_does_not_pass_that_job_on(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")  # with --mem: srun ends with "exclusive"
    monkeypatch.setenv("SBATCH_PARTITION", "preempt")  # would beat the script's own line
    found = backend.submit(make_step(tmp_path, "train"), [])
    assert slurm.run("squeue", "-h", "-t", "all", "-j", found, "-o", "%P").strip() == "gpu"
    slurm.wait_for(lambda: is_in(backend, found, QueueState.SUCCEEDED))


def test_the_time_limit_is_reported(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    """A program that goes on after the warning; Slurm looks every 30 s for those that are over."""
    found = backend.submit(make_step(tmp_path, "train", "sleep 600"), [])
    slurm.wait_for(lambda: is_in(backend, found, QueueState.RUNNING))
    slurm.run("scontrol", "update", f"jobid={found}", "EndTime=now+1")
    slurm.wait_for(lambda: is_in(backend, found, QueueState.FAILED), seconds=60)
    assert state(backend, found).reason == "time limit reached"


def test_status_and_cancel_import_neither_submitit_nor_pydantic(backend: SlurmBackend) -> None:
    code = "import sys; from jobs.backends import connect; b = connect({'backend': 'slurm'});"
    code += "b.states({'99999': 0.0}); b.cancel(['99999']);"
    code += "print([m for m in ('submitit', 'pydantic', 'torch', 'rich') if m in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert said.stdout.strip() == "[]", said.stderr
