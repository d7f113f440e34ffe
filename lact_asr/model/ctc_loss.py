"""The CTC loss of each utterance."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lact_asr.data.batch import Batch


def ctc_losses(log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """CTC losses [B] of normalized log_probs [B,T,V] of `lengths` valid frames, float32, in nats.

    An infeasible utterance gives 0 and no gradient. Targets are int64: int32 on the CPU would
    select cuDNN's loss, which ignores zero_infinity (pytorch#176910).
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
