"""A cache in the teacher's place: what it said once, read from disk for every batch.

On the main process, by `pread`, without a worker: a batch of 16 utterances takes under a
millisecond from the page cache, and a student's step a hundred times that.

Shapes: B batch, T teacher frames, V vocabulary, K symbols kept.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.cache.format import Array, Entry, Reader
from distill.cache.loudness import alike, loudness
from distill.config.distillation import DistillConfig
from distill.config.kept import Kept, lacking
from distill.losses.functions import TopK
from distill.losses.kd import Recalled
from lact_asr.data.batch import Batch
from lact_asr.distributed.device import sent
from lact_asr.text.load import load_vocabulary
from lact_asr.utils.errors import DataError

TINY = torch.finfo(torch.float32).tiny  # log of it is -87


class Cached:
    """A source that reads."""

    def __init__(self, folder: Path, teacher: Mapping[str, Any] | None) -> None:
        """DataError if these are not the words of `teacher`, an `identity`
        (`distill.cache.filling`), where there is one to compare with.
        """
        self.folder, self.reader = folder, Reader(folder)
        self.form = self.reader.form
        if teacher:
            self._refuse_another(teacher)
        self.vocabulary = load_vocabulary(self.form.vocabulary)
        self.frame_rate, self.widths = self.form.frame_rate, tuple(self.form.widths)
        self.modalities: tuple[str, ...] = ()
        self.video_shape: tuple[int, ...] | None = None
        self.attends = False

    def check(self, config: DistillConfig) -> None:
        """Whether what is kept is enough for these settings."""
        form = self.form
        kept = Kept(form.symbols, form.kept, form.temperatures, form.hidden)
        if wrong := [words for _, words in lacking(kept, config)]:
            raise DataError(f"{self.folder} {'; and '.join(wrong)}")

    def require(
        self, identities: Collection[str], speeds: Collection[float], tolerated: int
    ) -> None:
        """DataError if more than `tolerated` utterances are missing.

        A few may be, their audio unreadable: training passes over them too.
        """
        missing = self.reader.missing(identities, speeds)
        if len(missing) > tolerated * len(speeds):
            raise DataError(
                f"{len(missing)} of {len(identities) * len(speeds)} records are missing: "
                f"{self.reader.absent(*missing[0])}"
            )

    def lengths(self, batch: Batch) -> Tensor:
        """As many frames as were kept."""
        frames = [entry.frames for entry in self._entries(batch)]
        return torch.tensor(frames)

    def __call__(self, batch: Batch, temperature: float) -> Recalled:
        """What was kept, as the teacher would say it; `kept` at the temperature."""
        entries = self._entries(batch)
        self._refuse_other_audio(batch, entries)
        records = [self.reader.record(entry) for entry in entries]
        device = batch.waves.device
        lengths = sent(torch.tensor([entry.frames for entry in entries]), device)
        parts = {
            name: sent(_pad_rows([record[name] for record in records]), device)
            for name in self.form.layout()
        }
        hidden = list(parts["hidden"].float().split(self.widths, -1)) if self.widths else []
        scores = parts["scores"].float()
        if self.form.whole:
            return Recalled(scores.log_softmax(-1), lengths, hidden)
        ids = parts["ids"].long()
        norms = dict(zip(self.form.temperatures, parts["norms"].unbind(-1), strict=True))
        plain, kept = (
            TopK(ids, scores / tau - norms[tau][..., None]) for tau in (1.0, temperature)
        )
        return Recalled(self._spread(plain), lengths, hidden, kept=kept)

    def _entries(self, batch: Batch) -> list[Entry]:
        pairs = zip(batch.ids, batch.wave_lengths.tolist(), strict=True)
        return [self.reader.entry(identity, batch.speed, samples) for identity, samples in pairs]

    def _refuse_other_audio(self, batch: Batch, entries: Sequence[Entry]) -> None:
        """DataError if an utterance of the right length does not sound as it did."""
        found = loudness(batch.waves, batch.wave_lengths.tolist())
        for identity, entry, now in zip(batch.ids, entries, found, strict=True):
            if entry.loudness and not alike(now, entry.loudness):
                raise DataError(
                    f"{identity} at speed {batch.speed:g} is other audio than {self.folder} was "
                    f"written from (its quarters are {now} millionths of full scale loud, and were "
                    f"{list(entry.loudness)}): run the `cache` step again into another folder"
                )

    def _spread(self, kept: TopK) -> Tensor:
        """[B,T,V] log-probabilities: what was kept, the rest in equal shares."""
        left = (1 - kept.log_probs.exp().sum(-1, keepdim=True)).clamp_min(TINY)
        share = (left / (self.form.symbols - self.form.kept)).log()
        every = share.expand(*share.shape[:2], self.form.symbols)
        return every.scatter(-1, kept.ids, kept.log_probs)

    def _refuse_another(self, teacher: Mapping[str, Any]) -> None:
        mine = asdict(self.form)
        apart = [name for name in teacher if mine[name] != teacher[name]]
        if apart:
            raise DataError(
                f"{self.folder} holds the words of another teacher ({', '.join(apart)} differ): "
                "run the `cache` step with the teacher that is to teach"
            )


def _pad_rows(rows: list[Array]) -> Tensor:
    """[T,C] arrays as one tensor [B,T,C], zero past each length."""
    longest = max(len(row) for row in rows)
    padded = np.zeros((len(rows), longest, rows[0].shape[1]), rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)
