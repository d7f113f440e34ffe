"""The one vocabulary that travels with a checkpoint.

A vocabulary is stored, never made again: a public recognizer that rebuilt its characters per split,
sorted by frequency, read its test set at 91.9 % WER. English characters are fixed, those of other
languages are found in the training texts; pieces of words are learned there (`lact_asr.text.bpe`).
It knows the normal form of the texts that it writes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lact_asr.config.text import ENGLISH, TextConfig
from lact_asr.text.normalize import CHARACTERS, in_normal_form
from lact_asr.utils.errors import DataError

SHOWN = 80  # characters of a vocabulary in a message


class Vocabulary:
    """Characters and their ids; id 0 is the CTC blank, which no text contains."""

    blank = 0
    kind = "characters"

    def __init__(self, symbols: Sequence[str], form: TextConfig = ENGLISH) -> None:
        if len(set(symbols)) != len(symbols) or not all(len(symbol) == 1 for symbol in symbols):
            raise ValueError(f"symbols must be single characters, each once: {symbols!r}")
        self.symbols, self.form = tuple(symbols), form
        self._ids = {symbol: index for index, symbol in enumerate(self.symbols, start=1)}

    @classmethod
    def characters(cls) -> "Vocabulary":
        """Space, apostrophe, A to Z."""
        return cls(CHARACTERS)

    @classmethod
    def found(cls, texts: Iterable[str], form: TextConfig) -> "Vocabulary":
        """Every character of the texts, which need not be in normal form; DataError for none."""
        symbols = sorted({*"".join(in_normal_form(text, form) for text in texts)})
        if not symbols:
            raise DataError("the training texts have no characters to make a vocabulary of")
        return cls(symbols, form)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Vocabulary":
        """The vocabulary that `to_dict` described; `load_vocabulary` takes one of any kind."""
        return cls(value["symbols"], form_of(value))

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {"kind": self.kind, "symbols": list(self.symbols), **stated(self.form)}

    def normal(self, text: str) -> str:
        """A text in the form that this vocabulary writes."""
        return in_normal_form(text, self.form)

    def spelled(self) -> "Vocabulary":
        """The characters that its symbols consist of."""
        return self

    def __len__(self) -> int:
        return len(self.symbols) + 1  # and the blank

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return False
        return (self.kind, self.symbols, self.form) == (other.kind, other.symbols, other.form)

    def __hash__(self) -> int:
        return hash(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in normal form; DataError names the characters that have none."""
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError:
            refuse_foreign(text, "".join(self.symbols))
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; blanks vanish, repeats stay (collapsing CTC paths is decoding's job)."""
        return "".join(self.symbols[index - 1] for index in ids if index != self.blank)

    def widths(self, ids: Sequence[int]) -> list[int]:
        """How many bytes of a text, in UTF-8, each of its symbols writes."""
        return [len(self.symbols[index - 1].encode()) for index in ids]


def stated(form: TextConfig) -> dict[str, Any]:
    """What a checkpoint stores of the form of texts; nothing for English, as from the beginning."""
    return {} if form == ENGLISH else {"form": form.model_dump()}


def form_of(value: Mapping[str, Any]) -> TextConfig:
    """The form of texts that a checkpoint states."""
    return TextConfig.model_validate(value.get("form", {}))


def refuse_foreign(text: str, known: str) -> None:
    """DataError naming the characters of a text that are not among the known ones."""
    foreign = sorted(set(text) - set(known))
    if foreign:
        named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in foreign)
        raise DataError(
            f"characters outside the vocabulary: {named}, in {text!r}; "
            f"spell them with {known[:SHOWN]!r}{' ...' * (len(known) > SHOWN)} or drop the "
            "utterance"
        )
