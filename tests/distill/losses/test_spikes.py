"""That what a teacher says is still said on a student's frames, whatever their ratio."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.config.distillation import DistillConfig
from distill.losses.kd import Outputs
from distill.losses.spikes import REACH, shown_frames, take_frames
from distill.losses.time_grid import average
from lact_asr.decoding.greedy import collapse
from lact_asr.model.interface import CTCOutput
from lact_asr.text.vocabulary import Vocabulary
from tests.distill.test_objective import noise

SYMBOLS = 4  # the blank among them


def spoken(path: list[int], symbols: int = SYMBOLS) -> Tensor:
    """[1,T,V] log-probabilities of a teacher with this best path: symbols at 0.95, blanks 0.99."""
    best = torch.tensor(path)
    sure = torch.tensor(0.95).where(best > 0, 0.99)[:, None]
    frames = ((1 - sure) / (symbols - 1)).repeat(1, symbols)
    return frames.scatter(1, best[:, None], sure).log()[None]


def labels(log_probs: Tensor) -> list[int]:
    """Its greedy labels."""
    return collapse(log_probs.argmax(-1), torch.tensor([log_probs.shape[1]]))[0]


def shown(teacher: Tensor, ratio: float) -> Tensor:
    """The teacher on a student's frames."""
    frames, size = teacher.shape[1], math.ceil(teacher.shape[1] / ratio)
    places = shown_frames(teacher, torch.tensor([frames]), torch.tensor([size]), size, ratio)
    return take_frames(teacher, places)


