"""One step: its gradient is that of one big batch, however the batch is split."""

import contextlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import read_manifest
from lact_asr.distributed import fsdp, processes
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.ctc import uniform_ctc_loss
from lact_asr.training import train_step
from lact_asr.training.loss import Loss, Outcome, Part
from lact_asr.training.objective import CTCObjective, Objective
from tests.lact_asr.tiny_runs import VOCABULARY, manifest, settings, tiny, tones
from tests.ranks import in_ranks

ALONE = processes.World()


def gradient(batches: list[list[int]], folder: Path, world=ALONE, pad: int = 0):
    """The gradient of one step over these micro-batches of the manifest in a folder."""
    return gradient_of(batches, folder, world, pad)[:2]


def gradient_of(
    batches: list[list[int]], folder: Path, world=ALONE, pad: int = 0, sharded: bool = False
):
    """The gradient, the outcome, and the model, split over the ranks if that is asked for."""
    reader = Reader(whole_corpus(read_manifest(folder / "tones.jsonl"), VOCABULARY))
    read = [padded(reader[each], pad) for each in batches]
    objective = CTCObjective(precise(tiny()))
    if sharded:
        model = objective.model
        fsdp.shard(model, objective.trainable, model.blocks)
    optimizer = torch.optim.SGD(objective.trainable.parameters(), lr=0.0)
    setting = train_step.Setting(settings(optim={"clip_norm": 1e9}), world, torch.device("cpu"))
    module = world.wrap(train_step.ObjectiveModule(objective))
    outcome = train_step.take_step(module, optimizer, read, 0.0, setting, False, {})
    flat = [fsdp.full(p.grad).flatten() for p in objective.trainable.parameters()]
    return torch.cat(flat), outcome, objective.model


def precise(model: Recognizer) -> Recognizer:
    """The model in float64 behind its features: rounding must not hide a small mistake.

    In float32 eight single utterances differ by 1.3e-6 from one batch of them, here by 8e-8.
    """
    model.double().features.float()
    model.features.register_forward_hook(lambda _, __, output: (output[0].double(), output[1]))
    return model


def padded(batch: Batch, samples: int) -> Batch:
    return replace(batch, waves=torch.nn.functional.pad(batch.waves, (0, samples)))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def gradient_of_a_rank(folder: Path) -> None:
    """Half of the micro-batches, of unequal sizes, as one of two ranks."""
    world = processes.start()
    mine = [[0, 1, 2], [3]] if world.main else [[4, 5], [6, 7]]
    found, outcome = gradient(mine, folder, world)
    torch.save((found, outcome.loss, outcome.grad_norm), folder / f"{world.rank}.pt")


def test_gradients_know_nothing_of_padding_micro_batches_and_ranks(tmp_path):
    manifest(tmp_path)
    expected, outcome = gradient([[0, 1, 2, 3, 4, 5, 6, 7]], tmp_path)
    assert relative(gradient([[0, 1, 2, 3, 4, 5, 6, 7]], tmp_path, pad=9_999)[0], expected) < 1e-6
    assert relative(gradient([[0, 1, 2], [3], [4, 5, 6, 7]], tmp_path)[0], expected) < 1e-6
    assert in_ranks(gradient_of_a_rank, tmp_path, 2) == [0, 0]
    for rank in range(2):
        found, loss, norm = torch.load(tmp_path / f"{rank}.pt")
        assert relative(found, expected) < 1e-6
        assert (loss, norm) == pytest.approx((outcome.loss, outcome.grad_norm), rel=1e-6)


def test_the_loss_is_per_label_and_the_first_is_near_that_of_a_uniform_model(tmp_path):
    corpus = whole_corpus(manifest(tmp_path), VOCABULARY)
    model, labels = tiny(), [corpus.labels[index].tolist() for index in range(8)]
    frames = [model.output_lengths(round(s * 16_000)) for s in corpus.durations]
    uniform = sum(
        uniform_ctc_loss(t, y, len(VOCABULARY)) for t, y in zip(frames, labels, strict=True)
    )
    _, outcome = gradient([list(range(8))], tmp_path)
    assert outcome.weight == sum(map(len, labels))
    assert outcome.loss == pytest.approx(uniform / outcome.weight, rel=0.1)


def test_the_gradient_is_clipped_as_a_whole(tmp_path):
    manifest(tmp_path)
    expected, outcome = gradient([[0, 1]], tmp_path)
    assert outcome.grad_norm == pytest.approx(float(expected.norm()))
    given, config = torch.tensor([30.0, 40.0]), settings(optim={"clip_norm": 1.0})
    assert train_step._normalize([given], float(fsdp.norm([given])), 0.1, config) == 5.0
    assert given.tolist() == pytest.approx([0.6, 0.8])


def test_an_infeasible_utterance_costs_nothing_and_is_counted(tmp_path):
    good = tones(tmp_path, 2)
    bad = replace(good[0], text=good[0].text * 4)
    batch = Reader(whole_corpus([*good, bad], VOCABULARY))[[0, 1, 2]]
    clean = Reader(whole_corpus(good, VOCABULARY))[[0, 1]]
    objective = CTCObjective(tiny())
    loss = objective(batch, 0.0)
    assert float(loss.counts["zeroed"]) == 1
    assert loss.total.item() == pytest.approx(objective(clean, 0.0).total.item(), rel=1e-5)


@dataclass(frozen=True)
class Numbers:
    """A batch whose loss is `slope` times the one weight, for `labels` labels."""

    ids: list[str]
    slope: float = 1.0
    labels: float = 1.0
    amount: float = 1.0
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Numbers":
        return self


