"""A teacher's distributions on a student's frames: each shows one frame of the teacher's.

CTC says a symbol in one frame and blank around it. Where a student frame lasts for several of the
teacher's, the mean of their distributions lets the blanks win, and the least blank frame of each
window loses the second of two symbols in it and merges repeated ones.

So every symbol that the teacher says gets a student frame of its own: in order, with one between
the same symbol twice, and with the largest shift as small as can be. What is shown there is what
the teacher says at that symbol's surest frame; elsewhere, the frame of the window that is blank and
least sure of it. It always is a distribution of the teacher's own, and symbols are lost only where
more are said than frames can hold. Of 99 spikes in 300 frames, at half the rate, all stay the
likeliest; 21 of the mean, 78 of the least blank frame.

All is arithmetic on whole tensors: nothing waits for the device, nothing has a gradient.

Shapes: B batch, S student frames, T teacher frames, R runs (as many as frames, most not there).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lact_asr.model.masks import length_mask

REACH = 3  # student frames that a symbol is moved by at most: 120 ms at 25 Hz
FAR = 1 << 30  # behind all frames


@dataclass(frozen=True)
class Runs:
    """One symbol after the other on the teacher's best path, from the left."""

    peaks: Tensor  # [B,R] the surest frame of each
    rests: Tensor  # [B,R] the surest blank frame before the next one; T if there is none
    symbols: Tensor  # [B,R]
    there: Tensor  # [B,R] bool


def shown_frames(
    log_probs: Tensor, lengths: Tensor, covered: Tensor, size: int, ratio: float
) -> Tensor:
    """[B,S] the teacher frame that each student frame shows, of log_probs [B,T,V].

    `lengths` [B] frames of the teacher's are valid, `covered` [B] of the student's are taught; S is
    `size`, and `ratio` how many of the teacher's one of the student's lasts for.
    """
    frames = log_probs.shape[1]
    valid = length_mask(lengths, frames)
    peak, best = log_probs.detach().max(-1)  # [B,T]
    blank = log_probs.detach()[..., 0]
    best = best.masked_fill(~valid, 0)
    window = _windows(frames, size, ratio, covered)
    runs = _runs(peak, blank, best, valid)
    places = _places(runs, window, covered)
    shown = _quiet_frames(blank, best, valid, window, size, ratio)
    shown = _in_order(shown, best, places, runs)
    shown = _put(shown, places, runs.peaks, runs.there)
    return _part_repeats(shown, places, runs, window).clamp_max(frames - 1)


def take_frames(x: Tensor, shown: Tensor) -> Tensor:
    """[B,T,D] at the frames [B,S], [B,S,D]."""
    return x.gather(1, shown[..., None].expand(-1, -1, x.shape[-1]))


def _windows(frames: int, size: int, ratio: float, covered: Tensor) -> Tensor:
    """[B,T] the taught student frame in which the middle of each teacher frame lies."""
    middle = torch.arange(frames, device=covered.device) + 0.5
    last = (covered - 1).clamp_min(0)[:, None]
    return (middle / ratio).long().clamp_max(size - 1).minimum(last)


def _runs(peak: Tensor, blank: Tensor, best: Tensor, valid: Tensor) -> Runs:
    """What is said, from the likeliest symbols `best` and how likely they and the blank are."""
    before = torch.nn.functional.pad(best, (1, 0))[:, :-1]
    begins = (best != 0) & (best != before)
    number = begins.cumsum(1) - 1  # [B,T] of the run that a frame is in, or behind
    frames, begun = best.shape[1], number >= 0
    peaks = _best_of(peak, number.clamp_min(0), best != 0, frames)
    rests = _best_of(blank, number.clamp_min(0), (best == 0) & valid & begun, frames)
    symbols = best.gather(1, peaks.clamp_max(frames - 1))
    return Runs(peaks, rests, symbols, peaks < frames)


