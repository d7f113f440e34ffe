"""Run a function of a test module in processes of its own: several ranks over gloo, or one to kill.

python -m tests.ranks MODULE FUNCTION FOLDER calls MODULE.FUNCTION(Path(FOLDER)).
"""

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tests.conftest import REPOSITORY


def in_ranks(function: Callable[[Path], None], folder: Path, world_size: int) -> list[int]:
    """Exit codes of `function` run by each rank; what it prints goes to folder/rank<n>.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", __name__, function.__module__, function.__name__, str(folder)]
    shared = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(world_size):
        names = shared | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
        environment = os.environ | {name: str(value) for name, value in names.items()}
        with (folder / f"rank{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
            )
    return [process.wait(240) for process in processes]


if __name__ == "__main__":
    torch.set_num_threads(1)
    getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(Path(sys.argv[3]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as the worker does: PyTorch's teardown aborts now and then
