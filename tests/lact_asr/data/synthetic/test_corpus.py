"""Synthetic speech: sentences never repeated, the same bytes every time, whole or absent."""

import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from numpy.typing import NDArray
from pydantic import ValidationError

from lact_asr.data.audio import read_audio
from lact_asr.data.librispeech import scan
from lact_asr.data.synthetic import espeak
from lact_asr.data.synthetic.corpus import synthesize
from lact_asr.data.synthetic.sentences import VOICES, Synthetic, capacity, sentences
from lact_asr.utils.errors import DataError

SMALL = Synthetic(utterances=12, test_utterances=4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(SMALL, tmp_path_factory.mktemp("data"))


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in files}


@given(seed=some.integers(0, 10**6), words=some.integers(3, 6), tests=some.integers(1, 20))
def test_no_sentence_is_said_twice_and_each_has_its_words(
    seed: int, words: int, tests: int
) -> None:
    spoken = sentences(Synthetic(utterances=50, test_utterances=tests, words=words, seed=seed))
    everything = [text for texts in spoken.values() for text in texts]
    assert [len(texts) for texts in spoken.values()] == [50, tests, tests]
    assert len(set(everything)) == len(everything)
    assert {len(text.split()) for text in everything} == {words}


def test_another_seed_draws_other_sentences() -> None:
    assert sentences(SMALL) == sentences(Synthetic(utterances=12, test_utterances=4, seed=0))
    assert sentences(SMALL) != sentences(Synthetic(utterances=12, test_utterances=4, seed=1))


def test_more_sentences_than_there_are_is_refused_with_numbers() -> None:
    assert [capacity(words) for words in (1, 2, 3, 4, 5, 6)] == [6, 36, 216, 2160, 8640, 51840]
    with pytest.raises(ValidationError, match="80 different sentences are wanted, but 2 words"):
        Synthetic(utterances=40, test_utterances=20, words=2)


def test_the_corpus_is_in_librispeech_layout_and_says_what_was_drawn(corpus: Path) -> None:
    for subset, texts in sentences(SMALL).items():
        found = scan(corpus / subset)
        assert sorted(each.text for each in found) == sorted(texts)
        assert {each.speaker for each in found} == {"1", "2", "3", "4"}
        for each in found:
            assert re.fullmatch(rf"{each.speaker}-[123]-\d{{4}}", each.id)
            assert 1.0 < each.duration < 3.0


def test_it_is_speech_at_full_scale_with_quiet_edges(corpus: Path) -> None:
    for each in scan(corpus / "train"):
        samples = read_audio(each.audio)
        assert 0.1 < np.abs(samples).max() <= 1.0
        edge = samples[:1000]
        assert 1e-4 < edge.std() < 3e-3, "near-silence, but no digital silence"


def test_the_same_recipe_gives_the_same_bytes_in_every_process(
    corpus: Path, tmp_path: Path
) -> None:
    again = synthesize(SMALL, tmp_path)
    assert again.name == corpus.name
    assert digests(again) == digests(corpus)


def test_what_is_there_is_not_made_again(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert synthesize(SMALL, corpus.parent) == corpus
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_killed_in_the_middle_it_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lact_asr.data.synthetic.corpus import *;"
        "synthesize(Synthetic(utterances=800), Path(sys.argv[1]))"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True)
    while len(list(tmp_path.glob(".synthetic-*.making/train/*/*/*.flac"))) < 5:
        assert running.poll() is None
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert list(tmp_path.glob("synthetic-*")) == []


def _say(voice: str) -> NDArray[Any]:
    return espeak.Espeak().say("place red chair seven", voice, 150, 50, 1)


def test_every_voice_speaks_and_sounds_different() -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        spoken = [pool.submit(_say, voice).result() for voice in VOICES]
    assert all(22_050 < len(samples) < 3 * 22_050 for samples in spoken)
    assert len({samples.tobytes() for samples in spoken}) == len(VOICES)


def test_an_unknown_voice_is_named() -> None:
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=spawn) as pool,
        pytest.raises(DataError, match="no voice 'no-such-voice'"),
    ):
        pool.submit(_say, "no-such-voice").result()


def _say_from(data: str) -> int:
    import espeakng_loader

    espeakng_loader.get_data_path = lambda: data
    return len(_say("en-us"))


def test_voices_in_a_very_deep_folder_are_found(tmp_path: Path) -> None:
    import espeakng_loader

    deep = tmp_path / ("x" * 100) / ("y" * 100) / "espeak-ng-data"
    shutil.copytree(espeakng_loader.get_data_path(), deep)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert pool.submit(_say_from, str(deep)).result() > 22_050
