"""Self-attention and the transformer block of the teacher.

The original teacher's attention saturated. A clamp behind the output projection cannot bound the
scores Q K, is inactive at the start (max |x| is 0.3) and has no gradient where it acts; normalizing
queries and keys bounds the scores, and so does a soft cap on the scores themselves.

Shapes: B rows, S positions, D width, H heads, W = D / H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BASE = 10_000.0  # of the rotary wavelengths, positions
Rotary = tuple[Tensor, Tensor]  # cosine and sine [S,1,W/2]


def rotary(positions: int, width: int, device: torch.device) -> Rotary:
    """The tables that turn heads of this width by their position."""
    rates = BASE ** -(torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(positions, device=device)[:, None, None] * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: Rotary) -> Tensor:
    """Heads [B,S,H,W] turned in float32; channel i turns with channel i + W / 2."""
    cosine, sine = turn
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(x.dtype)


def capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    cap: float | None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention [B,H,S,W] over few positions, scores softly bounded by `cap`, in float32.

    Written out: the fused kernels take 65,535 rows at most, and the fusion has one per frame.
    """
    scores = query.float() @ key.float().transpose(-1, -2) / query.shape[-1] ** 0.5  # [B,H,S,S]
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights.to(value.dtype) @ value


class SelfAttention(nn.Module):
    """Multi-head attention over the positions where `seen` is True; every row needs one."""

    def __init__(
        self,
        width: int,
        heads: int,
        qk_norm: bool,
        cap: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        """`cap` and `dropout`, of the attention weights, are of sets, not of sequences."""
        super().__init__()
        self.heads, self.cap, self.dropout = heads, cap, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, seen: Tensor, turn: Rotary | None = None) -> Tensor:
        """[B,S,D] and `seen` to [B,S,D]: [B,S] bool, or [B,S,S] for each row its own.

        With `turn` positions are a sequence and the kernel is fused; without, they are a set and
        the scores may be capped.
        """
        q, k, v = self._heads(x, turn)
        if turn is not None:
            mask = seen[:, None, None] if seen.dim() == 2 else seen[:, None]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            dropped = self.dropout if self.training else 0.0
            mixed = capped_attention(q, k, v, seen, self.cap, dropped)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, turn: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [B,H,S,W]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # [B,S,H,W]
        q, k = self.q_norm(q.float()).to(v.dtype), self.k_norm(k.float()).to(v.dtype)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def log_attention(self, x: Tensor, seen: Tensor, turn: Rotary) -> Tensor:
        """Logarithm of the attention weights [B,H,S,S] of a sequence; -inf where not seen."""
        q, k, _ = self._heads(x, turn)
        scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
        mask = seen[:, None, None] if seen.dim() == 2 else seen[:, None]
        return scores.masked_fill(~mask, -torch.inf).log_softmax(-1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): norms first, so depth does not explode."""

    def __init__(self, width: int, heads: int, mlp: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, qk_norm)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor, turn: Rotary) -> Tensor:
        """[B,S,D] and [B,S] bool to [B,S,D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), seen, turn))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def log_attention(self, x: Tensor, seen: Tensor, turn: Rotary) -> Tensor:
        """Logarithm of the attention [B,H,S,S] that forward pays on [B,S,D]."""
        return self.attention.log_attention(self.attention_norm(x), seen, turn)
