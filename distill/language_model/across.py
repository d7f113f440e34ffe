"""What a language model learns from one with other symbols: how likely stretches of text are.

Two tokenizations of a text meet again and again: where a word ends, or at every character where one
of them has characters. Between two such places both models say how likely the same stretch is, by
the chain rule, in however many symbols. Distributions over two vocabularies cannot be compared by
index, and sorted by size (universal logit distillation, Boizard et al. 2024) they forget which
symbol is which. Likelihoods of aligned stretches can (approximate likelihood matching, Minixhofer,
Vulic and Ponti 2025): this stretch against all others that might stand there. At temperature 1 that
is a lower bound of the divergence over all of them, and it is zero where both agree.

A stretch is as likely as its symbols in this order; what other cuts of the same letters would add
is left out on both sides.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from distill.language_model.batch import TextBatch, text_batch
from lact_asr.distributed.device import sent
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError

NONE = 2**31  # beyond all numbers of stretches, with any number added


class Stretches(NamedTuple):
    """The stretches of a batch, and to which of them the places that count belong, text by text."""

    batch: TextBatch  # the texts as the teacher writes them
    mine: Tensor  # [N] int64 of the student's places
    theirs: Tensor  # [M] int64 of the teacher's
    number: int  # of stretches; as a stretch it is none: of a text that the teacher cannot write

    def likelihoods(self, scores: Tensor, places: Tensor) -> Tensor:
        """Log-probabilities of stretches from those of places, which are `mine` or `theirs`."""
        return scores.new_zeros(self.number + 1).index_add(0, places, scores)[:-1]


class Across:
    """Cuts batches of texts into stretches that a student and its teacher can both judge."""

    def __init__(self, student: Vocabulary, teacher: Vocabulary) -> None:
        """DataError where they do not write the same texts."""
        if student.form != teacher.form:
            raise DataError(
                f"the teacher writes texts in another form than the student ({teacher.form}; "
                f"{student.form}): what they find likely are different texts; write text: as the "
                "teacher has it"
            )
        self.student, self.teacher = student, teacher

    def __call__(self, batch: TextBatch) -> Stretches:
        """The stretches of texts in the student's symbols."""
        written = [self._written(row) for row in batch.texts]
        mine, theirs, number = list[int](), list[int](), 0
        for row, other in zip(batch.texts, written, strict=True):
            found = meeting(self.student.widths(row), self.teacher.widths(other))
            one, two = found or ([NONE] * (len(row) + 1), [NONE] * (len(other) + 1))
            mine += [each + number for each in one]
            theirs += [each + number for each in two]
            number += one[-1] + 1 if found else 0
        device = batch.targets.device
        places = [sent(torch.tensor(each).clamp(-1, number), device) for each in (mine, theirs)]
        return Stretches(text_batch(written, batch.ids).to(device), places[0], places[1], number)

    def _written(self, row: Sequence[int]) -> list[int]:
        """A text in the teacher's symbols; none where it has no symbols for it."""
        try:
            return self.teacher.encode(self.student.decode(row))
        except DataError:
            return []


def meeting(first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """The stretch of each symbol of two tokenizations of a text, and as the last one that of its
    end, from the bytes that each symbol writes; None where they do not write the same.

    A symbol without bytes, such as the mark of a first word's beginning, goes with what follows.
    """
    one, other = list(accumulate(first)), list(accumulate(second))
    if not one or not other or one[-1] != other[-1]:
        return None
    cuts = sorted({*one} & {*other} - {0})
    stretch: Callable[[int], int] = lambda end: bisect_left(cuts, end)
    return [*map(stretch, one), len(cuts)], [*map(stretch, other), len(cuts)]
