"""Faults put into a step on purpose, to see what comes of them: off where `faults` is not written.

    steps:
      train:
        kind: train
        faults: [{fault: kill, at_step: 20}, {fault: nan_gradient, at_step: 30, times: 3}]

The loop of training calls one function once a step (`Launcher.disturb`), and knows no more of it. A
fault is real wherever that harms nobody: signals, memory that no machine has, a full device
(/dev/full). Before it is put in, a line in faults.jsonl of the step's folder says so, and a step
that is started again does not meet it again. Faults go with kinds that train.
"""

import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.step_folder import StepDir

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lact_asr.training.material import MicroBatch

_TOO_LARGE = 1 << 50  # bytes; no machine has them


class Reach(NamedTuple):
    """What a fault can touch, right before a step is taken."""

    trainable: "nn.Module"
    optimizer: "torch.optim.Optimizer"
    batches: "Sequence[MicroBatch]"


class Faults:
    """The faults of one process: `Launcher.disturb` of its training."""

    def __init__(self, planned: Sequence[Mapping[str, Any]], step: StepDir, rank: int) -> None:
        self.step, self.rank = step, rank
        self.planned = [each for each in planned if each["rank"] in (rank, None)]
        known = [line["planned"] for line in step.faults() if line["rank"] == rank]
        self.left = [each["times"] - known.count(each) for each in self.planned]

    def __call__(self, number: int, *reach: Any) -> None:
        """Put in what is due at this step (the first is 1), each fault once a step."""
        for place, planned in enumerate(self.planned):
            if number >= planned["at_step"] and self.left[place] > 0:
                self.left[place] -= 1
                self.step.add_fault({"planned": planned, "step": number, "rank": self.rank})
                said = f"fault put in at step {number} on rank {self.rank}: {planned['fault']}"
                print(said, flush=True)
                FAULTS[planned["fault"]](Reach(*reach))


def _signal(number: int) -> Callable[[Reach], None]:
    return lambda reach: os.kill(os.getpid(), number)


def _preempt(reach: Reach) -> None:
    """Back into the queue, as Slurm does with a job whose nodes it needs; SIGTERM without Slurm."""
    if job := os.environ.get("SLURM_JOB_ID"):
        subprocess.run(["scontrol", "requeue", job], check=True)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def _out_of_memory_gpu(reach: Reach) -> None:
    """Ask the GPU for more than there is; without one, what torch would say of it."""
    import torch

    device = next(reach.trainable.parameters()).device
    if device.type == "cuda":
        torch.empty(_TOO_LARGE, dtype=torch.uint8, device=device)
    raise torch.OutOfMemoryError("CUDA out of memory: put in as a fault, there is no GPU")


def _out_of_memory_host(reach: Reach) -> None:
    bytearray(_TOO_LARGE)


def _nan_weight(reach: Reach) -> None:
    import torch

    with torch.no_grad():
        next(reach.trainable.parameters()).fill_(float("nan"))


def _gradient(added: float) -> Callable[[Reach], None]:
    """The next gradient of the first parameter on this rank; not of one split over the ranks."""

    def put_in(reach: Reach) -> None:
        first = next(each for each in reach.trainable.parameters() if each.requires_grad)

        def spoil(gradient: "torch.Tensor") -> "torch.Tensor":
            handle.remove()
            return gradient + added

        handle = first.register_hook(spoil)

    return put_in


def _nan_data(reach: Reach) -> None:
    """Every number of the first item of the first batch."""
    for value in vars(reach.batches[0]).values():
        if hasattr(value, "is_floating_point") and value.is_floating_point():
            value[0] = float("nan")


def _rate(reach: Reach) -> None:
    for group in reach.optimizer.param_groups:
        group["lr"] *= 1000


def _hang(reach: Reach) -> None:
    while True:
        time.sleep(60)


def _disk_full(reach: Reach) -> None:
    Path("/dev/full").write_bytes(b"a checkpoint")


def _missing_file(reach: Reach) -> None:
    Path("/a/file/that/is/not/there").read_bytes()


def _import_error(reach: Reach) -> None:
    __import__("a_package_that_is_not_there")


def _port_in_use(reach: Reach) -> None:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(one.getsockname())


def _bug(reach: Reach) -> None:
    [][0]


FAULTS: dict[str, Callable[[Reach], None]] = {
    "kill": _signal(signal.SIGKILL),
    "preempt": _preempt,
    "time_limit": _signal(signal.SIGUSR2),
    "out_of_memory_gpu": _out_of_memory_gpu,
    "out_of_memory_host": _out_of_memory_host,
    "nan_weight": _nan_weight,
    "nan_gradient": _gradient(math.nan),
    "inf_gradient": _gradient(math.inf),
    "nan_data": _nan_data,
    "rate": _rate,
    "hang": _hang,
    "disk_full": _disk_full,
    "missing_file": _missing_file,
    "import_error": _import_error,
    "port_in_use": _port_in_use,
    "bug": _bug,
}
# what no change of settings mends: the step fails, and says why
FATAL = ("disk_full", "missing_file", "import_error", "bug")
