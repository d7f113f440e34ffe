"""A cache that any program writes, as docs/own-teacher.md tells it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.cache.own import OwnCache
from distill.cache.teacher import Cached
from distill.config.distillation import DistillConfig
from jobs.kinds import distill
from jobs.reading.pipeline_file import read_pipeline
from lact_asr.data.manifest import write_manifest
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError
from tests.conftest import REPOSITORY
from tests.distill.test_wiring import job
from tests.distill.tiny_models import VOCABULARY, batch, utterances

PAGE = (REPOSITORY / "docs" / "own-teacher.md").read_text()


def spoken(frames: int, symbols: int = 29) -> NDArray[Any]:
    scores = np.random.default_rng(0).normal(size=(frames, symbols))
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def test_the_program_of_the_page_writes_a_cache_that_a_student_learns_from(speech, tmp_path):
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    write_manifest(tmp_path / "train.jsonl", list(utterances(speech)[:4]))
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    settings = distill.Settings(
        cache=tmp_path / "cache", train=tmp_path / "train.jsonl", dev=tmp_path / "train.jsonl",
        preset="plain", model={"layers": 1}, training={"max_steps": 2, "batch_seconds": 12},
    )  # fmt: skip
    worker, recorded = job(tmp_path / "step")
    done = distill.run(settings, worker)
    assert (done.steps, done.steps_skipped) == (2, 0)
    assert next(line["kd"] for line in recorded.metrics if "kd" in line) > 0


def test_the_pipeline_of_the_page_with_a_model_of_another_library_has_no_mistakes(tmp_path):
    (text,) = re.findall(r"^```yml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "p.yaml").write_text(text.replace("models/wav2vec2-base-960h", str(tmp_path)))
    steps = [step.name for step in read_pipeline(tmp_path / "p.yaml").steps]
    assert steps == ["teacher", "cache", "student"]


def test_what_is_written_is_what_is_read(speech, tmp_path):
    heard, states = batch(speech, 2), np.random.default_rng(1).normal(size=(40, 8))
    with OwnCache(tmp_path, "mine", VOCABULARY, 25.0, width=8) as cache:
        for row, identity in enumerate(heard.ids):
            samples = heard.waves[row, : heard.wave_lengths[row]].numpy()
            cache.add(identity, samples, spoken(40), states)
    source = Cached(tmp_path, None)
    assert source.vocabulary == VOCABULARY and source.frame_rate == 25
    source.check(DistillConfig(feature_weight=1.0))
    read = source(heard, 2.0)
    expected = torch.tensor(spoken(40)).float()
    assert read.lengths.tolist() == [40, 40]
    torch.testing.assert_close(read.log_probs[1], expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(read.hidden[-1][0], torch.tensor(states).float(), atol=2e-3, rtol=0)


def test_of_many_symbols_the_likeliest_are_kept(speech, tmp_path):
    many, heard = Vocabulary([chr(0x4E00 + number) for number in range(300)]), batch(speech, 1)
    with OwnCache(tmp_path, "mine", many, 25.0, kept=8, temperatures=[2.0]) as cache:
        cache.add(heard.ids[0], heard.waves[0].numpy(), spoken(40, 301))
    kept = Cached(tmp_path, None)(heard, 2.0).kept
    order = torch.tensor(spoken(40, 301)).topk(8).indices
    assert kept.ids[0].equal(order)


@pytest.mark.parametrize(
    ("log_probs", "hidden", "message"),
    [
        (spoken(40, 30), None, r"to be \[frames, 29\], with the blank first; they are \[40, 30\]"),
        (spoken(40), None, r"hidden is to be \[\[40, 8\]\], it is \[\]"),
        (spoken(40), np.zeros((39, 8)), r"hidden is to be \[\[40, 8\]\], it is \[\[39, 8\]\]"),
        (spoken(40) * np.nan, np.zeros((40, 8)), "a: log_probs or hidden are not finite"),
    ],
)
def test_arrays_that_make_no_record_are_refused(tmp_path, log_probs, hidden, message):
    with (
        OwnCache(tmp_path, "mine", VOCABULARY, 25.0, width=8) as cache,
        pytest.raises(DataError, match=message),
    ):
        cache.add("a", np.zeros(16_000), log_probs, hidden)


def test_a_student_without_teacher_and_cache_is_refused():
    with pytest.raises(ValueError, match="write the teacher's checkpoint, or cache: a folder"):
        distill.Settings(train=Path("t"), dev=Path("d"))
