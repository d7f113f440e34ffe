"""The LaCT layer: window attention and fast weights side by side on one shared query, key and
value.

Attention carries the neighbourhood, the fast weights carry the rest of the utterance; their sum
goes through one output projection. Legend: B utterances, L tokens, D width; attention heads are
D/Ha wide, fast heads d = D/H wide.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lact_asr.config.model import ModelConfig
from lact_asr.model.fast_weights import State, Weights, fast_mlp, wide
from lact_asr.model.interface import FastUse, Gate
from lact_asr.model.masks import length_mask
from lact_asr.model.ttt import test_time_training
from lact_asr.model.window_attention import Layout, attend, may_attend, rotary_of, rotate

EPS = 1e-5


@dataclass(frozen=True)
class Past:
    """What a stream of tokens leaves for those that follow: its size does not grow with it."""

    keys: Tensor  # [B,W-1,Ha,D/Ha] turned, of the last tokens; fewer at the beginning
    values: Tensor
    place: int  # tokens so far
    fast: State | None  # the fast weights, and the tokens that they have not learned from yet


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis, computed in float32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type."""
        # One kernel, forward and backward. The other's gradient is wrong if compiled (torch 2.11).
        if x.is_cuda or torch.compiler.is_compiling():
            return F.rms_norm(wide(x), self.weight.shape, self.weight, self.eps).to(x.dtype)
        result = _RMSNorm.apply(wide(x), self.weight, self.eps)  # type: ignore[no-untyped-call] # torch's
        return result.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """RMS norm for the CPU, where PyTorch takes the backward pass apart into many.

    1,600 tokens x 256, forward and backward on one thread: 1.0 ms, and 3.3 with F.rms_norm.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
        scale = torch.rsqrt(squares / x.shape[-1] + eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        product = gradient * x
        learned = scale.flatten() @ product.flatten(0, -2)
        along = (product @ weight)[..., None] * scale**3 / -x.shape[-1]
        return (gradient * weight).mul_(scale).addcmul_(x, along), learned, None


class LaCTLayer(nn.Module):
    """Window attention plus fast weights; parameters are named as in the published layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.hidden, config.lact_heads
        size = width // heads
        inner = int(size * config.fast_width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(width, EPS) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width, EPS) if config.qk_norm else nn.Identity()
        self.qk_scale = nn.Parameter(torch.ones(width, 2))
        self.qk_offset = nn.Parameter(torch.zeros(width, 2))
        self.w0 = nn.Parameter(torch.randn(heads, inner, size) / math.sqrt(size))
        self.w1 = nn.Parameter(torch.randn(heads, size, inner) / math.sqrt(inner))
        self.w2 = nn.Parameter(torch.randn(heads, inner, size) / math.sqrt(size))
        self.ttt_norm = RMSNorm(size, EPS)
        self.ttt_scale_proj = Gate(width, heads)
        if config.schedule != "off":  # a parameter that learns nothing would be dead weight
            self.lr_proj = Gate(width, 3 * heads)
            if config.momentum:
                self.momentum_proj = Gate(width, heads)

    def forward(self, x: Tensor, layout: Layout) -> tuple[Tensor, State | None]:
        """Normalized tokens [B,L,D] to their mix [B,L,D], and the fast weights at their end."""
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = self.q_norm(q), self.k_norm(k)
        with torch.autocast(x.device.type, enabled=False):
            near = self._attention(q, k, v, layout)
            far, state = self._fast(wide(x), q, k, v, layout.rotary, layout.lengths)
        return self.o_proj(near + far), state

    def stream(self, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """The mix of normalized tokens [B,L,D] that follow those of the past; and theirs.

        Causal schedule only: any cut of a stream into pieces gives what one piece gives.
        ValueError for a layer that looks ahead.
        """
        if not self.config.causal:
            raise ValueError(
                f"schedule {self.config.schedule} looks ahead: a stream needs apply_then_update"
            )
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = self.q_norm(q), self.k_norm(k)
        with torch.autocast(x.device.type, enabled=False):
            rotary = rotary_of(self.config, x, past.place if past else 0)
            near, past_near = self._attention_on(q, k, v, rotary, past)
            far, fast = self._fast(wide(x), q, k, v, rotary, None, past.fast if past else None)
        return self.o_proj(near + far), replace(past_near, fast=fast)

    def _attention_on(
        self, q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor], past: Past | None
    ) -> tuple[Tensor, Past]:
        """Attention [B,L,D] of a stream's next tokens, over the last ones too."""
        q, k, v = (x.unflatten(-1, (self.config.attention_heads, -1)) for x in (q, k, v))
        q, k, fresh = rotate(q, rotary), rotate(k, rotary), q.shape[1]
        if past:
            k, v = torch.cat((past.keys, k), 1), torch.cat((past.values, v), 1)
        before = k.shape[1] - fresh
        places = torch.arange(k.shape[1], device=q.device)
        allowed = may_attend(self.config, places[before:, None], places, k.shape[1])
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=allowed
        )
        kept = k.shape[1] - min(self.config.window - 1, k.shape[1])
        place = (past.place if past else 0) + fresh
        return out.transpose(1, 2).flatten(2), Past(k[:, kept:], v[:, kept:], place, None)

    def log_attention(self, x: Tensor, layout: Layout) -> Tensor:
        """Logarithm of the attention weights [B,Ha,L,L] on normalized tokens [B,L,D], for those who
        compare them; -inf outside the window.
        """
        q, k, _ = self.qkv(x).chunk(3, -1)
        with torch.autocast(x.device.type, enabled=False):
            q, k = (
                rotate(wide(t).unflatten(-1, (self.config.attention_heads, -1)), layout.rotary)
                for t in (self.q_norm(q), self.k_norm(k))
            )
            scores = torch.einsum("bqhw,bkhw->bhqk", q, k) / math.sqrt(q.shape[-1])
            places = torch.arange(x.shape[1], device=x.device)
            lengths = layout.lengths[:, None, None]
            allowed = may_attend(self.config, places[:, None], places, lengths)  # [B,L,L]
            return scores.masked_fill(~allowed[:, None], -torch.inf).log_softmax(-1)

    def fast_use(self, x: Tensor, state: State, lengths: Tensor) -> FastUse:
        """What the fast weights, now at the end of normalized tokens [B,L,D], made of them."""
        steps = self._step_sizes(wide(x)).mean(-1).unflatten(0, (len(x), -1)).mean(1)  # [B,L]
        inside = length_mask(lengths, x.shape[1])
        changes = [
            _norms(now.unflatten(0, (len(x), -1)) - before) / _norms(before)  # [B,H]
            for now, before in zip(state.weights, (self.w0, self.w1, self.w2), strict=True)
        ]
        step_size = (steps * inside).sum(1) / lengths.clamp(min=1)
        return FastUse(step_size, torch.stack(changes).mean((0, 2)))

    def _step_sizes(self, x: Tensor) -> Tensor:
        """Step sizes of tokens [B,L,D] for the three matrices: [B*H,L,3]."""
        start = math.log(math.expm1(self.config.base_step))
        return self._rows(F.softplus(self.lr_proj(x) + start), x.dtype)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.config.attention_heads, -1)) for x in (q, k, v))
        dropout = self.config.attention_dropout if self.training else 0.0
        return attend(rotate(q, layout.rotary), rotate(k, layout.rotary), v, layout, dropout)

    def _fast(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotary: tuple[Tensor, Tensor],
        lengths: Tensor | None,
        state: State | None = None,
    ) -> tuple[Tensor, State | None]:
        """The fast branch [B,L,D], in the type of v, and the state of the fast weights, if any."""
        q, k = (
            torch.addcmul(self.qk_offset[:, i], t, self.qk_scale[:, i]) for i, t in ((0, q), (1, k))
        )
        q, k = (self._rows(self._directions(t, rotary), v.dtype) for t in (q, k))
        y, state = self._read(x, q, k, self._rows(F.silu(v), v.dtype), lengths, state)
        y = self.ttt_norm(y.unflatten(0, (len(x), -1))).transpose(1, 2)  # [B,L,H,d]
        scale = F.silu(self.ttt_scale_proj(x))  # [B,L,H]
        return (y * scale[..., None].to(y.dtype)).flatten(2), state

    def _directions(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """silu, unit length per fast head, rotary per attention head: [B,L,D]."""
        x = F.silu(wide(x)).unflatten(-1, (self.config.lact_heads, -1))
        x = x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + EPS)
        heads = x.flatten(2).unflatten(-1, (self.config.attention_heads, -1))
        return rotate(heads, rotary).flatten(2)

    def _rows(self, x: Tensor, kind: torch.dtype) -> Tensor:
        """[B,L,H*n] to one row per utterance and head, [B*H,L,n]."""
        heads = x.unflatten(-1, (self.config.lact_heads, -1))
        return heads.transpose(1, 2).flatten(0, 1).to(kind)

    def _read(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State | None]:
        """Fast weights on rows [B*H,L,d], from the state of an earlier piece if there is one."""
        config = self.config
        weights = Weights(*(w.repeat(len(x), 1, 1) for w in (self.w0, self.w1, self.w2)))
        if config.schedule == "off":
            return fast_mlp(weights, q), None
        steps = self._step_sizes(x)
        gate = self._rows(self.momentum_proj(x).sigmoid(), x.dtype) if config.momentum else None
        y, state = test_time_training(
            *weights,
            q,
            k,
            v,
            *steps.split(1, -1),
            schedule=config.schedule,
            chunk_size=config.chunk,
            momentum=gate,
            orthogonalize=None if config.orthogonalize == "none" else config.orthogonalize,
            prenorm=config.prenorm,
            lengths=lengths,
            state=state,
        )
        if config.causal and q.shape[1] <= (config.chunk or 0):
            # Too short to learn from; DDP still waits for a gradient of every parameter.
            y = y + 0 * (steps.sum() if gate is None else steps.sum() + gate.sum())
        return y, state


def _norms(matrices: Tensor) -> Tensor:
    """Frobenius norms of matrices [...,rows,columns]."""
    return torch.linalg.matrix_norm(wide(matrices))
