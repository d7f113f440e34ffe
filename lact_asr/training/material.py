"""The seam between the one training loop and what it trains on: speech, texts, what else may come.

The loop asks a `Material` for micro-batches, for the worst of them, and for a `Measure` of the
model on the dev data; what is in a batch concerns the objective alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lact_asr.data.batch_plan import Position


class MicroBatch(Protocol):
    """What a step asks of a batch."""

    ids: list[str]  # of what is in it, for messages
    unreadable: list[tuple[str, str]]  # (id, why): left out of it

    @property
    def amount(self) -> float:
        """What throughput counts, without padding: seconds of audio, symbols of text."""

    def to(self, device: torch.device | str) -> Any:
        """The batch on a device."""


class Feed(Protocol):
    """The endless training batches of one rank."""

    @property
    def position(self) -> Position:
        """The place behind the last batch taken, from which another process can go on."""

    def take(self) -> Any:
        """The next batch."""


@dataclass(frozen=True)
class Sample:
    """One utterance as spoken and as heard."""

    id: str
    true: str
    pred: str


class Measure(Protocol):
    """How well a model does on the dev data."""

    @property
    def loss(self) -> float:
        """Nats per label token."""

    @property
    def order(self) -> tuple[float, ...]:
        """By what models are compared: lower is better, the first number counts most."""

    @property
    def figures(self) -> dict[str, float]:
        """What the model is known by beside its loss, such as its WER."""

    @property
    def line(self) -> str:
        """The same for people."""

    @property
    def samples(self) -> Sequence[Sample]:
        """What the model makes of a few utterances."""

    @property
    def unreadable(self) -> Sequence[tuple[str, str]]:
        """Files that could not be read: (id, why)."""


@dataclass(frozen=True)
class Terms:
    """What things are called in messages and metrics."""

    items: str  # what a batch is made of
    unit: str  # of the length of one
    budget: str  # the setting that says how much a batch may hold
    rate: str  # the metric of throughput
    throughput: str  # its unit, in a progress line


@dataclass(frozen=True)
class Worst:
    """A batch that needs as much memory as any of an epoch."""

    count: int
    longest: float  # one in it
    batch: Any  # on the device, as long as it can become


class Material(Protocol):
    """What a model learns from, and what it is measured on."""

    terms: Terms
    summary: str  # what is trained on, for people
    left_out: Mapping[str, Sequence[str]]  # reason -> ids
    budget: float  # of a batch, with its padding
    max_unreadable: int  # files that are skipped before training stops
    nothing_learned: tuple[float, ...]  # the order of a model that is not worth keeping

    def fingerprint(self) -> int:
        """A number that changes when the training data do."""

    def feed(self, start: Position) -> Feed:
        """The batches of this rank from a place on."""

    def prepared(self, batch: Any) -> Any:
        """A batch on the device, changed as training wants it; called under the step's seed."""

    def worst(self) -> Iterator[Worst]:
        """The batches of an epoch that need most memory, one after the other."""

    def measure(self) -> Measure:
        """The model on all dev data, the same on every rank; leaves the model in eval mode."""
