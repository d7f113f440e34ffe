"""The normal form of texts: what the recognizer reads and writes. No torch."""

import unicodedata

CHARACTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_APOSTROPHES = str.maketrans("\u2019\u02bc\u2018`", "''''")


def normalize(text: str) -> str:
    """Upper case, straight apostrophes, other punctuation as spaces, single spaces.

    Letters outside A-Z, digits and symbols stay, so that `Vocabulary.encode` can name them.
    """
    text = text.translate(_APOSTROPHES).upper()
    kept = (" " if _is_punctuation(character) else character for character in text)
    return " ".join("".join(kept).split())


def _is_punctuation(character: str) -> bool:
    return character != "'" and unicodedata.category(character).startswith("P")
