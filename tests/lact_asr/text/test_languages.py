# ruff: noqa: RUF001 - letters of other scripts that look like Latin ones
"""Texts of any language: their normal form, vocabularies found in them, and that old ones stay."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.config.text import TextConfig
from lact_asr.text.bpe import BPEVocabulary
from lact_asr.text.load import load_vocabulary
from lact_asr.text.normalize import in_normal_form, normalize
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError
from tests.lact_asr.spoken import SAID


def form(**changes: str) -> TextConfig:
    return TextConfig(alphabet="texts", **changes)


@pytest.mark.parametrize(
    ("given", "text", "expected"),
    [
        (form(), "Fünf große Äpfel, bitte!", "FÜNF GROSSE ÄPFEL BITTE"),
        (form(case="lower"), "Fünf große Äpfel, bitte!", "fünf große äpfel bitte"),
        (form(case="lower"), "A\u0308pfel", "äpfel"),  # a letter and its dots apart
        (form(case="keep", punctuation="keep"), "Wer? Ich.", "Wer? Ich."),
        (form(), "l\u2019eau c'est", "L'EAU C'EST"),
        (form(spaces="drop"), "今日は、いい 天気。", "今日はいい天気"),
        (form(unicode="NFKC", spaces="drop"), "\uff37i\uff26i は \uff13", "WIFIは3"),  # full width
        (form(), "مَرْحَبًا، يا عالَم؟", "مَرْحَبًا يا عالَم"),
        (form(), "\ufeffа\u00adбв\u200f", "АБВ"),  # marks that nobody sees
        (form(case="keep"), "می\u200cخواهم", "می\u200cخواهم"),  # but this one is spelling
    ],
)
def test_text_takes_the_form_that_is_stated(given: TextConfig, text: str, expected: str) -> None:
    assert normalize(text, given) == unicodedata.normalize(given.unicode, expected)


forms = st.builds(
    TextConfig,
    alphabet=st.just("texts"),
    case=st.sampled_from(["upper", "lower", "keep"]),
    punctuation=st.sampled_from(["drop", "keep"]),
    spaces=st.sampled_from(["keep", "drop"]),
    unicode=st.sampled_from(["NFC", "NFKC"]),
)


@given(st.text(), forms)
def test_a_text_in_normal_form_stays_as_it_is(text: str, given_form: TextConfig) -> None:
    once = in_normal_form(text, given_form)
    assert in_normal_form(once, given_form) == once
    assert "  " not in once and once == once.strip()


@pytest.mark.parametrize("language", SAID)
def test_every_text_is_written_with_the_characters_found_and_with_pieces(language: str) -> None:
    config, texts = SAID[language].form, SAID[language].texts
    pieces = BPEVocabulary.learn(texts, 350, config)
    for vocabulary in (Vocabulary.found(texts, config), pieces):
        again = load_vocabulary(json.loads(json.dumps(vocabulary.to_dict())))
        assert again == vocabulary and again.form == config
        for text in texts:
            normal = vocabulary.normal(text)
            assert vocabulary.decode(vocabulary.encode(normal)) == normal
            assert all(0 < index < len(vocabulary) for index in again.encode(normal))


def test_a_character_without_a_piece_is_written_in_bytes_and_comes_back() -> None:
    vocabulary = BPEVocabulary.learn(["ein haus am see"] * 9, 288, form(case="lower"))
    assert vocabulary.decode(vocabulary.encode("ein häuschen 🏠")) == "ein häuschen 🏠"
    with pytest.raises(DataError, match=r"size 40 is less .* write vocabulary_size: \d+"):
        BPEVocabulary.learn(["ein haus am see"] * 9, 40, form(case="lower"))


def test_a_character_that_was_not_found_is_named() -> None:
    with pytest.raises(DataError, match=r"'ß' \(U\+00DF\), in 'maß'"):
        Vocabulary.found(["das mass"], form(case="lower")).encode("maß")
    with pytest.raises(DataError, match="no characters"):
        Vocabulary.found(["", " . "], form())


def test_english_vocabularies_are_stored_as_they_always_were() -> None:
    assert Vocabulary.characters().to_dict() == {
        "kind": "characters",
        "symbols": list(" 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    }
    assert BPEVocabulary.learn(["THE CAT"], 33).to_dict().keys() == {"kind", "model"}
    old = load_vocabulary({"kind": "characters", "symbols": list(" 'ABC")})
    assert old.normal("a, b’c") == "A B'C"
    assert old != Vocabulary(list(" 'ABC"), form())


def test_a_form_beside_the_english_alphabet_is_refused() -> None:
    with pytest.raises(ValueError, match="write alphabet: texts beside case"):
        TextConfig(case="lower")
