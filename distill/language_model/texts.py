"""Texts as what a language model learns from: encoded, cut into batches, in an order of their own.

Which texts a step reads is a function of its number: the batches of all ranks are one endless
sequence, shuffled anew for every epoch, from which each step takes one for each rank.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.language_model.batch import TextBatch, text_batch
from lact_asr.data.batch_plan import Position, Stretch, by_length
from lact_asr.distributed.processes import World
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError

SHOWN = 40  # characters of a text that name it


class Texts:
    """Encoded texts, cut into batches of about the same size."""

    def __init__(self, texts: Sequence[str], vocabulary: Vocabulary, batch_tokens: int) -> None:
        """DataError if no text can be written with the vocabulary; `foreign` names the others."""
        self.texts: list[list[int]] = []
        self.names: list[str] = []
        self.foreign: list[str] = []
        self.fingerprint = 0  # changes when texts come, go or change
        for text in map(vocabulary.normal, texts):
            labels = _labels(text, vocabulary)
            (self.names if labels else self.foreign).append(text[:SHOWN])
            if labels:
                self.texts.append(labels)
                self.fingerprint = zlib.crc32(text.encode(), self.fingerprint)
        if not self.texts:
            raise DataError(f"none of {len(texts)} texts can be written with the vocabulary")
        self.lengths = np.array([len(text) + 1 for text in self.texts])  # symbols, the end included
        self.plan = by_length(self.lengths, batch_tokens)[::-1]  # shortest first

    def batch(self, rows: Sequence[int] | NDArray[Any]) -> TextBatch:
        """These texts."""
        return text_batch([self.texts[i] for i in rows], [self.names[i] for i in rows])

    def drawn(self, number: int, seed: int) -> TextBatch:
        """Batch `number` of an endless shuffled sequence."""
        epoch, place = divmod(number, len(self.plan))
        order = np.random.default_rng([seed, epoch]).permutation(len(self.plan))
        return self.batch(self.plan[order[place]])

    def share(self, world: World) -> list[TextBatch]:
        """Every batch once, those of this rank."""
        return [self.batch(rows) for rows in world.share(self.plan)]


class TextFeed:
    """The endless batches of one rank; their place is a number of batches, whoever took them."""

    def __init__(self, texts: Texts, seed: int, world: World, start: Position) -> None:
        self.texts, self.seed, self.world = texts, seed, world
        begun = sum(stretch.world_size * stretch.done for stretch in start.stretches)
        self.number = start.epoch * len(texts.plan) + begun  # batches that all ranks have taken

    @property
    def position(self) -> Position:
        """The place as if one process had taken all: it means the same to any number of ranks."""
        epoch, done = divmod(self.number, len(self.texts.plan))
        return Position(epoch, (Stretch(world_size=1, batch_seconds=0.0, done=done),))

    def take(self) -> TextBatch:
        """The next batch."""
        batch = self.texts.drawn(self.number + self.world.rank, self.seed)
        self.number += self.world.world_size
        return batch


def _labels(text: str, vocabulary: Vocabulary) -> list[int]:
    """None where the vocabulary cannot write a text."""
    try:
        return vocabulary.encode(text)
    except DataError:
        return []
