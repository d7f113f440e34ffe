"""Large-chunk test-time training: the fast weights of LaCT (Zhang et al. 2025, "Test-Time Training
Done Right").

Each utterance and head owns a small gated MLP, f(x) = w1 (silu(w0 x) * (w2 x)), that starts from
learned weights and is trained while the utterance is read: one gradient step per chunk of tokens,
upwards on sum_t lr_t <f(k_t), v_t>. Three schedules say which tokens see which update:

  set                 one update from all tokens, then all are read: offline
  update_then_apply   per chunk: update, then read the same chunk: latency of one chunk
  apply_then_update   per chunk: read, then update for later chunks, so not from the last: causal

Everything is differentiable through the updates. Legend: N utterances x heads (head fastest), L
tokens, C tokens a chunk, d width of queries, keys and values, h inner width of the fast MLP. Fast
weights, norms and step sizes are float32 (or wider) whatever the tokens' type: in bfloat16 one
plain step is smaller than the spacing of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Schedule = Literal["set", "update_then_apply", "apply_then_update"]
Triple = tuple[float, float, float]

ROW_EPS = 1e-5
NEWTON_SCHULZ: dict[str, Sequence[Triple]] = {
    "five_stage": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "fixed": ((3.4445, -4.7750, 2.0315),) * 5,
}


class Weights(NamedTuple):
    """One tensor per fast matrix: gate w0 and up w2 [N,h,d], down w1 [N,d,h]."""

    w0: Tensor
    w1: Tensor
    w2: Tensor


@dataclass(frozen=True)
class Chunk:
    """Tokens to learn from: k, v [N,C,d], a step size per matrix and a momentum gate [N,C,1]."""

    k: Tensor
    v: Tensor
    steps: Weights
    momentum: Tensor | None

    def map(self, function: Any) -> "Chunk":
        """The same function on every tensor."""
        gate = None if self.momentum is None else function(self.momentum)
        steps = Weights(*map(function, self.steps))
        return Chunk(function(self.k), function(self.v), steps, gate)

    def followed_by(self, later: "Chunk") -> "Chunk":
        """These tokens, then the later ones."""
        gate = None
        if self.momentum is not None and later.momentum is not None:
            gate = torch.cat((self.momentum, later.momentum), 1)
        steps = (torch.cat(pair, 1) for pair in zip(self.steps, later.steps, strict=True))
        k, v = torch.cat((self.k, later.k), 1), torch.cat((self.v, later.v), 1)
        return Chunk(k, v, Weights(*steps), gate)


@dataclass(frozen=True)
class State:
    """What a stream carries on: the weights in force and all that the next update needs."""

    weights: Weights
    norms: Weights  # row norms of the initial weights, [N,rows,1]: every update returns to them
    masters: Weights | None  # unnormalised weights, with prenorm
    momenta: Weights | None  # sums of gradients before orthogonalisation, with momentum
    pending: Chunk | None  # read but not yet learned from (apply_then_update); filled from the left
    count: Tensor  # [N] tokens behind the last chunk border that still wait for their update
    updates: Tensor  # [N] inner steps so far

    @property
    def updates_run(self) -> int:
        """Inner steps of the row that made the most; waits for the device."""
        return int(self.updates.max()) if len(self.updates) else 0


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is if wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _NewtonSchulz(torch.autograd.Function):
    """Recomputes its stages in backward: saved, they are 15 d x d tensors per matrix and update."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, stages: Sequence[Triple]) -> Tensor:
        ctx.save_for_backward(matrices)
        ctx.stages = stages
        return _iterate(matrices, stages)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (matrices,) = ctx.saved_tensors
        with torch.enable_grad():
            matrices = matrices.detach().requires_grad_()
            result = _iterate(matrices, ctx.stages)
        return torch.autograd.grad(result, matrices, gradient)[0], None


def _iterate(x: Tensor, stages: Sequence[Triple]) -> Tensor:
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for a, b, c in stages:
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.mT if tall else x


def newton_schulz(matrices: Tensor, coefficients: str | Sequence[Triple]) -> Tensor:
    """Nearly orthogonal matrices [n,rows,cols] with the singular vectors of the given ones.

    `coefficients` is "five_stage", "fixed" or the stages' triples. With "five_stage", singular
    values above 0.01 of the Frobenius norm land in 0.98..1.03. Computed in float32 or wider:
    bfloat16 puts entries off by up to 0.6.
    """
    stages = NEWTON_SCHULZ[coefficients] if isinstance(coefficients, str) else coefficients
    return _NewtonSchulz.apply(wide(matrices), stages).to(matrices.dtype)


