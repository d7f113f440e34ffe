"""Pieces as a vocabulary: every text returns, it travels, is learned alike, refuses in words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.model.recognizer import FAMILIES, Recognizer
from lact_asr.text.bpe import BPEVocabulary
from lact_asr.text.normalize import CHARACTERS
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.checkpoint import load_model, save
from lact_asr.utils.errors import DataError
from tests.lact_asr.tiny_runs import MODEL

TEXTS = ["THE CAT SAT ON THE MAT", "IT'S A DOG'S LIFE", "THE MATTER OF THE CATS"] * 20
LEARNED = BPEVocabulary.learn(TEXTS, 60)

words = st.text(CHARACTERS.strip(), min_size=1, max_size=8)
sentences = st.lists(words, max_size=6).map(" ".join)


@given(sentences)
def test_encoding_and_decoding_return_every_text_in_normal_form(text):
    ids = LEARNED.encode(text)
    assert LEARNED.decode(ids) == text
    assert all(0 < index < len(LEARNED) for index in ids)


def test_frequent_words_are_pieces_and_make_short_labels():
    assert len(LEARNED) == 60 == len(LEARNED.symbols) + 1
    assert "\u2581THE" in LEARNED.symbols
    assert len(LEARNED.encode("THE CAT SAT ON THE MAT")) == 6
    seven = BPEVocabulary.learn(["AB ABC QUEUE"], 33)
    assert "Z" in seven.symbols  # never seen, and still writable


def test_blanks_vanish_in_decoding_and_repeats_stay():
    (the,) = LEARNED.encode("THE")
    assert LEARNED.decode([0, the, 0, the, 0]) == "THE THE"
    assert LEARNED.decode([0, 0]) == ""


def test_the_same_texts_give_the_same_pieces_and_another_size_others():
    again = BPEVocabulary.learn(TEXTS, 60)
    assert again == LEARNED and hash(again) == hash(LEARNED)
    assert again.to_dict() == LEARNED.to_dict()
    assert BPEVocabulary.learn(TEXTS, 50) != LEARNED
    assert Vocabulary(LEARNED.symbols[-5:]) != LEARNED


def test_it_travels_inside_a_checkpoint(tmp_path):
    model = Recognizer(MODEL, len(LEARNED))
    described = {
        "family": "lact",
        "model": MODEL.model_dump(),
        "vocabulary": json.loads(json.dumps(LEARNED.to_dict())),
        "training": {},
    }
    files = {"model.safetensors": model.state_dict(), "config.json": described, "state.json": {}}
    path = save(tmp_path, "one", files)
    found, vocabulary, _ = load_model(path, FAMILIES)
    assert vocabulary == LEARNED
    assert vocabulary.encode("A MATTER") == LEARNED.encode("A MATTER")
    assert found.head.out_features == 60


def test_foreign_characters_are_named_and_not_learned():
    with pytest.raises(DataError, match=r"'4' \(U\+0034\), 'É' \(U\+00C9\), in 'CAFÉ 4'"):
        LEARNED.encode("CAFÉ 4")
    assert BPEVocabulary.learn([*TEXTS, "4444 4444", ""], 60) == LEARNED


def test_a_size_that_the_texts_cannot_give_is_refused_with_the_largest_they_can():
    with pytest.raises(
        DataError, match=r"vocabulary_size 500 is more .* they have 8[0-9] "
    ) as told:
        BPEVocabulary.learn(TEXTS, 500)
    largest = int(str(told.value).split("write vocabulary_size: ")[1].split()[0])
    assert len(BPEVocabulary.learn(TEXTS, largest)) == largest
    with pytest.raises(DataError, match="no training text is written with"):
        BPEVocabulary.learn(["42"], 60)
