"""Decoding utterances with a model: for evaluation, for files of a user, for validation."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lact_asr.data.batch import Batch
from lact_asr.data.batch_plan import by_length
from lact_asr.data.dataset import whole_corpus
from lact_asr.data.loader import default_workers, loader
from lact_asr.data.manifest import Utterance, listed
from lact_asr.decoding.greedy import greedy
from lact_asr.distributed.processes import ALONE, World
from lact_asr.model.forward import autocast, forward_batch
from lact_asr.model.interface import CTCModel, CTCOutput
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError


@dataclass(frozen=True)
class Hypothesis:
    """What the model heard in one utterance."""

    id: str
    text: str


@dataclass(frozen=True)
class Transcription:
    """Hypotheses in the order of the utterances, and what they cost."""

    hypotheses: list[Hypothesis]
    audio_seconds: float
    compute_seconds: float  # reading, features, model and decoding; of the slowest rank

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio; 0.01 is a hundred times faster than real time."""
        return self.compute_seconds / self.audio_seconds


class Unheard(DataError):
    """Utterances that could not be read; what was heard in the others is not lost."""

    def __init__(
        self, unreadable: Sequence[tuple[str, str]], hypotheses: list[Hypothesis], asked: int
    ) -> None:
        named = listed([f"utterance {identity}: {why}" for identity, why in unreadable])
        super().__init__(f"{len(unreadable)} of {asked} utterances cannot be read: {named}")
        self.hypotheses = hypotheses


def transcribe(
    model: CTCModel,
    vocabulary: Vocabulary,
    utterances: Sequence[Utterance],
    batch_seconds: float = 320.0,
    device: torch.device | None = None,
    progress: Callable[[float], None] | None = None,
    precision: str = "fp32",
    world: World = ALONE,
) -> Transcription:
    """Greedy texts of utterances of any length; progress gets utterances done by this rank.

    The ranks share the batches, and each returns all texts, those that one alone would hear. The
    model is moved to the device and left in eval mode. Unreadable files are an Unheard on every
    rank that names the utterances: a score over the readable rest would flatter.
    """
    device = device or world.device()
    model.to(device).eval()
    corpus = whole_corpus(utterances, vocabulary, model.video_shape)
    batches = world.share(by_length(corpus.durations, batch_seconds))
    read = loader(corpus, batches, min(default_workers(device), len(batches)))
    texts: dict[str, str] = {}
    unreadable: list[tuple[str, str]] = []
    started = time.monotonic()
    for batch, _, heard in decode(model, vocabulary, read, device, precision, unreadable.extend):
        texts |= zip(batch.ids, heard, strict=True)
        if progress:
            progress(len(batch))
    shares = world.gather((texts, unreadable, time.monotonic() - started))
    every = {identity: text for part, _, _ in shares for identity, text in part.items()}
    hypotheses = [Hypothesis(each.id, every[each.id]) for each in utterances if each.id in every]
    if missing := [each for _, missing, _ in shares for each in missing]:
        raise Unheard(missing, hypotheses, len(utterances))
    slowest = max(seconds for _, _, seconds in shares)
    return Transcription(hypotheses, float(corpus.durations.sum()), slowest)


def decode(
    model: CTCModel,
    vocabulary: Vocabulary,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    unreadable: Callable[[list[tuple[str, str]]], object],
) -> Iterator[tuple[Batch, CTCOutput, list[str]]]:
    """Each batch on the device, what the model says of it, and its greedy texts.

    `unreadable` is called with the (id, why) of files that could not be read; a batch of nothing
    else is passed over.
    """
    for batch in batches:
        if batch.unreadable:
            unreadable(batch.unreadable)
        if not len(batch):
            continue
        batch = batch.to(device)
        with torch.no_grad(), autocast(device, precision):
            output = forward_batch(model, batch)
        yield batch, output, greedy(output.log_probs, output.lengths, vocabulary)
