"""Tensors that have an owner each: whole with it, and what it has made of them on all ranks again.

Where every rank holds a whole model, each sends what it has made to all others: one collective. Of
a model that is split over them (`lact_asr.distributed.fsdp`) all shares of a tensor go to its
owner, and of what that makes of it a share comes back to each. A rank of W then receives two W-ths
of the model, and holds one; put together everywhere, each would receive it twice and hold it all
(four ranks of one computer's CPUs, 21 M numbers: 0.28 s there and back, 1.56 s that way).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lact_asr.distributed import fsdp
from lact_asr.distributed.processes import World

Shape = Sequence[int]


@dataclass(frozen=True)
class Owned:
    """One tensor or more, all split in one way or all whole, and the rank that owns each."""

    tensors: Sequence[Tensor]
    owners: Sequence[int]
    world: World

    def gather(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Of values that are split as the tensors are, those that this rank owns: whole ones."""
        mine, parts = self._of(self.world.rank), self._parts
        if parts == 1:
            return [fsdp.local(values[place]) for place in mine]
        sent: list[list[Tensor]] = []
        shapes: list[list[Shape]] = []
        for rank in self._ranks():
            near = rank // parts == self.world.rank // parts  # the two have shares of one copy
            sent.append([fsdp.local(values[place]) for place in self._of(rank) if near])
            shapes.append([self._share(place, rank) for place in mine if near])
        received = self._exchange(sent, shapes)
        return [torch.cat(shares) for shares in zip(*filter(None, received), strict=True)]

    def spread(self, made: Sequence[Tensor]) -> list[Tensor]:
        """What all owners have made of their tensors: each whole, or this rank's share of it."""
        if self.world.world_size == 1:
            return list(made)
        parts = self._parts
        shapes = [[self._share(p, self.world.rank) for p in self._of(r)] for r in self._ranks()]
        if parts == 1:
            received = self._from_all(made, shapes)
        else:
            cut = [each.split(fsdp.rows(len(each), parts)) for each in made]
            sent = [[shares[rank % parts] for shares in cut] for rank in self._ranks()]
            received = self._exchange(sent, shapes)
        coming = [iter(each) for each in received]
        return [next(coming[owner]) for owner in self.owners]

    def _ranks(self) -> range:
        return range(self.world.world_size)

    @property
    def _parts(self) -> int:
        return fsdp.parts(self.tensors[0])

    def _of(self, rank: int) -> list[int]:
        """Places of what a rank owns."""
        return [place for place, owner in enumerate(self.owners) if owner == rank]

    def _share(self, place: int, rank: int) -> Shape:
        """The shape of what a rank holds of a tensor."""
        rows, *others = self.tensors[place].shape
        parts = self._parts
        return (fsdp.rows(rows, parts)[rank % parts], *others)

    def _from_all(
        self, made: Sequence[Tensor], shapes: Sequence[Sequence[Shape]]
    ) -> list[list[Tensor]]:
        """What each rank has made, of these shapes; all send as much as who sends most."""
        sent = self._packed(made)
        longest = max(sum(map(math.prod, each)) for each in shapes)
        rows = self.world.all_rows(torch.nn.functional.pad(sent, (0, longest - len(sent))))
        return [_unpacked(row, each) for row, each in zip(rows, shapes, strict=True)]

    def _exchange(
        self, sent: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[Shape]]
    ) -> list[list[Tensor]]:
        """A list of tensors to each rank, and one from each, of these shapes."""
        lengths = [sum(map(math.prod, each)) for each in shapes]
        received = self.world.exchange([self._packed(each) for each in sent], lengths)
        return [_unpacked(row, each) for row, each in zip(received, shapes, strict=True)]

    def _packed(self, tensors: Sequence[Tensor]) -> Tensor:
        """Their numbers one behind the other."""
        none = fsdp.local(self.tensors[0]).new_empty(0)
        return torch.cat([none, *(each.flatten() for each in tensors)])


def _unpacked(vector: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Tensors of these shapes from the start of a vector."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = vector[: sum(sizes)].split(sizes)
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]
