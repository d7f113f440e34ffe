"""Training over nodes: four processes on two of them find each other through Slurm's variables."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lact_asr.distributed import processes
from tests.conftest import REPOSITORY
from tests.lact_asr.tiny_runs import manifest
from tests.lact_asr.training.test_train_step import gradient, gradient_of, relative
from tests.slurm.cluster import PATIENCE


def gradient_of_a_task(folder: Path) -> None:
    """Two of eight utterances, each a micro-batch, as one of four ranks."""
    world = processes.start()
    mine = [[2 * world.rank], [2 * world.rank + 1]]
    found, outcome = gradient(mine, folder, world)
    split = gradient_of(mine, folder, world, sharded=True)[0]
    torch.save((world.world_size, found, split, outcome.loss), folder / f"{world.rank}.pt")


@pytest.mark.usefixtures("slurm")
def test_four_ranks_on_two_nodes_have_the_gradient_of_one_process(tmp_path):
    manifest(tmp_path)
    expected, outcome = gradient([list(range(8))], tmp_path)
    module = [sys.executable, "-m", "tests.ranks", __name__, "gradient_of_a_task"]
    command = ["srun", "--nodes=2", "--ntasks=4", "--export=ALL,OMP_NUM_THREADS=1", *module]
    subprocess.run([*command, str(tmp_path)], check=True, cwd=REPOSITORY, timeout=PATIENCE)
    for rank in range(4):
        size, found, split, loss = torch.load(tmp_path / f"{rank}.pt")
        assert size == 4
        assert relative(found, expected) < 1e-6
        assert relative(split, expected) < 1e-6
        assert loss == pytest.approx(outcome.loss, rel=1e-6)
