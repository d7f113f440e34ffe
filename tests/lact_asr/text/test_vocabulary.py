"""Normal form of text and the vocabulary."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.text.load import load_vocabulary
from lact_asr.text.normalize import CHARACTERS, normalize
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fiend's  delight.", "FIEND'S DELIGHT"),
        ("“Well-known”, he said: don\u2019t!", "WELL KNOWN HE SAID DON'T"),
        ("\tnew\nline ", "NEW LINE"),
        ("", ""),
        ("café 42 $", "CAFÉ 42 $"),  # kept, so that encoding names them
    ],
)
def test_text_takes_its_normal_form(text, expected):
    assert normalize(text) == expected
    assert normalize(expected) == expected


@given(st.text(CHARACTERS))
def test_encoding_and_decoding_return_the_text(text):
    vocabulary = Vocabulary.characters()
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.blank not in ids
    assert all(0 < index < len(vocabulary) for index in ids)


def test_a_vocabulary_survives_json_with_the_same_ids():
    vocabulary = Vocabulary.characters()
    again = load_vocabulary(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary
    assert again.encode("IT'S SO") == vocabulary.encode("IT'S SO")
    assert len(again) == 29


def test_blanks_vanish_in_decoding_and_repeats_stay():
    vocabulary = Vocabulary.characters()
    o, n = vocabulary.encode("ON")
    assert vocabulary.decode([0, o, o, 0, n, 0]) == "OON"


def test_foreign_characters_are_named_all_at_once_with_their_text():
    with pytest.raises(DataError, match=r"'4' \(U\+0034\), 'É' \(U\+00C9\), in 'CAFÉ 4'"):
        Vocabulary.characters().encode("CAFÉ 4")


def test_symbols_must_be_distinct_single_characters():
    for symbols in ("AAB", ["A", "BC"]):
        with pytest.raises(ValueError, match="each once"):
            Vocabulary(symbols)
