"""From the start of a training job to the end of its first step, with 104,014 utterances.

    python -m bench.start --data mini_librispeech/train-clean-5 [--rounds 5]

The job is the one that Slurm would start: `python -m jobs.worker` on a step of the kind `train`.
Its manifest names the real recordings of DATA again and again under new ids, as many as
train-clean-360 has, so every batch has audio behind it. Compared with a Python that imports torch
and ends, in the same rounds; the goal is 5 s beyond that. A public project took 15 min 28 s.
"""

import itertools
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.harness import Row, argument_parser, command, rounds, show, write
from bench.machine import machine
from jobs.pipeline import Resources
from jobs.step_folder import StepDir
from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import write_manifest

REPOSITORY = Path(__file__).resolve().parent.parent
UTTERANCES = 104_014
MODEL = {"hidden": 32, "layers": 1, "attention_heads": 2, "lact_heads": 1, "mlp": 64}


def manifests(data: Path, count: int, folder: Path) -> dict[str, str]:
    """A train and a dev manifest; what the step's settings call them."""
    real = scan(data)
    again = (replace(each, id=f"{each.id}-{turn}") for turn in itertools.count() for each in real)
    write_manifest(folder / "train.jsonl", itertools.islice(again, count))
    write_manifest(folder / "dev.jsonl", real[:2])
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "dev")}


def job(settings: dict[str, Any], folder: Path, environment: dict[str, str]) -> float:
    """Seconds from the start of the process to its first line of metrics."""
    step = StepDir(folder / "run" / "steps" / f"train{time.time_ns()}")
    resources = Resources().model_dump(mode="json")
    described = {"name": "train", "kind": "train", "settings": settings, "resources": resources}
    step.write_job({**described, "needs": [], "gate": {}})
    began = time.time()
    command([sys.executable, "-m", "jobs.worker", str(step.path)], environment, REPOSITORY)
    return next(line["time"] for line in step.metrics() if line["step"] == 1) - began


def main() -> None:
    """Measure, print the table, write bench/results/start.json."""
    parser = argument_parser("start", __doc__, tiny="few utterances; nothing written")
    parser.add_argument("--data", type=Path, required=True, help="a folder in LibriSpeech layout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--utterances", type=int, default=UTTERANCES)
    given = parser.parse_args()
    if given.tiny:
        given.rounds, given.utterances = 1, 100
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    import_torch, whole = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        training = {"max_steps": 1, "batch_seconds": 96.0, "samples": 0}
        settings = {**manifests(given.data, given.utterances, folder), "model": MODEL}
        settings["training"] = training
        bare = [sys.executable, "-c", "import torch"]
        rounds(
            given.rounds,
            lambda: import_torch.append(command(bare, environment, REPOSITORY).wall),
            lambda: whole.append(job(settings, folder, environment)),
        )
    beyond = [all_ - part for all_, part in zip(whole, import_torch, strict=True)]
    rows = [
        Row(f"{given.utterances:,} utterances: start to first step, beyond importing torch",
            goal=5.0, ours=beyond),
        Row("the whole of it, beside `import torch`", ours=whole, theirs=import_torch),
    ]  # fmt: skip
    show("start of a training job: median (least-most)", rows)
    if not given.tiny:
        path = write("start", rows, ran_on=machine(), compared_with="python -c 'import torch'")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
