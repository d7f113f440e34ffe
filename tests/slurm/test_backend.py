"""The Slurm backend against a real Slurm."""

import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from jobs.backends.base import QueueState, StepJob, SubmitUnclear
from jobs.backends.slurm.backend import SlurmBackend
from jobs.errors import SubmitRefused
from jobs.step_folder import StepDir
from tests.slurm.cluster import REPOSITORY, PrivateSlurm
from tests.slurm.steps import as_stored, is_in, make_step, put_on_path, state


def jobs_named(slurm: PrivateSlurm, job: StepJob) -> list[str]:
    return slurm.run("squeue", "-h", "-t", "all", "-n", job.token, "-o", "%A").split()


def test_three_steps_run_in_their_order(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    order, ids = tmp_path / "order", []
    names = ("first", "second", "third")
    jobs = [make_step(tmp_path, name, f"echo {name} >> {order}") for name in names]
    for job in jobs:
        ids.append(backend.submit(job, ids[-1:]))
    before = backend.states({job.token: found for job, found in zip(jobs, ids, strict=True)})
    assert [before[job.token].state for job in jobs[1:]] == [QueueState.WAITING] * 2
    assert [before[job.token].job for job in jobs] == ids
    slurm.wait_for(lambda: is_in(backend, jobs[2], QueueState.SUCCEEDED))
    assert order.read_text().split() == ["first", "second", "third"]
    result = StepDir(tmp_path / "steps" / "third").result()
    assert result is not None and result["seconds"] >= 0


def test_the_steps_behind_a_failed_one_leave_the_queue(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    first, last = make_step(tmp_path, "first"), make_step(tmp_path, "last")
    middle = make_step(tmp_path, "middle", "exit 3")
    behind = make_step(tmp_path, "behind", f"touch {tmp_path}/ran")
    found: list[str] = []
    for job in (first, middle, behind, last):
        found.append(backend.submit(job, found[-1:]))
    slurm.wait_for(lambda: is_in(backend, last, QueueState.CANCELLED))
    seen = backend.states({job.token: "" for job in (first, middle, behind)})
    assert seen[first.token].state is QueueState.SUCCEEDED
    assert seen[middle.token].state is QueueState.FAILED
    assert seen[middle.token].reason == "exit status not 0"
    assert seen[behind.token].state is QueueState.CANCELLED
    assert seen[behind.token].reason == "a step before it failed"
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
    slurm.wait_for(lambda: is_in(backend, job, QueueState.SUCCEEDED))
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
    slurm.wait_for(lambda: is_in(backend, job, QueueState.SUCCEEDED))
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
def test_a_clear_refusal_means_that_nothing_was_queued(
    slurm: PrivateSlurm, tmp_path: Path, cluster: dict, resources: dict, message: str
) -> None:
    job = make_step(tmp_path, "train", **resources)
    with pytest.raises(SubmitRefused, match=message):
        SlurmBackend(as_stored(**cluster)).submit(job, [])
    assert slurm.run("squeue", "-h") == ""


def test_cancel_ends_running_and_waiting_jobs_in_one_call(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    ended, waiting = make_step(tmp_path, "ended"), make_step(tmp_path, "waiting")
    running = make_step(tmp_path, "running", "sleep 60")
    ids = [backend.submit(ended, []), backend.submit(running, [])]
    ids.append(backend.submit(waiting, ids[1:]))
    slurm.wait_for(lambda: is_in(backend, running, QueueState.RUNNING))
    slurm.wait_for(lambda: is_in(backend, ended, QueueState.SUCCEEDED))
    backend.cancel([*reversed(ids), "99999"])
    slurm.wait_for(lambda: slurm.run("squeue", "-h") == "")
    expected = [QueueState.SUCCEEDED, QueueState.CANCELLED, QueueState.CANCELLED]
    assert [state(backend, job).state for job in (ended, running, waiting)] == expected


def test_a_step_runs_the_snapshot_in_the_launch_folder_even_from_a_checkout(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    """The launch folder holds a package `jobs` too; the job must import the snapshot's."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise ImportError('the live checkout')")
    job = make_step(tmp_path, "train", f"pwd > {tmp_path}/folder; echo $PYTHONPATH >> folder")
    backend.submit(job, [])
    slurm.wait_for(lambda: is_in(backend, job, QueueState.SUCCEEDED))
    assert (tmp_path / "folder").read_text().split() == [str(tmp_path), str(REPOSITORY)]


def test_a_setup_line_that_fails_ends_the_job(slurm: PrivateSlurm, tmp_path: Path) -> None:
    backend = SlurmBackend(as_stored(setup=["module load nonsense"]))
    job = make_step(tmp_path, "train", f"touch {tmp_path}/ran")
    found = backend.submit(job, [])
    slurm.wait_for(lambda: is_in(backend, job, QueueState.FAILED))
    assert "module" in (job.logs / f"{found}_0_log.err").read_text()
    assert not (tmp_path / "ran").exists()


def test_setup_and_environment_reach_every_rank(slurm: PrivateSlurm, tmp_path: Path) -> None:
    cluster = as_stored(setup=["export FROM_SETUP=1"], environment={"GREETING": "it's 5 o'clock"})
    script = 'echo "$FROM_SETUP $GREETING $SLURM_CPUS_PER_TASK" > rank$SLURM_PROCID\n'
    script += "until [ -s rank0 -a -s rank1 -a -s rank2 -a -s rank3 ]; do sleep 0.1; done"
    job = make_step(tmp_path, "train", script, nodes=2, gpus=2, cpus=2)
    backend = SlurmBackend(cluster)
    backend.submit(job, [])
    slurm.wait_for(lambda: is_in(backend, job, QueueState.SUCCEEDED))
    said = [(tmp_path / f"rank{rank}").read_text() for rank in range(4)]
    assert said == ["1 it's 5 o'clock 2\n"] * 4


def test_a_launcher_inside_a_job_does_not_pass_that_job_on(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")  # with --mem: srun ends with "exclusive"
    monkeypatch.setenv("SBATCH_PARTITION", "preempt")  # would beat the script's own line
    monkeypatch.setenv("WORLD_SIZE", "8")  # seven ranks would be waited for that nobody starts
    job = make_step(tmp_path, "train", f"echo size $WORLD_SIZE > {tmp_path}/said")
    found = backend.submit(job, [])
    assert slurm.run("squeue", "-h", "-t", "all", "-j", found, "-o", "%P").strip() == "gpu"
    slurm.wait_for(lambda: is_in(backend, job, QueueState.SUCCEEDED))
    assert (tmp_path / "said").read_text() == "size\n"
