"""Run a function of a test module in processes of its own: several ranks over gloo, or one to kill.

python -m tests.ranks MODULE FUNCTION FOLDER calls MODULE.FUNCTION(Path(FOLDER)).
"""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tests.conftest import REPOSITORY
from tests.slurm.cluster import PATIENCE, claimed_ports

# Ranks are forked from a process that has nothing but these imports, which take 2.7 s of a core.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "torch", "tests.lact_asr.tiny_runs"])


def in_ranks(function: Callable[[Path], None], folder: Path, world_size: int) -> list[int]:
    """Exit codes of `function` run by each rank; what it prints goes to folder/rank<n>.log."""
    with claimed_ports(1) as (port,):
        shared = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes = [_start(function, folder, rank, shared) for rank in range(world_size)]
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode is not None, f"a rank has not ended in {PATIENCE} s"
    return [process.exitcode for process in processes]


def _start(
    function: Callable[[Path], None], folder: Path, rank: int, shared: dict[str, object]
) -> multiprocessing.process.BaseProcess:
    names = shared | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
    environment = os.environ | {name: str(value) for name, value in names.items()}
    given = (function.__module__, function.__name__, folder, environment)
    process = FORKS.Process(target=be_rank, args=given, daemon=True)
    process.start()
    return process


def be_rank(module: str, name: str, folder: Path, environment: dict[str, str]) -> None:
    """In a process of its own: the function, with this environment and a log of its own."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    log = os.open(folder / f"rank{environment['RANK']}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    call(module, name, folder)


def call(module: str, name: str, folder: Path) -> None:
    """Call a function, and end without teardown, as the worker does: PyTorch's aborts at times."""
    torch.set_num_threads(1)
    getattr(importlib.import_module(module), name)(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    call(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