def least_blank(teacher: Tensor, ratio: int) -> Tensor:
    """The frame of each window that is least sure to be blank, for whole ratios."""
    windows = teacher[0, : teacher.shape[1] // ratio * ratio].unflatten(0, (-1, ratio))
    least = windows[..., 0].argmin(1)
    return windows[torch.arange(len(windows)), least][None]


def overlap(some: list[int], other: list[int]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for one in some:
        before = row[:]
        for place, two in enumerate(other, 1):
            row[place] = before[place - 1] + 1 if one == two else max(before[place], row[place - 1])
    return row[-1]


def test_of_99_spikes_at_half_the_rate_all_stay_where_the_mean_leaves_21_and_the_least_blank_78():
    """99 different symbols, each in one frame of 300 drawn without order."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(300, generator=generator)[:99].sort().values
    path = torch.zeros(300, dtype=torch.int64)
    path[places] = torch.arange(1, 100)
    teacher = spoken(path.tolist(), symbols=500)
    assert labels(teacher) == list(range(1, 100))
    mean = average(teacher.exp(), torch.tensor([300]), 150, 2.0).log()
    kept = [overlap(labels(teacher), labels(each)) for each in (mean, least_blank(teacher, 2))]
    assert kept == [21, 78]
    assert labels(shown(teacher, 2.0)) == labels(teacher)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([1, 0, 2, 0, 3, 0], [1, 2, 3]),
        ([1, 2, 0, 0, 3, 0], [1, 2, 3]),  # the second of two is moved where there is room
        ([1, 0, 1, 0, 0, 0], [1, 0, 1]),  # and a symbol said twice is parted
        ([1, 1, 1, 1, 0, 0], [1, 1, 0]),  # what lasts for two windows still does
        ([0, 0, 0, 0, 2, 3], [0, 2, 3]),
    ],
)
def test_each_symbol_has_a_frame_of_its_own_near_its_own_time(path, expected):
    assert shown(spoken(path), 2.0).argmax(-1)[0].tolist() == expected


paths = st.lists(st.tuples(st.integers(0, SYMBOLS - 1), st.integers(1, 5)), min_size=1, max_size=20)


def has_room(path: list[int], ratio: float) -> bool:
    """Whether a path's labels have places in order, none moved by more than REACH."""
    size, place, before = math.ceil(len(path) / ratio), -1, 0
    runs = [t for t, symbol in enumerate(path) if symbol and (t == 0 or path[t - 1] != symbol)]
    for start in runs:
        wanted = min(int((start + 0.5) / ratio), size - 1)  # equally sure frames: the first is it
        place = max(place + 1 + (path[start] == before), wanted - REACH, 0)
        if place > min(wanted + REACH, size - 1):
            return False
        before = path[start]
    return True


# the second run is moved to the left, and behind it lies a window of it and of its predecessor
MOVED = [(0, 5), (1, 4), (2, 3), (0, 8), (2, 1), (0, 1), (2, 1), (0, 2)]


@example(MOVED, 4.0)
@given(paths, st.sampled_from([0.4, 0.5, 0.75, 1.0, 4 / 3, 1.5, 2.0, 2.5, 3.0, 4.0]))
@settings(max_examples=400, deadline=None)
def test_every_label_survives_wherever_there_is_room_for_it(runs, ratio):
    path = [symbol for symbol, length in runs for _ in range(length)]
    teacher = spoken(path)
    if has_room(path, ratio):
        assert labels(shown(teacher, ratio)) == labels(teacher)


@given(paths, st.sampled_from([0.5, 1.5, 2.0, 3.0]), st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_what_is_shown_is_the_teachers_own_and_near_and_does_not_come_from_padding(
    runs, ratio, padding
):
    path = [symbol for symbol, length in runs for _ in range(length)]
    teacher, frames = spoken(path), len(path)
    size = math.ceil(frames / ratio)
    junk = torch.cat([teacher, spoken([1, 2, 3, 1, 2, 3, 1])[:, :padding]], dim=1)
    wide = math.ceil(junk.shape[1] / ratio)
    alone = shown_frames(teacher, torch.tensor([frames]), torch.tensor([size]), size, ratio)
    padded = shown_frames(junk, torch.tensor([frames]), torch.tensor([size]), wide, ratio)
    assert padded[:, :size].equal(alone)
    middles = (torch.arange(size) + 0.5) * ratio
    assert ((alone[0] + 0.5 - middles).abs() <= (REACH + 1) * max(ratio, 1)).all()


def test_a_symbol_that_only_nearly_wins_is_still_seen():
    """Of two blank frames the one is shown that says more beside the blank."""
    teacher = spoken([0, 0, 1, 0])
    teacher[0, 1] = torch.tensor([0.55, 0.02, 0.41, 0.02]).log()
    assert shown(teacher, 2.0)[0, 0].equal(teacher[0, 1])


def test_rows_of_a_batch_do_not_know_of_each_other():
    paths = [[1, 2, 0, 3, 0, 0, 2, 2], [0, 1, 0, 0, 0, 0, 0, 0]]
    together = torch.cat([spoken(path) for path in paths])
    covered, lengths = torch.tensor([4, 1]), torch.tensor([8, 2])
    both = shown_frames(together, lengths, covered, 4, 2.0)
    for row in range(2):
        one = slice(row, row + 1)
        alone = shown_frames(together[one], lengths[one], covered[one], 4, 2.0)
        assert both[one, : covered[row]].equal(alone[:, : covered[row]])


@pytest.mark.parametrize("ratio", [1.5, 2.0, 4.0])
def test_every_spike_is_taught_to_a_student_of_longer_frames(ratio):
    """Of averages there was nothing above a blank: `guided`, `nonblank` taught nothing."""
    teacher = spoken([0, 1, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0])
    size = math.ceil(12 / ratio)
    lengths, mask = torch.tensor([12]), torch.ones(1, size, dtype=torch.bool)
    said = CTCOutput(teacher, lengths, [])
    even = torch.full((1, size, SYMBOLS), -math.log(SYMBOLS))
    heard, letters = CTCOutput(even, mask.sum(1), []), Vocabulary(["A", "B", "C"])
    for config, frame in (
        (DistillConfig(kd="guided"), math.log(SYMBOLS)),
        (DistillConfig(blank_policy="nonblank", temperature=1.0), math.log(SYMBOLS) - 0.253),
    ):
        kd = Outputs(config, letters, letters, ratio=ratio, rate=25 / ratio)
        paid = kd(heard, said, mask, noise(1), torch.tensor(1.0))
        assert float(paid) == pytest.approx(3 * frame, rel=1e-3)
