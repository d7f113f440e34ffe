"""A model split over processes trains as a whole one does, and its checkpoints do not tell."""

import os
from pathlib import Path

import pytest
import torch

from lact_asr.config.training import CTCConfig
from lact_asr.data.manifest import read_manifest
from lact_asr.distributed import fsdp, processes
from lact_asr.training import checkpoint, optim
from lact_asr.training.averaging import Average
from lact_asr.training.guard import non_finite
from lact_asr.training.objective import CTCObjective
from lact_asr.training.resume import resume
from lact_asr.utils.errors import DataError
from lact_asr.utils.files import read_json, write_json
from tests.lact_asr.tiny_runs import VOCABULARY, manifest, run, settings, tiny
from tests.lact_asr.training.test_resume import assert_same_bits
from tests.lact_asr.training.test_train_step import gradient_of, relative
from tests.ranks import in_ranks

TRAINER = "trainer.pt"
HEARD = CTCConfig(intermediate=(1,))
GIVEN = {
    "max_steps": 6,
    "accumulate": 2,
    "batch_seconds": 4.0,
    "average": {"decay": 0.9, "last": 2},
    "optim": {"method": "muon"},
}


def student() -> CTCObjective:
    return CTCObjective(tiny(layers=2), HEARD)


def split_gradient(folder: Path) -> None:
    """The gradient of unequal halves, the model split over two ranks; and what a rank holds."""
    world = processes.start()
    mine = [[0, 1, 2], [3]] if world.main else [[4, 5], [6, 7]]
    found, outcome, model = gradient_of(mine, folder, world, sharded=True)
    held = sum(fsdp.local(p).numel() for p in model.parameters())
    total = sum(p.numel() for p in model.parameters())
    torch.save((found, outcome.loss, outcome.grad_norm, held / total), folder / f"{world.rank}.pt")


def test_the_gradient_is_that_of_one_process_and_each_holds_half(tmp_path):
    manifest(tmp_path)
    expected, outcome, _ = gradient_of([list(range(8))], tmp_path)
    assert in_ranks(split_gradient, tmp_path, 2) == [0, 0], (tmp_path / "rank1.log").read_text()
    shares = []
    for rank in range(2):
        found, loss, norm, share = torch.load(tmp_path / f"{rank}.pt")
        assert relative(found, expected) < 1e-6
        assert (loss, norm) == pytest.approx((outcome.loss, outcome.grad_norm), rel=1e-6)
        assert share < 0.6  # half, but that the one head's fast weights are on one of them
        shares.append(share)
    assert sum(shares) == pytest.approx(1)


def trained(folder: Path) -> None:
    """Split; split, stopped and resumed; a copy on each rank: all with the same data."""
    train = read_manifest(folder / "tones.jsonl")
    run(folder / "split", train, student(), sharded=True, **GIVEN)
    run(folder / "cut", train, student(), stop_at=4, sharded=True, **GIVEN)
    run(folder / "cut", train, student(), sharded=True, **GIVEN)
    run(folder / "copies", train, student(), **GIVEN)
    run(folder / "began-split", train, student(), stop_at=4, sharded=True, **GIVEN)
    run(folder / "began-split", train, student(), **GIVEN)
    run(folder / "began-whole", train, student(), stop_at=4, **GIVEN)
    run(folder / "began-whole", train, student(), sharded=True, **GIVEN)


