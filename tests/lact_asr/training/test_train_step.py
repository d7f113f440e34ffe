"""One step: its gradient is that of one big batch, however the batch is split."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import read_manifest
from lact_asr.distributed import fsdp, processes
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.ctc import uniform_ctc_loss
from lact_asr.training import train_step
from lact_asr.training.objective import CTCObjective
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
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.0)
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.tensor([30.0, 40.0])
    assert train_step._normalize(optimizer, 0.1, settings(optim={"clip_norm": 1.0})) == 5.0
    assert parameter.grad.tolist() == pytest.approx([0.6, 0.8])


def test_an_infeasible_utterance_costs_nothing_and_is_counted(tmp_path):
    good = tones(tmp_path, 2)
    bad = replace(good[0], text=good[0].text * 4)
    batch = Reader(whole_corpus([*good, bad], VOCABULARY))[[0, 1, 2]]
    clean = Reader(whole_corpus(good, VOCABULARY))[[0, 1]]
    objective = CTCObjective(tiny())
    loss = objective(batch, 0.0)
    assert float(loss.counts["zeroed"]) == 1
    assert loss.total.item() == pytest.approx(objective(clean, 0.0).total.item(), rel=1e-5)
