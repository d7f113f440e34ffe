"""Greedy decoding against the definition of CTC's collapse."""

from itertools import groupby

import torch
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.decoding.greedy import collapse, greedy
from lact_asr.text.vocabulary import Vocabulary

paths = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=5)


@given(paths)
def test_collapse_merges_runs_and_then_removes_blanks(rows):
    width = max(1, *map(len, rows))
    padded = torch.tensor([row + [3] * (width - len(row)) for row in rows])
    found = collapse(padded, torch.tensor([len(row) for row in rows]))
    assert found == [[key for key, _ in groupby(row) if key] for row in rows]


def test_greedy_reads_the_best_symbol_and_ignores_padding():
    vocabulary = Vocabulary.characters()
    path = [0, *vocabulary.encode("AA"), 0, *vocabulary.encode("A B"), 0]
    log_probs = torch.nn.functional.one_hot(torch.tensor([path, path]), len(vocabulary)).float()
    assert greedy(log_probs, torch.tensor([len(path), 4]), vocabulary) == ["AA B", "A"]
