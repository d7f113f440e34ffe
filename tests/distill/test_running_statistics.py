"""Ranks that hear different speech have the same running statistics after each step."""

from pathlib import Path

import pytest
import torch

from distill.models.masked_layers import MaskedNorm
from distill.models.teacher import Teacher
from lact_asr.distributed import processes
from lact_asr.distributed.processes import World
from lact_asr.training import train_step
from lact_asr.training.objective import CTCObjective
from lact_asr.utils.files import read_json, write_json
from tests.distill.test_bad_data import emergency
from tests.distill.tiny_models import batch
from tests.lact_asr.tiny_runs import settings
from tests.ranks import in_ranks

SHARES = [0, 1], [2, 3, 4]


def statistics(model: Teacher) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if "running" in name}


def steps(speech: Path, share: list[int], world: World) -> tuple[dict, dict]:
    """Running statistics of one rank after a step that is taken, and after one that is dropped."""
    objective = CTCObjective(emergency().train())
    module = world.wrap(train_step.ObjectiveModule(objective))
    optimizer = torch.optim.SGD(objective.trainable.parameters(), lr=0.0)
    found = []
    for highest in (torch.inf, 0.0):
        setting = train_step.Setting(settings(), world, torch.device("cpu"), highest)
        heard = batch(speech, 5).rows(share)
        outcome = train_step.take_step(module, optimizer, [heard], 0.0, setting, False, {})
        assert outcome.taken is (highest > 0)
        kept = statistics(objective.model)
        found.append({name: value.clone() for name, value in kept.items()})
    return found[0], found[1]


def rank(folder: Path) -> None:
    world = processes.start()
    speech = Path(read_json(folder / "speech.json"))
    torch.save(steps(speech, SHARES[world.rank], world), folder / f"{world.rank}.pt")


def test_all_ranks_have_the_mean_of_what_each_has_heard(speech: Path, tmp_path: Path) -> None:
    """Also behind a step that is dropped; nothing is sent before a forward pass."""
    write_json(tmp_path / "speech.json", str(speech))
    assert in_ranks(rank, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    alone = [steps(speech, share, World())[0] for share in SHARES]
    assert any(isinstance(each, MaskedNorm) for each in emergency().modules())
    for number in range(2):
        taken, dropped = torch.load(tmp_path / f"{number}.pt")
        assert taken.keys() == dropped.keys() == alone[0].keys() and taken
        for name, value in taken.items():
            torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)
            assert torch.equal(value, dropped[name])
    first, second = (torch.load(tmp_path / f"{number}.pt")[0] for number in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.allclose(alone[0][name], alone[1][name]) for name in first)


def wrapped(folder: Path) -> None:
    world = processes.start()
    module = world.wrap(train_step.ObjectiveModule(CTCObjective(emergency())))
    write_json(folder / f"{world.rank}.json", module.broadcast_buffers)


@pytest.mark.parametrize("ranks", [2])
def test_no_buffer_is_sent_around(tmp_path: Path, ranks: int) -> None:
    assert in_ranks(wrapped, tmp_path, ranks) == [0] * ranks
    assert [read_json(tmp_path / f"{number}.json") for number in range(ranks)] == [False] * ranks