def fast_mlp(weights: Weights, x: Tensor) -> Tensor:
    """The fast function f on tokens [N,C,d], in the tokens' type."""
    w0, w1, w2 = (w.to(x.dtype) for w in weights)
    return (F.silu(x @ w0.mT) * (x @ w2.mT)) @ w1.mT


def inner_gradient(weights: Weights, chunk: Chunk) -> Weights:
    """Gradient of sum_t lr_t <f(k_t), v_t> in each matrix, with that matrix's own step sizes."""
    kind = chunk.k.dtype
    w0, w1, w2 = (w.to(kind) for w in weights)
    a, u, e = chunk.k @ w0.mT, chunk.k @ w2.mT, chunk.v @ w1  # [N,C,h]
    sigma = torch.sigmoid(a)
    gate = a * sigma
    slope = sigma + gate * (1 - sigma)
    scaled = [
        (x * step).to(kind)
        for x, step in zip((e * u * slope, chunk.v, e * gate), chunk.steps, strict=True)
    ]
    return Weights(scaled[0].mT @ chunk.k, scaled[1].mT @ (gate * u), scaled[2].mT @ chunk.k)


def _row_norms(weights: Weights) -> Weights:
    return Weights(*(torch.linalg.vector_norm(w, dim=-1, keepdim=True) for w in weights))


def _orthogonal(change: Weights, coefficients: str) -> Weights:
    """Newton-Schulz on each matrix; all three in one batch, since it commutes with transposing."""
    w0, w1, w2 = newton_schulz(
        torch.stack((change.w0, change.w1.mT, change.w2)), coefficients
    ).unbind()
    return Weights(w0, w1.mT, w2)


def _chosen(rows: Tensor | None, new: Weights | None, old: Weights | None) -> Weights | None:
    """The new tensors in the chosen rows [N], the old ones elsewhere; None chooses all rows."""
    if rows is None or new is None or old is None:
        return new
    return Weights(*(torch.where(rows[:, None, None], n, o) for n, o in zip(new, old, strict=True)))


