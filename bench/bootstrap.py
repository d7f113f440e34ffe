"""How sure a difference between two error rates is: a paired bootstrap over utterances or speakers.

A speaker's utterances are alike: drawn one by one they make an interval narrower than it is.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jiwer
import numpy as np
from numpy.typing import NDArray

from bench.machine import device
from lact_asr.data.manifest import Utterance
from lact_asr.decoding.transcribe import transcribe
from lact_asr.model.interface import CTCModel
from lact_asr.text.normalize import in_normal_form
from lact_asr.text.vocabulary import Vocabulary

Errors = dict[str, list[int]]  # by speaker: errors in words, and words


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[Any]:
    """Errors of each utterance, and its words: [utterances, 2]."""
    counts = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        found = jiwer.process_words(reference, hypothesis)
        errors = found.substitutions + found.deletions + found.insertions
        counts.append((errors, found.hits + found.substitutions + found.deletions))
    return np.array(counts, dtype=float)


def by_speaker(counts: NDArray[Any], speakers: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Errors and words [utterances, 2] added up for each speaker."""
    names = np.array(speakers)
    return {name: counts[names == name].sum(0) for name in sorted(set(speakers))}


def of_speakers(model: CTCModel, vocabulary: Vocabulary, utterances: Sequence[Utterance]) -> Errors:
    """How a model hears each speaker, greedy."""
    heard = transcribe(model, vocabulary, utterances, device=device()).hypotheses
    true = [in_normal_form(each.text) for each in utterances]
    counts = word_errors(true, [each.text for each in heard])
    sums = by_speaker(counts, [each.speaker for each in utterances])
    return {name: row.astype(int).tolist() for name, row in sums.items()}


def over_seeds(runs: Mapping[int, Errors], seeds: Collection[int]) -> NDArray[Any]:
    """Errors and words of each speaker, added up over runs: [speakers, 2]."""
    speakers = sorted(runs[min(seeds)])
    return np.array([[runs[seed][name] for name in speakers] for seed in sorted(seeds)]).sum(0)


def difference(
    one: NDArray[Any], other: NDArray[Any], draws: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """WER of one less WER of the other on the same rows, utterances or speakers, with the 95 %
    interval that comes of drawing rows.
    """
    chosen = np.random.default_rng(seed).integers(0, len(one), (draws, len(one)))
    apart = (one[:, 0] - other[:, 0])[chosen].sum(1) / one[:, 1][chosen].sum(1)
    low, high = np.quantile(apart, (0.025, 0.975))
    exact = (one[:, 0] - other[:, 0]).sum() / one[:, 1].sum()
    return {"difference": round(exact, 4), "low": round(low, 4), "high": round(high, 4)}


def in_words(apart: Mapping[str, float]) -> str:
    """A difference by speaker as a benchmark prints it."""
    sure = f"{apart['low']:+.1%} to {apart['high']:+.1%} in 95 % of draws of speakers"
    return f"{apart['difference']:+.1%}, {sure}"
