"""The normal form of texts: what the recognizer reads and writes. No torch."""

import unicodedata

from lact_asr.config.text import ENGLISH, TextConfig

CHARACTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_JOINERS = "\u200c\u200d"  # the only invisible characters that letters depend on (Persian, Hindi)
_APOSTROPHES = str.maketrans("\u2019\u02bc\u2018`", "''''")


def in_normal_form(text: str, form: TextConfig = ENGLISH) -> str:
    """`normalize`, which costs 30 µs a sentence, only where a foreign character asks for it."""
    if form != ENGLISH:
        return normalize(text, form)
    text = " ".join(text.split())
    return normalize(text) if text.strip(CHARACTERS) else text


def normalize(text: str, form: TextConfig = ENGLISH) -> str:
    """The form that is asked for; in English upper case, straight apostrophes, other punctuation
    as spaces, single spaces.

    Letters outside A-Z, digits and symbols stay, so that `Vocabulary.encode` can name them.
    """
    if form != ENGLISH:
        return _in_form(text, form)
    text = text.translate(_APOSTROPHES).upper()
    kept = (" " if _is_punctuation(character) else character for character in text)
    return " ".join("".join(kept).split())


def _in_form(text: str, form: TextConfig) -> str:
    seen = "".join(c for c in text if c in _JOINERS or unicodedata.category(c) != "Cf")
    text = unicodedata.normalize(form.unicode, seen)
    text = {"upper": text.upper, "lower": text.lower, "keep": text.strip}[form.case]()
    text = unicodedata.normalize(form.unicode, text).translate(_APOSTROPHES)
    if form.punctuation == "drop":
        text = "".join(" " if _is_punctuation(character) else character for character in text)
    joined = ("" if form.spaces == "drop" else " ").join(text.split())
    return unicodedata.normalize(form.unicode, joined)  # letters and accents that have met


def _is_punctuation(character: str) -> bool:
    return character != "'" and unicodedata.category(character).startswith("P")
