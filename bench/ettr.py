"""How much of the time of a training that is killed again and again is useful: its ETTR.

    python -m bench.ettr [--data SPEECH] [--steps 1200] [--every 100]

A real training on a private Slurm, its worker killed (SIGKILL) every `every` seconds until it has
ended: unattended, checkpoints as `checkpoint_every: auto` chooses them. The default is an hour with
a fault every ten minutes, scaled by 6: as many faults, a sixth of the training between them. What a
fault costs is not scaled with it, so the share lost is six times that of the hour, which follows by
reckoning: as many faults at the measured price, and the rest of an hour useful. Wall time: what
else the machine does counts as lost, or is not seen at all.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from bench.disturbances import PATIENCE, SMALL, Case, Disturbed
from bench.faults import speech_of
from bench.harness import Row, argument_parser, commit, show, write
from bench.machine import machine
from jobs.healing.spans import STARTING
from lact_asr.data.manifest import read_manifest, write_manifest
from lact_asr.training.clock import USEFUL
from tests.slurm.cluster import PrivateSlurm

EVERYTHING = 10_000  # utterances, more than there are
MODEL = {**SMALL, "hidden": 96, "layers": 3, "mlp": 256}  # half a second a step on a CPU core
GOAL = 0.95  # of an hour with a fault every ten minutes
HOUR, TEN_MINUTES = 3600.0, 600.0
RECOVERY = 10.0  # seconds inside the allocation, the goal


def kill_every(run: Disturbed, seconds: float) -> None:
    """SIGKILL of the worker again and again, once it has come further than before."""
    reached = 0
    while True:
        time.sleep(seconds)
        run.wait_for(partial(run.past, reached), PATIENCE)
        if run.settled():
            return
        reached = run.reached()
        run.note()
        run.kill()


def training(steps: int, every: float) -> dict[str, Any]:
    """The settings of the training: as a user would write them for faults so often."""
    return {
        "max_steps": steps,
        "batch_seconds": 30,
        "valid_every": max(steps // 2, 1),
        "checkpoint_every": "auto",
        "failure_every": every / HOUR,
        "log_every": 1,  # the ledger knows no more of a killed worker than its last line
        "optim": {"learning_rate": 2e-3, "warmup_steps": min(100, steps)},
    }


def measured(run: Disturbed) -> dict[str, Any]:
    """What the ledger says of the training."""
    said = json.loads(run.launcher("ledger", run.launcher.newest().name, "--json"))
    (step,) = [each for each in said["steps"] if each["step"] == "train"]
    return dict(step)


def rows(step: Mapping[str, Any]) -> list[Row]:
    """The share that was useful, as measured and of the hour, and what a fault costs."""
    allocated, useful = step["allocated"], step["seconds"][USEFUL]
    lost = [each["seconds"] for each in step["recoveries"]]
    once = step["seconds"][STARTING] / step["starts"]
    rest = (allocated - useful - sum(lost) - once) / allocated  # validations, checkpoints, data
    hour = 1 - rest - once / HOUR - (mean(lost) / TEN_MINUTES if lost else 0.0)
    return [
        Row("share of the time lost, scaled as said", unit="1", ours=[1 - useful / allocated]),
        Row("share lost with a fault every 10 min, by reckoning", unit="1", goal=1 - GOAL,
            ours=[1 - hour]),
        Row("seconds from a fault to the next new step", goal=RECOVERY, ours=lost or [0.0]),
    ]  # fmt: skip


def main() -> None:
    """Train, kill, print what the ledger says; write bench/results/ettr.json."""
    parser = argument_parser("ettr", __doc__, tiny="two faults; nothing is written")
    parser.add_argument("--data", type=Path, help="speech in LibriSpeech layout")
    parser.add_argument("--steps", type=int, default=1200, help="about ten minutes, undisturbed")
    parser.add_argument("--every", type=float, default=100.0, help="seconds between faults")
    given = parser.parse_args()
    if given.tiny:
        given.steps, given.every = 30, 10.0
    case = Case(
        "ettr",
        "SIGKILL",
        act=partial(kill_every, seconds=given.every),
        training=training(given.steps, given.every),
        settings={"model": MODEL, "dev": "dev.jsonl"},
    )
    with (
        tempfile.TemporaryDirectory(prefix="ettr-") as name,
        PrivateSlurm(Path(name) / "slurm") as slurm,
    ):
        dev = read_manifest(speech_of(given.data, Path(name)))
        few = speech_of(given.data, Path(name), EVERYTHING)
        run = Disturbed(slurm, Path(name) / "work", case, few)
        write_manifest(run.folder / "dev.jsonl", dev)
        state, step = run.run(), measured(run)
    found = rows(step)
    show(f"a fault every {given.every:g} s, {state}: median (least-most)", found)
    spent = ", ".join(f"{value:.1f} {what}" for what, value in step["seconds"].items() if value)
    print(f"{step['allocated']:.0f} s allocated: {spent}; {len(step['recoveries'])} faults")
    if not given.tiny:
        about = {"seconds_between_faults": given.every, "scaled_by": TEN_MINUTES / given.every}
        about |= {"speech": bool(given.data), "commit": commit(), "state": state, "step": step}
        ran_on = machine() | {"time": "wall"}
        print(f"written to {write('ettr', found, ran_on=ran_on, **about)}")


if __name__ == "__main__":
    main()
