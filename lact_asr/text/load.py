"""The vocabulary that a checkpoint stored, of whichever kind it is."""

from collections.abc import Mapping
from typing import Any

from lact_asr.text.vocabulary import Vocabulary


def load_vocabulary(value: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that its `to_dict` described."""
    if value["kind"] == "bpe":
        from lact_asr.text.bpe import BPEVocabulary  # sentencepiece, 20 ms, for who needs it

        return BPEVocabulary.from_dict(value)
    return Vocabulary.from_dict(value)