def update(
    state: State,
    chunk: Chunk,
    orthogonalize: str | None,
    rows: Tensor | None = None,
    mask: Tensor | None = None,
) -> State:
    """One inner step of the chosen rows [N] from the chunk's tokens under the mask [N,C,1]."""
    if mask is not None:
        chunk = replace(chunk, steps=Weights(*(step * mask for step in chunk.steps)))
    change = momenta = Weights(*map(wide, inner_gradient(state.weights, chunk)))
    if chunk.momentum is None:
        momenta = None
    else:
        weight = torch.ones_like(chunk.momentum) if mask is None else mask
        beta = (chunk.momentum * weight).sum(1, True) / weight.sum(1, True).clamp(min=1)
        pairs = zip(change, state.momenta or change, strict=True)
        change = momenta = Weights(*(c + beta * m for c, m in pairs))
    if orthogonalize:
        change = _orthogonal(change, orthogonalize)
    moved = Weights(*map(torch.add, state.masters or state.weights, change))
    weights = Weights(
        *(
            w * (norm / (size + ROW_EPS))
            for w, norm, size in zip(moved, state.norms, _row_norms(moved), strict=True)
        )
    )
    return replace(
        state,
        weights=_chosen(rows, weights, state.weights),
        masters=_chosen(rows, moved, state.masters) if state.masters else None,
        momenta=_chosen(rows, momenta, state.momenta),
        updates=state.updates + (1 if rows is None else rows.long()),
    )


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

    Initial weights w0, w2 [N,h,d], w1 [N,d,h]; step sizes lr0, lr1, lr2 [N,L,1], positive; momentum
    gate [N,L,1] in 0..1. `lengths` [B] counts the valid tokens of each utterance, N // B rows each:
    later ones neither teach nor answer (their output is zero). `orthogonalize` is "five_stage" or
    "fixed". With `state`, the final state of an earlier call, the stream goes on where it stopped
    and w0, w1, w2 are not read.
    """
    if schedule not in get_args(Schedule):
        raise ValueError(f"no schedule {schedule!r}: write {', '.join(get_args(Schedule))}")
    chunk = Chunk(k, v, Weights(lr0, lr1, lr2), momentum)
    counts = _counts(q, lengths)
    if state is None:
        state = _start(Weights(*map(wide, (w0, w1, w2))), counts, prenorm, momentum is not None)
    elif schedule == "set":
        raise ValueError("schedule 'set' reads whole utterances: it cannot continue from a state")
    if schedule == "set":
        chunk_size = max(q.shape[1], 1)
    if not chunk_size or chunk_size < 1:
        raise ValueError(f"schedule {schedule!r} needs a chunk_size of 1 or more tokens")
    run = _causal if schedule == "apply_then_update" else _inclusive
    ragged = lengths is not None
    output, state = run(state, q, chunk, counts, chunk_size, orthogonalize, ragged)
    return output if lengths is None else output * _inside(counts, q), state


def _counts(q: Tensor, lengths: Tensor | None) -> Tensor:
    """Valid tokens of each row [N]."""
    rows, size = q.shape[:2]
    if lengths is None:
        return torch.full((rows,), size, device=q.device)
    if rows % len(lengths):
        raise ValueError(f"{rows} rows cannot belong to {len(lengths)} lengths in equal parts")
    return lengths.to(q.device).repeat_interleave(rows // len(lengths))


def _inside(counts: Tensor, like: Tensor) -> Tensor:
    """Mask [N,L,1] of the valid tokens, in the type of `like` [N,L,d]."""
    places = torch.arange(like.shape[1], device=like.device)
    return (places < counts[:, None])[:, :, None].to(like.dtype)


def _start(weights: Weights, counts: Tensor, prenorm: bool, momentum: bool) -> State:
    return State(
        weights=weights,
        norms=_row_norms(weights),
        masters=weights if prenorm else None,
        momenta=Weights(*map(torch.zeros_like, weights)) if momentum else None,
        pending=None,
        count=torch.zeros_like(counts),
        updates=torch.zeros_like(counts),
    )


def _inclusive(
    state: State,
    q: Tensor,
    chunk: Chunk,
    counts: Tensor,
    size: int,
    orthogonalize: str | None,
    ragged: bool,
) -> tuple[Tensor, State]:
    """Each chunk is learned from, then read: update_then_apply, and set as its single chunk."""
    if bool(state.count.any()):
        raise ValueError("update_then_apply continues at a chunk border only: feed whole chunks")
    mask = _inside(counts, chunk.steps.w0) if ragged else None
    outputs = []
    for start in range(0, q.shape[1], size):
        part = slice(start, start + size)
        rows = counts > start if ragged else None
        inside = mask[:, part] if mask is not None else None
        state = update(state, chunk.map(lambda x: x[:, part]), orthogonalize, rows, inside)
        outputs.append(fast_mlp(state.weights, q[:, part]))
    return _joined(outputs, q), replace(state, count=counts % size)


def _causal(
    state: State,
    q: Tensor,
    chunk: Chunk,
    counts: Tensor,
    size: int,
    orthogonalize: str | None,
    ragged: bool,
) -> tuple[Tensor, State]:
    """Each chunk is read; a row learns from it as soon as it has a token behind it."""
    length, waiting = q.shape[1], state.count
    if state.pending is not None:  # put each row's new tokens right behind its waiting ones
        places = torch.arange(size + length, device=q.device).expand(len(q), -1)
        order = torch.where(places < waiting[:, None], places, places + size - waiting[:, None])
        chunk = state.pending.followed_by(chunk).map(lambda x: _picked(x, order))
        q = _picked(F.pad(q, (0, 0, size, 0)), order)
        ragged = True
    counts = waiting + counts
    outputs = []
    for start in range(0, q.shape[1], size):
        part = slice(start, start + size)
        outputs.append(fast_mlp(state.weights, q[:, part]))
        if start + size < q.shape[1]:
            rows = counts > start + size if ragged else None
            state = update(state, chunk.map(lambda x: x[:, part]), orthogonalize, rows)  # noqa: B023
    output = _joined(outputs, q)
    if state.pending is not None:
        output = _picked(output, waiting[:, None] + torch.arange(length, device=q.device))
    border = (counts - 1).clamp(min=0) // size * size  # [N] where the last chunk begins
    last = border[:, None] + torch.arange(size, device=q.device)
    pending = chunk.map(lambda x: _picked(x, last))
    return output, replace(state, pending=pending, count=counts - border)


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """Tokens [N,M,...] of x [N,L,d] at the places [N,M]; places past the end repeat the last."""
    places = places.clamp(max=x.shape[1] - 1)[:, :, None]
    return x.gather(1, places.expand(-1, -1, x.shape[2]))


def _joined(outputs: list[Tensor], like: Tensor) -> Tensor:
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1) if outputs else like
