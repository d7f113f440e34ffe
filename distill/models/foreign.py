"""A teacher that another library built: wav2vec 2.0, HuBERT and their like, with a CTC head.

torchaudio's models come with this project; those of transformers need that package, wherever they
are used. Each utterance runs alone: the convolutions of the smaller models are normalized over the
whole input, its padding too, and their own recipe is not to pad. So what is heard of an utterance
does not depend on its batch, as with every model here; a `cache` step pays for it once.

Shapes: B batch, N samples, L frames, D width, V symbols with the blank, first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config.foreign import ForeignConfig
from lact_asr.data.specaugment import SpecAugment
from lact_asr.model.interface import CTCModel, CTCOutput
from lact_asr.utils.errors import DataError


class Built(nn.Module, ABC):
    """A model of a library, asked in one way."""

    model: Any  # of the library

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """From the last states to the library's symbols."""

    @abstractmethod
    def states(self, wave: Tensor) -> list[Tensor]:
        """Of one wave [1,N] the states [1,L,D] behind each block, the last as the head reads it."""


class Torchaudio(Built):
    """`torchaudio.models.wav2vec2_model`."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        from torchaudio.models import wav2vec2_model  # 0.6 s

        self.model = wav2vec2_model(**arguments)

    @property
    def head(self) -> nn.Linear:
        """The layer that fine-tuning added."""
        return self.model.aux

    def states(self, wave: Tensor) -> list[Tensor]:
        """`extract_features` gives the last without the norm that some models end with."""
        found, _ = self.model.extract_features(wave)
        transformer = self.model.encoder.transformer
        if not transformer.layer_norm_first:
            found[-1] = transformer.layer_norm(found[-1])
        return found


class Transformers(Built):
    """A `...ForCTC` of transformers that reads samples."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        library = transformers()
        about = library.AutoConfig.for_model(**arguments)
        self.model = library.AutoModelForCTC.from_config(about)

    @property
    def head(self) -> nn.Linear:
        """The layer that fine-tuning added."""
        return self.model.lm_head

    def states(self, wave: Tensor) -> list[Tensor]:
        """The first are those before the first block; the last, before the norm that some models
        end with (transformers 5.23).
        """
        found = self.model.base_model(wave, output_hidden_states=True)
        return [*found.hidden_states[1:-1], found.last_hidden_state]


LIBRARIES: dict[str, Callable[[dict[str, Any]], Built]] = {
    "torchaudio": Torchaudio,
    "transformers": Transformers,
}


def transformers() -> Any:
    """The package; DataError where it is not installed."""
    try:
        import transformers as package
    except ImportError as error:
        raise DataError(
            f"a teacher of transformers needs that package ({error}): pip install "
            "'trainyard[transformers]'"
        ) from error
    return package


class Foreign(CTCModel):
    """A model of another library as one of this project. It teaches, and is not trained here."""

    family = "foreign"
    config: ForeignConfig
    symbols: Tensor  # [V]

    def __init__(self, config: ForeignConfig, vocabulary_size: int) -> None:
        super().__init__()
        if len(config.symbols) != vocabulary_size:
            raise ValueError(f"{len(config.symbols)} symbols are mapped to {vocabulary_size}")
        self.config = config
        self.inner = LIBRARIES[config.library](config.arguments)
        self.blocks = nn.ModuleList()  # of the library's making: it is not split over processes
        self.register_buffer("symbols", torch.tensor(config.symbols), persistent=False)

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]  # it is the library's attribute
        """From the last states to the library's symbols."""
        return self.inner.head

    def forward(
        self, waves: Tensor, wave_lengths: Tensor, augment: SpecAugment | None = None
    ) -> CTCOutput:
        """Waves [B,N] float32 at 16 kHz and their lengths [B] in samples."""
        if augment:
            raise ValueError("a foreign teacher reads samples: there are no features to mask")
        rows = [
            self.inner.states(self._prepared(wave[:length]))
            for wave, length in zip(waves, wave_lengths.tolist(), strict=True)
        ]
        longest = max(row[-1].shape[1] for row in rows)
        hidden = [
            torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in layer])
            for layer in zip(*rows, strict=True)
        ]
        lengths = self.output_lengths(wave_lengths)
        return CTCOutput(self.read_out(hidden[-1], lengths), lengths, hidden)

    def _prepared(self, wave: Tensor) -> Tensor:
        """[N] as the library wants it, [1,N]."""
        wave = F.pad(wave, (0, max(self.config.least - len(wave), 0)))[None]
        return F.layer_norm(wave, wave.shape, eps=1e-7) if self.config.normalize else wave

    def read_out(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities [B,L,V] of the mapped symbols from states [B,L,D] of the last block."""
        with torch.autocast(states.device.type, enabled=False):
            return self.head(states.float())[..., self.symbols].log_softmax(-1)
