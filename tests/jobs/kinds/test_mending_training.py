"""A training that diverges, and is mended from the command line with a sane learning rate."""

import json
import time
from pathlib import Path

from lact_asr.data.manifest import write_manifest
from lact_asr.training import checkpoint
from tests.jobs.kinds.test_kinds import SMALL
from tests.jobs.launcher import Launcher
from tests.jobs.test_worker import make_step, start
from tests.lact_asr.tiny_runs import tones
from tests.slurm.cluster import PATIENCE

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
    folder, deadline = run / "steps" / "train" / "checkpoints", time.monotonic() + PATIENCE
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
    deadline = time.monotonic() + PATIENCE
    while (done := launch("resume", run.name, *short)).returncode:
        assert "train running" in done.stderr, done.stderr  # a process that is leaving
        assert time.monotonic() < deadline
        time.sleep(0.5)
    step = launch.until("succeeded", "failed", step="train")["train"]
    assert (step["state"], step["result"]["steps_skipped"]) == ("succeeded", 0)
    losses = [
        line["loss"]
        for line in map(json.loads, (folder.parent / "metrics.jsonl").read_text().splitlines())
        if line.get("loss")
    ]
    assert losses[-1] < losses[0]


def test_a_start_after_a_remedy_has_its_settings_and_the_result_says_so(tmp_path: Path) -> None:
    described = json.loads(pipeline(tmp_path))["steps"]["train"]
    described["settings"] |= {name: str(tmp_path / "tones.jsonl") for name in ("train", "dev")}
    described["settings"]["training"] |= {"max_steps": 2, "accumulate": 1}
    step = make_step(tmp_path / "train", [], kind="train", settings=described["settings"])
    changes = {"training.batch_seconds": [8, 4], "training.accumulate": [1, 2]}
    step.add_event("remedy", {"cause": "out_of_memory_gpu", "reason": "", "changes": changes})
    worker = start(step)
    assert worker.wait() == 0, worker.communicate()
    result = step.result()
    assert result["remedies"] == ["training.batch_seconds: 8 -> 4, training.accumulate: 1 -> 2"]
    saved = checkpoint.read_config(Path(result["checkpoint"]))["training"]
    assert (saved["batch_seconds"], saved["accumulate"]) == (4, 2)
