"""A training that runs says how it is: in `status`, to people and to programs, and in its log."""

import json
import time
from pathlib import Path

from lact_asr.data.manifest import write_manifest
from tests.jobs.launcher import Launcher
from tests.lact_asr.tiny_runs import tones
from tests.slurm.cluster import PATIENCE

PIPELINE = """\
steps:
  train:
    kind: train
    settings:
      train: {folder}/train.jsonl
      dev: {folder}/train.jsonl
      preset: plain
      model: {{hidden: 32, layers: 1, attention_heads: 2, lact_heads: 1, mlp: 64}}
      training: {{max_steps: 100000, batch_seconds: 8, valid_every: 5, log_every: 1,
        optim: {{learning_rate: 1e-7}}}}
"""


def test_status_calls_a_healthy_training_so_while_it_runs(tmp_path: Path) -> None:
    write_manifest(tmp_path / "train.jsonl", tones(tmp_path, 4))
    launch = Launcher(tmp_path)
    run = launch.run(launch.write(PIPELINE.format(folder=tmp_path)), "--cluster", "local")
    try:
        deadline = time.monotonic() + PATIENCE
        said = ("logs", "/train", "--lines", "100000", "--grep", "Health")
        while "Health at step 5: HEALTHY" not in launch(*said).stdout:
            assert time.monotonic() < deadline, launch("logs", "/train")
            time.sleep(0.5)
        assert launch.status()["train"]["health"] == "HEALTHY"
        assert " left, HEALTHY" in launch("status").stdout.replace("; ", ", ")
    finally:
        launch("cancel", "p")
    events = [json.loads(line) for line in (run / "steps/train/events.jsonl").open()]
    assert [each["event"] for each in events if each["event"] in ("watched", "finding")] == [
        "watched"
    ]
    assert launch.status()["train"]["health"] is None
