"""The LaCT recognizer: log-mel, convolutions, blocks of LaCT layer and MLP, CTC head.

Legend: B utterances, N samples, T frames (10 ms), L tokens (after subsampling), D width, V symbols
with the blank. Padding never reaches a valid place: frames past a length are zero before every
convolution, norms look at one frame or token at a time, attention masks keys, the fast weights take
no step from padding.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lact_asr.config.model import ModelConfig
from lact_asr.model.fast_weights import wide
from lact_asr.model.features import LogMel
from lact_asr.model.interface import CTCModel, CTCOutput, FastUse
from lact_asr.model.lact_layer import LaCTLayer, RMSNorm
from lact_asr.model.masks import length_mask
from lact_asr.model.window_attention import Layout

if TYPE_CHECKING:
    from lact_asr.data.specaugment import SpecAugment

EPS = 1e-6


class Encoder(nn.Module):
    """Convolutions of width 3 over time; the first ones halve the frame rate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        halvings = config.subsampling.bit_length() - 1
        self.strides = [2 if i < halvings else 1 for i in range(config.conv_layers)]
        widths = [config.mels] + [config.hidden] * config.conv_layers
        self.convolutions = nn.ModuleList(
            nn.Conv1d(narrow, config.hidden, 3, stride, padding=1)
            for narrow, stride in zip(widths[:-1], self.strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden) for _ in self.strides)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mels [B,T,M] and lengths [B] to tokens [B,L,D] and theirs; padding comes out as zero."""
        for convolution, norm, stride in zip(
            self.convolutions, self.norms, self.strides, strict=True
        ):
            x = F.silu(norm(convolution(x.mT).mT))
            lengths = -(-lengths // stride)
            x = x * length_mask(lengths, x.shape[1])[:, :, None]
        return x, lengths


class SwiGLU(nn.Module):
    """Gated MLP without biases."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,D] to [B,L,D]."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Convolution(nn.Module):
    """Gate, depthwise convolution over time, projection: a Conformer's, its norm per token.

    BatchNorm, which stands there in a Conformer, would let padding and neighbours in.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, kernel = config.hidden, config.conv_kernel
        self.before = kernel - 1 if config.causal else kernel // 2
        self.gate_up = nn.Linear(width, 2 * width, bias=False)
        self.depthwise = nn.Conv2d(width, width, (1, kernel), groups=width)
        self.norm = RMSNorm(width, EPS)
        self.down = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B,L,D] to [B,L,D]; tokens past a length are silence to the others.

        As conv1d the depthwise part takes PyTorch 3 to 4 times as long on a CPU (800 tokens x 192,
        kernel 15, forward and backward: 5.7 ms against 1.9).
        """
        gate, up = self.gate_up(x).chunk(2, -1)
        x = gate.sigmoid() * up * length_mask(lengths, x.shape[1])[:, :, None]
        after = self.depthwise.kernel_size[1] - 1 - self.before
        x = self.depthwise(F.pad(x.mT, (self.before, after))[:, :, None])[:, :, 0].mT
        return self.down(F.silu(self.norm(x)))


class Block(nn.Module):
    """LaCT layer, convolution if asked for, and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.mix_norm = RMSNorm(config.hidden, EPS)
        self.mix = LaCTLayer(config)
        if config.conv_kernel:
            self.conv_norm = RMSNorm(config.hidden, EPS)
            self.conv = Convolution(config)
        self.mlp_norm = RMSNorm(config.hidden, EPS)
        self.mlp = SwiGLU(config.hidden, config.mlp)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None, FastUse | None]:
        """Tokens [B,L,D], the updates of the fast weights, and in eval mode what came of them."""
        before = self.mix_norm(x)
        mixed, state = self.mix(before, layout)
        y = x + self.dropout(mixed)
        if self.config.conv_kernel:
            y = y + self.dropout(self.conv(self.conv_norm(y), layout.lengths))
        y = self._passed_by(x, y + self.dropout(self.mlp(self.mlp_norm(y))))
        if state is None:
            return y, None, None
        use = None if self.training else self.mix.fast_use(before, state, layout.lengths)
        return y, state.updates, use

    def _passed_by(self, x: Tensor, y: Tensor) -> Tensor:
        """In training, x instead of y for some utterances; the others go so much further that the
        mean stays. Every parameter has a gradient all the same, which DDP waits for.
        """
        share = self.config.layer_drop
        if not (self.training and share):
            return y
        kept = torch.rand(len(x), 1, 1, device=x.device) >= share
        return x + (y - x) * (kept / (1 - share)).to(x.dtype)

    def log_attention(self, x: Tensor, layout: Layout) -> Tensor:
        """Logarithm of the attention [B,H,L,L] that forward pays on tokens [B,L,D]."""
        return self.mix.log_attention(self.mix_norm(x), layout)


class Recognizer(CTCModel):
    """Waves to CTC log-probabilities."""

    family = "lact"
    attends = True
    config: ModelConfig
    flex = False  # whether its compiled blocks attend by FlexAttention in training

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.features = LogMel(config.mels)
        self.encoder = Encoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, EPS)
        self.head = nn.Linear(config.hidden, vocabulary_size)
        self.apply(_initialize)

    @property
    def one_graph(self) -> bool:
        """Chunks are a loop: a graph for every number of them."""
        return self.config.chunk is None

    def forward(
        self,
        waves: Tensor,
        wave_lengths: Tensor,
        augment: "SpecAugment | None" = None,
        attention: bool = False,
    ) -> CTCOutput:
        """Waves [B,N] float32 at 16 kHz in -1..1, zero or junk past their lengths [B].

        With `attention` the output has the last block's too: L^2 numbers a head.
        """
        x, lengths = self.features(waves, wave_lengths)
        if augment:
            x = augment(x, lengths).on(x)
        x, lengths = self.encoder(x, lengths)
        x = self.dropout(x)
        lay_out = Layout.for_flex if self.flex and self.training else Layout.of
        layout = lay_out(self.config, x, lengths)
        hidden, updates, uses = [x], None, []
        for block in self.blocks:
            x, updates, use = block(hidden[-1], layout)
            hidden.append(x)
            uses += [use] if use else []
        last = cast(Block, self.blocks[-1])
        paid = last.log_attention(hidden[-2], layout) if attention else None
        fast = mean_use(uses) if uses else None
        return CTCOutput(self.read_out(x, lengths), lengths, hidden[1:], paid, updates, fast)

    def read_out(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities [B,L,V], float32, from states [B,L,D] of any block."""
        with torch.autocast(states.device.type, enabled=False):  # bfloat16 loses CTC's gradient
            return self.head(wide(self.norm(states))).log_softmax(-1)


def mean_use(uses: Sequence[FastUse]) -> FastUse:
    """The mean over blocks."""
    return FastUse(*(torch.stack(each).mean(0) for each in zip(*uses, strict=True)))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def recognizer(config: dict[str, Any], vocabulary_size: int) -> Recognizer:
    """A fresh model from what a checkpoint stored."""
    return Recognizer(ModelConfig.model_validate(config), vocabulary_size)


FAMILIES: dict[str, Callable[[dict[str, Any], int], CTCModel]] = {"lact": recognizer}
