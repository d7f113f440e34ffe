"""Shape and behaviour of the LaCT recognizer, and its named sizes. No torch."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from lact_asr.config.base import Frozen, changed

SAMPLE_RATE = 16_000  # Hz, of every wave inside the project
HOP = 160  # samples between two feature frames: 10 ms


class ModelConfig(Frozen):
    """Shape and behaviour of the LaCT recognizer; the defaults are the offline one."""

    hidden: int = Field(gt=0, description="Width D of the residual stream, channels")
    layers: int = Field(gt=0, description="Blocks, each window attention + fast weights + MLP")
    attention_heads: int = Field(gt=0, description="Heads of the window attention")
    lact_heads: int = Field(gt=0, description="Fast-weight heads; fewer heads, larger state")
    mlp: int = Field(gt=0, description="Inner width of the SwiGLU MLP, channels")
    conv_layers: int = Field(gt=0, description="Convolutions before the blocks")
    mels: int = Field(80, gt=0, description="Mel bands of the input features")
    subsampling: Literal[1, 2, 4, 8] = Field(
        4, description="Feature frames (10 ms) per token: 4 gives 25 tokens/s"
    )
    window: int = Field(
        128, gt=0, description="Attention window W, tokens: |i-j| <= W/2, or the last W if causal"
    )
    qk_norm: bool = Field(True, description="RMS norm of queries and keys over the whole width")
    schedule: Literal["set", "update_then_apply", "apply_then_update", "off"] = Field(
        "set",
        description="When the fast weights learn: once from the whole utterance (set), per chunk "
        "including itself, per chunk for later chunks only (causal), or never (off)",
    )
    chunk: int | None = Field(
        None, gt=0, description="Tokens per update of the two chunked schedules"
    )
    fast_width: float = Field(
        1.0, gt=0, description="Inner width of the fast MLP, as a multiple of its head width"
    )
    base_step: float = Field(
        1e-2, gt=0, description="Step size of the fast weights before training, per token"
    )
    orthogonalize: Literal["none", "five_stage", "fixed"] = Field(
        "none",
        description="Newton-Schulz on each update; wants more than 2 x head width tokens an update",
    )
    momentum: bool = Field(False, description="Carry fast gradients from chunk to chunk")
    prenorm: bool = Field(False, description="Keep an unnormalized master of the fast weights")
    conv_kernel: int = Field(
        0,
        ge=0,
        description="Tokens under the depthwise convolution of each block, odd: its own and as "
        "many before as behind it, or only those before if causal; 0 is no convolution",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of each residual branch dropped")
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the attention weights dropped"
    )
    layer_drop: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the blocks that an utterance passes by in training (stochastic "
        "depth)",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelConfig":
        for name in ("attention_heads", "lact_heads"):
            if self.hidden % getattr(self, name):
                raise ValueError(f"hidden {self.hidden} is not a multiple of {name}")
        if self.hidden // self.attention_heads % 2:
            raise ValueError(
                "hidden / attention_heads must be even: rotary positions pair channels"
            )
        if self.conv_kernel and self.conv_kernel % 2 == 0:
            raise ValueError(
                f"conv_kernel {self.conv_kernel} is even and has no middle: write "
                f"{self.conv_kernel + 1}, or 0 for no convolution"
            )
        if self.fast_width * self.hidden < self.lact_heads:
            raise ValueError(f"fast_width {self.fast_width} leaves the fast MLP no inner channel")
        if 2**self.conv_layers < self.subsampling:
            raise ValueError(
                f"subsampling {self.subsampling} needs {self.subsampling.bit_length() - 1} "
                f"conv_layers or more, each halves the frame rate once"
            )
        chunked = self.schedule in ("update_then_apply", "apply_then_update")
        if chunked != (self.chunk is not None):
            raise ValueError(
                f"schedule {self.schedule} {'needs a chunk' if chunked else 'takes no chunk'} "
                "(tokens per update)"
            )
        if self.momentum and not chunked:
            raise ValueError(f"momentum has nothing to carry with schedule {self.schedule}")
        if self.causal and self.window < (self.chunk or 0):
            raise ValueError(
                f"window {self.window} is shorter than chunk {self.chunk}: a token sees its own "
                "chunk through attention only, so window must be at least chunk"
            )
        return self

    @property
    def blocks(self) -> int:
        """Hidden states that the model gives beside its output."""
        return self.layers

    @property
    def causal(self) -> bool:
        """Whether attention looks back only, as the causal schedule does."""
        return self.schedule == "apply_then_update"

    def tokens(self, samples: Any) -> Any:
        """Tokens made from so many samples of a wave; takes an int or an integer tensor."""
        frames = -(-samples // HOP)
        return -(-frames // self.subsampling)

    def check_updates(self, longest: float) -> None:
        """Refuse a causal schedule that never updates on utterances of up to `longest` seconds.

        The one public LaCT recognizer used chunks of 41 s on utterances of at most 35 s: its fast
        weights never changed once. Warns where orthogonalized updates see too few tokens.
        """
        tokens = self.tokens(round(longest * SAMPLE_RATE))
        width = self.hidden // self.lact_heads
        if self.orthogonalize != "none" and min(tokens, self.chunk or tokens) < 2 * width:
            warnings.warn(
                f"orthogonalize wants more than {2 * width} tokens an update (2 x head width), "
                f"and gets at most {min(tokens, self.chunk or tokens)}",
                stacklevel=2,
            )
        if self.causal and tokens <= (self.chunk or 0):
            raise ValueError(
                f"chunk {self.chunk} would never be updated from: the longest utterance has "
                f"{tokens} tokens ({longest:.1f} s); choose a chunk below that, or schedule: set"
            )


# Counts of parameters with 1,024 output symbols: 1.5 M, 100 M, 204 M, 492 M.
SIZES: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        hidden=144, layers=4, attention_heads=4, lact_heads=2, mlp=432, conv_layers=2
    ),
    "base": ModelConfig(
        hidden=768, layers=12, attention_heads=12, lact_heads=4, mlp=2304, conv_layers=2
    ),
    "improved": ModelConfig(
        hidden=1024, layers=18, attention_heads=16, lact_heads=8, mlp=2048, conv_layers=3
    ),
    "large": ModelConfig(
        hidden=1536, layers=24, attention_heads=24, lact_heads=12, mlp=2048, conv_layers=4
    ),
}


def named_size(size: str, changes: Mapping[str, object]) -> ModelConfig:
    """The named size with some settings changed, checked as a whole."""
    if size not in SIZES:
        raise ValueError(f"no model size {size!r}; sizes are {', '.join(SIZES)}")
    return changed(SIZES[size], changes)
