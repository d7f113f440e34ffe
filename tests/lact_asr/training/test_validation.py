"""Validation hears every dev utterance, and hides nothing."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import torch

from lact_asr.config.training import TrainingConfig
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import Utterance
from lact_asr.decoding.metrics import score
from lact_asr.decoding.transcribe import transcribe
from lact_asr.distributed.processes import World
from lact_asr.model.recognizer import Recognizer
from lact_asr.training import validation
from lact_asr.training.objective import CTCObjective
from lact_asr.training.validation import Dev, Validation, comparison_key, validate
from lact_asr.utils.files import read_json
from tests.lact_asr.tiny_runs import VOCABULARY, run, settings, tiny, tones
from tests.slurm.cluster import PATIENCE


@pytest.fixture
def model() -> Recognizer:
    """A model that says something: an untrained head hears blanks only."""
    talking = tiny()
    torch.nn.init.normal_(talking.head.weight)
    return talking


def check(
    model: Recognizer, dev: list[Utterance], config: TrainingConfig | None = None
) -> Validation:
    corpus, config = whole_corpus(dev, VOCABULARY), config or settings(samples=len(dev))
    return validate(
        model, Dev.of(corpus, config, World(), 0), VOCABULARY, config, World(), torch.device("cpu")
    )


def joined(folder: Path, parts: list[Utterance]) -> Utterance:
    """One long utterance, longer than a batch."""
    wave = np.concatenate([soundfile.read(each.audio)[0] for each in parts])
    soundfile.write(folder / "long.wav", wave, 16_000)
    text = " ".join(each.text for each in parts)
    return Utterance("long", folder / "long.wav", len(wave) / 16_000, text, "tone")


def test_every_utterance_is_heard_whatever_its_length(tmp_path, model):
    short = tones(tmp_path, 4)
    dev = [*short, joined(tmp_path, short * 4)]
    assert dev[-1].duration > settings().batch_seconds
    validation = check(model, dev, settings(samples=5, max_duration=1.0))
    heard = [each.text for each in transcribe(model, VOCABULARY, dev).hypotheses]
    assert [sample.pred for sample in validation.samples] == heard
    assert all(heard)
    assert validation.scores == score([each.text for each in dev], heard)


def test_an_utterance_known_by_heart_counts_with_the_little_that_it_costs(tmp_path, model):
    dev = [replace(each, text="A") for each in tones(tmp_path, 2)]
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data[VOCABULARY.encode("A")] = 8.0
    frames = [int(model.output_lengths(round(each.duration * 16_000))) for each in dev]
    said = math.exp(8.0) / (math.exp(8.0) + len(VOCABULARY) - 1)
    assert 0 < -max(frames) * math.log(said) < 1
    found = check(model, dev)
    assert found.scores.wer == 0
    assert found.loss == pytest.approx(-sum(frames) / 2 * math.log(said), rel=0.02), (
        "almost: A only"
    )


def test_blanks_are_counted_where_there_is_speech_and_not_behind_it(tmp_path, model):
    short = tones(tmp_path, 2)
    dev = [*short, joined(tmp_path, short)]
    signs = check(model, dev).signs
    frames = blanks = 0
    for each in dev:
        batch = Reader(whole_corpus([each], VOCABULARY))[[0]]
        with torch.no_grad():
            output = model(batch.waves, batch.wave_lengths)
        best = output.log_probs[0, : int(output.lengths[0])].argmax(-1)
        frames, blanks = frames + len(best), blanks + int((best == 0).sum())
    assert 0 < blanks < frames / 2
    assert signs["blank_share"] == pytest.approx(blanks / frames, abs=1e-3)
    labels = sum(len(VOCABULARY.encode(each.text)) for each in dev)
    assert signs["frames_per_label"] == pytest.approx(frames / labels)
    assert signs["empty_share"] == 0


def test_a_file_that_cannot_be_read_counts_as_nothing_heard(tmp_path, model):
    dev = tones(tmp_path, 3)
    dev[1].audio.unlink()
    validation = check(model, dev)
    assert [identity for identity, _ in validation.unreadable] == [dev[1].id]
    preds = [sample.pred for sample in validation.samples]
    assert preds[1] == "" != preds[0]
    assert validation.signs["empty_share"] == pytest.approx(1 / 3)
    assert validation.scores.words == sum(len(each.text.split()) for each in dev)


def test_the_loss_is_per_label_over_what_has_a_path(tmp_path, model):
    good = tones(tmp_path, 3)
    model.eval()
    loss = CTCObjective(model)(Reader(whole_corpus(good, VOCABULARY))[[0, 1, 2]], 0.0)
    expected = loss.total.item() / loss.weight.item()
    hopeless = replace(good[0], id="fast", text=good[0].text * 4)
    foreign = replace(good[1], id="foreign", text="NAÏVE 99")
    for dev in (good, [*good, hopeless], [*good, foreign]):
        assert check(model, dev).loss == pytest.approx(expected, rel=1e-5)
    assert check(model, [*good, foreign]).samples[-1].true == "NAÏVE 99"


def test_samples_are_spread_over_the_dev_set_and_stay_the_same(tmp_path, model):
    dev = tones(tmp_path, 9)
    for _ in range(2):
        ids = [sample.id for sample in check(model, dev, settings(samples=3)).samples]
        assert ids == [dev[0].id, dev[4].id, dev[8].id]
    assert len(check(model, dev[:2], settings(samples=3)).samples) == 2
    assert check(model, dev, settings(samples=0)).samples == []


def test_models_compare_by_wer_and_from_100_percent_on_by_loss():
    assert comparison_key(0.5, 9.0) < comparison_key(0.6, 0.1) < comparison_key(1.2, 0.05)
    assert comparison_key(1.03, 2.2) < comparison_key(1.01, 2.6)


def test_a_model_that_begins_to_speak_is_not_worse_than_a_silent_one(model, tmp_path):
    with torch.no_grad():
        model.head.bias[VOCABULARY.encode(" ")[0]] += 10  # words of one letter, far too many
    slow = {"optim": {"learning_rate": 3e-4}, "valid_every": 1, "max_steps": 8}
    result, recorded = run(tmp_path, tones(tmp_path, 4), CTCObjective(model), **slow)
    lines = [line for line in recorded.metrics if "wer" in line]
    lowest = min(lines, key=lambda line: line["valid_loss"])
    assert 1 < min(line["wer"] for line in lines) < lowest["wer"]
    assert read_json(result.checkpoint / "state.json")["step"] == lowest["step"]


@dataclass(frozen=True)
class OneOfTwo(World):
    """One of two ranks, beside which stands what the other has said: no process waits for it."""

    world_size: int = 2
    other: tuple[torch.Tensor, tuple[dict[str, str], list[tuple[str, str]]]] | None = None

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        assert values.dtype == torch.float64, "a sum of thousands of losses"
        return values + self.other[0] if self.other else values

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other[1]] if self.other else [value]


def test_halves_of_the_dev_set_that_are_heard_apart_are_put_together(tmp_path, model):
    dev = tones(tmp_path, 6)
    dev[1].audio.unlink()
    dev[4].audio.write_bytes(b"")
    corpus = whole_corpus(dev, VOCABULARY)
    config = settings(samples=6, batch_seconds=1.5 * max(each.duration for each in dev))

    def share(world: World) -> Validation:
        return validate(
            model, Dev.of(corpus, config, world, 0), VOCABULARY, config, world, torch.device("cpu")
        )

    halves = [share(OneOfTwo(rank)) for rank in (0, 1)]
    heard = [{each.id: each.pred for each in half.samples if each.pred} for half in halves]
    assert not heard[0].keys() & heard[1].keys() and len(heard[0]) + len(heard[1]) == 4
    labels = [sum(len(corpus.labels[i]) for i in range(6) if dev[i].id in half) for half in heard]
    assert all(labels)
    learned = [len(heard[1]), *(len(heard[1]) * each for each in halves[1].fast.values())]
    said = [halves[1].loss * labels[1], labels[1], 0, 0, *learned]
    sums = torch.tensor(said, dtype=torch.float64)
    told = heard[1], [*halves[0].unreadable, *halves[1].unreadable]
    both, alone = share(OneOfTwo(0, other=(sums, told))), share(World())
    assert both.loss == pytest.approx(alone.loss, rel=1e-5)
    assert (both.scores, both.samples) == (alone.scores, alone.samples)
    assert both.fast == pytest.approx(alone.fast, rel=1e-5)
    assert sorted(both.unreadable) == sorted(alone.unreadable) and len(alone.unreadable) == 2
    assert dict(alone.unreadable).keys() == {dev[1].id, dev[4].id}


def test_a_dev_set_of_which_no_text_has_a_path_has_an_infinite_loss(tmp_path, model):
    said = tones(tmp_path, 1)[0]
    hopeless = check(model, [replace(said, text=said.text * 4)])
    assert hopeless.loss == math.inf and hopeless.samples[0].pred


def test_validation_leaves_the_model_in_evaluation_mode_and_reads_it_in_the_asked_precision(
    tmp_path, model
):
    model.train()
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    check(model, tones(tmp_path, 2), settings(precision="bf16", samples=0))
    assert seen == [True] and not model.training


def test_whoever_has_fewer_batches_calls_its_model_as_often_as_the_others(
    tmp_path, model, monkeypatch
):
    """A split model gathers its weights from all ranks, which wait for whoever does not call it."""
    called: list[tuple[int, list[int], list[int]]] = []
    monkeypatch.setattr(
        validation,
        "run_dummy_forwards",
        lambda model, calls, wave, length: called.append(
            (calls, list(wave.shape), length.tolist())
        ),
    )
    dev = tones(tmp_path, 5)
    corpus, config = whole_corpus(dev, VOCABULARY), settings(batch_seconds=0.1)
    for rank in (0, 1):
        validate(
            model,
            Dev.of(corpus, config, OneOfTwo(rank), 0),
            VOCABULARY,
            config,
            OneOfTwo(rank),
            torch.device("cpu"),
        )
    min(dev, key=lambda each: each.duration).audio.unlink()
    validate(
        model, Dev.of(corpus, config, World(), 0), VOCABULARY, config, World(), torch.device("cpu")
    )
    silence = [1, 1600], [1600]  # a tenth of a second
    assert called == [(0, *silence), (1, *silence), (1, *silence)]


def test_a_validation_says_what_test_time_training_did_utterance_by_utterance(tmp_path, model):
    dev = tones(tmp_path, 3)
    alone = [check(model, [each]).fast for each in dev]
    for name in ("fast_step_size", "fast_change"):
        mean = sum(each[name] for each in alone) / 3
        assert check(model, dev).fast[name] == pytest.approx(mean, rel=1e-4) and mean > 0
    still = tiny(schedule="off")
    torch.nn.init.normal_(still.head.weight)
    assert check(still, dev).fast == {}
    _, recorded = run(tmp_path, dev, max_steps=1, valid_every=1)
    (line,) = [line for line in recorded.metrics if "wer" in line]
    assert 0 < line["fast_change"] < 1 and 0 < line["fast_step_size"] < 1


def test_processes_that_read_live_from_one_validation_to_the_next(tmp_path, model):
    """As many as there are batches at most, and the second time they say the same."""
    dev, config = whole_corpus(tones(tmp_path, 4), VOCABULARY), settings(batch_seconds=0.1)
    children = lambda: {each.pid for each in psutil.Process().children()}
    before = children()
    kept = [Dev.of(dev, config, World(), 2)]
    measure = lambda: validate(model, kept[0], VOCABULARY, config, World(), torch.device("cpu"))
    first, there = measure(), children() - before
    assert len(there) == 2
    assert measure() == first and children() - before == there
    alone = validate(
        model, Dev.of(dev, config, World(), 0), VOCABULARY, config, World(), torch.device("cpu")
    )
    assert alone.scores == first.scores
    kept.clear()
    psutil.wait_procs([psutil.Process(pid) for pid in there & children()], PATIENCE)
    assert not children() & there
