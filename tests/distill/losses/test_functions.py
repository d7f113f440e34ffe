"""Losses against closed forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.losses import functions as losses


def distributions(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_a_uniform_student_costs_tau_squared_times_ln_v_minus_the_entropy(temperature):
    teacher, size = distributions(0, 2, 5, 29), 29
    uniform = torch.full((2, 5, size), -math.log(size))
    softened = (teacher / temperature).softmax(-1)
    entropy = -(softened * softened.log()).sum(-1)
    expected = temperature**2 * (math.log(size) - entropy)
    dense = losses.frame_kd(uniform, teacher, temperature)
    torch.testing.assert_close(dense, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [None, 1, 7, 28])
def test_a_student_equal_to_its_teacher_costs_nothing_and_is_not_moved(k):
    logits = 3 * torch.randn(2, 5, 29, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    student, teacher = logits.log_softmax(-1), logits.log_softmax(-1)
    if k is None:
        value = losses.frame_kd(student, teacher, 3.0)
    else:
        value = losses.top_k_kd(student, losses.top_k(teacher, k, 3.0), 3.0)
    value.sum().backward()
    assert value.abs().max() < 1e-5
    assert logits.grad.abs().max() < 1e-5


def test_the_gradient_is_tau_times_the_difference_of_softened_distributions():
    logits = torch.randn(1, 3, 29, requires_grad=True)
    teacher = distributions(2, 1, 3, 29).requires_grad_()
    losses.frame_kd(logits.log_softmax(-1), teacher, 2.0).sum().backward()
    expected = 2.0 * ((logits / 2).softmax(-1) - (teacher / 2).softmax(-1))
    torch.testing.assert_close(logits.grad, expected, atol=1e-5, rtol=1e-4)
    assert teacher.grad is None, "the teacher is not taught"


def test_symbols_and_a_bucket_never_cost_more_than_the_full_divergence():
    for seed in range(200):
        size, k = 5 + seed % 60, 1 + seed % 4
        temperature = (1.0, 2.0, 3.0)[seed % 3]
        teacher = distributions(seed, 1, 1, size, scale=1 + seed % 5)
        student = distributions(1000 + seed, 1, 1, size, scale=1 + seed % 3)
        full = losses.frame_kd(student, teacher, temperature).item()
        part = losses.top_k_kd(student, losses.top_k(teacher, k, temperature), temperature).item()
        assert -1e-5 <= part <= full + 1e-5
        whole = losses.top_k(teacher, size, temperature)  # size - 1 symbols and a bucket of one
        assert losses.top_k_kd(student, whole, temperature).item() == pytest.approx(full, abs=1e-4)


def test_small_logits_cost_half_the_sum_of_variances_at_any_temperature():
    generator = torch.Generator().manual_seed(0)
    student = 0.2 * torch.randn(400, 1, 300, generator=generator)
    teacher = 0.3 * torch.randn(400, 1, 300, generator=generator)
    expected = (0.2**2 + 0.3**2) / 2
    for temperature in (1.0, 2.0, 4.0):
        value = losses.frame_kd(student.log_softmax(-1), teacher.log_softmax(-1), temperature)
        assert value.mean().item() == pytest.approx(expected, rel=0.05)


def test_without_the_blank_only_the_choice_among_symbols_counts():
    teacher = distributions(3, 2, 5, 29)
    moved = teacher.clone()
    moved[..., 0] += 4.0  # far more blank, the symbols in the same proportions
    moved = moved.log_softmax(-1)
    assert losses.frame_kd(moved, teacher, 1.0).mean() > 0.1
    without = losses.frame_kd(losses.drop_blank(moved), losses.drop_blank(teacher), 1.0)
    assert without.abs().max() < 1e-5
    torch.testing.assert_close(losses.drop_blank(teacher).exp().sum(-1), torch.ones(2, 5))


@pytest.mark.parametrize(
    ("policy", "reach", "frames"),
    [
        ("all", 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("drop_class", 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("nonblank", 1, [3, 7]),
        ("selected", 0, [3, 7]),
        ("selected", 1, [2, 3, 4, 6, 7]),
        ("selected", 2, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_frames_are_chosen_by_what_the_teacher_says(policy, reach, frames):
    path = torch.tensor([[0, 0, 0, 5, 0, 0, 0, 2, 9, 9]])  # the last two are padding
    teacher = F.one_hot(path, 10).float().log_softmax(-1)
    mask = (torch.arange(10) < 8)[None]
    chosen = losses.select_frames(teacher, mask, policy, reach)
    assert chosen[0].nonzero()[:, 0].tolist() == frames


def test_guiding_asks_for_the_teachers_symbol_where_it_says_one():
    teacher = F.one_hot(torch.tensor([[0, 3, 0, 1]]), 4).float().log_softmax(-1)
    student = distributions(4, 1, 4, 4)
    cost = losses.guided(student, teacher)
    assert cost[0].tolist() == pytest.approx(
        [0, -student[0, 1, 3].item(), 0, -student[0, 3, 1].item()]
    )


def test_the_feature_loss_is_about_two_at_the_start_whatever_the_scale():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 50, 144, generator=generator)
    teacher = 10 * torch.randn(4, 50, 144, generator=generator) + 3
    value = losses.layer_norm_mse(student, teacher)
    assert value.mean().item() == pytest.approx(2.0, abs=0.02)
    assert value.min() >= 0 and value.max() <= 4
    torch.testing.assert_close(
        losses.layer_norm_mse(student, 7 * teacher - 2), value, atol=1e-3, rtol=0
    )
    assert losses.layer_norm_mse(teacher, 2 * teacher + 1).max() < 1e-4
    assert losses.layer_norm_mse(teacher, -teacher).mean().item() == pytest.approx(4.0, abs=1e-3)


def test_the_cosine_distance_is_about_one_at_the_start():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 50, 144, generator=generator)
    assert losses.cosine_distance(student, 10 * teacher).mean().item() == pytest.approx(
        1.0, abs=0.02
    )
    assert losses.cosine_distance(student, 3 * student).abs().max() < 1e-5


def test_masked_sums_do_not_see_padding_even_if_it_is_nan():
    values = torch.tensor([[1.0, 2.0, torch.nan], [4.0, torch.inf, 8.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    total = losses.masked_sum(values, mask)
    total.backward()
    assert total.item() == 7
    assert values.grad.equal(mask.float())