def _best_of(score: Tensor, group: Tensor, among: Tensor, groups: int) -> Tensor:
    """[B,groups] the frame with the highest score of each group [B,T]; T for one of no frame."""
    frames = score.shape[1]
    score = score.masked_fill(~among, -torch.inf)
    highest = score.new_full((len(score), groups), -torch.inf)
    highest = highest.scatter_reduce(1, group, score, "amax")
    here = torch.arange(frames, device=score.device).expand(score.shape)
    here = here.masked_fill(~among | (score < highest.gather(1, group)), frames)
    none = torch.full((len(score), groups), frames, device=score.device)
    return none.scatter_reduce(1, group, here, "amin")


def _places(runs: Runs, window: Tensor, covered: Tensor) -> Tensor:
    """[B,R] the student frame of each run, as near as order and room allow.

    Without the room that runs before it need, a place must not be left of the one before: the mean
    of the highest so far and the lowest to come is the monotone sequence with the smallest largest
    shift.
    """
    wanted = window.gather(1, runs.peaks.clamp_max(window.shape[1] - 1))
    again = torch.zeros_like(wanted)
    again[:, 1:] = (runs.symbols[:, 1:] == runs.symbols[:, :-1]).long()
    room = (torch.arange(wanted.shape[1], device=wanted.device) + again.cumsum(1)).where(
        runs.there, 0
    )
    free = wanted - room
    highest = free.masked_fill(~runs.there, -FAR).cummax(1).values
    lowest = free.masked_fill(~runs.there, FAR).flip(1).cummin(1).values.flip(1)
    last = (covered - 1).clamp_min(0)[:, None]
    most = last - room.amax(1, keepdim=True)
    places = ((highest + lowest) // 2).clamp_min(0).minimum(most) + room
    places = places.minimum(wanted + REACH).maximum(wanted - REACH)
    return places.clamp_min(0).minimum(last)


def _quiet_frames(
    blank: Tensor, best: Tensor, valid: Tensor, window: Tensor, size: int, ratio: float
) -> Tensor:
    """[B,S] what is shown where no run has its place: the frame of the window that is blank and
    least sure of it, else the blankest; where a window holds no middle, the frame that it lies in.
    """
    score = (2 - blank.exp()).where(best == 0, blank.exp())
    found = _best_of(score, window, valid, size)
    middle = torch.arange(size, device=blank.device) + 0.5
    inside = (middle * ratio).long().clamp_max(blank.shape[1] - 1)
    return found.where(found < blank.shape[1], inside)


def _in_order(shown: Tensor, best: Tensor, places: Tensor, runs: Runs) -> Tensor:
    """`shown` [B,S] without symbols behind their successors or before their predecessors, as a
    window of symbols alone has them where runs were moved: the run there lasts instead.
    """
    frames = best.shape[1]
    before, behind = torch.zeros_like(shown), torch.full_like(shown, frames - 1)
    before = before.scatter_reduce(1, places, runs.peaks.where(runs.there, 0), "amax")
    behind = behind.scatter_reduce(1, places, runs.peaks.where(runs.there, frames - 1), "amin")
    least, most = before.cummax(1).values, behind.flip(1).cummin(1).values.flip(1)
    said = best.gather(1, shown) != 0
    return shown.maximum(least).minimum(most).where(said, shown)


def _put(shown: Tensor, places: Tensor, frames: Tensor, there: Tensor) -> Tensor:
    """`shown` [B,S] with `frames` at `places` [B,R]; of two at one place the later one."""
    none = torch.full_like(shown, -1)
    put = none.scatter_reduce(1, places, frames.masked_fill(~there, -1), "amax")
    return put.where(put >= 0, shown)


def _part_repeats(shown: Tensor, places: Tensor, runs: Runs, window: Tensor) -> Tensor:
    """A blank frame between two runs of the same symbol, where there is room for one."""
    repeats = runs.symbols[:, 1:] == runs.symbols[:, :-1]
    before, after = places[:, :-1], places[:, 1:]
    rests = runs.rests[:, :-1]
    parted = repeats & runs.there[:, 1:] & (after - before > 1) & (rests < window.shape[1])
    own = window.gather(1, rests.clamp_max(window.shape[1] - 1))
    between = own.maximum(before + 1).minimum(after - 1).clamp_min(0)
    return _put(shown, between, rests, parted)
