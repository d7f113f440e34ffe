"""Fusion of modalities by attention, frame by frame, whichever of them are there.

Each frame is a short sequence: one token per modality and a learned null token that is always
there, so that no attention row is ever fully masked (PyTorch's gives NaN in that case, in training
with weights asked for and in evaluation on its fast path). What is absent is cleared before the
projection and masked behind it, never multiplied by zero: 0 * NaN is NaN, in the gradient too. A
learned vector in its place would never learn: no attention and no weight reaches a masked token.

Shapes: B batch, T frames, M modalities, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.models.attention import SelfAttention

BOUND = 10.0  # on the attention's output


def bound(x: Tensor, kind: str) -> Tensor:
    """x within 10: by a smooth curve (soft), by cutting it off (clamp), or as it is (none)."""
    if kind == "soft":
        return BOUND * torch.tanh(x / BOUND)
    return x.clamp(-BOUND, BOUND) if kind == "clamp" else x


def hide_some(present: Tensor, chance: float) -> Tensor:
    """[B,T,M] bool with each modality hidden per utterance at `chance`, never all it has."""
    batch, _, modalities = present.shape
    kept = torch.rand(batch, 1, modalities, device=present.device) >= chance
    left = (present & kept).any(dim=(1, 2), keepdim=True)
    return present & (kept | ~left)


class ModalityFusion(nn.Module):
    """Streams of different widths to one of width D, with a weight per modality and frame."""

    def __init__(
        self,
        inputs: Sequence[int],
        width: int,
        heads: int,
        *,
        qk_norm: bool = True,
        logit_cap: float | None = 50.0,
        output_cap: str = "soft",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        modality_dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.output_cap, self.modality_dropout = output_cap, modality_dropout
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in inputs)
        projections = [nn.Linear(size, width) for size in inputs]
        self.projections = nn.ModuleList(projections)
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight, gain=0.5)
            nn.init.zeros_(projection.bias)
        self.kinds = nn.Parameter(0.02 * torch.randn(len(inputs), width))  # which modality it is
        self.null = nn.Parameter(0.02 * torch.randn(width))
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, qk_norm, logit_cap, attention_dropout)
        self.dropout = nn.Dropout(dropout)
        self.gate = nn.Linear(width, 1)

    def forward(self, streams: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Streams [B,T,D_m], `present` [B,T,M] bool to [B,T,D] and weights [B,T,M+1]."""
        tokens, weights = self.attend(streams, present)
        return (weights[..., None] * tokens).sum(2), weights

    def attend(self, streams: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """What is fused: [B,T,M+1,D] with the null token last, and weights [B,T,M+1].

        Weights sum to one; an absent modality's is zero.
        """
        if self.training and self.modality_dropout:
            present = hide_some(present, self.modality_dropout)
        tokens = self._tokens(streams, present)  # [B,T,M+1,D]
        there = torch.cat([present, torch.ones_like(present[..., :1])], dim=-1)
        flat, seen = tokens.flatten(0, 1), there.flatten(0, 1)  # (B * T, M + 1, ...)
        attended = bound(self.attention(self.norm(flat), seen), self.output_cap)
        flat = flat + self.dropout(attended)
        scores = self.gate(flat).squeeze(-1).float().masked_fill(~seen, -torch.inf)
        weights = scores.softmax(-1)  # (B * T, M + 1)
        return flat.unflatten(0, tokens.shape[:2]), weights.unflatten(0, tokens.shape[:2])

    def _tokens(self, streams: Sequence[Tensor], present: Tensor) -> Tensor:
        tokens = []
        for index, stream in enumerate(streams):
            there = present[..., index, None]
            clean = self.norms[index](stream.masked_fill(~there, 0.0))
            tokens.append(self.projections[index](clean) + self.kinds[index])
        tokens.append(self.null.expand_as(tokens[0]))
        return torch.stack(tokens, dim=2)
