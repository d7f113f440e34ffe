"""From manifest to batches: what can be trained on, read from its files, padded together.

The corpus lies in a few flat arrays, not in a list of objects, because every worker process would
end with a copy of the list (reading an object writes its reference count). A file that cannot be
read is named and left out; training goes on without it, within a stated number.
"""

import contextlib
import functools
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lact_asr.config.training import TrainingConfig
from lact_asr.data.audio import RATE, read_audio
from lact_asr.data.batch import Batch
from lact_asr.data.manifest import Utterance, without_garbage_collection
from lact_asr.data.video import read_video
from lact_asr.text.ctc import frames_needed
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError

Heard = tuple[NDArray[Any], NDArray[Any] | None]  # samples, and video if there is some
LOUDEST = 1e12  # of a sample; audio lies in -1..1, and from 1e15 on its power is no float32
SPARES = 10  # other utterances tried where a whole batch is unreadable
TOO_LONG = "longer than the limit"
FOREIGN = "characters outside the vocabulary"
EMPTY = "empty text"
INFEASIBLE = "more labels than output frames"


class Rows:
    """Arrays of different lengths, end to end in one."""

    def __init__(self, flat: NDArray[Any], lengths: Iterable[int]) -> None:
        self.flat = flat
        self.ends = np.cumsum([0, *lengths])

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.flat[self.ends[index] : self.ends[index + 1]]


class Strings(Rows):
    """Many strings as one array of bytes."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [each.encode() for each in strings]
        super().__init__(np.frombuffer(b"".join(encoded), np.uint8), map(len, encoded))

    def text(self, index: int) -> str:
        """The string at an index."""
        return self[index].tobytes().decode()


class Corpus:
    """Utterances with their labels, read-only, by index."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        labels: Sequence[Sequence[int]],
        texts: Sequence[str],
        video_shape: tuple[int, ...] | None = None,
    ) -> None:
        """`texts` are in normal form; `video_shape` is that of a frame of video, where somebody
        looks at it.
        """
        seen = video_shape is not None and any(each.video for each in utterances)
        self.videos = Strings(str(each.video or "") for each in utterances) if seen else None
        self.video_shape = video_shape
        self.durations = np.array([each.duration for each in utterances])  # seconds
        self.ids = Strings(each.id for each in utterances)
        self.paths = Strings(str(each.audio) for each in utterances)
        self.texts = Strings(texts)
        self.offsets = np.array([math.nan if u.offset is None else u.offset for u in utterances])
        self.channels = np.array([-1 if u.channel is None else u.channel for u in utterances])
        flat = np.fromiter(chain.from_iterable(labels), np.int32, sum(map(len, labels)))
        self.labels = Rows(flat, map(len, labels))

    def __len__(self) -> int:
        return len(self.durations)

    def fingerprint(self) -> int:
        """A number that changes when utterances come, go, change length or begin elsewhere."""
        begins = self.offsets[~np.isnan(self.offsets)].tobytes()
        seconds = zlib.crc32(begins, zlib.crc32(self.durations.tobytes()))
        return zlib.crc32(self.ids.flat.tobytes(), seconds)


@without_garbage_collection()
def usable(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    output_lengths: Callable[[Tensor], Tensor],
    config: TrainingConfig,
    views: int = 1,
    video_shape: tuple[int, ...] | None = None,
) -> tuple[Corpus, dict[str, list[str]]]:
    """What can be trained on, and the ids of what cannot, by reason.

    CTC needs a frame per label and one between equal neighbours, at the highest speed too: a single
    utterance without them gives NaN gradients to the whole model. No utterance may exceed a batch,
    at the slowest speed and heard `views` times. DataError if more than half cannot be used: that
    is a mistake in the data or the settings.
    """
    seconds = config.budget(views).seconds
    longest = min(config.max_duration, seconds or config.max_duration)
    shortened = RATE / max(1.0, *config.augment.speeds)
    samples = torch.tensor(
        [round(each.duration * shortened) for each in utterances], dtype=torch.int64
    )
    frames = output_lengths(samples).tolist()
    dropped: dict[str, list[str]] = defaultdict(list)
    kept, kept_labels = [], []
    for utterance, count in zip(utterances, frames, strict=True):
        labels, reason = _labels(vocabulary.normal(utterance.text), vocabulary)
        if utterance.duration > longest:
            reason = TOO_LONG
        elif not reason and frames_needed(labels) > count:
            reason = INFEASIBLE
        if reason:
            dropped[reason].append(utterance.id)
        else:
            kept.append(utterance)
            kept_labels.append(labels)
    if len(kept) * 2 < len(utterances) or not kept:
        counts = ", ".join(f"{len(ids)} {reason}" for reason, ids in dropped.items())
        raise DataError(
            f"only {len(kept)} of {len(utterances)} utterances can be trained on ({counts}; the "
            f"limit is {longest:g} s, the smaller of max_duration and batch_seconds, the latter at "
            "the slowest speed)"
        )
    texts = [vocabulary.normal(each.text) for each in kept]
    return Corpus(kept, kept_labels, texts, video_shape), dict(dropped)


def whole_corpus(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    video_shape: tuple[int, ...] | None = None,
) -> Corpus:
    """Every utterance, for decoding; one whose text has no labels counts for WER, not for loss."""
    texts = [vocabulary.normal(each.text) for each in utterances]
    labels = [_labels(text, vocabulary)[0] for text in texts]
    return Corpus(utterances, labels, texts, video_shape)


def _labels(text: str, vocabulary: Vocabulary) -> tuple[list[int], str]:
    """Labels of a text in normal form, or none and the reason."""
    try:
        labels = vocabulary.encode(text)
    except DataError:
        return [], FOREIGN
    return labels, "" if labels else EMPTY


