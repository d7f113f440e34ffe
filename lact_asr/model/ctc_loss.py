"""The CTC loss of each utterance."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lact_asr.data.batch import Batch


def ctc_losses(log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """CTC losses [B] of normalized log_probs [B,T,V] of `lengths` valid frames, float32, in nats.

    An infeasible utterance gives 0 and no gradient. Targets are int64: int32 on the CPU would
    select cuDNN's loss, which ignores zero_infinity (pytorch#176910).

    Lengths belong on the CPU, where PyTorch looks at them: from a GPU it would read both. Its CUDA
    kernels (2.11) wait all the same, once for the forward and once for the backward pass: they copy
    the lengths to the device by `at::tensor`, behind all that the device is at. So what is to be
    judged by the same texts goes in one call.
    """
    with torch.autocast(log_probs.device.type, enabled=False):
        return F.ctc_loss(
            log_probs.float().transpose(0, 1),  # [T,B,V]
            batch.targets,
            lengths,
            batch.target_lengths,
            blank=0,
            reduction="none",
            zero_infinity=True,
        )
