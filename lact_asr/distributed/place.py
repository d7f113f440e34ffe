"""Which of the processes of a job this is, from the environment. No torch.

RANK, WORLD_SIZE and LOCAL_RANK where a starter such as torchrun has set them, else Slurm's
variables of a job step.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
    """A process among its peers; without any description, this process alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def from_environment(environment: Mapping[str, str]) -> Place:
    """The place that the environment describes."""
    if "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_STEP_ID" in environment:  # set for tasks of srun, not in the batch script itself
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return Place()
    rank, world_size, local_rank = (int(environment.get(name, "0")) for name in names)
    return Place(rank, max(world_size, 1), local_rank)
