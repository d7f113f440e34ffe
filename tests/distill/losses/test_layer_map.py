"""Layer maps: the even one, the given one, and the one that looks at what layers have in common."""

import itertools

import pytest
import torch

from distill.losses.layer_map import best_monotone, check, linear_cka, similarities, table, uniform


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (4, 4, [1, 2, 3, 4]),
        (3, 9, [3, 6, 9]),
        (4, 9, [2, 5, 7, 9]),
        (6, 3, [1, 1, 2, 2, 3, 3]),
        (1, 5, [5]),
    ],
)
def test_the_even_map_ends_on_the_last_layer(student, teacher, expected):
    assert uniform(student, teacher) == list(enumerate(expected, 1))


def test_a_given_map_is_kept_and_a_layer_that_is_not_there_is_named():
    assert check([(1, 2), (2, 2)], 2, 3) == [(1, 2), (2, 2)]
    with pytest.raises(ValueError, match=r"\[3, 1\] names no pair.*student has 2, the teacher 3"):
        check([(1, 1), (3, 1)], 2, 3)
    with pytest.raises(ValueError, match="counted from 1"):
        check([(1, 0)], 2, 3)


def test_alignment_sees_through_rotation_and_scale_and_nothing_else():
    torch.manual_seed(0)
    x, noise = torch.randn(500, 8), torch.randn(500, 12)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    assert linear_cka(x, 7 * x @ rotation + 3) == pytest.approx(1.0, abs=1e-6)
    assert linear_cka(x, noise) < 0.05
    assert 0.3 < linear_cka(x, x @ rotation + torch.randn(500, 8)) < 0.9
    assert linear_cka(x, torch.zeros(500, 3)) == 0


def test_only_the_frames_of_the_mask_are_looked_at():
    torch.manual_seed(0)
    x, mask = torch.randn(2, 50, 8), torch.ones(2, 50).bool()
    mask[1, 20:] = False
    other = x.masked_fill(~mask[..., None], 99.0)
    assert similarities([x], [other], mask).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_no_monotone_map_is_better_than_the_one_chosen(seed):
    similarity = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed))
    chosen = best_monotone(similarity)
    worth = lambda columns: sum(float(similarity[row, c]) for row, c in enumerate(columns))
    every = itertools.combinations_with_replacement(range(5), 4)
    columns = [teacher - 1 for _, teacher in chosen]
    assert columns == sorted(columns) and [s for s, _ in chosen] == [1, 2, 3, 4]
    assert worth(columns) == pytest.approx(max(map(worth, every)))


def test_the_table_marks_what_is_chosen_and_says_what_differs_from_the_even_map():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.3, 0.7]])
    pairs = best_monotone(similarity)
    assert pairs == [(1, 1), (2, 1)]
    lines = table(similarity, pairs).splitlines()
    assert lines[1].split()[2:] == ["0.90*", "0.10", "0.20", "t1", "instead", "of", "t2"]
    assert lines[2].endswith("t1 instead of t3")