class Linear(Objective[Any, Any]):
    """One weight, which is 1, and a loss that shows what it is made of."""

    def __init__(self) -> None:
        self.model = self.trainable = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.trainable.weight)
        torch.nn.init.ones_(self.trainable.bias)  # takes no part in the loss
        self.told: list[float] = []
        self.half: list[bool] = []  # precision of each call

    def __call__(self, batch: Numbers, progress: float) -> Loss:
        self.told.append(progress)
        self.half.append(torch.is_autocast_enabled("cpu"))
        total = batch.slope * self.trainable.weight.sum()
        seen = {"second": Part(2 * total.detach(), torch.tensor(8.0)), "first": Part(total * 0 + 3)}
        return Loss(total, torch.tensor(batch.labels), seen, {"rows": torch.tensor(len(batch))})


def step_of(*batches: Numbers, **given: Any) -> tuple[Outcome, Linear]:
    objective, known = Linear(), given.pop("known", {})
    stop, progress = given.pop("stop", False), given.pop("progress", 0.5)
    precision = given.pop("precision", "fp32")
    clipped = settings(optim={"clip_norm": given.pop("clip_norm", 1e9)}, precision=precision)
    setting = train_step.Setting(clipped, ALONE, torch.device("cpu"), **given)
    optimizer = torch.optim.SGD(objective.trainable.parameters(), lr=1.0)
    for parameter in objective.trainable.parameters():
        parameter.grad = torch.full_like(parameter, 1000.0)  # of an earlier step
    module = train_step.ObjectiveModule(objective)
    outcome = train_step.take_step(module, optimizer, batches, progress, setting, stop, known)
    return outcome, objective


def test_what_a_step_came_to_is_summed_over_its_micro_batches_and_divided_once():
    some = Numbers(["a", "b"], slope=3.0, labels=2.0, amount=0.1, unreadable=[("x", "torn")])
    more = Numbers(["c"], slope=5.0, labels=6.0, amount=0.2, unreadable=[("y", "no such file")])
    outcome, objective = step_of(some, more, known={"x": "torn"})
    assert (outcome.loss, outcome.weight, outcome.amount) == (1.0, 8.0, 0.1 + 0.2)
    assert outcome.grad_norm == pytest.approx(1.0) and outcome.taken
    assert outcome.parts == {"first": Part(0.75), "second": Part(2.0, 2.0)}
    assert outcome.counts == {"rows": 3.0}
    assert outcome.unreadable == {"y": "no such file"}, "the other was known"
    assert outcome.suspects == [] and outcome.highest == math.inf
    assert outcome.stop is False and step_of(some, stop=True)[0].stop is True
    assert objective.told == [0.5, 0.5]
    assert objective.trainable.weight.item() == pytest.approx(0.0), "moved by the mean gradient"
    assert objective.trainable.bias.grad is None, "of zeros an optimizer would take decay for it"


def test_micro_batches_have_the_precision_asked_for_and_only_the_last_is_summed_over_all(
    monkeypatch,
):
    alone = []
    monkeypatch.setattr(
        train_step, "no_sync", lambda module: alone.append(module) or contextlib.nullcontext()
    )
    some = Numbers(["a"])
    assert step_of(some, some, some, precision="bf16")[1].half == [True] * 3
    assert len(alone) == 2 and isinstance(alone[0], train_step.ObjectiveModule)
    assert step_of(some)[1].half == [False] and len(alone) == 2


def test_a_data_parallel_wrapper_sees_all_that_an_objective_learns():
    objective = Linear()
    found = list(train_step.ObjectiveModule(objective).parameters())
    assert [id(each) for each in found] == [id(each) for each in objective.trainable.parameters()]


def test_labels_of_a_step_are_counted_in_float64():
    """In float32 the next number behind 2 ** 24 is 2 ** 24 + 2."""
    many, one = Numbers(["a"], labels=2.0**24), Numbers(["b"], labels=1.0)
    assert step_of(many, one)[0].weight == 2**24 + 1


def test_the_step_after_clipping_has_the_norm_that_is_allowed():
    outcome, objective = step_of(Numbers(["a"], slope=40.0, labels=2.0), clip_norm=0.25)
    assert outcome.grad_norm == pytest.approx(20.0)
    assert objective.trainable.weight.item() == pytest.approx(0.75, abs=1e-6)


def test_a_step_without_labels_or_with_a_gradient_too_large_moves_nothing_and_names_its_batches():
    empty, objective = step_of(Numbers(["a"], labels=0.0), Numbers(["b", "c"], labels=0.0))
    assert math.isnan(empty.loss) and math.isnan(empty.grad_norm) and empty.weight == 0
    assert all(math.isnan(part.value) for part in empty.parts.values())
    assert empty.suspects == ["a", "b", "c"] and objective.trainable.weight.item() == 1.0
    spike, objective = step_of(Numbers(["a"]), Numbers(["b"], slope=9.0), highest=4.99)
    assert spike.grad_norm == pytest.approx(5.0) and spike.highest == 4.99
    assert spike.suspects == ["a", "b"] and objective.trainable.weight.item() == 1.0
    assert step_of(Numbers(["a"], slope=5.0), highest=5.0)[0].taken, "the limit itself is followed"


def test_of_a_step_that_is_not_finite_the_broken_micro_batches_are_named_the_first_twenty():
    sound, broken = Numbers(["a"]), Numbers(["b", "c"], slope=math.inf)
    dropped, objective = step_of(sound, broken, sound)
    assert dropped.suspects == ["b", "c"] and objective.trainable.weight.item() == 1.0
    many = Numbers([str(number) for number in range(30)], slope=math.nan)
    assert step_of(many)[0].suspects == [str(number) for number in range(20)]
