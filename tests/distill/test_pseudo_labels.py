"""Texts for audio that nobody has written down: heard, or given, and believed or not."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from distill.pseudo_labels import Guess, choose, confidence, find_audio, read_guesses
from jobs.kinds import pseudo_labels
from lact_asr.data.manifest import Utterance, read_manifest, write_manifest
from lact_asr.utils.errors import DataError, Failed
from tests.distill.test_wiring import job
from tests.distill.tiny_models import VOCABULARY, batch, memorize, tiny_baseline, utterances
from tests.lact_asr.tiny_runs import save_untrained


def spoken(*names: str) -> list[Utterance]:
    return [Utterance(name, Path(f"{name}.wav"), 1.0, "OLD", "s") for name in names]


def test_texts_that_are_sure_enough_replace_what_was_there():
    guesses = {"a": Guess("YES", 0.9), "b": Guess("NO", 0.79), "c": Guess("", 1.0)}
    found = choose(spoken("a", "b", "c", "d"), guesses, 0.8)
    assert [(each.id, each.text) for each in found.utterances] == [("a", "YES")]
    assert (found.doubtful, found.silent, found.unknown) == (["b"], ["c"], ["d"])


def test_confidence_is_the_probability_of_the_best_path_per_symbol_and_padding_has_none():
    path = torch.full((2, 6, 3), 0.05)
    for frame, (symbol, sure) in enumerate([(0, 0.9), (1, 0.8), (1, 0.7), (0, 0.9), (2, 0.6)]):
        path[:, frame, symbol] = sure
    path[:, 5, 1] = 0.3
    found = confidence(path.log(), torch.tensor([5, 4]))
    whole = 0.9 * 0.8 * 0.7 * 0.9 * 0.6
    assert found.tolist() == pytest.approx([math.sqrt(whole), 0.9 * 0.8 * 0.7 * 0.9])


def test_transcripts_of_any_system_are_read_in_normal_form(tmp_path):
    rows = [{"id": "a", "text": "Well, yes!", "confidence": 0.5}, {"id": "b", "text": "no"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_guesses(tmp_path / "t.jsonl")
    assert found == {"a": Guess("WELL YES", 0.5), "b": Guess("NO", 1.0)}


def test_every_bad_line_of_transcripts_is_named(tmp_path):
    lines = ['{"id": "a", "text": "x"}', '{"id": "a", "text": "y"}', "{}", "no JSON",
             '{"id": "b", "text": "x", "confidence": 7}']  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as said:
        read_guesses(tmp_path / "t.jsonl")
    for words in (":2: a second text of 'a'", ":3: write {", ":4: ", ":5: confidence is a number"):
        assert words in str(said.value)


def test_recordings_below_a_folder_are_utterances_without_texts(tmp_path):
    for name in ("one/a.WAV", "one/b.mp3", "c.wav", "d.txt", "one/._a.WAV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("txt") or "._" in name:
            (tmp_path / name).write_text("no audio")
        else:
            soundfile.write(tmp_path / name, [0.1] * 8000, 16_000)
    found = find_audio(tmp_path)
    assert [(each.id, each.speaker, each.text, each.duration) for each in found] == [
        ("c", "", "", 0.5), ("one/a", "one", "", 0.5), ("one/b", "one", "", 0.5),
    ]  # fmt: skip
    soundfile.write(tmp_path / "c.flac", [0.1] * 8000, 16_000)
    with pytest.raises(DataError, match=r"c\.wav: c\.flac is the same recording"):
        find_audio(tmp_path)
    (tmp_path / "c.flac").unlink()
    (tmp_path / "e.wav").write_text("broken")
    with pytest.raises(DataError, match=r"e\.wav: truncated or not an audio file"):
        find_audio(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no recordings"):
        find_audio(tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere: cannot read this folder: No such file"):
        find_audio(tmp_path / "nowhere")


def test_a_model_labels_what_it_is_sure_of_and_what_it_learned_comes_back(speech, tmp_path):
    """A model that knows two utterances by heart is sure of these, and not of the others."""
    model = tiny_baseline()
    assert memorize(model, batch(speech, 2), 90) == batch(speech, 2).texts
    known = list(utterances(speech)[:5])
    write_manifest(tmp_path / "audio.jsonl", [replace(each, text="") for each in known])
    write_manifest(tmp_path / "beside.jsonl", list(utterances(speech)[6:8]))
    checkpoint = save_untrained(tmp_path / "checkpoints" / "best", model, VOCABULARY)
    settings = pseudo_labels.Settings(
        manifest=tmp_path / "audio.jsonl", checkpoint=checkpoint, precision="fp32",
        least_confidence=0.8, beside=tmp_path / "beside.jsonl",
    )  # fmt: skip
    worker, _ = job(tmp_path / "step")
    made = pseudo_labels.run(settings, worker)
    written = read_manifest(made.manifest)
    assert [each.id for each in written[:2]] == [each.id for each in utterances(speech)[6:8]]
    assert [(each.id, each.text) for each in written[2:4]] == [(u.id, u.text) for u in known[:2]]
    assert made.utterances == len(written) - 2 and made.unknown == 0
    assert made.utterances + made.doubtful + made.silent == 5 and made.utterances < 5
    assert all(each.audio.exists() for each in written)
    rows = (tmp_path / "step" / "confidences.jsonl").read_text().splitlines()
    assert {json.loads(row)["id"] for row in rows} == {each.id for each in known}


def test_where_nothing_is_believed_the_step_fails_in_a_sentence(speech, tmp_path):
    write_manifest(tmp_path / "audio.jsonl", list(utterances(speech)[:2]))
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"id": utterances(speech)[0].id, "text": "x", "confidence": 0.1})
    )
    settings = pseudo_labels.Settings(
        manifest=tmp_path / "audio.jsonl", transcripts=tmp_path / "t.jsonl"
    )
    with pytest.raises(Failed, match=r"of 2 utterances 1 are less sure than 0.8, .* of 1 nothing"):
        pseudo_labels.run(settings, job(tmp_path / "step")[0])


@pytest.mark.parametrize(
    "given", [{}, {"manifest": "m"}, {"manifest": "m", "audio": "a", "checkpoint": "c"},
              {"manifest": "m", "checkpoint": "c", "transcripts": "t"}],
)  # fmt: skip
def test_audio_and_texts_come_from_one_place_each(given):
    with pytest.raises(ValueError, match="one of the two"):
        pseudo_labels.Settings(**given)
