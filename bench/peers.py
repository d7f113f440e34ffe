"""The models we are compared with: a plain transformer, torchaudio's Conformer, linear attention.

All have our front end (log-mel, convolutions to 25 tokens a second) and our head, so that only
the blocks differ. `transformer` is pre-norm with rotary positions, SwiGLU and full attention under
a padding mask; `conformer` is torchaudio's as it ships, which has no positions. Parameters are made
equal to one of our models by the width of the transformer's MLP, and of the Conformer as a whole.
`Linear` is our model whose fast weights are learned linear attention instead.
For comparison only: no checkpoint of the project holds one of these.

Legend: B utterances, L tokens, D width, w width of a head.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lact_asr.config.base import Frozen
from lact_asr.config.model import HOP, ModelConfig
from lact_asr.model.fast_weights import State, wide
from lact_asr.model.features import LogMel
from lact_asr.model.interface import Count, CTCModel, CTCOutput, Gate
from lact_asr.model.lact_layer import LaCTLayer, RMSNorm
from lact_asr.model.masks import length_mask
from lact_asr.model.recognizer import EPS, Encoder, Recognizer, SwiGLU
from lact_asr.model.window_attention import ROTARY_BASE, rotate


class PeerConfig(Frozen):
    """Shape of a peer; the front end's fields mean what ours mean."""

    hidden: int = Field(gt=0, description="Width D, channels")
    layers: int = Field(gt=0, description="Blocks")
    heads: int = Field(gt=0, description="Attention heads")
    mlp: int = Field(gt=0, description="Inner width of the MLP, or of each of a Conformer's two")
    conv_layers: int = Field(gt=0, description="Convolutions before the blocks")
    mels: int = Field(80, gt=0, description="Mel bands")
    subsampling: int = Field(4, gt=0, description="Feature frames (10 ms) per token")
    kernel: int = Field(31, gt=0, description="Depthwise convolution of the Conformer, tokens")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of each residual branch dropped")

    @property
    def blocks(self) -> int:
        """Hidden states given beside the output: none."""
        return 0

    def tokens(self, samples: Count) -> Count:
        """Tokens for so many samples."""
        frames = -(-samples // HOP)
        return -(-frames // self.subsampling)


class Peer(CTCModel):
    """Our front end and head around other blocks."""

    config: PeerConfig

    def __init__(self, config: PeerConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.features = LogMel(config.mels)
        self.encoder = Encoder(config)  # type: ignore[arg-type]  # reads what both configs have
        self.dropout = nn.Dropout(config.dropout)
        self.norm = RMSNorm(config.hidden, EPS)
        self.head = nn.Linear(config.hidden, vocabulary_size)

    def forward(self, waves: Tensor, wave_lengths: Tensor) -> CTCOutput:
        """Waves [B,N] and their lengths [B] in samples."""
        x, lengths = self.encoder(*self.features(waves, wave_lengths))
        x = self.mixed(self.dropout(x), lengths)
        return CTCOutput(self.read_out(x, lengths), lengths, [])

    def read_out(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities of the symbols."""
        with torch.autocast(states.device.type, enabled=False):
            return self.head(wide(self.norm(states))).log_softmax(-1)

    @abstractmethod
    def mixed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The blocks: [B,L,D] to [B,L,D]."""


class Attention(nn.Module):
    """Full self-attention with rotary positions."""

    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """[B,L,D] under the key mask [B,1,1,L]."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1))
        q, k = rotate(q, rotary), rotate(k, rotary)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B,heads,L,w]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(seen.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, EPS)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden, EPS)
        self.mlp = SwiGLU(config.hidden, config.mlp)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """[B,L,D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Transformer(Peer):
    """The plain pre-norm transformer."""

    family = "transformer"

    def __init__(self, config: PeerConfig, vocabulary_size: int) -> None:
        super().__init__(config, vocabulary_size)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers))
        for module in self.modules():  # as in our model
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def mixed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The blocks."""
        rotary = _rotary(x, self.config.hidden // self.config.heads)
        mask = length_mask(lengths, x.shape[1])[:, None, None]
        for block in self.blocks:
            x = block(x, rotary, mask)
        return x


class Conformer(Peer):
    """torchaudio's Conformer."""

    family = "conformer"

    def __init__(self, config: PeerConfig, vocabulary_size: int) -> None:
        from torchaudio.models import Conformer as Blocks

        super().__init__(config, vocabulary_size)
        self.blocks = Blocks(
            config.hidden, config.heads, config.mlp, config.layers, config.kernel, config.dropout
        )

    def mixed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The blocks; the batch is as long as its longest utterance."""
        return self.blocks(x, lengths)[0]


class LinearAttention(LaCTLayer):
    """The LaCT layer with learned linear attention in place of its fast weights.

    That is what fast weights come to (arXiv:2602.21204) where the last matrix alone learns and no
    row is given its norm back: (w1 + sum_t lr_t v_t phi(k_t)^T) phi(q), with phi(x) = silu(w0 x) *
    (w2 x).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.lr_proj = Gate(config.hidden, config.lact_heads)
        nn.init.normal_(self.lr_proj.weight, std=0.02)
        nn.init.zeros_(self.lr_proj.bias)

    def _read(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State | None]:
        """On rows [B*H,L,d], of whole utterances."""
        w0, w1, w2 = (w.repeat(len(x), 1, 1) for w in (self.w0, self.w1, self.w2))
        features = lambda rows: F.silu(rows @ w0.mT) * (rows @ w2.mT)
        steps = self._step_sizes(x)  # [B*H,L,1]
        if lengths is not None:
            inside = length_mask(lengths, x.shape[1])
            steps = steps * inside.repeat_interleave(self.config.lact_heads, 0)[..., None]
        return features(q) @ (w1 + (steps * v).mT @ features(k)).mT, None


class Linear(Recognizer):
    """Our model with learned linear attention for fast weights; its schedule is `off`."""

    family = "linear"

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__(config, vocabulary_size)
        for block in self.blocks:
            layer = LinearAttention(config)
            layer.load_state_dict(
                block.get_submodule("mix").state_dict(), strict=False
            )  # it adds lr_proj
            block.mix = layer


FAMILIES: dict[str, Callable[[PeerConfig, int], Peer]] = {
    "transformer": Transformer,
    "conformer": Conformer,
}


def parameters(model: nn.Module) -> int:
    """Numbers to learn."""
    return sum(parameter.numel() for parameter in model.parameters())


def equal(family: str, ours: ModelConfig, vocabulary_size: int) -> Peer:
    """A peer of the same depth, heads and front end, with as many parameters as our model.

    The transformer keeps the width too and puts the parameters of the fast weights into its MLP.
    The Conformer's MLPs are about four times as wide as the rest, as published.
    """
    make = FAMILIES[family]
    with torch.device("meta"):
        target = parameters(Recognizer(ours, vocabulary_size))
        missing = lambda config: target - parameters(make(config, vocabulary_size))
        nearest = min(_shapes(family, ours), key=lambda config: abs(missing(config)))
        wider = nearest.model_copy(update={"mlp": nearest.mlp + 8})
        steps = round(missing(nearest) / (missing(nearest) - missing(wider)))
    return make(nearest.model_copy(update={"mlp": nearest.mlp + 8 * steps}), vocabulary_size)


def _shapes(family: str, ours: ModelConfig) -> list[PeerConfig]:
    same = {
        name: getattr(ours, name) for name in ("hidden", "layers", "mlp", "conv_layers", "mels")
    }
    same |= {"subsampling": ours.subsampling, "dropout": ours.dropout}
    same |= {"heads": ours.attention_heads}
    if family == "transformer":
        return [PeerConfig(**same)]
    step = 2 * ours.attention_heads
    widths = range(step * (ours.hidden // 2 // step), ours.hidden + step, step)
    return [PeerConfig(**{**same, "hidden": width, "mlp": 4 * width}) for width in widths]


def _rotary(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [L,1,w], as `rotate` takes them."""
    exponents = torch.arange(0, width, 2, device=x.device) / width
    angles = torch.arange(x.shape[1], device=x.device)[:, None, None] * ROTARY_BASE**-exponents
    sine = torch.cat((-angles.sin(), angles.sin()), -1)
    return torch.cat((angles.cos(), angles.cos()), -1), sine
