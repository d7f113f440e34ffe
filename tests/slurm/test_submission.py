"""What sbatch answers, and what may be concluded from it; the part of submitit that is used."""

import inspect
from importlib.metadata import version
from pathlib import Path

import pytest
from submitit.slurm.slurm import _make_sbatch_string

from jobs.backends.base import QueueState, SubmitUnclear
from jobs.backends.slurm.backend import SlurmBackend
from jobs.errors import LimitReached, SubmitRefused
from jobs.step_folder import StepDir
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import Launcher, chain
from tests.slurm.steps import is_in, make_step, put_on_path

SEEN = {"1.5.0", "1.5.1", "1.5.2", "1.5.3", "1.5.4"}  # versions of submitit


@pytest.mark.parametrize(
    "answer",
    [
        'echo "Welcome, job 3 of your quota of 50"; exec $real "$@"',
        '$real "$@" && echo "job 7 of today: 993 are left"',
        'printf "*** 12 ***\\nSubmitted batch jobs are free at night\\n\\n"; exec $real "$@"',
        'echo "${@/--parsable/}" > /dev/null; shift; exec $real "$@"',
        '$real "$@" | sed "s/$/;mini/"',
        'shift; $real "$@" | sed "s/$/ on cluster mini/"',
    ],
    ids=["before", "behind", "several", "not parsable", "cluster", "not parsable, cluster"],
)
def test_the_id_is_found_among_the_words_of_a_site(
    slurm: PrivateSlurm,
    backend: SlurmBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
) -> None:
    put_on_path(tmp_path / "bin", "sbatch", answer, monkeypatch)
    job = make_step(tmp_path, "train")
    found = backend.submit(job, [])
    assert slurm.run("squeue", "-h", "-t", "all", "-n", job.token, "-o", "%A").split() == [found]
    slurm.wait_for(lambda: is_in(backend, job, QueueState.SUCCEEDED))
    assert StepDir(job.directory).result() is not None
    assert [file.name for file in job.logs.glob("*.sh")] == [f"{found}_submission.sh"]


def test_two_ids_in_one_answer_leave_it_unclear_which_is_ours(
    backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", "sbatch", 'echo 17; exec $real "$@"', monkeypatch)
    job = make_step(tmp_path, "train")
    with pytest.raises(SubmitUnclear, match="no job id is to be found"):
        backend.submit(job, [])
    assert backend.find(job) not in (None, "17")


@pytest.mark.parametrize(
    "words",
    [
        "Unspecified error",
        "Generic error",
        "Invalid authentication credential",
        "Protocol authentication error",
        "Incompatible versions of client and server code",
        "Zero Bytes were transmitted or received",
        "Header lengths are longer than data received",
        "Unable to contact slurm controller (receive failure)",
        "Unable to create job record, try again",
        "Slurm internal error, contact system administrator",
        "I/O error writing script/environment to file",
        "Step limit reached for this job",
        "Query result exceeds size limit",
        "Connection reset by peer",
    ],
)
def test_what_may_come_after_the_job_was_queued_is_no_refusal(
    slurm: PrivateSlurm,
    backend: SlurmBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
) -> None:
    said = f"sbatch: error: Batch job submission failed: {words}"
    put_on_path(tmp_path / "bin", "sbatch", f'$real "$@"; echo "{said}" >&2; exit 1', monkeypatch)
    job = make_step(tmp_path, "train")
    with pytest.raises(SubmitUnclear, match="submission failed"):
        backend.submit(job, [])
    queued = slurm.run("squeue", "-h", "-t", "all", "-n", job.token, "-o", "%A").split()
    assert [backend.find(job)] == queued


@pytest.mark.parametrize(
    "words",
    [
        "Invalid qos specification",
        "Invalid account or account/partition combination specified",
        "Invalid generic resource (gres) specification",
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "Job dependency problem",
        "Requested time limit is invalid (missing or exceeds some limit)",
        "Requested node configuration is not available",
        "Required partition not available (inactive or drain)",
        "User's group not permitted to use this partition",
        "Access/permission denied",
        "More processors requested than permitted",
        "Node count specification invalid",
        "Memory required by task is not available",
        "System submissions disabled",
    ],
)
def test_a_verdict_of_the_controller_on_the_request_is_a_refusal(
    backend: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    said = f"sbatch: error: lua: ask us\\nsbatch: error: Batch job submission failed: {words}"
    put_on_path(tmp_path / "bin", "sbatch", f'printf "{said}\\n" >&2; exit 1', monkeypatch)
    with pytest.raises(SubmitRefused, match="ask us"):
        backend.submit(make_step(tmp_path, "train"), [])


VERDICT = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("before", "counts"),
    [
        ("AssocMaxSubmitJobLimit", True),
        ("QOSMaxSubmitJobPerUserLimit", True),
        ("AssocGrpSubmitJobsLimit", True),
        ("lua: ask us", True),  # a version that names no limit: it may be this one
        ("QOSGrpCpuLimit", False),
        ("AssocMaxWallDurationPerJobLimit", False),
    ],
)
def test_a_limit_of_how_many_jobs_there_are_is_told_from_limits_of_what_a_job_asks_for(
    backend: SlurmBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    counts: bool,
) -> None:
    said = f"sbatch: error: {before}\\nsbatch: error: Batch job submission failed: {VERDICT}"
    put_on_path(tmp_path / "bin", "sbatch", f'printf "{said}\\n" >&2; exit 1', monkeypatch)
    with pytest.raises(SubmitRefused) as refused:
        backend.submit(make_step(tmp_path, "train"), [])
    assert isinstance(refused.value, LimitReached) is counts


def test_a_run_that_the_preflight_refuses_leaves_nothing_behind(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    """Its files are written while Slurm answers: they go away again, with the folder of runs."""
    launcher = Launcher(tmp_path, slurm)
    (tmp_path / "site.yaml").write_text("partition: gpuu\n")
    for kept in (False, True):
        said = launcher("run", launcher.write(chain(one="")), "--cluster", "site.yaml", code=1)
        assert "partition 'gpuu' is not valid: did you mean 'gpu'?" in said
        assert (tmp_path / "runs").exists() == kept
        (tmp_path / "runs").mkdir(exist_ok=True)
        assert [*(tmp_path / "runs").iterdir()] == []
    assert slurm.run("squeue", "-h") == ""


def test_the_private_part_of_submitit_that_is_used_is_as_it_was_seen() -> None:
    """One function of submitit makes the script, and it is private: a new version may change it."""
    assert version("submitit") in SEEN, (
        "a version of submitit that nobody has looked at: compare its _make_sbatch_string in "
        "slurm/slurm.py with that of 1.5.4, run tests/slurm, and add it to SEEN"
    )
    parameters = inspect.signature(_make_sbatch_string).parameters
    assert [*parameters][:2] == ["command", "folder"]
    assert parameters["wckey"].default == "submitit"
    script = _make_sbatch_string("COMMAND", "/logs", srun_args=["--of-ours"], setup=["set -e"])
    assert script.splitlines() == [
        "#!/bin/bash",
        "",
        "# Parameters",
        "#SBATCH --error=/logs/%j_0_log.err",
        "#SBATCH --job-name=submitit",
        "#SBATCH --nodes=1",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=/logs/%j_0_log.out",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --time=5",
        "#SBATCH --wckey=submitit",
        "",
        "# setup",
        "set -e",
        "",
        "# command",
        "export SUBMITIT_EXECUTOR=slurm",
        "srun --unbuffered --output /logs/%j_%t_log.out --error /logs/%j_%t_log.err --of-ours"
        " COMMAND",
    ]
