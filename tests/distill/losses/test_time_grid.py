"""Two frame rates on one grid, by hand-worked windows."""

import pytest
import torch

from distill.losses.time_grid import (
    average,
    covered_frames,
    fit,
    frame_rate,
    overlaps,
)
from distill.models.registry import FAMILIES
from lact_asr.config.model import SIZES
from tests.distill.tiny_models import tiny_baseline, tiny_teacher


def grid(lengths: list[int], frames: int, student_frames: int, ratio: float) -> torch.Tensor:
    return overlaps(torch.tensor(lengths), frames, student_frames, ratio)


def test_twice_the_rate_means_the_mean_of_two_frames():
    weights = grid([5, 3], frames=5, student_frames=3, ratio=2.0)
    assert weights[0].tolist() == [[0.5, 0.5, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1]]
    assert weights[1].tolist() == [[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_half_the_rate_means_that_every_frame_serves_twice():
    x = torch.arange(3.0).view(1, 3, 1)
    assert average(x, torch.tensor([3]), 6, 0.5)[0, :, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_an_odd_ratio_weighs_by_overlap():
    weights = grid([3], frames=3, student_frames=2, ratio=1.5)[0]
    torch.testing.assert_close(weights, torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]))


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5, 2.0])
def test_averages_never_come_from_padding(ratio):
    teacher, lengths, frames = torch.randn(2, 12, 7), torch.tensor([12, 5]), int(12 / ratio)
    junk = teacher.clone()
    junk[1, 5:] = torch.randn(7, 7)
    spoken = covered_frames(torch.tensor([frames, frames]), lengths, ratio)
    one, other = (average(each, lengths, frames, ratio) for each in (teacher, junk))
    torch.testing.assert_close(one[1, : spoken[1]], other[1, : spoken[1]])


def test_equal_rates_change_nothing_but_the_number_of_frames():
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(average(x, torch.tensor([5, 4]), 5, 1.0), x)
    assert fit(x, 4).equal(x[:, :4])
    assert fit(x, 7)[:, 5:].equal(x[:, 4:].expand(-1, 2, -1))


def test_a_student_frame_is_taught_if_it_starts_within_the_teachers_frames():
    student = torch.tensor([10, 10, 10])
    assert covered_frames(student, torch.tensor([20, 15, 30]), 2.0).tolist() == [10, 8, 10]
    assert covered_frames(student, torch.tensor([5, 4, 9]), 0.5).tolist() == [10, 8, 10]


def test_frame_rates_come_from_the_models_own_arithmetic():
    slow = SIZES["tiny"].model_dump() | {"subsampling": 8, "conv_layers": 3}
    assert frame_rate(FAMILIES["lact"](slow, 29)) == 12.5
    assert frame_rate(tiny_teacher()) == frame_rate(tiny_baseline()) == 25
