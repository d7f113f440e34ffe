"""LaCT written as naively as can be: one row, one token, one matrix at a time, in float64.

It shares nothing with the package: the inner gradient comes from autograd on the inner objective,
Newton-Schulz loops over single matrices, attention loops over queries. Slow and plainly right.
"""

import math

import torch
from torch import Tensor

from lact_asr.config.model import ModelConfig

STAGES = {
    "five_stage": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
    "fixed": [(3.4445, -4.7750, 2.0315)] * 5,
}


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative Frobenius distance."""
    expected = expected.detach().double()
    return float((found.detach().double() - expected).norm() / expected.norm().clamp(min=1e-30))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def fast_function(weights: list[Tensor], x: Tensor) -> Tensor:
    w0, w1, w2 = weights
    return w1 @ (silu(w0 @ x) * (w2 @ x))


def orthogonal(matrix: Tensor, stages: list[tuple[float, float, float]]) -> Tensor:
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.square().sum().sqrt() + 1e-7)
    for a, b, c in stages:
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if tall else x


def gradients(
    weights: list[Tensor], k: Tensor, v: Tensor, steps: list[Tensor], span: range
) -> list[Tensor]:
    """Of sum_t step_t <f(k_t), v_t>, each matrix with its own steps; differentiable itself."""
    found = []
    for matrix, step in zip(weights, steps, strict=True):
        objective = sum(step[t] * (fast_function(weights, k[t]) * v[t]).sum() for t in span)
        found.append(torch.autograd.grad(objective, matrix, create_graph=True)[0])
    return found


class Row:
    """Fast weights of one utterance and head."""

    def __init__(self, weights: list[Tensor], prenorm: bool, orthogonalize: str | None) -> None:
        self.weights = [w if w.requires_grad else w.clone().requires_grad_() for w in weights]
        self.masters = list(self.weights)
        self.norms = [[row.square().sum().sqrt() for row in w] for w in self.weights]
        self.momenta = [torch.zeros_like(w) for w in weights]
        self.prenorm, self.orthogonalize, self.updates = prenorm, orthogonalize, 0

    def learn(
        self, k: Tensor, v: Tensor, steps: list[Tensor], gate: Tensor | None, span: range
    ) -> None:
        changes = gradients(self.weights, k, v, steps, span)
        if gate is not None:
            beta = sum(gate[t] for t in span) / len(span)
            self.momenta = [c + beta * m for c, m in zip(changes, self.momenta, strict=True)]
            changes = self.momenta
        if self.orthogonalize:
            changes = [orthogonal(c, STAGES[self.orthogonalize]) for c in changes]
        for i, change in enumerate(changes):
            moved = (self.masters if self.prenorm else self.weights)[i] + change
            rows = [
                row * norm / (row.square().sum().sqrt() + 1e-5)
                for row, norm in zip(moved, self.norms[i], strict=True)
            ]
            self.masters[i] = moved
            self.weights[i] = torch.stack(rows)
        self.updates += 1


def one_row(
    weights: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    steps: list[Tensor],
    *,
    schedule: str,
    chunk: int,
    gate: Tensor | None = None,
    orthogonalize: str | None = None,
    prenorm: bool = False,
) -> tuple[Tensor, Row]:
    """Output [L,d] and the final row; q, k, v [L,d], steps and gate [L]."""
    row = Row(weights, prenorm, orthogonalize)
    length = len(q)
    chunk = max(length, 1) if schedule == "set" else chunk
    outputs = []
    for start in range(0, length, chunk):
        span = range(start, min(start + chunk, length))
        if schedule != "apply_then_update":
            row.learn(k, v, steps, gate, span)
        outputs += [fast_function(row.weights, q[t]) for t in span]
        if schedule == "apply_then_update" and span.stop < length:
            row.learn(k, v, steps, gate, span)
    return torch.stack(outputs) if outputs else torch.zeros_like(v), row


def rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return gain * x / (x.square().mean() + eps).sqrt()


def rotated(x: Tensor, place: int, heads: int) -> Tensor:
    """Rotary position on one token [D]: in each head, channel i turns with channel i + width/2."""
    out = []
    for head in x.chunk(heads):
        half = len(head) // 2
        turned = [None] * len(head)
        for i in range(half):
            angle = place * 10_000.0 ** (-2 * i / len(head))
            a, b = head[i], head[i + half]
            turned[i] = a * math.cos(angle) - b * math.sin(angle)
            turned[i + half] = a * math.sin(angle) + b * math.cos(angle)
        out.append(torch.stack(turned))
    return torch.cat(out)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, window: int, causal: bool) -> Tensor:
    """[L,D] already rotated."""
    width = q.shape[1] // heads
    rows = []
    for i in range(len(q)):
        seen = [
            j
            for j in range(len(q))
            if (i - window < j <= i if causal else abs(i - j) <= window // 2)
        ]
        parts = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = torch.stack([q[i, part] @ k[j, part] for j in seen]) / math.sqrt(width)
            weights = scores.softmax(0)
            parts.append(sum(w * v[j, part] for w, j in zip(weights, seen, strict=True)))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def mix(x: Tensor, parameters: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """The LaCT layer on one utterance x [L,D], from the published description, step by step."""
    p, heads, fast = parameters, config.attention_heads, config.lact_heads
    qkv = [p["qkv.weight"] @ token for token in x]
    q, k, v = (torch.stack([token.chunk(3)[i] for token in qkv]) for i in range(3))
    if config.qk_norm:
        q = torch.stack([rms(token, p["q_norm.weight"], 1e-5) for token in q])
        k = torch.stack([rms(token, p["k_norm.weight"], 1e-5) for token in k])
    turn = lambda y: torch.stack([rotated(t, i, heads) for i, t in enumerate(y)])
    near = attention(turn(q), turn(k), v, heads, config.window, config.causal)
    far = []
    for h in range(fast):
        size = x.shape[1] // fast
        part = slice(h * size, (h + 1) * size)
        keyed = []
        for column, y in ((0, q), (1, k)):
            y = silu(y * p["qk_scale"][:, column] + p["qk_offset"][:, column])
            tokens = []
            for i, token in enumerate(y):
                units = [u / (u.square().sum().sqrt() + 1e-5) for u in token.chunk(fast)]
                tokens.append(rotated(torch.cat(units), i, heads)[part])
            keyed.append(torch.stack(tokens))
        start = math.log(math.exp(config.base_step) - 1)
        if config.schedule != "off":
            raw = x @ p["lr_proj.weight"].T + p["lr_proj.bias"] + start
            steps = [torch.log1p(torch.exp(raw[:, 3 * h + i])) for i in range(3)]
        gate = None
        if config.momentum:
            gate = torch.sigmoid(x @ p["momentum_proj.weight"].T + p["momentum_proj.bias"])[:, h]
        weights = [p["w0"][h], p["w1"][h], p["w2"][h]]
        if config.schedule == "off":
            y = torch.stack([fast_function(weights, token) for token in keyed[0]])
        else:
            y, _ = one_row(
                weights,
                *keyed,
                silu(v[:, part]),
                steps,
                schedule=config.schedule,
                chunk=config.chunk or 0,
                gate=gate,
                orthogonalize=None if config.orthogonalize == "none" else config.orthogonalize,
                prenorm=config.prenorm,
            )
        scale = silu(x @ p["ttt_scale_proj.weight"][h] + p["ttt_scale_proj.bias"][h])
        y = torch.stack([rms(token, p["ttt_norm.weight"], 1e-5) for token in y])
        far.append(y * scale[:, None])
    return (near + torch.cat(far, 1)) @ p["o_proj.weight"].T
