"""How the blocks of a model run in training: compiled, or computed again in the backward pass.

Eagerly, a block of the recognizer is 157 kernels forward and 297 backward, most of them small, and
a GPU waits for the program that starts them. `torch.compile` makes one graph of a block, which all
blocks share, for any length and number of utterances: at most one more each for attention in one
block and for a single utterance. Blocks of a chunked schedule have a step per chunk: a graph for
every number of chunks, so they are compiled only where that is asked for.

Only `forward` is replaced, and only while a module trains: names of parameters, checkpoints,
validation, decoding and the hooks of sharding are what they were.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lact_asr.model.interface import Model
from lact_asr.model.recognizer import Recognizer
from lact_asr.utils.errors import DataError

Forward = Callable[..., Any]
GRAPHS = 32  # of one block, before it runs as it did; PyTorch's limit is 8


def should_compile(wanted: bool | None, model: Model, device: torch.device) -> bool:
    """Whether to compile: as set, else on GPUs, where one graph does."""
    return device.type == "cuda" and model.one_graph if wanted is None else wanted


def compile_blocks(model: Model, strict: bool, backend: str = "inductor") -> None:
    """Compile the blocks, at the first call of each; unless `strict`, what cannot be compiled (for
    want of a C compiler, say) runs as it did, with a warning.

    DDP would cut graphs where its buckets end: a block's gradients are one bucket's or two's.
    """
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.suppress_errors = not strict
    torch._dynamo.config.recompile_limit = GRAPHS
    # for the sake of one convolution, 4-dimensional tensors of its block would lie channels last;
    # reckoning their strides, torch 2.11 fails at lengths that are symbols (on CPUs at least)
    torch._inductor.config.layout_optimization = False
    for block in model.blocks:
        _in_training(block, torch.compile(block.forward, dynamic=True, backend=backend))


def left_uncompiled() -> int:
    """Functions that the compiler has given up on in this process: they run as they are written."""
    from torch._dynamo.utils import counters  # takes a second of each start

    tried = counters["frames"]
    return tried["total"] - tried["ok"]


def recompute_blocks(model: Model) -> None:
    """Keep of each block its input alone, and run it again in the backward pass, with the same
    random numbers: the same gradient for a third more time. DataError where there are none.
    """
    if not len(model.blocks):
        raise DataError(
            f"activation_checkpointing computes blocks again, and {type(model).__name__} has none: "
            "write activation_checkpointing: false"
        )
    for block in model.blocks:
        _in_training(block, partial(checkpoint, block.forward, use_reentrant=False))


def use_flex_attention(model: Model, compiled: bool) -> None:
    """Attend by FlexAttention in training; DataError where that cannot be."""
    recognizer = model if isinstance(model, Recognizer) else None
    dropped = recognizer.config.attention_dropout if recognizer else 0.0
    problems = {
        f"a {model.family} model has no windows": recognizer is None,
        "it needs compiled blocks (compile: true, or a GPU)": not compiled,
        "it drops no attention weights (attention_dropout: 0)": dropped > 0,
    }
    wrong = [sentence for sentence, there in problems.items() if there]
    if wrong or recognizer is None:
        raise DataError(f"flex_attention: {'; '.join(wrong)}: or write flex_attention: false")
    recognizer.flex = True


def _in_training(block: nn.Module, instead: Forward) -> None:
    plain = block.forward

    def forward(*given: Any) -> Any:
        return instead(*given) if block.training else plain(*given)

    block.forward = forward  # of this block alone
