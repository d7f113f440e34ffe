"""The preflight asks a real Slurm, and says everything that is wrong at once."""

from pathlib import Path

import pytest

from jobs import preflight
from jobs.clusters import Cluster
from jobs.preflight import problems
from jobs.spec import Pipeline, Resources, Step
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.steps import put_on_path


def pipeline(**steps: dict[str, object]) -> Pipeline:
    """Steps with the resources given; small and short otherwise."""
    small = {"time": "1h", "memory_gb": 1}
    return Pipeline(
        name="test",
        steps=tuple(
            Step(
                name=name,
                kind="command",
                settings={},
                resources=Resources.model_validate({**small, **wanted}),
            )
            for name, wanted in steps.items()
        ),
    )


def ask(runs: Path, cluster: dict[str, object], **steps: dict[str, object]) -> list[str]:
    return problems(pipeline(**steps), Cluster.model_validate({"name": "here", **cluster}), runs)


@pytest.mark.usefixtures("slurm")
def test_a_request_that_the_cluster_can_meet_has_no_problems(tmp_path: Path) -> None:
    cluster = {"partition": "gpu,preempt", "account": "lab", "setup": [f"cd {tmp_path}", "true"]}
    fits = {"nodes": 4, "gpus": 4, "cpus": 2, "memory_gb": 15}
    assert ask(tmp_path, cluster, small={}, large=fits) == []


@pytest.mark.usefixtures("slurm")
def test_wrong_account_too_many_gpus_and_too_long_a_time_are_said_at_once(tmp_path: Path) -> None:
    found = ask(
        tmp_path,
        {"partition": "short", "account": "lub"},
        prepare={"time": "2m"},
        train={"gpus": 8, "time": "2m"},
        evaluate={"time": "3h"},
    )
    assert found == [
        "cluster here: account 'lub' is not valid: did you mean 'lab'?",
        "train: resources.gpus: 8 is more than a node of partition short has: "
        "write gpus: 4 or less",
        "evaluate: resources.time 3h is over the limit of partition short: write 2m or less",
    ]


@pytest.mark.usefixtures("slurm")
def test_every_wrong_name_in_the_cluster_file_is_said_at_once(tmp_path: Path) -> None:
    cluster = {"partition": "gpu,shrot", "account": "lub", "constraint": "a100"}
    found = ask(tmp_path, cluster, train={}, evaluate={"nodes": 9})
    assert found == [
        "cluster here: partition 'shrot' is not valid: did you mean 'short'?",
        "cluster here: account 'lub' is not valid: did you mean 'lab'?",
        "cluster here: constraint 'a100' is not valid: leave it out: none is defined here",
        "evaluate: resources.nodes: 9 is more than partition gpu has: write nodes: 4 or less",
    ]


@pytest.mark.usefixtures("slurm")
def test_every_size_that_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    found = ask(tmp_path, {}, train={"gpus": 5, "cpus": 3, "memory_gb": 64, "nodes": 5})
    assert [line[line.index("write") :] for line in found] == [
        "write nodes: 4 or less",
        "write gpus: 4 or less",
        "write cpus: 2 or less",
        "write memory_gb: 15 or less",
    ]


@pytest.mark.usefixtures("slurm")
def test_a_reason_without_a_rule_of_ours_is_said_in_slurms_words(tmp_path: Path) -> None:
    found = ask(tmp_path, {"extra": {"nonsense": True}}, train={})
    assert len(found) == 1 and "unrecognized option '--nonsense'" in found[0]


def test_drained_nodes_are_no_problem_since_sbatch_would_queue_the_job(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    slurm.run("scontrol", "update", "nodename=n[1-4]", "state=drain", "reason=test")
    try:
        assert ask(tmp_path, {}, train={"nodes": 4}) == []
        assert len(ask(tmp_path, {}, train={"nodes": 5})) == 1
    finally:
        slurm.run("scontrol", "update", "nodename=n[1-4]", "state=resume")


@pytest.mark.usefixtures("slurm")
def test_equal_requests_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    put_on_path(tmp_path / "bin", "sbatch", f'echo x >> {calls}; exec $real "$@"', monkeypatch)
    assert ask(tmp_path, {}, one={}, two={}, three={}, other={"gpus": 1}) == []
    assert calls.read_text().count("x") == 2


@pytest.mark.usefixtures("slurm")
def test_nothing_is_queued_by_asking(slurm: PrivateSlurm, tmp_path: Path) -> None:
    ask(tmp_path, {}, train={}, evaluate={"gpus": 9})
    assert slurm.run("squeue", "-h") == ""


@pytest.mark.usefixtures("slurm")
def test_setup_lines_and_python_must_be_there(tmp_path: Path) -> None:
    cluster = {
        "setup": [f"source {tmp_path}/venv/bin/activate", "module load 'cuda"],
        "python": f"{tmp_path}/venv/bin/python",
    }
    found = ask(tmp_path, cluster, train={})
    assert len(found) == 3
    assert "write lines that bash understands" in found[0]
    assert f"{tmp_path}/venv/bin/activate does not exist" in found[1]
    assert f"{tmp_path}/venv/bin/python is not a program" in found[2]


def test_the_cluster_files_own_limit_holds_without_slurm(tmp_path: Path) -> None:
    cluster = {"backend": "local", "max_time": "2h"}
    assert ask(tmp_path, cluster, train={"time": "1d"}, evaluate={"time": "2h"}) == [
        "train: resources.time 1d is over the limit of cluster here: write 2h or less"
    ]


def test_too_little_disk_is_said_with_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(tmp_path / "not" / "yet", {"backend": "local"}, train={}) == []
    monkeypatch.setattr(preflight, "_FREE_GB", 1e9)
    (found,) = ask(tmp_path / "not" / "yet", {"backend": "local"}, train={})
    assert "GB free, 1000000000.0 GB needed: set TRAINYARD_RUNS" in found


def test_without_slurms_commands_the_local_cluster_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bash").symlink_to("/bin/bash")
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = ask(tmp_path, {}, train={})
    assert "scontrol is not installed here" in found and "--cluster local" in found


def test_a_slurm_that_does_not_answer_is_one_problem(
    slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    dead = "\n".join(
        "SlurmctldPort=1" if line.startswith("SlurmctldPort") else line
        for line in slurm.conf.read_text().splitlines()
    )
    (tmp_path / "slurm.conf").write_text(dead)
    (found,) = ask(tmp_path, {}, train={})
    assert "Unable to contact slurm controller" in found
