"""What inner blocks write where the output writes pieces of words: the characters of these.

Characters are learned sooner: after 240 s of a core on five hours of speech 1,600 pieces had a WER
of 81 % beside characters at the second of four blocks, and 95 % beside nothing (bench.learn). One
layer reads them, which only training has: Higuchi et al. 2022 (arXiv:2110.04109), without the way
back into the blocks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lact_asr.text.vocabulary import Vocabulary

NEVER = -1e4  # log-probability of what is no character; -inf would make a gradient NaN


class Spelling(nn.Module):
    """An output layer for characters, and the texts in them."""

    def __init__(self, width: int, vocabulary: Vocabulary) -> None:
        """For states so wide, of a model that writes with a vocabulary."""
        super().__init__()
        self.characters, self.symbols = vocabulary.spelled(), len(vocabulary)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(self.characters))

    def read_out(self, states: Tensor) -> Tensor:
        """Log-probabilities [B,L,V], float32, from states [B,L,D]; V is the output's, so that one
        call of CTC judges both.
        """
        with torch.autocast(states.device.type, enabled=False):
            said = self.head(self.norm(states.float())).log_softmax(-1)
        return F.pad(said, (0, self.symbols - said.shape[-1]), value=NEVER)

    def labels(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Labels of texts in normal form, one after the other, and how many each has; what the
        pieces write in bytes, being rare, is left out.
        """
        known = set(self.characters.symbols)
        each = [self.characters.encode("".join(filter(known.__contains__, t))) for t in texts]
        flat = [label for labels in each for label in labels]
        return torch.tensor(flat, dtype=torch.int64), torch.tensor(
            [*map(len, each)], dtype=torch.int64
        )
