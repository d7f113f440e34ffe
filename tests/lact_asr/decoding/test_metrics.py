"""Error rates: pooled counts, with jiwer as the truth."""

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.decoding.metrics import score, worst
from lact_asr.utils.errors import DataError

words = st.lists(st.sampled_from(["A", "B", "AB", "ABBA"]), max_size=6).map(" ".join)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=6).filter(
    lambda pairs: any(reference for reference, _ in pairs)
)


@given(pairs)
def test_rates_are_the_pooled_counts_of_jiwer(pairs):
    scores = score(*zip(*pairs, strict=True))
    outputs = [jiwer.process_words(reference, heard) for reference, heard in pairs]
    counts = [
        sum(getattr(output, name) for output in outputs)
        for name in ("substitutions", "deletions", "insertions")
    ]
    total = sum(len(reference.split()) for reference, _ in pairs)
    assert [scores.substitutions, scores.deletions, scores.insertions] == counts
    assert scores.words == total
    assert scores.wer == pytest.approx(sum(counts) / total)


def test_long_utterances_weigh_more_than_short_ones():
    scores = score(["A", "A B C D E F G H I"], ["B", "A B C D E F G H I"])
    assert scores.wer == pytest.approx(0.1)  # a mean of rates would say 0.5


def test_characters_are_counted_with_their_spaces():
    scores = score(["AB CD"], ["ABCD"])
    assert scores.cer == pytest.approx(1 / 5)
    assert scores.wer == 1.0


def test_nothing_heard_is_every_word_deleted():
    scores = score(["A B", "C"], ["", ""])
    assert (scores.wer, scores.deletions) == (1.0, 3)


def test_references_without_words_are_refused():
    with pytest.raises(DataError, match="at least one word"):
        score(["", " "], ["A", ""])


def test_worst_utterances_come_first_and_show_where_they_differ():
    mistakes = worst(
        ["fine", "one", "two"], ["A B", "THE CAT SAT", "A B C"], ["A B", "THE BAT SAT", "B D"], 5
    )
    assert [mistake.id for mistake in mistakes] == ["two", "one"]
    assert mistakes[1].alignment == "REF: THE CAT SAT\nHYP: THE BAT SAT\n           S"
    assert (mistakes[0].errors, mistakes[0].words) == (2, 3)
