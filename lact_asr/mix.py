"""The mix layer: window attention and fast weights side by side on one shared query, key and value.

Attention carries the neighbourhood, the fast weights carry the rest of the utterance; their sum
goes through one output projection. Legend: B utterances, L tokens, D width; attention heads are
D/Ha wide, fast heads d = D/H wide.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lact_asr.config import ModelConfig
from lact_asr.fast_weights import Weights, fast_mlp, wide
from lact_asr.lact import test_time_training

ROTARY_BASE = 10_000.0
EPS = 1e-5


@dataclass(frozen=True)
class Layout:
    """What every layer of one forward pass shares: lengths, positions, who may attend to whom.

    Attention works in blocks of queries, each with the span of keys in its reach, so that its cost
    grows with L, not L^2 (3,000 tokens: 28 ms against 455); a short batch is one block.
    """

    lengths: Tensor  # [B] valid tokens
    rotary: tuple[Tensor, Tensor]  # cosine and signed sine [L,1,D/Ha]
    block: int  # queries per block
    span: int  # keys per block
    before: int  # keys of a block's span that lie before its first query
    allowed: Tensor  # [B*blocks,1,block,span] True where a query may look at a key

    @classmethod
    def of(cls, config: ModelConfig, x: Tensor, lengths: Tensor) -> "Layout":
        """The layout of tokens x [B,L,D]."""
        size = x.shape[1]
        before = config.window - 1 if config.causal else config.window // 2
        after = 0 if config.causal else before
        block = max(before, 1)
        span = before + block + after
        if 2 * size <= 3 * span:  # measured: blocks win from 1.5 to 2 spans on
            block, span, before = max(size, 1), max(size, 1), 0
        allowed = _allowed(config, size, lengths, block, span, before)
        return cls(lengths, _rotary(config, x), block, span, before, allowed)


def _allowed(
    config: ModelConfig, size: int, lengths: Tensor, block: int, span: int, before: int
) -> Tensor:
    device = lengths.device
    starts = torch.arange(0, max(size, 1), block, device=device)[:, None, None]
    queries = starts + torch.arange(block, device=device)[:, None]  # [blocks,block,1]
    keys = starts - before + torch.arange(span, device=device)  # [blocks,1,span]
    return _may_look(config, queries, keys, lengths[:, None, None, None]).flatten(0, 1)[:, None]


def _may_look(config: ModelConfig, queries: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
    """Which keys each query may look at, places against places; padding looks at itself, for a row
    of the softmax without any key would be NaN.
    """
    distance = queries - keys
    if config.causal:
        near = (distance >= 0) & (distance < config.window)
    else:
        near = distance.abs() <= config.window // 2
    return near & (keys >= 0) & (keys < lengths) | (distance == 0)


def _rotary(config: ModelConfig, x: Tensor) -> tuple[Tensor, Tensor]:
    width = config.hidden // config.attention_heads
    places = torch.arange(x.shape[1], device=x.device, dtype=torch.float64)
    exponents = torch.arange(0, width, 2, device=x.device, dtype=torch.float64) / width
    angles = places[:, None, None] * ROTARY_BASE**-exponents  # [L,1,D/Ha/2]
    cosine = torch.cat((angles.cos(), angles.cos()), -1)
    sine = torch.cat((-angles.sin(), angles.sin()), -1)
    return cosine.to(wide(x).dtype), sine.to(wide(x).dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Softmax attention of heads [B,L,Ha,w] inside the layout's windows: [B,L,Ha*w]."""
    size = q.shape[1]
    blocks = -(-max(size, 1) // layout.block)
    fill = blocks * layout.block - size
    after = layout.span - layout.before - layout.block
    q = F.pad(q, (0, 0, 0, 0, 0, fill)).unflatten(1, (blocks, layout.block))
    k, v = (_spans(F.pad(x, (0, 0, 0, 0, layout.before, after + fill)), layout) for x in (k, v))
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))  # [B*blocks,Ha,...,w]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.allowed)
    out = out.transpose(1, 2).unflatten(0, (-1, blocks)).flatten(1, 2)
    return out[:, :size].flatten(2)


