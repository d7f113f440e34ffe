"""How sure a difference between two error rates is: a paired bootstrap over utterances or speakers.

A speaker's utterances are alike: drawn one by one they make an interval narrower than it is.
"""

from collections.abc import Sequence

import jiwer
import numpy as np


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """Errors of each utterance, and its words: [utterances, 2]."""
    counts = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        found = jiwer.process_words(reference, hypothesis)
        errors = found.substitutions + found.deletions + found.insertions
        counts.append((errors, found.hits + found.substitutions + found.deletions))
    return np.array(counts, dtype=float)


def by_speaker(counts: np.ndarray, speakers: Sequence[str]) -> dict[str, np.ndarray]:
    """Errors and words [utterances, 2] added up for each speaker."""
    names = np.array(speakers)
    return {name: counts[names == name].sum(0) for name in sorted(set(speakers))}


def difference(
    one: np.ndarray, other: np.ndarray, draws: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """WER of one less WER of the other on the same rows, utterances or speakers, with the 95 %
    interval that comes of drawing rows.
    """
    chosen = np.random.default_rng(seed).integers(0, len(one), (draws, len(one)))
    apart = (one[:, 0] - other[:, 0])[chosen].sum(1) / one[:, 1][chosen].sum(1)
    low, high = np.quantile(apart, (0.025, 0.975))
    exact = (one[:, 0] - other[:, 0]).sum() / one[:, 1].sum()
    return {"difference": round(exact, 4), "low": round(low, 4), "high": round(high, 4)}
