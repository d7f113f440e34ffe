"""Texts for audio that nobody has written down: what a model, or any other system, hears in it.

A model's confidence in a text is the probability of its best path per symbol: the geometric mean,
blanks between them included. It is how rounds of self-training leave out what would teach mistakes
(Xu et al. 2020, "Iterative Pseudo-Labeling"; Park et al. 2020, "Improved Noisy Student Training").
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lact_asr.data.audio import SUFFIXES, duration, is_recording
from lact_asr.data.batch_plan import by_length
from lact_asr.data.dataset import whole_corpus
from lact_asr.data.folder import walk_visible
from lact_asr.data.loader import default_workers, loader
from lact_asr.data.manifest import Utterance, raise_all
from lact_asr.decoding.transcribe import decode
from lact_asr.model.interface import CTCModel
from lact_asr.model.masks import length_mask
from lact_asr.text.normalize import normalize
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError


class Guess(NamedTuple):
    """What somebody thinks is said in an utterance."""

    text: str
    confidence: float  # 0 to 1


class Labelled(NamedTuple):
    """Utterances with the texts that were believed, and what was not."""

    utterances: list[Utterance]
    doubtful: list[str]  # ids: less sure than asked for
    silent: list[str]  # nothing was heard in them
    unknown: list[str]  # nobody has said anything of them


def choose(utterances: Sequence[Utterance], guesses: Mapping[str, Guess], least: float) -> Labelled:
    """The utterances with texts that are at least so sure."""
    found = Labelled([], [], [], [])
    for each in utterances:
        guess = guesses.get(each.id)
        if guess is None:
            found.unknown.append(each.id)
        elif not guess.text:
            found.silent.append(each.id)
        elif guess.confidence < least:
            found.doubtful.append(each.id)
        else:
            found.utterances.append(replace(each, text=guess.text))
    return found


def listen(
    model: CTCModel,
    vocabulary: Vocabulary,
    utterances: Sequence[Utterance],
    *,
    batch_seconds: float,
    device: torch.device,
    precision: str,
    progress: Callable[[int], None],
) -> tuple[dict[str, Guess], dict[str, str]]:
    """What a model hears in each utterance, and why some cannot be read."""
    model.to(device).eval()
    corpus = whole_corpus([replace(each, text="") for each in utterances], vocabulary)
    batches = by_length(corpus.durations, batch_seconds)
    read = loader(corpus, batches, min(default_workers(device), len(batches)))
    guesses: dict[str, Guess] = {}
    unreadable: dict[str, str] = {}
    for batch, output, texts in decode(
        model, vocabulary, read, device, precision, unreadable.update
    ):
        sure = confidence(output.log_probs, output.lengths).tolist()
        told = map(Guess, texts, sure)
        guesses |= zip(batch.ids, told, strict=True)
        progress(len(batch))
    return guesses, unreadable


def confidence(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """[B] of the greedy texts of log_probs [B,T,V]: the best path's probability, per symbol."""
    sure, best = log_probs.float().max(-1)
    valid = length_mask(lengths, log_probs.shape[1])
    fresh = torch.ones_like(valid)
    fresh[:, 1:] = best[:, 1:] != best[:, :-1]
    symbols = (fresh & (best != 0) & valid).sum(1).clamp_min(1)
    return (sure.masked_fill(~valid, 0.0).sum(1) / symbols).exp()


def read_guesses(path: Path) -> dict[str, Guess]:
    """Transcripts of any system, a JSON object a line: id, text and, if it says so, confidence.

    DataError with every bad line.
    """
    guesses: dict[str, Guess] = {}
    mistakes: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            identity, guess = _guess(line)
            if identity in guesses:
                raise ValueError(f"a second text of {identity!r}")
            guesses[identity] = guess
        except ValueError as error:
            mistakes.append(f"{path}:{number}: {error}")
    raise_all(mistakes)
    return guesses


def _guess(line: str) -> tuple[str, Guess]:
    row = json.loads(line)
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("id", "text")):
        raise ValueError('write {"id": "...", "text": "...", "confidence": 0.9}')
    sure = row.get("confidence", 1.0)
    if not isinstance(sure, (int, float)) or not 0 <= sure <= 1:
        raise ValueError(f"confidence is a number from 0 to 1, not {sure!r}")
    return row["id"], Guess(normalize(row["text"]), float(sure))


def find_audio(folder: Path) -> list[Utterance]:
    """Every recording below a folder, without a text; its id is its path there.

    DataError names the files that cannot be read, and a folder without recordings.
    """
    found: dict[str, Utterance] = {}
    mistakes: list[str] = []
    for path in sorted(_recordings(folder)):
        place = path.relative_to(folder)
        key = str(place.with_suffix(""))
        if key in found:
            mistakes.append(f"{path}: {found[key].audio.name} is the same recording")
        try:
            seconds = duration(path)
        except DataError as error:
            mistakes.append(str(error))
            continue
        speaker = place.parts[0] if len(place.parts) > 1 else ""
        found[key] = Utterance(key, path, seconds, "", speaker)
    raise_all(mistakes)
    if not found:
        raise DataError(f"{folder}: no recordings ({', '.join(SUFFIXES)})")
    return list(found.values())


def _recordings(folder: Path) -> Iterable[Path]:
    for directory, names in walk_visible(folder):
        yield from filter(is_recording, (directory / name for name in names))