def test_training_resumes_bit_for_bit_and_may_be_split_or_not_at_any_time(tmp_path):
    manifest(tmp_path)
    assert in_ranks(trained, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    assert_same_bits(tmp_path / "cut", tmp_path / "split", "00000006")
    files = {
        name: checkpoint.load(tmp_path / name / "checkpoints/00000006" / checkpoint.WEIGHTS)
        for name in ("split", "copies", "began-split", "began-whole")
    }
    best, other = (
        checkpoint.load(tmp_path / name / "checkpoints/best" / checkpoint.WEIGHTS)
        for name in ("split", "copies")
    )
    start = student().model.state_dict()
    for name, values in files.items():
        assert values.keys() == best.keys() == start.keys(), name
        for key, value in values.items():
            assert value.shape == start[key].shape
            assert torch.allclose(value, files["copies"][key], atol=2e-5), (name, key)
    assert all(torch.allclose(best[key], other[key], atol=2e-5) for key in best)
    assert any(not torch.equal(start[key], best[key]) for key in best)


def test_one_process_goes_on_with_what_two_have_split(tmp_path):
    train = manifest(tmp_path)
    assert in_ranks(begun, tmp_path, 2) == [0, 0]
    path = checkpoint.latest(tmp_path / "split/checkpoints")
    saved, trainer = checkpoint.load(path / checkpoint.WEIGHTS), checkpoint.load(path / TRAINER)
    objective = student()
    optimizer = optim.build(objective, settings(**GIVEN).optim)
    average = Average(objective.model, 0.9)
    state, _ = resume(path, objective, VOCABULARY, optimizer, trainer["corpus"], average)
    found = objective.model.state_dict()
    assert state.step == 6
    assert all(torch.equal(found[name], value) for name, value in saved.items())
    assert all(torch.equal(average.values[n], value) for n, value in trainer["average"].items())
    for parameter, moments in optimizer.state.items():
        sizes = {name: value.shape for name, value in moments.items() if name != "step"}
        assert set(sizes.values()) == {parameter.shape}
    _, recorded = run(tmp_path / "split", train, student(), **{**GIVEN, "max_steps": 8})
    assert sorted(recorded.losses()) == [7, 8]


def begun(folder: Path) -> None:
    """Two ranks, split, to the end."""
    run(folder / "split", read_manifest(folder / "tones.jsonl"), student(), sharded=True, **GIVEN)


def looks(folder: Path) -> None:
    """Which weights are not finite: one is in the share of rank 1."""
    world, model = processes.start(), tiny()
    fsdp.shard(model, model, model.blocks)
    if not world.main:
        fsdp.local(model.head.weight.data)[-1] = float("nan")
    write_json(folder / f"{world.rank}.json", non_finite(model))


def test_a_nan_in_the_share_of_one_rank_is_named_on_all(tmp_path):
    assert in_ranks(looks, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    assert [read_json(tmp_path / f"{rank}.json") for rank in range(2)] == [["head.weight"]] * 2


def refuses(folder: Path) -> None:
    """A projector beside the model; a model that is not made of blocks."""
    processes.start()
    model = tiny()
    both = torch.nn.ModuleDict({"model": model, "projector": torch.nn.Linear(2, 2)})
    with pytest.raises(DataError, match=r"2 parameters beside it learn too \(projector"):
        fsdp.shard(model, both, model.blocks)
    assert not fsdp.split(model)
    with pytest.raises(DataError, match="by its blocks, and Linear has none: write sharded: false"):
        fsdp.shard(both["projector"], both["projector"], torch.nn.ModuleList())


def test_what_learns_beside_the_model_or_has_no_blocks_is_refused_by_name(tmp_path):
    assert in_ranks(refuses, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()


def hybrid(folder: Path) -> None:
    """One of four ranks on two nodes: split inside a node, stopped and resumed so; split over all;
    and what a rank holds of the model that was split inside its node.
    """
    rank = int(os.environ["RANK"])
    os.environ["LOCAL_RANK"] = str(rank % 2)
    train, objective = read_manifest(folder / "tones.jsonl"), student()
    _, recorded = run(folder / "node", train, objective, sharded="node", **GIVEN)
    run(folder / "cut", train, student(), stop_at=4, sharded="node", **GIVEN)
    run(folder / "cut", train, student(), sharded="node", **GIVEN)
    _, plain = run(folder / "split", train, student(), sharded=True, **GIVEN)
    held = sum(fsdp.local(p).numel() for p in objective.model.parameters())
    total = sum(p.numel() for p in objective.model.parameters())
    losses = [recorded.losses(), plain.losses()]
    write_json(folder / f"{rank}.json", {"held": held / total, "losses": losses})


def test_split_inside_nodes_a_model_trains_as_one_split_over_all(tmp_path):
    manifest(tmp_path)
    assert in_ranks(hybrid, tmp_path, 4) == [0] * 4, (tmp_path / "rank0.log").read_text()
    found = [read_json(tmp_path / f"{rank}.json") for rank in range(4)]
    held = [each["held"] for each in found]
    assert held[:2] == held[2:] and sum(held[:2]) == pytest.approx(1), "each node has a copy"
    losses, plain = found[0]["losses"]
    assert losses == pytest.approx(plain, rel=1e-5) and len(losses) == 6
    assert_same_bits(tmp_path / "cut", tmp_path / "node", "00000006")
    node, split = (
        checkpoint.load(tmp_path / name / "checkpoints/00000006" / checkpoint.WEIGHTS)
        for name in ("node", "split")
    )
    start = student().model.state_dict()
    assert node.keys() == split.keys() == start.keys()
    for name, value in node.items():
        assert value.shape == start[name].shape
        assert torch.allclose(value, split[name], atol=2e-5), name


def unequal(folder: Path) -> None:
    """Three ranks on two nodes, which cannot each have a copy."""
    os.environ["LOCAL_RANK"] = str(int(os.environ["RANK"]) % 2)
    with pytest.raises(DataError, match=r"the places \[0, 1, 0\] on theirs: write sharded: true"):
        processes.start().on_node()


def test_nodes_with_more_or_fewer_processes_than_others_are_refused(tmp_path):
    assert in_ranks(unequal, tmp_path, 3) == [0] * 3, (tmp_path / "rank0.log").read_text()
