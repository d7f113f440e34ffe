"""Interrupted for real: a time limit met, nodes taken by a higher partition. The work goes on.

Both runs learn eight utterances and start together, on nodes of their own, since Slurm looks
at time limits every 30 s only. Neither would end by itself: while it waits in the queue again, in
the same job or in its successor, a step is told to stop some steps after its checkpoint.
"""

import json
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import write_manifest
from lact_asr.utils.files import write_json
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import Launcher, sh

FURTHER = 20  # training steps after the checkpoint
# Before there is a successor, the end has to be told. It gets more time: its warning could come in
# the 30 s between two looks at limits, before it has trained.
SUCCESSOR = """
if test $nth -gt 3; then
  until test -e told; do sleep 0.1; done
  sed -i 's/^#SBATCH --time=1$/#SBATCH --time=10/' "${!#}"
fi
exec "$real" "$@"
"""
CLUSTERS = {
    "limited": "extra: {exclude: n4}",
    "preempted": "partition: preempt\nextra: {nodelist: n4}",
}


def learn(time: str) -> dict[str, Any]:
    """A small recognizer that learns eight utterances for ever, then steps behind it."""
    training = {"max_steps": 100_000, "batch_seconds": 20, "valid_every": 100_000}
    training |= {"checkpoint_every": 20, "log_every": 1}
    settings = {"train": "eight.jsonl", "dev": "eight.jsonl", "training": training}
    resources = {"time": time, "cpus": 1, "memory_gb": 2}
    return {
        "train": {"kind": "train", "settings": settings, "resources": resources},
        "behind": sh("echo behind ${train.steps} >> ran", "train"),
        "last": sh("echo last >> ran", "behind"),
    }


@pytest.fixture(scope="module")
def runs(
    private_slurm: PrivateSlurm, tmp_path_factory: pytest.TempPathFactory, speech: Path
) -> Iterator[dict[str, Launcher]]:
    """A launcher for each run, both of them submitted."""
    launchers = {}
    for name, steps in {"limited": learn("1m"), "preempted": learn("10m")}.items():
        launcher = Launcher(tmp_path_factory.mktemp(name), private_slurm)
        (launcher.folder / "site.yaml").write_text(CLUSTERS[name])
        write_manifest(launcher.folder / "eight.jsonl", scan(speech / "train")[:8])
        launcher.wrap("sbatch", SUCCESSOR)
        launcher("run", launcher.write(steps, name), "--cluster", "site.yaml")
        threading.Thread(target=end_soon_after_interruption, args=[launcher], daemon=True).start()
        launchers[name] = launcher
    yield launchers
    private_slurm.clear()


def facts(launcher: Launcher, name: str) -> list[dict[str, Any]]:
    """The lines of a record of the training step."""
    record = launcher.newest() / "steps" / "train" / name
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def events(launcher: Launcher, name: str) -> list[dict[str, Any]]:
    return [event for event in facts(launcher, "events.jsonl") if event["event"] == name]


def end_soon_after_interruption(launcher: Launcher) -> None:
    """Before the training goes on for the second time, give it an end."""
    while not (interrupted := events(launcher, "interrupted")):
        time.sleep(0.1)
    path = launcher.newest() / "steps" / "train" / "job.json"
    job = json.loads(path.read_text())
    job["settings"]["training"]["max_steps"] = interrupted[0]["position"] + FURTHER
    write_json(path, job)
    launcher.touch("told")


def expect_to_go_on_and_end(launcher: Launcher, signal: str, state: str) -> None:
    """Training saved when the signal came, went on from there, ended; what is behind ran once."""
    launcher.wait_for_states(last="succeeded")
    (interrupted,) = events(launcher, "interrupted")
    position = interrupted["position"]
    assert interrupted["signal"] == signal
    assert position in [event["step"] for event in events(launcher, "checkpoint")]
    status = launcher.status(code=0)
    assert status["train"]["submissions"] == 1 + (state == "COMPLETED")
    assert status["train"]["result"]["steps"] == position + FURTHER
    (finished,) = events(launcher, "finished")
    assert finished["torch"].startswith(version("torch"))
    steps = [line["step"] for line in facts(launcher, "metrics.jsonl") if "learning_rate" in line]
    assert steps == list(range(1, position + FURTHER + 1)), "no step was lost or done twice"
    said = launcher("logs", "/train", "--lines", "100000", "--grep", r"^Step \d")
    assert len(said.splitlines()) == len(steps), "the log of the first start is still there"
    assert launcher.ran() == ["behind", str(position + FURTHER), "last"]
    launcher.expect_accounts(train=[state, "COMPLETED"], behind=["COMPLETED"], last=["COMPLETED"])


def test_a_training_step_whose_nodes_are_taken_goes_on_from_its_checkpoint(
    runs: dict[str, Launcher],
) -> None:
    launcher = runs["preempted"]
    launcher.slurm.wait_for(lambda: events(launcher, "checkpoint"))
    job = launcher.status()["train"]["job"]
    taker = ["--partition=gpu", "--nodelist=n4", "--exclusive", "--output=/dev/null"]
    higher = launcher.slurm.run("sbatch", "--parsable", *taker, "--wrap", "sleep 600").strip()
    launcher.slurm.wait_for(lambda: launcher.slurm.state(higher) == "RUNNING")
    launcher.slurm.wait_for(lambda: launcher.slurm.state(job) == "PENDING")
    assert launcher.states() == {"train": "queued", "behind": "waiting", "last": "waiting"}
    launcher.slurm.run("scancel", higher)
    expect_to_go_on_and_end(launcher, "SIGTERM", "PREEMPTED")


def test_a_training_step_that_meets_its_time_limit_goes_on_from_its_checkpoint(
    runs: dict[str, Launcher],
) -> None:
    expect_to_go_on_and_end(runs["limited"], "SIGUSR2", "COMPLETED")
