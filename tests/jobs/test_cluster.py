"""Cluster files, and what a step on a cluster asks of Slurm."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from submitit.slurm.slurm import _make_sbatch_string

from jobs import kinds
from jobs.backends.base import StepJob
from jobs.backends.slurm.sbatch import parameters, sbatch_text
from jobs.cluster import TEMPLATES, Cluster, default_cluster, load_cluster, names
from jobs.errors import SpecError, UserError
from jobs.pipeline import Resources

CLUSTERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "partition": "gpu,preempt",
        "account": "lab",
        "qos": "high",
        "constraint": "h100&ib",
        "gpu_type": "h100",
        "setup": ["module load cuda"],
        "python": "python3",
        "environment": {"GREETING": "it's"},
        "extra": {"exclude": "n[1-2]", "exclusive": True, "hold": False, "nice": 7},
    },
    "gres": {"gpu_request": "gres", "gpu_type": "h200"},
}


def step_job(folder: Path, **resources: Any) -> StepJob:
    expected = {"time": "2h", "nodes": 2, "gpus": 4, "cpus": 3, "memory_gb": 100, **resources}
    return StepJob(
        step="train",
        token="train.abc123",
        directory=folder / "steps" / "train",
        logs=folder / "steps" / "train" / "logs",
        code=folder / "code",
        cwd=folder,
        resources=Resources.model_validate(expected),
    )


def directives(script: str) -> list[str]:
    return sorted(line for line in script.splitlines() if line.startswith("#SBATCH"))


def asked(cluster: Mapping[str, Any], **resources: Any) -> dict[str, Any]:
    job = step_job(Path("/runs/one"), **resources)
    return parameters(Cluster.model_validate({"name": "here", **cluster}), job)


@pytest.mark.parametrize("resources", [{}, {"gpus": 0, "memory_gb": 1.5}])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_script_asks_line_for_line_what_submitit_asks(
    cluster: str, resources: dict[str, Any], tmp_path: Path
) -> None:
    job = step_job(tmp_path / "a run's folder", **resources)
    site = Cluster.model_validate({"name": "here", **CLUSTERS[cluster]})
    told = parameters(site, job, ["17", "18"])
    theirs = _make_sbatch_string("COMMAND", job.logs, **told)
    ours = sbatch_text(site, job, ["17", "18"])
    assert directives(ours) == directives(theirs)
    assert "#SBATCH --dependency=afterok:17:18" in ours
    for line in told["setup"]:
        assert f"\n{line}\n" in ours and f"\n{line}\n" in theirs
    srun = next(line for line in theirs.splitlines() if line.startswith("srun -"))
    words = shlex.split(srun.replace("--output ", "--output=").replace("--error ", "--error="))
    assert set(words) - {"COMMAND"} <= set(shlex.split(ours[ours.index("srun --") :]))


def test_a_script_is_valid_for_bash_and_fails_at_the_first_bad_setup_line(tmp_path: Path) -> None:
    site = Cluster(name="here", setup=["false"])
    script = tmp_path / "step.sbatch"
    script.write_text(sbatch_text(site, step_job(tmp_path)))
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 1
    # srun, which comes later, would complain
    assert done.stderr == "train: its setup failed with status 1: false\n"


def test_every_cluster_file_that_comes_along_is_valid_and_survives_run_json() -> None:
    assert {"example", "local", "slurm", "h200"} <= set(names())
    for name in names():
        cluster = load_cluster(name)
        assert cluster.name == name
        assert Cluster.model_validate(cluster.model_dump(mode="json")) == cluster


def test_the_documented_example_names_every_field() -> None:
    text = (TEMPLATES / "clusters" / "example.yaml").read_text()
    missing = [field for field in Cluster.model_fields if f"\n{field}:" not in text]
    assert missing == ["name"]  # the file's name serves


def test_a_cluster_file_is_also_found_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("partition: long\nmax_time: 1d12h\n")
    cluster = load_cluster(str(tmp_path / "mine.yaml"))
    assert (cluster.name, cluster.partition, cluster.max_time) == ("mine", "long", 2160)


def test_every_mistake_in_a_cluster_file_has_its_line_and_what_to_write(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("partitoin: gpu\nmax_time: 48\nbackend: pbs\nextra:\n  time: 30\n")
    with pytest.raises(SpecError) as error:
        load_cluster(str(file))
    said = sorted(error.value.mistakes)
    assert len(said) == 4
    assert said[0].startswith(f"{file}:1:") and "did you mean 'partition'?" in said[0]
    assert said[1].startswith(f"{file}:2:") and "30m, 12h, 2d" in said[1]
    assert said[2].startswith(f"{file}:3:") and "'slurm' or 'local'" in said[2]
    assert said[3].startswith(f"{file}:4:") and "write resources in the pipeline file" in said[3]


def test_an_unknown_cluster_gets_the_nearest_name_and_the_list() -> None:
    with pytest.raises(UserError, match=r"did you mean 'h200'\?.*example, h200, local, slurm"):
        load_cluster("h20")


def test_the_default_is_local_without_slurm_and_what_the_variable_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAINYARD_CLUSTER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert default_cluster() == "local"
    (tmp_path / "sbatch").touch(0o755)
    assert default_cluster() == "slurm"
    monkeypatch.setenv("TRAINYARD_CLUSTER", "h200")
    assert default_cluster() == "h200" and load_cluster().name == "h200"


def test_gpus_are_asked_for_in_the_sites_way() -> None:
    assert asked({})["gpus_per_node"] == "4"
    assert asked({"gpu_type": "a100"})["gpus_per_node"] == "a100:4"
    by_gres = asked({"gpu_request": "gres", "gpu_type": "h200"})
    assert (by_gres["gpus_per_node"], by_gres["gres"]) == (None, "gpu:h200:4")
    without = asked({"gpu_request": "gres"}, gpus=0)
    assert (without["gpus_per_node"], without["gres"]) == (None, None)
    assert without["ntasks_per_node"] == 1 and by_gres["ntasks_per_node"] == 4


def test_the_warning_leaves_a_short_step_three_quarters_of_its_time() -> None:
    """Slurm sends a warning at once whose time has passed when the job starts."""
    assert asked({})["signal_delay_s"] == 120
    assert asked({"warning_seconds": 600})["signal_delay_s"] == 600
    assert asked({"warning_seconds": 600}, time="2m")["signal_delay_s"] == 30


def test_a_job_may_be_requeued_and_leaves_the_queue_when_a_step_before_it_fails() -> None:
    extra = asked({"extra": {"nice": 7}})["additional_parameters"]
    assert extra == {"requeue": True, "kill-on-invalid-dep": "yes", "nice": 7}
    assert asked({})["wckey"] is None


def test_srun_is_told_the_cores_of_a_process_and_to_end_all_ranks_with_one() -> None:
    assert asked({}, cpus=3)["srun_args"] == ["--cpus-per-task=3", "--kill-on-bad-exit=1"]


def test_a_step_imports_the_snapshot_from_whatever_folder_it_runs_in(tmp_path: Path) -> None:
    """`python -m` would look into the working folder first, where launch.py was called."""
    for place, word in (("code", "snapshot"), (".", "checkout")):
        package = tmp_path / place / "jobs"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "worker.py").write_text(
            f"import sys\nmain = lambda: print({word!r}, sys.argv[1])"
        )
    site = Cluster(name="here", python=shlex.quote(sys.executable))
    lines = sbatch_text(site, step_job(tmp_path)).splitlines()
    script = "\n".join(line for line in lines if not line.startswith("srun -"))
    command = lines[-1][lines[-1].index(site.python) :]
    done = subprocess.run(["bash", "-c", f"{script}\n{command}"], capture_output=True, text=True)
    assert done.stdout == f"snapshot {tmp_path / 'steps' / 'train'}\n", done.stderr


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"array": "0-3"}, "'array' is not set here: write one step for each job"),
        ({"arr": "0-3"}, "'arr' is not set here"),  # sbatch takes a beginning for the name
        ({"gpus": 2}, "'gpus' is not set here: write resources in the pipeline file"),
        ({"gpus_per_task": 1}, "'gpus-per-task' is not set here"),
        ({"tasks-per-node": 2}, "write resources in the pipeline file"),
        ({"export": "NONE"}, "'export' is not set here: write environment"),
        ({"no_requeue": True}, "chains of steps depend on it"),
        ({"help": True}, "'help' is not set here: write nothing"),
        ({"test-only": True}, "'test-only' is not set here: write nothing"),
        ({"parsable": True}, "write nothing"),
        ({"clusters": "other"}, "log in where those jobs are to run"),
        ({"nice": "7\n#SBATCH --array=0-3"}, "'nice': write its value on one line"),
        ({"nice=7 --array": "0-3"}, "is no parameter: write one of `sbatch --help`"),
        ({"": "0-3"}, "'' is no parameter"),
        ({"--array": "0-3"}, "'--array' is no parameter"),
    ],
)
def test_a_parameter_that_would_change_what_a_step_is_is_refused(
    extra: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Cluster(extra=extra)
    assert words in str(caught.value)


def test_every_wrong_parameter_is_named_at_once_and_right_ones_are_taken() -> None:
    with pytest.raises(ValidationError) as caught:
        Cluster(extra={"array": "0-3", "nice": 7, "wrap": "true"})
    said = caught.value.errors()[0]["msg"]
    assert "'array'" in said and "'wrap'" in said and "'nice'" not in said
    fine = {"exclude": "n1", "exclusive": True, "mail-type": "END", "time-min": 5, "hint": "x"}
    assert Cluster(extra=fine).extra == fine


@pytest.mark.parametrize("field", ["partition", "account", "qos", "constraint", "gpu_type"])
def test_a_name_of_the_site_is_on_one_line(field: str) -> None:
    with pytest.raises(ValidationError, match="write it on one line"):
        Cluster.model_validate({field: "gpu\n#SBATCH --array=0-3"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("A B", "'A B' is no name of a variable"),
        ("1A", "'1A' is no name of a variable"),
        ("A\n", "is no name of a variable"),
        ("A=1; rm x; B", "is no name of a variable"),
        ("", "'' is no name of a variable"),
        ("RANK", "RANK is not set here: write nothing"),
        ("SLURM_JOB_ID", "SLURM_JOB_ID is not set here: write nothing: Slurm sets it"),
        ("TRAINYARD_STEP", "the launcher sets it"),
        ("PYTHONPATH", "write `export PYTHONPATH=...` in setup"),
    ],
)
def test_a_variable_has_a_name_and_is_not_one_of_the_launchers(name: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Cluster(environment={"GOOD": "1", name: "x"})
    said = caught.value.errors()[0]["msg"]
    assert words in said and "GOOD" not in said


def test_a_variable_of_a_command_has_a_name_and_is_not_one_that_the_step_sets() -> None:
    settings = kinds.load("command").Settings
    with pytest.raises(ValidationError) as caught:
        settings(argv=["x"], environment={"A-B": "1", "TRAINYARD_RESULT": "r", "PYTHONPATH": "p"})
    assert "'A-B' is no name of a variable" in str(caught.value)
    assert "TRAINYARD_RESULT is not set here: write nothing" in str(caught.value)
    assert "PYTHONPATH is" not in str(caught.value)  # the program's own business


def test_a_path_that_setup_exports_comes_behind_the_code_of_the_run(tmp_path: Path) -> None:
    site = Cluster(setup=["export PYTHONPATH=/mine"], environment={"X": "$HOME"})
    lines = parameters(site, step_job(tmp_path))["setup"]
    script = "\n".join([*lines[:-1], 'echo "$PYTHONPATH $X"'])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'code'}:/mine $HOME\n"
