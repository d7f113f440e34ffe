"""GPU memory that training a recognizer is expected to take: reckoned, not measured. No torch.

What autograd keeps of a forward pass was counted on a CPU (torch 2.11, sizes tiny, base and large,
10 and 20 s): 189 bytes x hidden + 21 bytes x mlp for every token and block, 5 % off at most; under
bfloat16 0.8 to 0.9 of that. The convolutions in front and the allocator's gaps are not in it.
"""

from lact_asr.config.model import SAMPLE_RATE, ModelConfig

PER_WEIGHT = 16  # bytes: float32 weight and gradient, two means of the optimizer
_HIDDEN, _MLP = 189, 21  # bytes of a channel that are kept, for each token and block
_HALF = 0.85  # of that under bfloat16


def activation_bytes(config: ModelConfig, seconds: float, half: bool) -> float:
    """What a forward pass over so many seconds of audio keeps for the backward pass."""
    tokens = config.tokens(round(seconds * SAMPLE_RATE))
    kept = tokens * config.layers * (_HIDDEN * config.hidden + _MLP * config.mlp)
    return kept * (_HALF if half else 1.0)
