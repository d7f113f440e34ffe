"""The preflight asks a real Slurm, and says everything that is wrong at once."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.backends.slurm import preflight
from jobs.backends.slurm.backend import SlurmBackend
from jobs.backends.slurm.preflight import problems
from jobs.cluster import Cluster
from jobs.errors import UserError
from jobs.kinds import download as download_kind
from jobs.pipeline import Pipeline, Resources, Step
from jobs.reading.pipeline_file import read_pipeline
from jobs.render import render
from lact_asr.data.corpora import LIBRISPEECH
from lact_asr.data.disk_space import MARKER, folder_of
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.steps import as_stored, make_step, put_on_path


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
                resources=Resources.model_validate({**small, **expected}),
            )
            for name, expected in steps.items()
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
def test_nodes_that_are_back_since_the_refusal_are_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "sbatch: error: allocation failure: Requested node configuration is not available"
    first = (
        f'test -e {tmp_path}/asked || {{ touch {tmp_path}/asked; echo "{refusal}" >&2; exit 1; }}'
    )
    put_on_path(tmp_path / "bin", "sbatch", f'{first}; exec $real "$@"', monkeypatch)
    assert ask(tmp_path, {}, train={}) == []
    assert (tmp_path / "asked").exists()


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


CORPUS = {
    "source": "librispeech",
    "train": ["train-clean-100", "train-clean-360", "train-other-500"],
    "dev": ["dev-clean", "dev-other"],
    "test": ["test-clean", "test-other"],
}


def download(folder: Path, root: Path, **changes: object) -> Pipeline:
    """A pipeline that brings a corpus."""
    step = {"kind": "download", "settings": {**CORPUS, "root": str(root), **changes}}
    file = folder / "p.yaml"
    file.write_text(json.dumps({"steps": {"corpus": step}}))
    return read_pipeline(file)


@pytest.mark.parametrize("folder", ["not/there/yet", "."])
def test_a_corpus_that_does_not_fit_is_named_with_what_it_takes(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    where = small / folder
    free = shutil.disk_usage(small).free
    enlarged = {
        name: replace(subset, size=subset.size * free // 10**10)
        for name, subset in LIBRISPEECH.items()
    }
    monkeypatch.setattr(download_kind, "CORPORA", {"librispeech": enlarged})
    site = Cluster(name="here", backend="local")
    (found,) = problems(download(tmp_path, where), site, tmp_path)
    needed = 94.96 * free / 1e10
    said = re.fullmatch(
        r"corpus: data folder (\S+): [\d.]+ GB free, ([\d.]+) GB needed for librispeech "
        r"\((.*)\), archives and what is unpacked at the peak: write another root in its "
        r"settings, or set TRAINYARD_DATA to another folder",
        found,
    )
    assert said, found
    assert Path(said[1]) == where.absolute() and "train-other-500" in said[3]
    assert float(said[2]) == pytest.approx(needed, rel=0.01)
    fits = download(tmp_path, where, train=["test-clean"], dev=["dev-clean"], test=["dev-clean"])
    assert problems(fits, site, tmp_path) == []


def test_a_corpus_that_is_there_or_given_or_small_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Cluster(name="here", backend="local")
    huge = {name: replace(one, size=10**18) for name, one in LIBRISPEECH.items()}
    monkeypatch.setattr(download_kind, "CORPORA", {"librispeech": huge})
    assert len(problems(download(tmp_path, tmp_path / "data"), site, tmp_path)) == 1
    for subset in huge.values():
        folder = folder_of(subset, tmp_path / "data")
        folder.mkdir(parents=True)
        (folder / MARKER).write_text(json.dumps({"checksum": subset.checksum}))
    assert problems(download(tmp_path, tmp_path / "data"), site, tmp_path) == []
    small = {"source": "synthetic", "train": [], "dev": [], "test": []}
    assert problems(download(tmp_path, tmp_path / "other", **small), site, tmp_path) == []


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = ask(tmp_path / "file" / "runs", {"backend": "local"}, train={})
    assert f"{tmp_path / 'file'} is not a folder: set TRAINYARD_RUNS" in found
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (found,) = ask(tmp_path / "gone", {"backend": "local"}, train={})
    assert "is not a folder" in found
    (found,) = problems(
        download(tmp_path, tmp_path / "file" / "data"), Cluster(backend="local"), tmp_path
    )
    assert found.startswith("corpus: data folder") and "is not a folder: write another" in found


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("name", ["50%", "a\\b", "two\nlines"])
def test_a_runs_folder_whose_name_slurm_would_change_is_refused(tmp_path: Path, name: str) -> None:
    found = "".join(said := ask(tmp_path / name, {}, train={}))
    assert len(said) == 1, said
    assert found.startswith("runs folder ") and "Slurm does not take" in found
    assert found.endswith("as it is: set TRAINYARD_RUNS to another folder") and "\n" not in found
    assert ask(tmp_path / name, {"backend": "local"}, train={}) == []
    with pytest.raises(UserError, match=r"Slurm does not take .* as it is: name a folder without"):
        render(pipeline(train={}), Cluster(name="here"), "", tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_step_runs_in_a_folder_with_every_other_sign_in_its_name(
    slurm: PrivateSlurm, backend: SlurmBackend, tmp_path: Path
) -> None:
    odd = tmp_path / "!\"#$&'()*+,-.:;<=>?@[]^_`{|}~ é\t"
    assert ask(tmp_path / "fine", {}, train={}) == []
    odd = Path(str(odd).rstrip())
    assert ask(odd, {}, train={}) == []
    step = make_step(odd, "odd", "echo heard")
    job = backend.submit(step, [])
    slurm.wait_for(lambda: slurm.state(job) in ("COMPLETED", "FAILED"))
    assert slurm.state(job) == "COMPLETED"
    assert "heard" in "".join(log.read_text() for log in step.logs.glob("*_log.out"))


@pytest.mark.parametrize("state", ["DOWN", "DRAIN", "INACTIVE"])
def test_a_partition_in_which_no_job_starts_is_said(
    slurm: PrivateSlurm, tmp_path: Path, state: str
) -> None:
    slurm.run("scontrol", "update", "partitionname=short", f"state={state}")
    try:
        found = ask(tmp_path, {"partition": "short"}, train={"time": "2m"}, test={"time": "1h"})
        assert found == [
            f"cluster here: partition short is {state}, no job starts there: "
            "write one that is UP (gpu, preempt)",
            "test: resources.time 1h is over the limit of partition short: write 2m or less",
        ]
        assert ask(tmp_path, {"partition": "short,gpu"}, train={"time": "2m"}) == []
    finally:
        slurm.run("scontrol", "update", "partitionname=short", "state=UP")
    assert ask(tmp_path, {"partition": "short"}, train={"time": "2m"}) == []


@pytest.mark.usefixtures("slurm")
def test_a_hidden_partition_is_a_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root and SlurmUser, as whom a private Slurm runs, are told of it without --all."""
    hide = 'case " $* " in *" -a "*|*" -p "*) exec $real "$@";; esac\n$real "$@" | grep -v preempt'
    for program in ("scontrol", "sinfo"):
        put_on_path(tmp_path / "bin", program, hide, monkeypatch)
    assert ask(tmp_path, {"partition": "preempt"}, train={"gpus": 4}) == []
    (found,) = ask(tmp_path, {"partition": "preempt"}, train={"gpus": 8})
    assert "8 is more than a node of partition preempt has" in found


