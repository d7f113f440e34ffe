"""Large-chunk test-time training (LaCT): fast weights that learn from the utterance they read.

After Zhang et al. 2025, "Test-Time Training Done Right". The fast weights (`fast_weights.py`) start
from learned values for every utterance and take one gradient step per chunk of tokens. Three
schedules say which tokens see which step:

  set                 one step from all tokens, then all are read: offline
  update_then_apply   per chunk: step, then read the same chunk: latency of one chunk
  apply_then_update   per chunk: read, then step for later chunks, so not from the last: causal

Everything is differentiable through the steps. Chunks are counted from each utterance's own first
token, and a row without a token in a chunk keeps its state, so a padded batch equals separate runs.
Legend: N utterances x heads (head fastest), L tokens, C tokens a chunk, d width, h inner width.
"""

from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lact_asr.model.fast_weights import (
    State,
    UpdateTokens,
    Weights,
    fast_mlp,
    newton_schulz,
    update,
    wide,
)

__all__ = ["Schedule", "State", "newton_schulz", "test_time_training"]

Schedule = Literal["set", "update_then_apply", "apply_then_update"]


def test_time_training(
    w0: Tensor,
    w1: Tensor,
    w2: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lr0: Tensor,
    lr1: Tensor,
    lr2: Tensor,
    *,
    schedule: Schedule,
    chunk_size: int | None = None,
    momentum: Tensor | None = None,
    orthogonalize: str | None = None,
    prenorm: bool = False,
    lengths: Tensor | None = None,
    state: State | None = None,
) -> tuple[Tensor, State]:
    """Read tokens q [N,L,d] with fast weights that learn from k, v: output [N,L,d], final state.
    Values may have another width than keys and queries: it is the output's, and w1's first.

    Initial weights w0, w2 [N,h,d], w1 [N,d,h]; step sizes lr0, lr1, lr2 [N,L,1], positive; momentum
    gate [N,L,1] in 0..1. `lengths` [B] counts the valid tokens of each utterance, N // B rows each:
    later ones neither teach nor answer (their output is zero). `orthogonalize` is "five_stage" or
    "fixed". With `state`, the final state of an earlier call, the stream goes on where it stopped
    and w0, w1, w2 are not read.
    """
    tokens = UpdateTokens(k, v, lr0, lr1, lr2, momentum)
    _check(q, tokens, schedule, chunk_size, state)
    if state is None:
        weights = Weights(wide(w0), wide(w1), wide(w2))
        state = State.initial(weights, prenorm=prenorm, momentum=momentum is not None)
    if not q.shape[1]:
        return q.new_empty(v.shape), state
    counts = None if lengths is None else _row_counts(lengths, q)
    size = q.shape[1] if schedule == "set" or chunk_size is None else chunk_size
    if schedule == "apply_then_update":
        output, state = _look_back(state, q, tokens, size, orthogonalize, counts)
    else:
        output, state = _look_inside(state, q, tokens, size, orthogonalize, counts)
    return output if counts is None else output * _inside(counts, q), state


def _check(
    q: Tensor, tokens: UpdateTokens, schedule: str, chunk_size: int | None, state: State | None
) -> None:
    if schedule not in get_args(Schedule):
        raise ValueError(f"no schedule {schedule!r}: write {', '.join(get_args(Schedule))}")
    if schedule != "set" and (chunk_size is None or chunk_size < 1):
        raise ValueError(f"schedule {schedule!r} needs a chunk_size of 1 token or more")
    for name, x in tokens._asdict().items():
        width = {"k": q.shape[2], "v": tokens.v.shape[-1]}.get(name, 1)
        if x is not None and x.shape != (wanted := (*q.shape[:2], width)):
            raise ValueError(f"{name} has shape {tuple(x.shape)}, not {wanted}")
    if state is None:
        return
    if (state.momenta is None) != (tokens.momentum is None):
        raise ValueError("a stream has momentum from its first token to its last, or never")
    if schedule == "set":
        raise ValueError("schedule 'set' reads whole utterances and continues none")
    if schedule == "update_then_apply" and bool(state.waiting.any()):
        raise ValueError(
            f"update_then_apply continues at chunk borders only: feed multiples of {chunk_size}"
        )
    if state.pending is not None and state.pending.k.shape[1] != chunk_size:
        raise ValueError(f"the stream began with chunk_size {state.pending.k.shape[1]}")