def read(corpus: Corpus, index: int) -> NDArray[Any]:
    """The samples of one utterance; DataError if there are none, too many, or not finite."""
    path, promised = corpus.paths.text(index), float(corpus.durations[index])
    offset, channel = float(corpus.offsets[index]), int(corpus.channels[index])
    part = not math.isnan(offset)
    samples = read_audio(
        Path(path),
        offset if part else 0.0,
        promised if part else None,
        channel if channel >= 0 else None,
    )
    seconds = len(samples) / RATE
    if abs(seconds - promised) > max(0.1, 0.01 * promised):
        raise DataError(
            f"{path} has {seconds:.2f} s of audio{f' from {offset:g} s on' if part else ''}, "
            f"its manifest says {promised:.2f} s: the file is cut off, or the manifest is older "
            "than the file"
        )
    _require_audio(path, samples)
    return samples


def _require_audio(path: str, samples: NDArray[Any]) -> None:
    """DataError for samples of which no features can be made."""
    if not np.isfinite(samples).all():
        raise DataError(f"{path} has samples that are NaN or infinite")
    if (peak := float(np.abs(samples).max(initial=0.0))) > LOUDEST:
        raise DataError(f"{path} has samples up to {peak:.1g}: audio lies between -1 and 1")


def read_video_of(corpus: Corpus, index: int) -> NDArray[Any] | None:
    """The video of one utterance, if it has any and somebody looks; DataError as in `read`."""
    if corpus.videos is None or corpus.video_shape is None or not len(corpus.videos[index]):
        return None
    path = Path(corpus.videos.text(index))
    return read_video(path, corpus.video_shape, float(corpus.durations[index]))


class Reader(Dataset[Batch]):
    """Batches by lists of utterance indices; an unreadable utterance is left out and named."""

    def __init__(self, corpus: Corpus, spare: bool = False, cache: bool = False) -> None:
        """`spare`: a batch without any readable utterance gets another one, so none is empty."""
        self.corpus, self.spare = corpus, spare
        self.cache: dict[int, NDArray[Any]] | None = {} if cache else None

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        found: dict[int, Heard] = {}
        unreadable: list[tuple[str, str]] = []
        for index in map(int, indices):
            self._add(index, found, unreadable)
        for step in range(1, SPARES + 1):
            if not self.spare or found:
                break
            self._add((int(indices[0]) + step) % len(self.corpus), found, unreadable)
        if self.spare and not found:
            raise DataError(
                f"{len(unreadable)} audio files in a row are unreadable, the last one says: "
                f"{unreadable[-1][1]}"
            )
        return self._pad_batch(found, unreadable)

    def _add(self, index: int, found: dict[int, Heard], unreadable: list[tuple[str, str]]) -> None:
        try:
            found[index] = self._wave(index), read_video_of(self.corpus, index)
        except DataError as error:
            unreadable.append((self.corpus.ids.text(index), str(error)))

    def _wave(self, index: int) -> NDArray[Any]:
        if self.cache is None:
            return read(self.corpus, index)
        if index not in self.cache:
            self.cache[index] = read(self.corpus, index)
        return self.cache[index]

    def _pad_batch(self, found: dict[int, Heard], unreadable: list[tuple[str, str]]) -> Batch:
        lengths = [len(wave) for wave, _ in found.values()]
        padded = _zeros((len(found), max(lengths, default=0)), torch.float32)
        for row, (wave, _) in zip(padded, found.values(), strict=True):
            row[: len(wave)] = torch.from_numpy(wave)
        labels = [self.corpus.labels[index] for index in found]
        return Batch(
            [self.corpus.ids.text(index) for index in found],
            [self.corpus.texts.text(index) for index in found],
            padded,
            torch.tensor(lengths, dtype=torch.int64),
            torch.from_numpy(np.concatenate([np.empty(0, np.int64), *labels]).astype(np.int64)),
            torch.tensor([len(each) for each in labels], dtype=torch.int64),
            unreadable,
            **_pad_videos([video for _, video in found.values()]),
        )


def _pad_videos(videos: Sequence[NDArray[Any] | None]) -> dict[str, Any]:
    """The videos of a batch, padded, and their lengths; nothing if there are none."""
    some = [each for each in videos if each is not None]
    if not some:
        return {}
    lengths = torch.tensor([0 if each is None else len(each) for each in videos])
    like = torch.from_numpy(some[0])
    padded = _zeros((len(videos), int(lengths.max()), *like.shape[1:]), like.dtype)
    for row, each in zip(padded, videos, strict=True):
        if each is not None:
            row[: len(each)] = torch.from_numpy(each)
    return {"video": padded, "video_lengths": lengths}


def _zeros(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """Zeros; in a worker already in the memory that it shares with its parent, if there is room.

    Copying a batch there when it is done costs 12 % more processor time, FLAC decoding included.
    """
    size = math.prod(shape) * kind.itemsize
    shared = shared_memory(size) if size and get_worker_info() else None
    if shared is None:
        return torch.zeros(shape, dtype=kind)
    return torch.empty(0, dtype=kind).set_(shared).view(shape)


def shared_memory(size: int) -> torch.UntypedStorage | None:
    """So many bytes, zero, of shared memory; none where it could run short, which is said once.

    There must be room for 16 times as many: workers take theirs at the same time, and the locks of
    a validation's workers need what is left.
    """
    seen = os.statvfs("/dev/shm")
    if seen.f_bavail * seen.f_frsize > 16 * size:
        with contextlib.suppress(RuntimeError):  # a limit of another kind
            return torch.UntypedStorage._new_shared(size)
    _say_that_memory_is_short()
    return None


@functools.cache
def _say_that_memory_is_short() -> None:
    print("/dev/shm is full: batches come through pipes, which takes longer", flush=True)
