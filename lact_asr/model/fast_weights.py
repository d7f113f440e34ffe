"""One inner step of test-time training: the fast MLP, its gradient, and the update of its weights.

Each utterance and head owns a small gated MLP, f(x) = w1 (silu(w0 x) * (w2 x)). A step moves its
weights upwards on sum_t lr_t <f(k_t), v_t> over the tokens of a chunk, optionally with momentum and
with the change orthogonalized, then gives every row back the norm that it started with.

Legend: N utterances x heads (head fastest), C tokens, d width of keys, queries and values, h inner
width; values may have a width of their own, which is w1's too. Weights, norms, momenta and step
sizes are float32 (or wider) whatever the tokens' type: in bfloat16 a plain step (0.1 % of a weight)
is smaller than the spacing of the numbers (0.4 %).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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


class UpdateTokens(NamedTuple):
    """Tokens to learn from: keys and values [N,C,d], a step size per matrix, a momentum gate."""

    k: Tensor
    v: Tensor
    lr0: Tensor  # [N,C,1], positive
    lr1: Tensor
    lr2: Tensor
    momentum: Tensor | None  # [N,C,1] in 0..1

    def each(self, function: Callable[[Tensor], Tensor]) -> "UpdateTokens":
        """The same function on every tensor."""
        return UpdateTokens._make(x if x is None else function(x) for x in self)

    def part(self, start: int, size: int) -> "UpdateTokens":
        """Tokens from `start` on, `size` of them or what is left."""
        return self.each(lambda x: x[:, start : start + size])

    def followed_by(self, later: "UpdateTokens") -> "UpdateTokens":
        """These tokens, then the later ones."""
        pairs = zip(self, later, strict=True)
        return UpdateTokens._make(
            None if x is None or y is None else torch.cat((x, y), 1) for x, y in pairs
        )


@dataclass(frozen=True)
class State:
    """The fast weights of every row, and all that their next update needs."""

    weights: Weights  # in force
    norms: Weights  # row norms of the initial weights [N,rows,1]; every update returns to them
    masters: Weights | None  # never normalized, with prenorm
    momenta: Weights | None  # sums of gradients, before orthogonalization, with momentum
    updates: Tensor  # [N] inner steps so far
    waiting: Tensor  # [N] tokens since the last chunk border, read but not yet learned from
    pending: UpdateTokens | None = None  # those tokens, from the left; apply_then_update only

    @classmethod
    def initial(cls, weights: Weights, *, prenorm: bool, momentum: bool) -> "State":
        """Before the first token."""
        zero = torch.zeros(len(weights.w0), dtype=torch.long, device=weights.w0.device)
        return cls(
            weights=weights,
            norms=row_norms(weights),
            masters=weights if prenorm else None,
            momenta=Weights(*map(torch.zeros_like, weights)) if momentum else None,
            updates=zero,
            waiting=zero,
        )

    @property
    def updates_run(self) -> int:
        """Inner steps of the row that made the most; waits for the device."""
        return int(self.updates.max()) if len(self.updates) else 0


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is if wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fast_mlp(weights: Weights, x: Tensor) -> Tensor:
    """The fast function f on tokens [N,C,d], in the tokens' type."""
    w0, w1, w2 = (w.to(x.dtype) for w in weights)
    return (F.silu(x @ w0.mT) * (x @ w2.mT)) @ w1.mT


def inner_gradient(weights: Weights, tokens: UpdateTokens) -> Weights:
    """Gradient of sum_t lr_t <f(k_t), v_t> in each matrix, with that matrix's own step sizes."""
    k, v, lr0, lr1, lr2, _ = tokens
    w0, w1, w2 = (w.to(k.dtype) for w in weights)
    a, u, e = k @ w0.mT, k @ w2.mT, v @ w1  # [N,C,h]
    sigma = torch.sigmoid(a)
    gate = a * sigma
    slope = torch.lerp(gate, torch.ones_like(gate[:1, :1, :1]), sigma)  # silu'(a)
    g0, g1, g2 = (
        (x * lr).to(k.dtype) for x, lr in ((e * u * slope, lr0), (v, lr1), (e * gate, lr2))
    )
    return Weights(*map(wide, (g0.mT @ k, g1.mT @ (gate * u), g2.mT @ k)))


def row_norms(weights: Weights) -> Weights:
    """Euclidean norms over the last axis, kept as [N,rows,1]."""
    return Weights(*(torch.linalg.vector_norm(w, dim=-1, keepdim=True) for w in weights))