def _row_counts(lengths: Tensor, q: Tensor) -> Tensor:
    """Valid tokens of each row [N], from those of each utterance [B]."""
    heads = len(q) // len(lengths)
    if heads * len(lengths) != len(q):
        raise ValueError(f"{len(q)} rows do not share out over {len(lengths)} utterances")
    return lengths.to(q.device).repeat_interleave(heads)


def _inside(counts: Tensor, x: Tensor) -> Tensor:
    """Which tokens of x [N,L,...] are valid: [N,L,1], in the type of x."""
    places = torch.arange(x.shape[1], device=x.device)
    return (places < counts[:, None])[:, :, None].to(x.dtype)


def _look_inside(
    state: State,
    q: Tensor,
    tokens: UpdateTokens,
    size: int,
    orthogonalize: str | None,
    counts: Tensor | None,
) -> tuple[Tensor, State]:
    """Step, then read the same chunk; `set` is the case of one chunk."""
    mask = None if counts is None else _inside(counts, tokens.lr0)
    outputs = []
    for number in range(-(-q.shape[1] // size)):  # a compiler of `set` must see one for any length
        start = number * size
        rows = None if counts is None else counts > start
        part = None if mask is None else mask[:, start : start + size]
        state = update(state, tokens.part(start, size), orthogonalize, rows, part)
        outputs.append(fast_mlp(state.weights, q[:, start : start + size]))
    waiting = state.waiting + (q.shape[1] if counts is None else counts)
    output = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
    return output, replace(state, waiting=waiting % size)


def _look_back(
    state: State,
    q: Tensor,
    tokens: UpdateTokens,
    size: int,
    orthogonalize: str | None,
    counts: Tensor | None,
) -> tuple[Tensor, State]:
    """Read each chunk; a row steps from it as soon as it has a token behind it."""
    waiting, length, ragged = state.waiting, q.shape[1], counts is not None
    if state.pending is not None:  # put each row's new tokens right behind its waiting ones
        places = torch.arange(size + length, device=q.device)
        gap = (size - waiting)[:, None]
        order = torch.where(places < waiting[:, None], places, places + gap)
        tokens = state.pending.followed_by(tokens).each(lambda x: _gather_tokens(x, order))
        q = _gather_tokens(F.pad(q, (0, 0, size, 0)), order)
        ragged = True
    counts = waiting + (length if counts is None else counts)
    outputs = []
    for start in range(0, q.shape[1], size):
        outputs.append(fast_mlp(state.weights, q[:, start : start + size]))
        if start + size < q.shape[1]:
            rows = counts > start + size if ragged else None
            state = update(state, tokens.part(start, size), orthogonalize, rows)
    output = torch.cat(outputs, 1)
    if state.pending is not None:
        output = _gather_tokens(output, waiting[:, None] + torch.arange(length, device=q.device))
    border = (counts - 1).clamp(min=0) // size * size  # [N] where the last chunk begins
    tail = border[:, None] + torch.arange(size, device=q.device)
    pending = tokens.each(lambda x: _gather_tokens(x, tail))
    return output, replace(state, pending=pending, waiting=counts - border)


def _gather_tokens(x: Tensor, places: Tensor) -> Tensor:
    """Tokens of x [N,L,d] at the places [N,M]; places past the end take the last token."""
    places = places.clamp(max=x.shape[1] - 1)[:, :, None]
    return x.gather(1, places.expand(-1, -1, x.shape[2]))
