"""CTC and what may be added to it: formulas, stopped gradients, exactness however a step is cut."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lact_asr.config.augment import AugmentConfig
from lact_asr.config.training import CTCConfig
from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import read_manifest
from lact_asr.data.specaugment import Masks
from lact_asr.distributed import processes
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.masks import length_mask
from lact_asr.training import train_step
from lact_asr.training.objective import CTCObjective, consistency, repeat_batch
from tests.lact_asr.tiny_runs import RATE, VOCABULARY, manifest, run, settings, tiny, tones
from tests.lact_asr.training.test_train_step import ALONE, precise, relative
from tests.ranks import in_ranks

EVERYTHING = CTCConfig(intermediate=(1,), intermediate_weight=0.4, consistency=0.3)


def spoken(folder: Path, rows: list[int]) -> Batch:
    return Reader(whole_corpus(read_manifest(folder / "tones.jsonl"), VOCABULARY))[rows]


class Halves:
    """Hides the first half of one view and the second half of the other: nothing is drawn."""

    def __call__(self, mel: torch.Tensor, lengths: torch.Tensor) -> Masks:
        places = torch.arange(mel.shape[1])
        first = places < lengths[:, None] // 2
        second = torch.arange(len(mel)) >= len(mel) // 2
        return Masks(first ^ second[:, None], torch.zeros(len(mel), mel.shape[2]).bool())


def test_the_total_is_the_formula_of_its_parts(tmp_path):
    manifest(tmp_path)
    batch, model = spoken(tmp_path, [0, 1, 2]), tiny(layers=2)
    masked = replace(batch, augment=Halves())
    loss = CTCObjective(model, EVERYTHING)(masked, 0.0)
    twice = repeat_batch(batch, 2)
    output = model(twice.waves, twice.wave_lengths, Halves())
    ctc, inner = (
        ctc_losses(model.read_out(states, output.lengths), output.lengths, twice).sum() / 2
        for states in (output.hidden[1], output.hidden[0])
    )
    one, other = output.log_probs.chunk(2)
    mask = length_mask(output.lengths[:3], one.shape[1])
    apart = sum(
        (p.exp() * (p - q)).sum(-1)[mask].sum() for p, q in ((one, other), (other, one))
    ) / 2  # fmt: skip
    expected = 0.6 * ctc + 0.4 * inner + 0.3 * apart
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    found = {name: part.value.item() for name, part in loss.parts.items()}
    assert found == pytest.approx(
        {"ctc": ctc.item(), "intermediate": inner.item(), "consistency": apart.item()}, rel=1e-6
    )
    assert loss.weight == batch.target_lengths.sum()
    assert apart > 0.001 * ctc


def test_a_block_in_between_is_read_out_with_the_lengths_of_the_output(tmp_path, monkeypatch):
    """A head that normalizes over frames, like the baseline's, must not count padding."""
    manifest(tmp_path)
    batch, model, seen = spoken(tmp_path, [0, 1, 2]), tiny(layers=2), []
    read_out = model.read_out
    monkeypatch.setattr(
        model, "read_out", lambda states, lengths: seen.append(lengths) or read_out(states, lengths)
    )
    CTCObjective(model, CTCConfig(intermediate=(1,)))(batch, 0.0)
    expected = model.output_lengths(batch.wave_lengths).tolist()
    assert [lengths.tolist() for lengths in seen].count(expected) == len(seen) > 0
    assert len(set(expected)) > 1


def test_without_additions_it_is_plain_ctc(tmp_path):
    manifest(tmp_path)
    batch, model = spoken(tmp_path, [0, 1]), tiny()
    output = model(batch.waves, batch.wave_lengths)
    loss = CTCObjective(model)(batch, 0.0)
    assert loss.total == ctc_losses(output.log_probs, output.lengths, batch).sum()
    assert loss.parts == {}


def test_consistency_draws_each_view_to_the_other_and_padding_counts_nothing():
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 6, requires_grad=True)
    lengths = torch.tensor([5, 3, 5, 3])
    consistency(logits.log_softmax(-1), lengths).backward()
    p = logits.detach().softmax(-1)
    mask = length_mask(lengths, 5)[:, :, None]
    expected = (p - p.roll(2, 0)) / 2 * mask  # d KL(sg t || softmax x) / dx = softmax x - t
    assert torch.allclose(logits.grad, expected, atol=1e-6)
    same = torch.randn(2, 5, 6).log_softmax(-1).repeat(2, 1, 1)
    assert consistency(same, lengths) == 0


def gradient(batches: list[list[int]], folder: Path, world=ALONE) -> torch.Tensor:
    """The gradient of one step with everything added, over micro-batches of the manifest."""
    read = [replace(spoken(folder, rows), augment=Halves()) for rows in batches]
    objective = CTCObjective(precise(tiny(layers=2)), EVERYTHING)
    optimizer = torch.optim.SGD(objective.trainable.parameters(), lr=0.0)
    setting = train_step.Setting(settings(optim={"clip_norm": 1e9}), world, torch.device("cpu"))
    train_step.take_step(
        world.wrap(train_step.ObjectiveModule(objective)), optimizer, read, 0.0, setting, False, {}
    )
    return torch.cat([p.grad.flatten() for p in objective.trainable.parameters()]).clone()


def gradient_of_a_rank(folder: Path) -> None:
    world = processes.start()
    mine = [[0, 1, 2], [3]] if world.main else [[4, 5], [6, 7]]
    torch.save(gradient(mine, folder, world), folder / f"{world.rank}.pt")


def test_additions_are_exact_under_accumulation_and_over_ranks(tmp_path):
    manifest(tmp_path)
    expected = gradient([[0, 1, 2, 3, 4, 5, 6, 7]], tmp_path)
    assert relative(gradient([[0, 1, 2], [3], [4, 5, 6, 7]], tmp_path), expected) < 1e-6
    assert in_ranks(gradient_of_a_rank, tmp_path, 2) == [0, 0]
    for rank in range(2):
        assert relative(torch.load(tmp_path / f"{rank}.pt"), expected) < 1e-6


def test_blocks_that_the_model_does_not_have_are_refused():
    for layer in (0, 2, 9):
        with pytest.raises(ValueError, match=r"has 2 blocks.*choose among 1 to 1"):
            CTCObjective(tiny(layers=2), CTCConfig(intermediate=(layer,)))


def test_heard_twice_a_batch_keeps_its_budget_and_a_resumed_run_its_bits(tmp_path):
    seconds = []

    class Watched(CTCObjective):
        def __call__(self, batch, progress):
            seconds.append(batch.waves.numel() / RATE)
            return super().__call__(batch, progress)

    train = tones(tmp_path, 12)
    given = {"augment": AugmentConfig(time_masks=5), "batch_seconds": 12.0}
    objective = lambda: Watched(tiny(), CTCConfig(consistency=0.2))
    _, whole = run(tmp_path / "whole", train, objective(), **given)
    assert max(seconds) <= 6.0
    run(tmp_path / "cut", train, objective(), stop_at=4, **given)
    _, rest = run(tmp_path / "cut", train, objective(), **given)
    assert rest.losses() == {step: loss for step, loss in whole.losses().items() if step > 4}
    assert all({"ctc", "consistency"} <= line.keys() for line in whole.metrics if "loss" in line)
