"""The mix layer: window attention and fast weights side by side on one shared query, key and value.

Attention carries the neighbourhood, the fast weights carry the rest of the utterance; their sum
goes through one output projection. Legend: B utterances, L tokens, D width; attention heads are
D/Ha wide, fast heads d = D/H wide.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lact_asr.config import ModelConfig
from lact_asr.features import valid
from lact_asr.lact import Weights, fast_mlp, test_time_training, wide

ROTARY_BASE = 10_000.0
EPS = 1e-5


@dataclass(frozen=True)
class Layout:
    """What every layer of one forward pass shares: lengths, positions, who may attend to whom."""

    lengths: Tensor  # [B] valid tokens
    rotary: tuple[Tensor, Tensor]  # cosine and sine [L, D/Ha/2]
    allowed: Tensor  # [B,1,L,L] True where a query (row) may look at a key (column)

    @classmethod
    def of(cls, config: ModelConfig, x: Tensor, lengths: Tensor) -> "Layout":
        """The layout of tokens x [B,L,D]."""
        places = torch.arange(x.shape[1], device=x.device)
        distance = places[:, None] - places
        if config.causal:
            near = (distance >= 0) & (distance < config.window)
        else:
            near = distance.abs() <= config.window // 2
        keys = valid(lengths, x.shape[1])[:, None, None, :]
        allowed = near & keys | (distance == 0)  # padding looks at itself: a row of none is NaN
        width = config.hidden // config.attention_heads
        exponents = torch.arange(0, width, 2, device=x.device, dtype=torch.float64) / width
        angles = places[:, None] * ROTARY_BASE**-exponents
        kind = wide(x).dtype
        return cls(lengths, (angles.cos().to(kind), angles.sin().to(kind)), allowed)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions on heads [B,L,heads,width]; channel i turns with channel i + width/2."""
    cosine, sine = (table[:, None, :] for table in rotary)
    first, second = wide(x).chunk(2, -1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, -1).to(x.dtype)


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis, computed in float32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type."""
        return F.rms_norm(wide(x), self.weight.shape, self.weight, self.eps).to(x.dtype)


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

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.config.attention_heads, -1)) for x in (q, k, v))
        q, k = rotate(q, layout.rotary), rotate(k, layout.rotary)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B,Ha,L,D/Ha]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.allowed)
        return out.transpose(1, 2).flatten(2)

    def _fast(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """The fast branch [B,L,D], in the type of v."""
        q, k = (t * self.qk_scale[:, i] + self.qk_offset[:, i] for i, t in enumerate((q, k)))
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
        return y, state.updates