def _spans(x: Tensor, layout: Layout) -> Tensor:
    """Padded keys [B,L,Ha,w] as [B,blocks,span,Ha,w]; a span is 1 to 3 whole blocks.

    As unfold, whose backward pass is slower: 4.5 ms against 2.7 for 1,600 tokens x 256 on a CPU.
    """
    x = x.unflatten(1, (-1, layout.block))
    parts = layout.span // layout.block
    blocks = x.shape[1] - parts + 1
    return torch.cat([x[:, part : part + blocks] for part in range(parts)], 2)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions on heads [B,L,heads,width]; channel i turns with channel i + width/2."""
    cosine, sine = rotary
    partner = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cosine, partner, sine).to(x.dtype)


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis, computed in float32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type."""
        if x.is_cuda:  # one kernel there, forward and backward
            return F.rms_norm(wide(x), self.weight.shape, self.weight, self.eps).to(x.dtype)
        return _RMSNorm.apply(wide(x), self.weight, self.eps).to(x.dtype)


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


class Mix(nn.Module):
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
        self.ttt_scale_proj = nn.Linear(width, heads)
        if config.schedule != "off":  # a parameter that learns nothing would be dead weight
            self.lr_proj = nn.Linear(width, 3 * heads)
            if config.momentum:
                self.momentum_proj = nn.Linear(width, heads)

    def forward(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Normalised tokens [B,L,D] to their mix [B,L,D], and the updates of each row [B*H]."""
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = self.q_norm(q), self.k_norm(k)
        with torch.autocast(x.device.type, enabled=False):
            near = self._attention(q, k, v, layout)
            far, updates = self._fast(wide(x), q, k, v, layout)
        return self.o_proj(near + far), updates

    def look(self, x: Tensor, layout: Layout) -> Tensor:
        """Logarithm of the attention weights [B,Ha,L,L] on normalised tokens [B,L,D], for those who
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
            allowed = _may_look(self.config, places[:, None], places, lengths)  # [B,L,L]
            return scores.masked_fill(~allowed[:, None], -torch.inf).log_softmax(-1)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.config.attention_heads, -1)) for x in (q, k, v))
        return attend(rotate(q, layout.rotary), rotate(k, layout.rotary), v, layout)

    def _fast(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """The fast branch [B,L,D], in the type of v."""
        q, k = (
            torch.addcmul(self.qk_offset[:, i], t, self.qk_scale[:, i]) for i, t in ((0, q), (1, k))
        )
        q, k = (self._rows(self._directions(t, layout), v.dtype) for t in (q, k))
        y, updates = self._read(x, q, k, self._rows(F.silu(v), v.dtype), layout.lengths)
        y = self.ttt_norm(y.unflatten(0, (len(x), -1))).transpose(1, 2)  # [B,L,H,d]
        scale = F.silu(self.ttt_scale_proj(x))  # [B,L,H]
        return (y * scale[..., None].to(y.dtype)).flatten(2), updates

    def _directions(self, x: Tensor, layout: Layout) -> Tensor:
        """silu, unit length per fast head, rotary per attention head: [B,L,D]."""
        x = F.silu(wide(x)).unflatten(-1, (self.config.lact_heads, -1))
        x = x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + EPS)
        heads = x.flatten(2).unflatten(-1, (self.config.attention_heads, -1))
        return rotate(heads, layout.rotary).flatten(2)

    def _rows(self, x: Tensor, kind: torch.dtype) -> Tensor:
        """[B,L,H*n] to one row per utterance and head, [B*H,L,n]."""
        heads = x.unflatten(-1, (self.config.lact_heads, -1))
        return heads.transpose(1, 2).flatten(0, 1).to(kind)

    def _read(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fast weights on rows [B*H,L,d]."""
        config = self.config
        weights = Weights(*(w.repeat(len(x), 1, 1) for w in (self.w0, self.w1, self.w2)))
        if config.schedule == "off":
            return fast_mlp(weights, q), torch.zeros(len(q), dtype=torch.long, device=q.device)
        start = math.log(math.expm1(config.base_step))
        steps = self._rows(F.softplus(self.lr_proj(x) + start), x.dtype)  # [B*H,L,3]
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
        )
        if config.causal and q.shape[1] <= (config.chunk or 0):
            # Too short to learn from; DDP still waits for a gradient of every parameter.
            y = y + 0 * (steps.sum() if gate is None else steps.sum() + gate.sum())
        return y, state.updates
