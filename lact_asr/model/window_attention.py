"""Attention inside a window, in blocks, and the rotary positions of its heads.

The blocks are laid out for PyTorch's own kernels, or, where the layer is compiled for a GPU, left
to FlexAttention, which makes a kernel of the mask and passes over what no query may look at.

Legend: B utterances, L tokens, D width, Ha heads of width w = D / Ha.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lact_asr.config.model import ModelConfig
from lact_asr.model.fast_weights import wide

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class Layout:
    """What every layer of one forward pass shares: lengths, positions, who may attend to whom.

    Attention works in blocks of queries, each with the span of keys in its reach, so that its cost
    grows with L, not L^2 (3,000 tokens: 28 ms against 455); a short batch is one block.
    """

    lengths: Tensor  # [B] valid tokens
    rotary: tuple[Tensor, Tensor]  # cosine and signed sine [L,1,D/Ha]
    before: int  # keys of a block's span that lie before its first query
    allowed: Tensor  # [B,blocks,block,span] True where a query may look at a key
    flex: "BlockMask | None" = None  # the same for FlexAttention, which goes without the others

    @property
    def blocks(self) -> int:
        """Blocks of queries: a size, and no number, for numbers are constants to a compiler."""
        return self.allowed.shape[1]

    @property
    def block(self) -> int:
        """Queries per block."""
        return self.allowed.shape[2]

    @property
    def span(self) -> int:
        """Keys per block."""
        return self.allowed.shape[3]

    @classmethod
    def for_flex(cls, config: ModelConfig, x: Tensor, lengths: Tensor) -> "Layout":
        """The layout of tokens x [B,L,D] for FlexAttention."""
        mask = block_mask(config, len(x), x.shape[1], lengths)
        return cls(lengths, rotary_of(config, x), 0, lengths, mask)

    @classmethod
    def of(cls, config: ModelConfig, x: Tensor, lengths: Tensor) -> "Layout":
        """The layout of tokens x [B,L,D]."""
        size = x.shape[1]
        before = config.window - 1 if config.causal else config.window // 2
        after = 0 if config.causal else before
        block = max(before, 1)
        span = before + block + after
        blocks = size // block + 1  # the last is never full: a compiler would make a graph of that
        if 2 * size <= 3 * span:  # measured: blocks win from 1.5 to 2 spans on
            blocks, block, span, before = 1, max(size, 1), max(size, 1), 0
        allowed = _block_mask(config, lengths, blocks, block, span, before)
        return cls(lengths, rotary_of(config, x), before, allowed)


def _block_mask(
    config: ModelConfig, lengths: Tensor, blocks: int, block: int, span: int, before: int
) -> Tensor:
    device = lengths.device
    starts = block * torch.arange(blocks, device=device)[:, None, None]
    queries = starts + torch.arange(block, device=device)[:, None]  # [blocks,block,1]
    keys = starts - before + torch.arange(span, device=device)  # [blocks,1,span]
    return may_attend(config, queries, keys, lengths[:, None, None, None])


def may_attend(config: ModelConfig, queries: Tensor, keys: Tensor, lengths: Tensor | int) -> Tensor:
    """Which keys each query may look at, places against places; padding looks at itself, for a row
    of the softmax without any key would be NaN.
    """
    distance = queries - keys
    if config.causal:
        near = (distance >= 0) & (distance < config.window)
    else:
        near = distance.abs() <= config.window // 2
    return near & (keys >= 0) & (keys < lengths) | (distance == 0)


def block_mask(config: ModelConfig, count: int, size: int, lengths: Tensor) -> "BlockMask":
    """Who may attend to whom of so many rows of so many tokens, in blocks of 128 x 128."""
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return may_attend(config, query, key, lengths[row])

    return create_block_mask(allowed, count, None, size, size, device=lengths.device)


def rotary_of(config: ModelConfig, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
    """Turns of tokens x [B,L,D], the first of them at place `start`."""
    width = config.hidden // config.attention_heads
    places = start + torch.arange(x.shape[1], device=x.device, dtype=torch.float64)
    exponents = torch.arange(0, width, 2, device=x.device, dtype=torch.float64) / width
    angles = places[:, None, None] * ROTARY_BASE**-exponents  # [L,1,D/Ha/2]
    cosine = torch.cat((angles.cos(), angles.cos()), -1)
    sine = torch.cat((-angles.sin(), angles.sin()), -1)
    return cosine.to(wide(x).dtype), sine.to(wide(x).dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float = 0.0) -> Tensor:
    """Softmax attention of heads [B,L,Ha,w] inside the layout's windows: [B,L,Ha*w]; `dropout` is
    the share of its weights left out.
    """
    q, k, v = (as_kernels_want(x) for x in (q, k, v))
    if layout.flex is not None:
        return _attend_by_flex(q, k, v, layout.flex)
    size = q.shape[1]
    fill = layout.blocks * layout.block - size
    after = layout.span - layout.before - layout.block
    q = F.pad(q, (0, 0, 0, 0, 0, fill)).unflatten(1, (layout.blocks, layout.block))
    k, v = (_spans(F.pad(x, (0, 0, 0, 0, layout.before, after + fill)), layout) for x in (k, v))
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))  # [B*blocks,Ha,...,w]
    allowed = layout.allowed.flatten(0, 1)[:, None]  # [B*blocks,1,block,span]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
    out = out.transpose(1, 2).unflatten(0, (-1, layout.blocks)).flatten(1, 2)
    return out[:, :size].flatten(2)


def as_kernels_want(x: Tensor) -> Tensor:
    """On a CPU float32: PyTorch's kernel for bfloat16 takes 27 ms back where that takes 4 (three
    clips of 12 s, window 16, one thread that multiplies bfloat16 2.6 times as fast).
    """
    return wide(x) if x.device.type == "cpu" else x


def _attend_by_flex(q: Tensor, k: Tensor, v: Tensor, mask: "BlockMask") -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B,Ha,L,w]
    out = flex_attention(q, k, v, block_mask=mask)
    assert isinstance(out, Tensor)
    return out.transpose(1, 2).flatten(2)


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
