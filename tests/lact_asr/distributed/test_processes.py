"""The world from the environment, and two real processes that agree."""

import os
from pathlib import Path

import pytest
import torch

from lact_asr.distributed import processes
from lact_asr.distributed.place import from_environment
from lact_asr.distributed.processes import World, meeting_point, patience
from lact_asr.utils.errors import DataError
from lact_asr.utils.files import read_json, write_json
from tests.ranks import in_ranks

SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World()),
        (SLURM, World(5, 8, 1)),
        (TORCHRUN, World(1, 2, 1)),
        (SLURM | TORCHRUN, World(1, 2, 1)),
        # a batch script that calls python without srun: one process, though the job has 8 tasks
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, World()),
    ],
)
def test_the_world_is_read_from_the_environment(environment, world):
    assert World(*from_environment(environment)) == world


def test_ranks_meet_at_the_first_node_or_where_they_are_told():
    told = {"MASTER_ADDR": "node7", "MASTER_PORT": "1234", "SLURM_JOB_NODELIST": "a[1-2]"}
    assert meeting_point(told) == ("node7", 1234)
    one = {"SLURM_JOB_ID": "31000", "SLURM_STEP_NODELIST": "a1", "SLURM_STEP_NUM_NODES": "1"}
    assert meeting_point(one) == ("127.0.0.1", 16_000)


def test_the_first_host_of_several_comes_from_scontrol(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n"
        'case "$2 $3" in\n'
        '  "hostnames n[1-2]") printf "no-such-host.invalid\\nn2\\n" ;;\n'
        '  "node no-such-host.invalid") echo "NodeName=n1 NodeAddr=10.1.2.3 CPUs=4" ;;\n'
        "esac\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    two = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_NUM_NODES": "2"}
    assert meeting_point(two) == ("10.1.2.3", 15_000)


def test_one_process_joins_no_group_and_wraps_nothing(monkeypatch):
    for name in (*SLURM, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    world, module = processes.start(), torch.nn.Linear(1, 1)
    assert not torch.distributed.is_initialized()
    assert world.wrap(module) is module
    assert world.gather(3) == [3]
    assert world.all_max(True) and not world.all_max(False)
    assert world.all_sum(torch.ones(2)).tolist() == [1, 1]


def test_a_rank_waits_half_an_hour_for_the_others_or_as_long_as_it_is_told():
    name = "TRAINYARD_COLLECTIVE_SECONDS"
    assert (patience({}), patience({name: "90.5"})) == (1800, 90.5)
    with pytest.raises(DataError, match=f"{name} is 'soon': write seconds"):
        patience({name: "soon"})


def agree(folder: Path) -> None:
    """What one of two ranks learns from the other."""
    world = processes.start()
    torch.manual_seed(world.rank)
    wrapped = world.wrap(torch.nn.Linear(2, 1, bias=False))
    start = wrapped.module.weight.tolist()
    wrapped(torch.full((1, 2), float(world.rank))).sum().backward()
    found = {
        "gathered": world.gather(f"rank {world.rank}"),
        "sum": world.all_sum(torch.tensor([1.0, world.rank])).tolist(),
        "max": [world.all_max(world.rank == 1), world.all_max(False)],
        "start": start,
        "gradient": wrapped.module.weight.grad.tolist(),
    }
    write_json(folder / f"{world.rank}.json", found)


def test_two_processes_gather_sum_and_share_weights_and_gradients(tmp_path):
    assert in_ranks(agree, tmp_path, 2) == [0, 0]
    first, second = (read_json(tmp_path / f"{rank}.json") for rank in range(2))
    assert first == second
    assert first["gathered"] == ["rank 0", "rank 1"]
    assert (first["sum"], first["max"]) == ([2, 1], [True, False])
    assert first["gradient"] == [[0.5, 0.5]]