def update(
    state: State,
    tokens: UpdateTokens,
    orthogonalize: str | None,
    rows: Tensor | None = None,
    mask: Tensor | None = None,
) -> State:
    """One inner step of the chosen rows [N] from the tokens under the mask [N,C,1]."""
    if mask is not None:
        tokens = tokens._replace(
            lr0=tokens.lr0 * mask, lr1=tokens.lr1 * mask, lr2=tokens.lr2 * mask
        )
    change, momenta = inner_gradient(state.weights, tokens), None
    if tokens.momentum is not None and state.momenta is not None:
        beta = _mean(tokens.momentum, mask)
        change = momenta = Weights(*map(torch.add, change, (beta * m for m in state.momenta)))
    if orthogonalize:
        change = _orthogonal(change, orthogonalize)
    moved = Weights(*map(torch.add, state.masters or state.weights, change))
    scales = (r / (n + ROW_EPS) for r, n in zip(state.norms, row_norms(moved), strict=True))
    return replace(
        state,
        weights=_select_rows(rows, Weights(*map(torch.mul, moved, scales)), state.weights),
        masters=state.masters and _select_rows(rows, moved, state.masters),
        momenta=momenta and state.momenta and _select_rows(rows, momenta, state.momenta),
        updates=state.updates + (1 if rows is None else rows),
    )


def _mean(gate: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of a gate [N,C,1] over the tokens under the mask: [N,1,1]."""
    if mask is None:
        return gate.mean(1, keepdim=True)
    return (gate * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def _select_rows(rows: Tensor | None, new: Weights, old: Weights) -> Weights:
    """The new tensors in the chosen rows [N], the old ones elsewhere; None stands for all rows."""
    if rows is None:
        return new
    return Weights(*(torch.where(rows[:, None, None], n, o) for n, o in zip(new, old, strict=True)))


def _orthogonal(change: Weights, coefficients: str) -> Weights:
    """Newton-Schulz on each matrix; w1 goes transposed, so that all three make one batch."""
    if change.w1.mT.shape != change.w0.shape:  # values are not as wide as keys
        return Weights(*(newton_schulz(each, coefficients) for each in change))
    stack = torch.stack((change.w0, change.w1.mT, change.w2))
    w0, w1, w2 = newton_schulz(stack, coefficients).unbind()
    return Weights(w0, w1.mT, w2)


def newton_schulz(matrices: Tensor, coefficients: str | Sequence[Triple]) -> Tensor:
    """Nearly orthogonal matrices [...,rows,cols] with the singular vectors of the given ones.

    `coefficients` is "five_stage", "fixed" or the stages' triples. With "five_stage", singular
    values above 0.01 of the Frobenius norm land in 0.98..1.03. Computed in float32 or wider:
    bfloat16 puts entries off by up to 0.6.
    """
    stages = NEWTON_SCHULZ[coefficients] if isinstance(coefficients, str) else coefficients
    if torch.compiler.is_compiling():  # it chooses by itself what to keep
        return _iterate(wide(matrices), stages).to(matrices.dtype)
    result = _NewtonSchulz.apply(wide(matrices), stages)  # type: ignore[no-untyped-call] # torch's
    return result.to(matrices.dtype)


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
    x = _unit(x.mT if tall else x)
    for a, b, c in stages:
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.mT if tall else x


def newton_schulz_by_eigenvalues(matrix: Tensor, coefficients: str) -> Tensor:
    """`newton_schulz` of one matrix, for an optimizer on a CPU: the stages are polynomials of the
    Gram matrix, and those of its eigenvalues are cheap.

    On one thread a matrix of 192 x 192 takes 3.1 ms, and 5.1 with the stages' products; 1,024 x 192
    takes 5.7, and 15; 768 x 768 98, and 181. In spectral norm results are off by up to 1e-3 where
    the smallest singular value is a hundredth of the largest, and by up to 2 % where it lies within
    float32's rounding of that; the stages themselves end up to 3 % from what is orthogonal.

    One by one: LAPACK's last bits depend on where in memory a matrix begins, and in a stack that is
    anywhere.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = _unit(wide(matrix.mT if tall else matrix))
    values, vectors = torch.linalg.eigh(x @ x.mT)
    values = values.clamp(min=0)
    factors = torch.ones_like(values)
    for a, b, c in NEWTON_SCHULZ[coefficients]:
        p = a + b * values + c * values**2
        factors, values = factors * p, values * p**2
    x = (vectors * factors) @ vectors.mT @ x
    return (x.mT if tall else x).to(matrix.dtype)


def _unit(x: Tensor) -> Tensor:
    """Matrices of Frobenius norm 1, so that no singular value is above 1."""
    return x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
