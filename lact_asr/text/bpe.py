"""A vocabulary of frequent pieces of words: byte-pair encoding, learned by sentencepiece.

Shorter label sequences than characters, which every good public CTC recipe uses (500 to 5,000
pieces). sentencepiece's id 0 is its unknown piece; all of A-Z, apostrophe and space are always
pieces, so no text in normal form needs it, and the id serves as the CTC blank. In other languages
256 pieces stand for single bytes: a character that is too rare for a piece is written with these.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sentencepiece

from lact_asr.config.text import ENGLISH, TextConfig
from lact_asr.text.normalize import CHARACTERS, in_normal_form
from lact_asr.text.vocabulary import Vocabulary, form_of, refuse_foreign, stated
from lact_asr.utils.errors import DataError

MARK = "\u2581"  # begins the pieces that begin a word
COVERED = 0.9995  # of a text's characters have pieces; the others are written in bytes


class BPEVocabulary(Vocabulary):
    """Pieces of words and their ids; a piece that begins a word is written with a leading U+2581.

    The pieces are the model's, so `encode` splits a text as the learned merges say.
    """

    kind = "bpe"

    def __init__(self, model: bytes, form: TextConfig = ENGLISH) -> None:
        self._model, self.form = model, form
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self._processor.get_piece_size()
        self.symbols = tuple(self._processor.id_to_piece(index) for index in range(1, size))

    @classmethod
    def learn(cls, texts: Iterable[str], size: int, form: TextConfig = ENGLISH) -> "BPEVocabulary":
        """`size` symbols, the blank among them, from texts; the same ones each time.

        English texts with other characters do not count. DataError if the rest is too little for
        that size.
        """
        english = form == ENGLISH
        normal = [in_normal_form(text, form) for text in texts]
        spelt = [text for text in normal if text and not (english and text.strip(CHARACTERS))]
        if not spelt:
            raise DataError(f"no training text is written with {CHARACTERS!r} alone")
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(spelt),
                model_writer=written,
                model_type="bpe",
                vocab_size=size,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                character_coverage=1.0 if english else COVERED,
                required_chars=CHARACTERS.strip() if english else "",
                byte_fallback=not english,
                normalization_rule_name="identity",
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise DataError(_explain(str(error), size)) from error
        return cls(written.getvalue(), form)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "BPEVocabulary":
        """The vocabulary that `to_dict` described."""
        return cls(base64.b64decode(value["model"]), form_of(value))

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint stores: sentencepiece's own model file, as text."""
        model = base64.b64encode(self._model).decode()
        return {"kind": self.kind, "model": model, **stated(self.form)}

    def spelled(self) -> Vocabulary:
        """The characters of its pieces; not those that are too rare for a piece."""
        pieces = [s for i, s in enumerate(self.symbols, 1) if not self._processor.is_byte(i)]
        return Vocabulary(sorted({*"".join(pieces).replace(MARK, " ")}), self.form)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in normal form; DataError names the characters that have none."""
        if self.form == ENGLISH:
            refuse_foreign(text, CHARACTERS)
        return list(self._processor.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; blanks vanish, repeats stay (collapsing CTC paths is decoding's job)."""
        return str(self._processor.decode([index for index in ids if index != self.blank]))

    def widths(self, ids: Sequence[int]) -> list[int]:
        """How many bytes of a text each of its symbols writes; its first word has no space before
        it.
        """
        pieces = [self.symbols[index - 1] for index in ids]
        spaced = [len(piece.replace(MARK, " ").encode()) for piece in pieces]
        found = [
            1 if self._processor.is_byte(index) else width
            for index, width in zip(ids, spaced, strict=True)
        ]
        if pieces and pieces[0].startswith(MARK):
            found[0] -= 1
        return found


def _explain(error: str, size: int) -> str:
    """sentencepiece's refusal in our words; other errors as they are."""
    most = re.search(r"value <= (\d+)", error)
    if most:
        return (
            f"vocabulary_size {size} is more than the training texts give: they have "
            f"{most[1]} different pieces; write vocabulary_size: {most[1]} or less, or "
            "vocabulary: characters"
        )
    least = re.search(r"smaller than required_chars\D+\d+ vs (\d+)", error)
    if least:
        return (
            f"vocabulary_size {size} is less than the characters of the training texts take with "
            f"the 256 bytes: write vocabulary_size: {least[1]} or more"
        )
    return f"no vocabulary of {size} pieces can be learned from the training texts: {error}"
