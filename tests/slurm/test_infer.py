"""A trained model taken to some audio, as one job of a real Slurm: what it asks for."""

import json
from pathlib import Path

import pytest

from jobs.cluster import Cluster
from jobs.one_step import has_gpus
from lact_asr.data.manifest import write_manifest
from tests.lact_asr.tiny_runs import save_untrained, tiny, tones
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import Launcher


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    """With an untrained model in `model` and four utterances in `dev.jsonl`."""
    save_untrained(tmp_path / "model", tiny())
    write_manifest(tmp_path / "dev.jsonl", tones(tmp_path, 4))
    return Launcher(tmp_path, slurm)


GIVEN = ("--checkpoint-dir", "model", "--manifest", "dev.jsonl")


def asked(launcher: Launcher, step: str) -> str:
    """What Slurm was asked for by the newest run's job."""
    job = launcher.status()[step]["job"]
    return launcher.slurm.run("scontrol", "show", "job", "-o", job)


def test_infer_asks_for_a_gpu_by_default_and_prints_what_it_heard(launcher: Launcher) -> None:
    said = launcher("infer", *GIVEN, "--set", "samples=2", "--set", "resources.memory_gb=3")
    assert said.count("Pred:") >= 2 and "WER" in said
    wants = asked(launcher, "infer")
    assert "gres:gpu:1" in wants or "gres/gpu=1" in wants, wants
    assert "MinMemoryNode=3G" in wants, wants
    kept = json.loads((launcher.newest() / "steps/infer/job.json").read_text())["settings"]
    assert kept["samples"] == 2


def test_without_waiting_infer_says_where_to_look_and_resume_takes_settings(
    launcher: Launcher,
) -> None:
    small = ("--set", "resources.gpus=0", "--set", "resources.memory_gb=3")
    said = launcher("infer", *GIVEN, "--no-wait", *small)
    run = launcher.newest().name
    assert f"launch.py status {run}" in said and "Pred:" not in said
    assert "gpu" not in asked(launcher, "infer").split("TRES=")[1].split()[0]
    launcher.wait_for_states(infer="succeeded")
    assert "Pred:" in launcher("logs", f"{run}/infer")
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    said = launcher("resume", run, "--set", "infer.samples=1", "--wait")
    assert "infer: settings.samples: 20 -> 1" in said
    assert "infer: done anew" in said


@pytest.mark.parametrize("command", ["infer", "diagnose"])
def test_a_dry_run_says_what_would_be_asked_for_and_creates_nothing(
    launcher: Launcher, command: str
) -> None:
    said = launcher(command, *GIVEN, "--dry-run")
    assert "gpus=1" in said and "memory_gb=16" in said
    said = launcher(command, *GIVEN, "--dry-run", "--set", "resources.gpus=0")
    assert "gpus=0" in said
    assert "gpus=0" in launcher(command, *GIVEN, "--dry-run", "--cluster", "local")
    assert not (launcher.folder / "runs").exists()
    assert launcher.queued() == []


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("cluster", "there"),
    [
        ({}, True),
        ({"partition": "gpu"}, True),
        ({"partition": "nowhere,short"}, True),
        ({"partition": "nowhere"}, False),
        ({"partition": "nowhere", "gpu_type": "h200"}, True),
        ({"backend": "local"}, False),
    ],
)
def test_a_cluster_has_gpus_where_its_partition_has_some(
    cluster: dict[str, str], there: bool
) -> None:
    assert has_gpus(Cluster.model_validate({"name": "here", **cluster})) is there
