"""What models attend to, and what a student pays for attending elsewhere than its teacher."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.config.distillation import DistillConfig
from distill.losses import functions as losses
from distill.models.attention import SelfAttention, rotary
from distill.objective import DistillObjective
from distill.teachers import Live
from lact_asr.distributed import fsdp, processes
from lact_asr.model.window_attention import Layout
from lact_asr.utils.errors import DataError
from tests.distill.test_objective import assert_close, gradients, noise, sum_of_one_rank, teacher_of
from tests.distill.tiny_models import VOCABULARY, part, tiny_baseline, tiny_teacher
from tests.lact_asr.tiny_runs import tiny
from tests.ranks import in_ranks


def random_maps(heads: int, size: int, seed: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(2, heads, size, size, generator=generator)
    return scores.log_softmax(-1)


def test_a_teachers_map_is_what_its_attention_mixes_with():
    torch.manual_seed(0)
    module, x = SelfAttention(32, 4, qk_norm=True), torch.randn(2, 9, 32)
    seen = torch.arange(9) < torch.tensor([[9], [6]])
    turn = rotary(9, 8, x.device)
    value = module.qkv(x).unflatten(-1, (3, 4, -1))[:, :, 2].transpose(1, 2)
    mixed = module.log_attention(x, seen, turn).exp() @ value
    expected = module.out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, seen, turn), expected)


@pytest.mark.parametrize("changes", [{}, {"window": 6}, {"schedule": "apply_then_update"}])
def test_a_recognizers_map_is_what_its_window_attention_mixes_with(changes):
    if "schedule" in changes:
        changes = {**changes, "chunk": 4, "window": 8}
    mix, x = tiny(**changes).blocks[0].mix, torch.randn(2, 40, 32)
    layout = Layout.of(mix.config, x, torch.tensor([40, 23]))
    q, k, v = mix.qkv(x).chunk(3, -1)
    used = mix._attention(mix.q_norm(q), mix.k_norm(k), v, layout)
    weights = mix.log_attention(x, layout).exp()
    value = v.unflatten(-1, (2, -1)).transpose(1, 2)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    valid = layout.lengths[:, None] > torch.arange(40)
    torch.testing.assert_close(mixed[valid], used[valid])


@pytest.mark.parametrize(("heads", "window"), [((2, 2), 99), ((2, 2), 2), ((2, 3), 3)])
def test_the_loss_is_the_divergence_of_each_row_over_what_both_see(heads, window):
    size, lengths = 7, [7, 4]
    student, teacher = (random_maps(h, size, seed) for seed, h in enumerate(heads))
    places = torch.arange(size)
    student = student.masked_fill((places[:, None] - places).abs() > window, -torch.inf)
    student = student.log_softmax(-1)
    seen = places < torch.tensor(lengths)[:, None]
    found = losses.attention(student, teacher, seen)
    for row in range(2):
        for query in range(lengths[row]):
            keys = [k for k in range(lengths[row]) if abs(query - k) <= window]
            rows = [maps[row, :, query, keys].double().exp() for maps in (student, teacher)]
            if heads[0] != heads[1]:
                rows = [each.mean(0, keepdim=True) for each in rows]
            mine, theirs = (each / each.sum(-1, keepdim=True) for each in rows)
            expected = (theirs * (theirs / mine).log()).sum(-1).mean()
            assert float(found[row, query]) == pytest.approx(float(expected), abs=1e-5)
    assert found.isfinite().all()


def test_equal_maps_cost_nothing_and_the_original_sum_over_heads_what_ours_averages():
    one, other = random_maps(12, 200, 0), random_maps(12, 200, 1)
    seen = torch.ones(2, 200).bool()
    assert float(losses.attention(one, one, seen).abs().max()) < 1e-5
    ours = float(losses.attention(one, other, seen).mean())
    assert ours == pytest.approx(1.0, abs=0.05)  # half the sum of two variances of 1
    original = float(losses.original_attention(one, other, seen, 2.0).mean())
    assert original == pytest.approx(
        12 * 1.0, rel=0.05
    )  # tau^2 undoes the softening of small scores
    spiked = torch.full((1, 1, 4, 4), -50.0)
    spiked[..., 0] = 0.0
    uniform = torch.full((1, 1, 4, 4), -math.log(4))
    worst = losses.attention(uniform, spiked, torch.ones(1, 4).bool())
    assert worst.flatten().tolist() == pytest.approx([math.log(4)] * 4, abs=1e-5)


def attentive(**changes: object) -> DistillObjective:
    config = DistillConfig(attention_weight=1.0, curriculum="all_on", **changes)
    source = Live(tiny_teacher(seed=1), VOCABULARY)
    return DistillObjective(tiny(layers=2), source, config, vocabulary=VOCABULARY)


@pytest.mark.parametrize("kind", ["rows", "original"])
def test_the_gradient_depends_neither_on_micro_batches_nor_on_padding(kind):
    taught, whole = attentive(attention=kind), noise()
    together = gradients(taught, [whole])
    assert_close(together, gradients(taught, [part(whole, rows) for rows in ([0], [3, 1], [2])]))


def test_the_objective_pays_for_the_last_blocks_by_the_curriculum():
    taught, spoken = attentive(), noise()
    taught.begin_step([spoken], sum_of_one_rank)
    loss = taught(spoken, 1.0)
    mine = taught.model(spoken.waves, spoken.wave_lengths, attention=True)
    theirs = teacher_of(taught)(spoken.waves, spoken.wave_lengths, attention=True)
    seen = mine.lengths[:, None] > torch.arange(mine.log_probs.shape[1])
    expected = losses.attention(mine.attention, theirs.attention, seen)[seen].mean().detach()
    assert float(loss.parts["attention"].value / loss.weight) == pytest.approx(
        float(expected), rel=1e-4
    )
    gated = DistillConfig(attention_weight=1.0)
    half = DistillObjective(tiny(), taught.source, gated, vocabulary=VOCABULARY).weights(0.25)
    assert half["attention"] == pytest.approx(0.5)


def test_those_who_cannot_say_what_they_attend_to_are_refused():
    config = DistillConfig(attention_weight=1.0)
    with pytest.raises(DataError, match=r"one of them cannot say .*family: lact"):
        DistillObjective(
            tiny_baseline(), Live(tiny_teacher(), VOCABULARY), config, vocabulary=VOCABULARY
        )
    with pytest.raises(DataError, match="wants the same frames on both sides"):
        DistillObjective(
            tiny(subsampling=2), Live(tiny_teacher(), VOCABULARY), config, vocabulary=VOCABULARY
        )


def split_rank(folder: Path) -> None:
    """The gradient of half the utterances, the student split over two ranks."""
    world = processes.start()
    taught, whole = attentive(), noise()
    fsdp.shard(taught.model, taught.trainable, taught.model.blocks, taught.model.attends)
    mine = part(whole, [0, 1] if world.main else [2, 3])
    taught.begin_step([mine], world.all_sum)
    loss = taught(mine, 1.0)
    (loss.total / world.all_sum(loss.weight.double())).backward()
    found = {name: fsdp.full(p.grad) for name, p in taught.model.named_parameters()}
    torch.save(found, folder / f"{world.rank}.pt")


def test_a_student_split_over_processes_compares_what_it_attends_to(tmp_path):
    assert in_ranks(split_rank, tmp_path, 2) == [0, 0], (tmp_path / "rank1.log").read_text()
    found = torch.load(tmp_path / "0.pt")
    whole = gradients(attentive(), [noise()])
    expected = {name.removeprefix("student."): value for name, value in whole.items()}
    assert_close({name: 2 * value for name, value in found.items()}, expected)  # a mean over ranks