@pytest.mark.usefixtures("slurm")
def test_without_srun_everything_else_is_still_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "sbatch", "scontrol", "sinfo", "sacctmgr"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    assert ask(tmp_path, {"account": "lub"}, train={}) == [
        "srun is not on PATH, with which a job starts its step: put it there",
        "cluster here: account 'lub' is not valid: did you mean 'lab'?",
    ]


def test_without_slurms_commands_the_local_cluster_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bash").symlink_to("/bin/bash")
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = ask(tmp_path, {}, train={})
    assert "scontrol is not installed here" in found and "--cluster local" in found


def test_slurms_commands_without_a_cluster_say_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a laptop, or in a container, that has Slurm's packages; the real scontrol is asked."""
    monkeypatch.delenv("SLURM_CONF", raising=False)
    (found,) = ask(tmp_path, {}, train={})
    assert found.startswith("scontrol failed: ")
    assert found.splitlines()[-1] == (
        "Slurm's commands are installed here, but no cluster is configured and SLURM_CONF is not "
        "set: log in to the cluster, set SLURM_CONF to its slurm.conf, or write --cluster local"
    )
    (tmp_path / "slurm.conf").write_text("# nothing\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    (found,) = ask(tmp_path, {}, train={})
    assert f"is configured in SLURM_CONF={tmp_path}/slurm.conf: log in" in found


def test_a_slurm_that_does_not_answer_is_one_problem(
    slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    dead = "\n".join(
        "SlurmctldPort=1" if line.startswith("SlurmctldPort") else line
        for line in slurm.conf.read_text().splitlines()
        if not line.startswith("MessageTimeout")  # so long would Slurm try
    )
    (tmp_path / "slurm.conf").write_text(f"{dead}\nMessageTimeout=2\n")
    (found,) = ask(tmp_path, {}, train={})
    assert "Unable to contact slurm controller" in found


@pytest.mark.usefixtures("slurm")
def test_a_submitted_script_holds_the_environment_and_is_its_owners_alone(tmp_path: Path) -> None:
    backend = SlurmBackend(as_stored(environment={"TOKEN": "hunter2"}))
    step = make_step(tmp_path, "quiet")
    backend.submit(step, [])
    holding = [path for path in step.logs.iterdir() if b"hunter2" in path.read_bytes()]
    assert holding
    assert {path.stat().st_mode & 0o777 for path in holding} == {0o600}
