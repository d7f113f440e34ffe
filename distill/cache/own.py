"""A cache of words that no model of this project has said: how any program writes one.

It says frame by frame how likely each symbol is; the student learns from it as from any cache, with
`teacher: null`. docs/own-teacher.md has a program that writes one.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from distill.cache.filling import kept_columns
from distill.cache.format import Array, Form, Writer, open_cache, pack_record, round_parts
from distill.cache.loudness import loudness
from distill.config.kept import kept_symbols, kept_temperatures
from lact_asr.model.interface import CTCOutput
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError


class OwnCache:
    """A folder that is written utterance by utterance; it is whole when the context is left."""

    def __init__(
        self,
        folder: Path,
        teacher: str,
        vocabulary: Vocabulary,
        frame_rate: float,
        *,
        kept: int = 16,
        temperatures: Sequence[float] = (1.0, 2.0, 3.0),
        width: int = 0,
    ) -> None:
        """`teacher` is any name; `frame_rate` in frames a second; `width` of hidden states, if
        they are kept. DataError where the folder is a cache of something else.
        """
        size = len(vocabulary)
        self.form = Form(
            weights=teacher,
            family="own",
            model={},
            vocabulary=vocabulary.to_dict(),
            frame_rate=frame_rate,
            symbols=size,
            kept=kept_symbols(size, kept),
            temperatures=kept_temperatures(size, temperatures),
            hidden="last" if width else "none",
            widths=[width] if width else [],
            precision="fp32",
        )
        open_cache(folder, self.form)
        self._writer = Writer(folder, rank=0)

    def add(
        self,
        identity: str,
        samples: Array,
        log_probs: Array,
        hidden: Array | None = None,
        speed: float = 1.0,
    ) -> None:
        """What was said of an utterance: its `samples` [N] at 16 kHz as they were heard, at this
        speed; `log_probs` [T,V] with the blank first; `hidden` [T,width].
        """
        scores = torch.as_tensor(np.asarray(log_probs), dtype=torch.float32)[None]
        states = [] if hidden is None else [torch.as_tensor(np.asarray(hidden))[None]]
        self._refuse_shapes(identity, scores, states)
        said = CTCOutput(scores, torch.tensor([scores.shape[1]]), states)
        parts = {name: part[0].numpy() for name, part in kept_columns(said, self.form).items()}
        rows = round_parts(parts, self.form)
        if not all(np.isfinite(row).all() for row in rows.values()):
            raise DataError(f"{identity}: log_probs or hidden are not finite, or beyond float16")
        wave = torch.as_tensor(np.asarray(samples), dtype=torch.float32)[None]
        (loud,) = loudness(wave, [wave.shape[1]])
        record = pack_record(rows, self.form)
        self._writer.add((identity, speed), record, scores.shape[1], wave.shape[1], loud)

    def _refuse_shapes(
        self, identity: str, scores: torch.Tensor, states: Sequence[torch.Tensor]
    ) -> None:
        """DataError for arrays that are not of this cache's form."""
        form, frames = self.form, scores.shape[1]
        if scores.dim() != 3 or scores.shape[-1] != form.symbols:
            raise DataError(
                f"{identity}: log_probs are to be [frames, {form.symbols}], with the blank first; "
                f"they are {list(scores.shape[1:])}"
            )
        wanted = [(1, frames, width) for width in form.widths]
        if [tuple(each.shape) for each in states] != wanted:
            found = [list(each.shape[1:]) for each in states]
            asked = [list(shape[1:]) for shape in wanted]
            raise DataError(f"{identity}: hidden is to be {asked}, it is {found}")

    def __enter__(self) -> "OwnCache":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._writer.flush()
