"""GPU memory that training a recognizer is expected to take: reckoned, not measured. No torch.

What autograd keeps of a forward pass and its losses was counted on a CPU, tensor by tensor (torch
2.11; 3 to 48 s, widths 128 to 512, with and without convolution, intermediate CTC and two views):
the sums here were 11 % off at most, 3 % as a rule. The allocator's gaps, what lives only inside one
operation and the kernels that a GPU takes instead are not in them. Legend: D width, H heads of the
fast weights, F their inner width in units of D / H.
"""

from typing import NamedTuple

from lact_asr.config.model import HOP, SAMPLE_RATE, ModelConfig
from lact_asr.config.training import CTCConfig, LoopConfig

LABELS = 14  # symbols in a second of read speech: a character each
STATE, STEP, EXTRA = 3, 6, 3  # fast matrices kept: at the start, of an update, of an addition to it


class Heard(NamedTuple):
    """The largest micro-batch, with its padding and all views of an utterance."""

    seconds: float
    longest: float  # of an utterance, seconds
    symbols: int  # that the model writes with


def weight_bytes(training: LoopConfig, muon: bool) -> int:
    """Of a number to learn and of what is kept beside it: its gradient, the optimizer's running
    means of it (two of AdamW's, one sum of Muon's), that of the weights, its bfloat16 copy.
    """
    kept = 3 if muon else 4
    return 4 * (kept + bool(training.average.decay)) + 2 * in_half(training)


def in_half(training: LoopConfig) -> bool:
    """Whether the forward pass is in bfloat16 on a GPU."""
    return training.precision != "fp32"


def activation_bytes(
    config: ModelConfig, ctc: CTCConfig, heard: Heard, half: bool, recomputed: bool = False
) -> float:
    """What the forward pass and the losses of a micro-batch keep for the backward pass: of all
    blocks, or (`recomputed`) what goes into each, and all of the one that is computed again.
    """
    tokens = heard.seconds * SAMPLE_RATE / HOP / config.subsampling
    utterances = max(1.0, heard.seconds / heard.longest)
    block = tokens * _per_token(config, heard, half) + utterances * _fast_weights(config, heard)
    outside = _in_front(config, half) + _read_out(config, ctc, heard, half)
    if recomputed:
        block = block / config.layers + tokens * (2 if half else 4) * config.hidden
    return config.layers * block + tokens * outside


def _per_token(config: ModelConfig, heard: Heard, half: bool) -> float:
    """Of a block, in bytes: bfloat16 leaves norms and the fast branch's norms in float32."""
    width, inner = config.hidden, config.fast_width
    if config.schedule == "off":
        channel = 44 + 6 * inner if half else 60 + 16 * inner
    else:
        channel = 54 + 32 * inner if half else 72 + 64 * inner
    branches = 3 if config.conv_kernel else 2
    channel += (12 if half else 8) * config.qk_norm
    channel += (2 if half else 4) * branches * bool(config.dropout)
    channel += (22 if half else 36) * bool(config.conv_kernel)
    return channel * width + (8 if half else 16) * config.mlp + _attention(config, heard, half)


def _attention(config: ModelConfig, heard: Heard, half: bool) -> float:
    """Queries, keys, values, mask and result of a token; of a long utterance the keys and values
    stand in two or three blocks' spans (`lact_asr.model.window_attention.Layout`).
    """
    size = config.tokens(round(heard.longest * SAMPLE_RATE))
    spans, reach = (2, config.window - 1) if config.causal else (3, config.window // 2)
    span = spans * max(reach, 1)
    if 2 * size <= 3 * span:
        spans, span = 1, size
    return (2 if half else 4) * ((2 + 2 * spans) * config.hidden + span)


def _fast_weights(config: ModelConfig, heard: Heard) -> float:
    """Of an utterance in a block: its own fast weights, before and after each update."""
    matrix = 4 * config.hidden**2 * config.fast_width / config.lact_heads
    size = config.tokens(round(heard.longest * SAMPLE_RATE))
    updates = -(-size // (config.chunk or size)) - config.causal
    each = STEP + EXTRA * (config.orthogonalize != "none") + EXTRA * config.momentum
    return matrix * (STATE + (0 if config.schedule == "off" else each * updates))


def _in_front(config: ModelConfig, half: bool) -> float:
    """Of the features and the convolutions in front of the blocks, for each token."""
    halvings = config.subsampling.bit_length() - 1
    rates = [2 ** max(halvings - 1 - layer, 0) for layer in range(config.conv_layers)]
    channel = (8 if half else 12) * sum(rates) + (2 if half else 4) * bool(config.dropout)
    return channel * config.hidden + (2 if half else 4) * config.mels * config.subsampling


def _read_out(config: ModelConfig, ctc: CTCConfig, heard: Heard, half: bool) -> float:
    """Of the states that the head reads and of CTC's paths through what it says, for each token."""
    paths = 2 * LABELS * heard.longest + 1
    each = 4 * config.hidden + 4 * heard.symbols + 4 * paths
    return each * (1 + len(ctc.intermediate)) + 4 * heard.symbols * ctc.views
