"""The facts about the corpora agree with what others know."""

import re

import pytest

from lact_asr.data.corpora import CORPORA, LIBRISPEECH, MINI_LIBRISPEECH, MIRRORS
from tests.conftest import shared


def test_librispeech_has_its_seven_subsets_and_mini_librispeech_two() -> None:
    assert len(LIBRISPEECH) == 7 and len(MINI_LIBRISPEECH) == 2
    assert sum(subset.utterances for subset in LIBRISPEECH.values()) == 292_367
    train = [subset for name, subset in LIBRISPEECH.items() if name.startswith("train")]
    assert sum(subset.utterances for subset in train) == 281_241


def test_the_checksums_are_those_that_torchaudio_knows() -> None:
    librispeech = pytest.importorskip("torchaudio.datasets.librispeech")
    known = {url.rpartition("/")[2]: digest for url, digest in librispeech._CHECKSUMS.items()}
    ours = {f"{name}.tar.gz": subset.checksum for name, subset in LIBRISPEECH.items()}
    assert ours == {name: f"sha256:{digest}" for name, digest in known.items()}


def test_every_checksum_and_address_is_well_formed() -> None:
    for subset in (each for corpus in CORPORA.values() for each in corpus.values()):
        assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", subset.checksum)
        assert subset.size > 10**8
        for mirror in (*MIRRORS, "https://mirror.example/openslr/"):
            address = rf"https://[\w./]+/{subset.resource}/{subset.name}\.tar\.gz"
            assert re.fullmatch(address, subset.url(mirror))


def test_the_count_of_train_clean_5_is_that_of_the_real_subset() -> None:
    transcripts = shared("data/mini_librispeech/train-clean-5").rglob("*.trans.txt")
    lines = sum(len(path.read_text().splitlines()) for path in transcripts)
    assert lines == MINI_LIBRISPEECH["train-clean-5"].utterances
