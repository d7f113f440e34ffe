"""The exact answers of health against torch's CTC."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lact_asr.text.ctc import adjacent_repeats, frames_needed, uniform_ctc_loss
from lact_asr.training.guard import non_finite

labels = st.lists(st.integers(1, 4), min_size=1, max_size=12)


def ctc(frames: int, targets: list[int], log_probs: torch.Tensor) -> float:
    """torch's loss, in float64."""
    target = torch.tensor([targets])
    lengths = (torch.tensor([frames]), torch.tensor([len(targets)]))
    return float(F.ctc_loss(log_probs[:, None], target, *lengths, reduction="sum"))


@given(labels, st.integers(0, 20), st.integers(5, 40))
def test_uniform_model_has_the_loss_of_the_closed_form(targets, extra, symbols):
    frames = frames_needed(targets) + extra
    log_probs = torch.full((frames, symbols), -math.log(symbols), dtype=torch.float64)
    expected = uniform_ctc_loss(frames, targets, symbols)
    assert ctc(frames, targets, log_probs) == pytest.approx(expected, rel=1e-9)


@given(labels)
def test_ctc_is_finite_with_the_frames_needed_and_infinite_with_one_less(targets):
    needed = frames_needed(targets)
    log_probs = torch.randn(needed, 6, dtype=torch.float64).log_softmax(-1)
    assert math.isfinite(ctc(needed, targets, log_probs))
    if needed > 1:
        assert ctc(needed - 1, targets, log_probs[:-1]) == math.inf
        assert uniform_ctc_loss(needed - 1, targets, 6) == math.inf


def test_only_equal_neighbours_are_repeats():
    assert adjacent_repeats([1, 1, 2, 1, 1, 1]) == 3
    assert adjacent_repeats([1, 2, 1, 2]) == adjacent_repeats([]) == 0


def test_the_parameter_that_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert non_finite(model) == []
    with torch.no_grad():
        model[1].bias[0] = math.nan
    model[0].weight.grad = torch.tensor([[1.0, math.inf], [0.0, 0.0]])
    assert non_finite(model) == ["1.bias"]
    assert non_finite(model, gradients=True) == ["0.weight"]
