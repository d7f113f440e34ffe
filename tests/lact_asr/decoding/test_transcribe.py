"""Decoding: order, batches, precision and bad files."""

from dataclasses import replace

import pytest
import torch

from lact_asr.decoding.transcribe import Unheard, transcribe
from tests.lact_asr.tiny_runs import VOCABULARY, tiny, tones


def test_hypotheses_come_in_the_order_of_the_utterances_whatever_the_batches(tmp_path):
    utterances = tones(tmp_path, 7)
    model = tiny()
    torch.nn.init.normal_(model.head.weight)  # an untrained head says nothing but blanks
    done = []
    together = transcribe(model, VOCABULARY, utterances, 100.0, progress=done.append)
    alone = transcribe(model, VOCABULARY, utterances[::-1], 0.1)
    assert [each.id for each in together.hypotheses] == [each.id for each in utterances]
    assert together.hypotheses == alone.hypotheses[::-1]
    assert any(each.text for each in together.hypotheses)
    assert sum(done) == 7


def test_the_real_time_factor_is_seconds_of_work_per_second_of_audio(tmp_path):
    utterances = tones(tmp_path, 3)
    result = transcribe(tiny(), VOCABULARY, utterances)
    assert result.audio_seconds == pytest.approx(sum(each.duration for each in utterances))
    assert result.real_time_factor == result.compute_seconds / result.audio_seconds > 0


def test_utterances_without_text_are_transcribed_too(tmp_path):
    utterances = [replace(each, text="") for each in tones(tmp_path, 2)]
    assert len(transcribe(tiny(), VOCABULARY, utterances).hypotheses) == 2


def test_files_that_cannot_be_read_are_an_error_with_their_ids_and_the_others_are_heard(tmp_path):
    utterances = tones(tmp_path, 3)
    lost = [
        replace(utterances[0], id=name, audio=tmp_path / f"{name}.flac")
        for name in ("lost", "gone")
    ]
    with pytest.raises(Unheard) as error:
        transcribe(tiny(), VOCABULARY, [*lost, *utterances], 0.1)
    said = str(error.value)
    assert said.startswith("2 of 5 utterances cannot be read: utterance ")
    assert all(
        f"utterance {each.id}: cannot read the audio file {each.audio}" in said for each in lost
    )
    assert error.value.hypotheses == transcribe(tiny(), VOCABULARY, utterances).hypotheses
