"""What every recogniser of the project answers.

Legend: B utterances, L tokens (after subsampling), D width, V symbols with the blank, H heads.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class CTCOutput:
    """What every recogniser of the project answers."""

    log_probs: Tensor  # [B,L,V] float32, log-softmax over V
    lengths: Tensor  # [B] int64, valid tokens
    hidden: list[Tensor]  # [B,L,D] after each block
    attention: Tensor | None = None  # [B,H,L,L] logarithm of the last block's, where asked for
    updates: Tensor | None = None  # [B*H] inner steps of the last block's fast weights

    @property
    def updates_run(self) -> int:
        """Inner steps each fast weight made on the longest utterance; waits for the device."""
        return 0 if self.updates is None else int(self.updates.max())
