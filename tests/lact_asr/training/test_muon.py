"""Muon's matrices are shared over the ranks, and every bit is what one rank would make of them."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lact_asr.config.model import SIZES
from lact_asr.config.training import OptimConfig
from lact_asr.data.manifest import read_manifest
from lact_asr.distributed import fsdp, processes
from lact_asr.distributed.processes import World
from lact_asr.model.fast_weights import newton_schulz, newton_schulz_by_eigenvalues
from lact_asr.model.recognizer import Recognizer
from lact_asr.training import muon, optim
from lact_asr.training.muon import Muon, assign, orthogonal
from lact_asr.training.objective import CTCObjective
from lact_asr.utils.files import read_json, write_json
from tests.lact_asr.tiny_runs import manifest, run, tiny
from tests.ranks import in_ranks

GIVEN = OptimConfig(method="muon", learning_rate=0.01)


class Counted:
    """Muon's `orthogonal` until the block ends, which counts the matrices that it is given."""

    def __init__(self) -> None:
        self.matrices = 0

    def __enter__(self) -> "Counted":
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(muon, "orthogonal", self)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def __call__(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        self.matrices += len(matrices)
        return orthogonal(matrices)


def moved(world: World, steps: int = 3, split: bool = False) -> tuple[dict, list[Tensor], int]:
    """A model after steps with gradients by number; Muon's sums; matrices made orthogonal here."""
    model = tiny(layers=3)
    if split:
        fsdp.shard(model, model, model.blocks)
    optimizer = optim.build(CTCObjective(model), GIVEN, world)
    with Counted() as counted:
        for number in range(steps):
            torch.manual_seed(number)
            for parameter in model.parameters():
                parameter.grad = fsdp.like(torch.randn(parameter.shape), parameter)
            optimizer.step()
    sums = [fsdp.whole(state["sum"]) for state in optimizer.state.values() if "sum" in state]
    return fsdp.whole(model.state_dict()), sums, counted.matrices


def few(world: World) -> list[Tensor]:
    """Two matrices after a step, fewer than there are ranks; one that has no gradient."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(8, 4)) for _ in range(3)]
    for weight in weights[:2]:
        weight.grad = torch.randn(8, 4)
    group = {"params": weights, "muon": True, "weight_decay": 0.0, "lr": 0.1}
    Muon([group], world).step()
    return [weight.detach() for weight in weights]


def share(folder: Path) -> None:
    """A rank with its share of the matrices, beside all of them."""
    world = processes.start()
    found = {"alone": moved(World()), "shared": moved(world), "split": moved(world, split=True)}
    torch.save((found, few(World()), few(world)), folder / f"{world.rank}.pt")


def test_shared_over_three_ranks_the_weights_are_those_of_one_bit_for_bit(tmp_path: Path) -> None:
    assert in_ranks(share, tmp_path, 3) == [0] * 3, (tmp_path / "rank0.log").read_text()
    here, counts = moved(World()), []
    for rank in range(3):
        found, alone, shared = torch.load(tmp_path / f"{rank}.pt")
        assert all(map(torch.equal, alone, shared)) and len(shared) == 3
        for way, (weights, sums, matrices) in found.items():
            assert len(sums) == len(here[1]) == 12 and all(map(torch.equal, sums, here[1])), way
            assert all(torch.equal(weights[name], value) for name, value in here[0].items()), way
            counts += [(way, matrices)]
    assert counts.count(("alone", 36)) == 3
    for way in ("shared", "split"):
        assert sum(count for name, count in counts if name == way) == 36, "each by one rank"
        assert max(count for name, count in counts if name == way) < 20


def test_where_no_matrix_has_a_gradient_none_moves() -> None:
    weight = torch.nn.Parameter(torch.ones(8, 4))
    Muon([{"params": [weight], "muon": True, "weight_decay": 0.1, "lr": 0.1}], World()).step()
    assert torch.equal(weight, torch.ones(8, 4))


def trains(folder: Path) -> None:
    """A rank of a training of two steps: what it has made orthogonal."""
    train = read_manifest(folder / "tones.jsonl")
    given = {"max_steps": 2, "optim": {"method": "muon"}}
    with Counted() as counted:
        run(folder / "run", train, CTCObjective(tiny(layers=2)), **given)
    write_json(folder / f"{processes.start().rank}.json", counted.matrices)


def test_the_ranks_of_a_training_share_the_work(tmp_path: Path) -> None:
    manifest(tmp_path)
    assert in_ranks(trains, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    assert [read_json(tmp_path / f"{rank}.json") for rank in range(2)] == [8, 8]


@pytest.mark.parametrize("size", ["base", "improved", "large"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_no_rank_has_much_more_to_do_than_another(size: str, ranks: int) -> None:
    with torch.device("meta"):
        model = Recognizer(SIZES[size], 1024)
    (shapes,) = (
        [each.shape for each in group["params"]]
        for group in optim.build(CTCObjective(model), GIVEN).param_groups
        if group["muon"]
    )
    owners = assign(shapes, ranks)
    assert owners == assign(shapes, ranks)
    loads = [0.0] * ranks
    for (rows, columns), owner in zip(shapes, owners, strict=True):
        loads[owner] += rows * columns * min(rows, columns)
    assert max(loads) <= 1.07 * sum(loads) / ranks


def test_the_dearest_matrix_is_alone_where_it_costs_as_much_as_the_others() -> None:
    assert assign([(2, 2), (4, 8), (2, 2), (4, 4), (4, 2)], 2) == [1, 0, 1, 1, 1]
    assert assign([(2, 2)], 3) == [0] and assign([], 3) == []


def test_a_matrix_becomes_the_same_in_whatever_company() -> None:
    torch.manual_seed(0)
    shapes = [(32, 32), (64, 32), (32, 96), (384, 384), (1152, 384), (33, 65)] * 3
    matrices = [torch.randn(shape) for shape in shapes]
    together = orthogonal(matrices)
    for matrix, found in zip(matrices, together, strict=True):
        assert torch.equal(orthogonal([matrix])[0], found)


@pytest.mark.parametrize("shape", [(24, 24), (24, 48), (96, 24), (1024, 192)])
@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-8, 1e-20])
def test_a_matrix_becomes_on_a_cpu_what_all_stages_on_the_whole_make_of_it(
    shape: tuple[int, int], smallest: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(
        torch.randn(shape, dtype=torch.float64, generator=generator), full_matrices=False
    )
    values = torch.logspace(0, math.log10(smallest), min(shape), dtype=torch.float64)
    matrix = u * values @ v
    expected = newton_schulz(matrix, "five_stage")
    (found,) = orthogonal([matrix.float()])
    assert found.dtype == torch.float32
    off = {1.0: 1e-4, 1e-2: 2e-3}.get(smallest, 0.02)  # below float32's rounding of the largest
    assert torch.linalg.matrix_norm(found - expected, 2) < off
    (exact,) = orthogonal([matrix])
    assert torch.linalg.matrix_norm(exact - expected, 2) < 1e-7
    assert torch.equal(found, newton_schulz_by_eigenvalues(matrix.float(), "five_stage"))


def test_a_matrix_of_zeros_stays_one() -> None:
    zeros = torch.zeros(4, 16)
    assert torch.equal(orthogonal([zeros])[0], zeros)
