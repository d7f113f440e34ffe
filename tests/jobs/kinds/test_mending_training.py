"""A training that diverges, and is mended from the command line with a sane learning rate."""

import json
import time
from pathlib import Path

from lact_asr.data.manifest import write_manifest
from lact_asr.training import checkpoint
from tests.jobs.kinds.test_kinds import SMALL
from tests.jobs.launcher import Launcher
from tests.lact_asr.tiny_runs import tones

RATE = "train.training.optim.learning_rate"


def pipeline(folder: Path) -> str:
    """A training without end, with a checkpoint every 5 steps."""
    write_manifest(folder / "tones.jsonl", tones(folder, 6))
    training = {
        "max_steps": 100_000,
        "batch_seconds": 8,
        "valid_every": 500,
        "checkpoint_every": 5,
        "keep_checkpoints": 9,
        "log_every": 5,
        "optim": {"learning_rate": 4e-3, "warmup_steps": 2, "decay": "constant"},
    }
    data = {"train": "tones.jsonl", "dev": "tones.jsonl"}
    settings = {**data, "preset": "plain", "model": SMALL, "training": training}
    step = {"kind": "train", "settings": settings, "remedies": "none"}  # a person mends it here
    return json.dumps({"steps": {"train": step}})


def test_a_diverged_step_goes_on_with_a_sane_rate_from_before_it_diverged(tmp_path: Path) -> None:
    launch = Launcher(tmp_path)
    run = launch.run(launch.write(pipeline(tmp_path)), "--cluster", "local")
    folder, deadline = run / "steps" / "train" / "checkpoints", time.monotonic() + 120
    while len(checkpoint.by_step(folder)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert launch("cancel", run.name).returncode == 0
    launch.until("cancelled", step="train")  # it saves once more before it leaves
    sane = int(checkpoint.by_step(folder)[-1].name)

    done = launch("resume", run.name, "--set", f"{RATE}=4e3", "--wait")
    assert done.returncode == 1, done.stdout + done.stderr
    reason = launch.status(run.name)["train"]["reason"]
    assert reason.startswith("diverged: ")
    assert f"The next start goes on from step {sane}" in reason

    short = ("--set", f"{RATE}=4e-3", "--set", f"train.training.max_steps={sane + 30}")
    deadline = time.monotonic() + 120
    while (done := launch("resume", run.name, *short)).returncode:
        assert "train running" in done.stderr, done.stderr  # a process that is leaving
        assert time.monotonic() < deadline
        time.sleep(0.5)
    step = launch.until("succeeded", "failed", step="train", seconds=120)["train"]
    assert (step["state"], step["result"]["steps_skipped"]) == ("succeeded", 0)
    losses = [
        line["loss"]
        for line in map(json.loads, (folder.parent / "metrics.jsonl").read_text().splitlines())
        if line.get("loss")
    ]
    assert losses[-1] < losses[0]
