"""A training that is killed and resumed, for real: the ledger beside its metrics, line by line."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import write_manifest
from lact_asr.training.clock import PHASES, metric
from tests.jobs.launcher import Launcher
from tests.slurm.cluster import PATIENCE

EVERY = 5  # steps between checkpoints
STEPS = 16


def pipeline(**more: int) -> str:
    training = {"max_steps": STEPS, "batch_seconds": 10, "valid_every": 8, "log_every": 1}
    training |= {"checkpoint_every": EVERY, **more}
    settings = {"train": "some.jsonl", "dev": "some.jsonl", "training": training}
    resources = {"time": "10m", "cpus": 1, "memory_gb": 4}
    return json.dumps(
        {"steps": {"train": {"kind": "train", "settings": settings, "resources": resources}}}
    )


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a record."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def near(seconds: float) -> Any:
    """Within 1 %: on a busy machine a line is written a moment after its seconds were counted."""
    return pytest.approx(seconds, rel=0.01, abs=0.05)


def keeper_of(step: Path) -> psutil.Process:
    """The process that watches over the worker, its only child."""
    return psutil.Process(int(read(step / "submissions.jsonl")[-1]["job"].split(".")[0]))


def kill(launcher: Launcher, keeper: psutil.Process, everything: bool) -> None:
    """End the worker, which its keeper starts again; or both, and resume the run."""
    if everything:
        os.killpg(keeper.pid, signal.SIGKILL)
        done = launcher("resume", "--wait")
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        keeper.children()[0].kill()
        launcher.until("succeeded", step="train")


def run_past_a_checkpoint(launcher: Launcher, **more: int) -> Path:
    """The step's folder once a training goes on behind its first checkpoint."""
    step = launcher.run(launcher.write(pipeline(**more))) / "steps" / "train"
    deadline = time.monotonic() + PATIENCE
    while not [line for line in read(step / "metrics.jsonl") if line["step"] > EVERY + 1]:
        assert time.monotonic() < deadline, launcher.status()
        time.sleep(0.02)
    return step


@pytest.mark.parametrize("everything", [True, False], ids=["with its keeper", "alone"])
def test_replayed_recovery_and_ettr_are_what_the_metrics_of_a_killed_training_say(
    tmp_path: Path, speech: Path, everything: bool
) -> None:
    launcher = Launcher(tmp_path, {"TRAINYARD_CLUSTER": "local"})
    write_manifest(tmp_path / "some.jsonl", scan(speech / "train")[:6])
    step = run_past_a_checkpoint(launcher)
    keeper = keeper_of(step)
    keeper.children()[0].suspend()  # else it has ended before a slow ledger is read
    living = json.loads(launcher("ledger", "--json").stdout)["steps"][0]
    assert living["allocated"] > 0 and living["queued"] < 10
    kill(launcher, keeper, everything)

    ledger = json.loads(launcher("ledger", "--json").stdout)["steps"][0]
    lines, events = read(step / "metrics.jsonl"), read(step / "events.jsonl")
    first, second = (event for event in events if "restart" in event)
    before = [line for line in lines if line["time"] < second["time"]]
    after = lines[len(before) :]
    (resumed,) = (event["step"] for event in events if "checkpoint" in event and "epoch" in event)
    finished = events[-1]
    reached = before[-1]["step"]
    assert reached < STEPS, "it was killed too late"

    spent = lambda lines, phase: sum(line[metric(phase)] for line in lines)
    again = [line for line in after if line["step"] <= reached]
    new = [line for line in after if line["step"] > reached]
    assert ledger["steps_replayed"] == reached - resumed
    seconds = ledger["seconds"]
    assert seconds["replayed"] == near(spent(again, "useful"))
    closing = finished["time"] - after[-1]["time"]  # what the kind does after its last line
    useful = spent([*before, *new], "useful") + closing
    assert seconds["useful"] == near(useful)
    for phase in PHASES[1:]:
        assert seconds[phase] == near(spent([*before, *after], phase))

    silent = max(path.stat().st_mtime for path in step.glob(f"logs/{first['job']}_*"))
    ended = max(silent, before[-1]["time"], events[events.index(second) - 1]["time"])
    if not everything:  # the allocation goes on
        ended = second["time"]
    allocated = ended - first["time"] + finished["time"] - second["time"]
    assert ledger["allocated"] == pytest.approx(allocated, abs=0.01)
    assert sum(seconds.values()) == pytest.approx(allocated, abs=0.01)
    assert ledger["ettr"] == pytest.approx(useful / allocated, rel=0.01)
    (recovery,) = ledger["recoveries"]
    last_new = next(line["time"] for line in before if line["step"] == reached)
    assert recovery["seconds"] == pytest.approx(new[0]["time"] - last_new, abs=0.01)
    assert recovery["away"] == pytest.approx(second["time"] - ended, abs=0.01)
    assert (recovery["faults"], recovery["step"]) == (["killed"], reached)
    assert recovery["replayed"] == reached - resumed

    used = {each["setting"]: each for each in ledger["advice"]}
    assert 0.1 < float(used["resources.memory_gb"]["used"]) < 4
    assert used["settings.training.checkpoint_every"]["asked"] == str(EVERY)
    said = launcher("ledger")
    assert said.returncode == 0 and "train: killed after step" in said.stdout


def test_where_a_process_that_reads_is_killed_the_training_begins_again(
    tmp_path: Path, speech: Path
) -> None:
    """As when a node's memory runs out, which kills the largest process or any other."""
    launcher = Launcher(tmp_path, {"TRAINYARD_CLUSTER": "local"})
    write_manifest(tmp_path / "some.jsonl", scan(speech / "train")[:6])
    step = run_past_a_checkpoint(launcher, workers=1)
    (training,) = keeper_of(step).children()
    training.suspend()  # else it has ended before the test comes to it
    reader, *_ = training.children()
    reader.kill()
    training.resume()
    launcher.until("succeeded", step="train")
    events = read(step / "events.jsonl")
    (failure,) = (event for event in events if event["event"] == "failed")
    assert failure["cause"] == "killed" and f"pid {reader.pid}" in failure["message"]
    assert [event["step"] for event in events if "checkpoint" in event and "epoch" in event]
