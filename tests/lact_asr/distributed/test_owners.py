"""Whatever the shapes and whoever the owners: whole there, and a share of it on each rank."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lact_asr.distributed import fsdp, processes
from lact_asr.distributed.owners import Owned
from lact_asr.distributed.processes import World
from tests.ranks import in_ranks

SHAPES = [(5, 3), (1, 4), (8, 2), (7,), (4, 3, 2), (2, 2)]  # rows that ranks divide, and do not
OWNERS = [1, 0, 0, 1, 2, 2]  # and a fourth rank would own none


@dataclass(frozen=True)
class Recorded(World):
    """A world that counts the numbers which come in."""

    numbers: list[int] = field(default_factory=list)

    def exchange(self, sent: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """Take part, and write down how many came."""
        self.numbers.append(sum(lengths))
        return super().exchange(sent, lengths)


def meshes(ranks: int) -> dict[str, DeviceMesh | None]:
    """Ways to split a tensor over so many."""
    found = {"whole": None, "all": init_device_mesh("cpu", (ranks,))}
    if ranks == 4:
        found["pairs"] = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "share"))
        found["copies"] = init_device_mesh("cpu", (4, 1), mesh_dim_names=("copy", "share"))
    return found


def split(value: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """The tensor as a model holds it whose copies are the rows of the mesh."""
    if mesh is None:
        return value
    return distribute_tensor(value, mesh, [Replicate()] * (mesh.ndim - 1) + [Shard(0)])


def hand_over(folder: Path) -> None:
    """A rank that gathers what it owns, doubles it, and gets its share of all that was doubled."""
    start = processes.start()
    wholes = [torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in SHAPES]
    found = {}
    for way, mesh in meshes(start.world_size).items():
        world = Recorded(*astuple(start))
        values = [split(value, mesh) for value in wholes]
        owned = Owned(values, OWNERS, world)
        mine = owned.gather(values)
        expected = [whole for whole, o in zip(wholes, OWNERS, strict=True) if o == world.rank]
        shares = [fsdp.local(2 * value) for value in values]
        back = owned.spread([2 * each for each in mine])
        assert len(mine) == len(expected) and all(map(torch.equal, mine, expected)), way
        assert len(back) == len(shares) and all(map(torch.equal, back, shares)), way
        sizes = [sum(each.numel() for each in tensors) for tensors in (expected, shares)]
        found[way] = (world.numbers, sizes)
    torch.save(found, folder / f"{start.rank}.pt")


@pytest.mark.parametrize("ranks", [3, 4])
def test_an_owner_has_the_whole_tensor_and_each_rank_its_share_of_what_becomes_of_it(
    tmp_path: Path, ranks: int
) -> None:
    assert in_ranks(hand_over, tmp_path, ranks) == [0] * ranks, (tmp_path / "rank0.log").read_text()
    for rank in range(ranks):
        for way, (numbers, sizes) in torch.load(tmp_path / f"{rank}.pt").items():
            shared = way in {"all", "pairs"}
            assert numbers == (sizes if shared else []), f"{way}: no rank is sent more than that"


@pytest.mark.parametrize(("whole", "ranks"), [(5, 3), (1, 4), (8, 2), (7, 4), (0, 2)])
def test_rows_are_split_as_the_tensors_are(whole: int, ranks: int) -> None:
    held = fsdp.rows(whole, ranks)
    assert len(held) == ranks and sum(held) == whole
    assert held[0] == -(-whole // ranks) and held == sorted(held, reverse=True)
