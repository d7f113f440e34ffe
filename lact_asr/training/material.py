"""The seam between the one training loop and what it trains on: speech, texts, what else may come.

The loop asks a `Material` for micro-batches, for the worst of them, and for a `Measure` of the
model on the dev data; what is in a batch concerns the objective alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

    def rows(self, kept: Sequence[int]) -> Any:
        """Some of what is in it, at least one, as a batch."""

    def not_finite(self) -> list[int]:
        """Rows that hold a NaN or an infinity before any model has seen them."""


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


@dataclass(frozen=True)
class Measure:
    """How well a model does on the dev data."""

    loss: float  # nats per label token
    order: tuple[float, ...]  # what models are compared by: lower is better, the first counts most
    figures: dict[str, float]  # what a model is known by beside its loss, such as its WER
    line: str  # the same for people
    samples: Sequence[Sample] = ()
    unreadable: Sequence[tuple[str, str]] = ()  # (id, why)
    beside: Mapping[str, float] = field(default_factory=dict)  # for the metrics alone
    # shares of blank frames and of empty texts, frames a label; nothing where there is no CTC
    signs: Mapping[str, float] = field(default_factory=dict)


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


class Material(ABC):
    """What a model learns from, and what it is measured on."""

    terms: Terms
    nothing_learned: tuple[float, ...]  # the order of a model that is not worth keeping
    budget: float  # of a batch, with its padding
    summary: str  # what is trained on, for people
    left_out: dict[str, list[str]]  # reason -> ids
    tokens_per_amount: float  # that a model computes for one of what throughput counts
    max_unreadable = 0  # files that are skipped before training stops

    @abstractmethod
    def fingerprint(self) -> int:
        """A number that changes when the training data do."""

    @abstractmethod
    def feed(self, start: Position) -> Feed:
        """The batches of this rank from a place on."""

    @abstractmethod
    def batches_per_epoch(self) -> int:
        """Micro-batches that every rank takes of an epoch."""

    @abstractmethod
    def prepared(self, batch: Any) -> Any:
        """A batch on the device, changed as training wants it; called under the step's seed."""

    @abstractmethod
    def worst(self) -> Iterator[Worst]:
        """The batches of an epoch that need most memory, one after the other."""

    @abstractmethod
    def measure(self) -> Measure:
        """The model on all dev data, the same on every rank."""
