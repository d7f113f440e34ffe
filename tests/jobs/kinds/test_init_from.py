"""Beginning with another run's weights, and going on with other settings than before."""

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.errors import SpecError
from jobs.kinds import distill, language_model, train
from jobs.reading.pipeline_file import read_pipeline
from lact_asr.data.manifest import Utterance, write_manifest
from lact_asr.training import checkpoint
from lact_asr.utils.errors import Failed, Interrupted
from lact_asr.utils.files import read_json
from tests.jobs.kinds.test_kinds import SMALL, told
from tests.lact_asr.tiny_runs import manifests, tones

STILL = {"learning_rate": 1e-30, "weight_decay": 0.0}


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Path]:
    return manifests(tmp_path, 6, 2)


def settings(kind: Any, corpus: dict[str, Path], **given: Any) -> Any:
    """Three short steps of a small model."""
    short = {"max_steps": 3, "batch_seconds": 14, "valid_every": 3, "checkpoint_every": 3}
    training = {**short, **given.pop("training", {})}
    small = SMALL if given.get("family") != "baseline" else {}
    model = {**small, **given.pop("model", {})}
    return kind.Settings(**corpus, preset="plain", model=model, training=training, **given)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_step_begins_with_the_weights_of_another_run_and_says_so(tmp_path, corpus, capsys):
    first = train.run(settings(train, corpus), told(tmp_path / "first")[0])
    for number, given in enumerate(("first", "first/checkpoints", "first/checkpoints/best")):
        more = {"model": {"dropout": 0.2}, "training": {"optim": STILL}}
        tuned = settings(train, corpus, init_from=tmp_path / given, **more)
        job, _, events = told(tmp_path / str(number))
        result = train.run(tuned, job)
        assert same(weights(result.checkpoint), weights(first.checkpoint))
        begun = next(event for event in events if event["event"] == "begun_from")
        assert (begun["checkpoint"], begun["step"]) == (str(first.checkpoint), 3)
        assert begun["changed"] == ["dropout: 0.0 before, 0.2 now"]
        assert f"Begun with the weights of {first.checkpoint}" in capsys.readouterr().out
        assert result.steps == 3  # counted from 0


def test_a_step_that_has_a_checkpoint_of_its_own_does_not_begin_anew(tmp_path, corpus):
    train.run(settings(train, corpus), told(tmp_path / "first")[0])
    tuned = settings(train, corpus, init_from=tmp_path / "first")
    with pytest.raises(Interrupted):
        train.run(tuned, told(tmp_path / "tuned", stop=True)[0])
    (tmp_path / "first").rename(tmp_path / "gone")
    job, _, events = told(tmp_path / "tuned")
    assert train.run(tuned, job).steps == 3
    assert "begun_from" not in [event["event"] for event in events]
    with pytest.raises(Exception, match=r"no checkpoint at .*first: there is nothing"):
        train.run(tuned, told(tmp_path / "late")[0])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"model": {"mlp": 32}}, r"write model: \{mlp: 64\}, not \{mlp: 32\}; or leave init_from"),
        ({"family": "baseline"}, "write family: lact, not baseline; or leave init"),
        (
            {"vocabulary": "bpe", "vocabulary_size": 40},
            "its vocabulary is characters with 29 symbols, not bpe with 40 symbols; or leave "
            "init_from out, or of another vocabulary write new_head: true",
        ),
    ],
)
def test_weights_of_another_model_are_refused_in_a_sentence(tmp_path, corpus, other, words):
    train.run(settings(train, corpus), told(tmp_path / "first")[0])
    expected = settings(train, corpus, init_from=tmp_path / "first", **other)
    with pytest.raises(Failed, match=words) as caught:
        train.run(expected, told(tmp_path / "second")[0])
    assert caught.value.cause == "settings"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [train, distill])
def test_of_another_vocabulary_all_but_the_output_layer_is_taken_over(
    tmp_path, corpus, capsys, kind
):
    """Characters, then pieces of words; another language has other characters."""
    bpe = {"vocabulary": "bpe", "vocabulary_size": 35, "new_head": True}
    first = train.run(settings(train, corpus, **bpe | {"new_head": False}), told(tmp_path / "a")[0])
    plain = train.run(settings(train, corpus), told(tmp_path / "b")[0])
    teacher = {"teacher": first.checkpoint} if kind is distill else {}
    given = {**teacher, **({} if teacher else bpe)} | {
        "new_head": True,
        "init_from": tmp_path / "b",
    }
    job, _, events = told(tmp_path / "c")
    found = kind.run(settings(kind, corpus, **given, training={"optim": STILL}), job)
    now, before = weights(found.checkpoint), weights(plain.checkpoint)
    assert now["head.weight"].shape[0] == 35 and before["head.weight"].shape[0] == 29
    assert now.keys() == before.keys()
    assert all(torch.equal(now[n], before[n]) for n in now if not n.startswith("head."))
    begun = next(event for event in events if event["event"] == "begun_from")
    assert (begun["new_head"], begun["changed"]) == (True, [])
    texts = read_json(found.checkpoint / "config.json")["vocabulary"]
    assert texts == read_json(first.checkpoint / "config.json")["vocabulary"]


def test_a_new_output_layer_for_the_same_symbols_begins_anew_too(tmp_path, corpus):
    first = train.run(settings(train, corpus), told(tmp_path / "first")[0])
    anew = {"init_from": tmp_path / "first", "new_head": True}
    tuned = settings(train, corpus, **anew, training={"optim": STILL, "seed": 5})
    second = train.run(tuned, told(tmp_path / "second")[0])
    now, before = weights(second.checkpoint), weights(first.checkpoint)
    changed = [name for name in now if not torch.equal(now[name], before[name])]
    assert changed and all(name.startswith("head.") for name in changed)


def test_a_new_output_layer_is_for_weights_of_the_same_model(tmp_path, corpus):
    train.run(settings(train, corpus), told(tmp_path / "first")[0])
    other = settings(train, corpus, init_from=tmp_path / "first", new_head=True, model={"mlp": 32})
    with pytest.raises(
        Failed, match=r"write model: \{mlp: 64\}, not \{mlp: 32\}; or leave init_from"
    ):
        train.run(other, told(tmp_path / "second")[0])
    with pytest.raises(ValueError, match="without init_from every layer begins anew"):
        settings(train, corpus, new_head=True)


def test_a_learned_vocabulary_comes_with_the_weights_and_stays(tmp_path, corpus):
    bpe = {"vocabulary": "bpe", "vocabulary_size": 35}
    first = train.run(settings(train, corpus, **bpe), told(tmp_path / "first")[0])
    write_manifest(tmp_path / "other.jsonl", tones(tmp_path, 6, seed=7))
    elsewhere = {**corpus, "train": tmp_path / "other.jsonl"}
    tuned = settings(train, elsewhere, init_from=tmp_path / "first", **bpe)
    with pytest.raises(Interrupted):
        train.run(tuned, told(tmp_path / "tuned", stop=True)[0])
    (tmp_path / "first").rename(tmp_path / "gone")
    second = train.run(tuned, told(tmp_path / "tuned")[0])
    was = read_json(tmp_path / "gone/checkpoints" / first.checkpoint.name / "config.json")
    assert read_json(second.checkpoint / "config.json")["vocabulary"] == was["vocabulary"]


def test_a_student_and_a_language_model_begin_with_weights_too(tmp_path, corpus):
    first = train.run(settings(train, corpus), told(tmp_path / "first")[0])
    student = settings(
        distill, corpus, teacher=first.checkpoint, init_from=first.checkpoint,
        training={"optim": STILL},
    )  # fmt: skip
    taught = distill.run(student, told(tmp_path / "student")[0])
    assert same(weights(taught.checkpoint), weights(first.checkpoint))

    short = {"max_steps": 2, "valid_every": 2, "batch_tokens": 200}
    alone = language_model.Settings(**corpus, size="tiny", training=short)
    before = language_model.run(alone, told(tmp_path / "lm")[0])
    still = alone.model_copy(
        update={
            "init_from": tmp_path / "lm",
            "training": alone.training.model_validate({**short, "optim": STILL, "seed": 1}),
        }
    )
    after = language_model.run(still, told(tmp_path / "lm2")[0])
    assert same(weights(after.checkpoint), weights(before.checkpoint))


def test_check_says_where_there_is_nothing_to_begin_with_unless_a_step_will_make_it(tmp_path):
    text = """\
steps:
  first:
    kind: train
    settings: {train: t.jsonl, dev: d.jsonl}
  tuned:
    kind: train
    needs: [first]
    settings:
      train: t.jsonl
      dev: d.jsonl
      init_from: GIVEN
"""
    file = tmp_path / "p.yaml"
    file.write_text(text.replace("GIVEN", str(tmp_path / "nowhere")))
    with pytest.raises(SpecError) as caught:
        read_pipeline(file)
    where = f"{file}:11: steps.tuned.settings.init_from"
    assert caught.value.mistakes == [
        f"{where}: {tmp_path / 'nowhere'} does not exist: write a path that does"
    ]
    for given in ("${first.checkpoint}", str(tmp_path)):
        file.write_text(text.replace("GIVEN", given))
        assert read_pipeline(file).step("tuned").settings["init_from"] == given


CHANGES = {
    "max_steps": {"training": {"max_steps": 4}},
    "fewer_steps": {"training": {"max_steps": 1}},
    "learning_rate": {"training": {"optim": {"learning_rate": 1e-4}}},
    "batch_seconds": {"training": {"batch_seconds": 4}},
    "accumulate": {"training": {"accumulate": 2}},
    "precision": {"training": {"precision": "bf16"}},
    "speeds": {"training": {"augment": {"speeds": [0.9, 1.1]}}},
    "average": {"training": {"average": {"decay": 0.9}}},
    "dropout": {"model": {"dropout": 0.3}},
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES.keys())
def test_a_step_goes_on_with_the_present_values_of_these_settings(tmp_path, corpus, changed):
    with pytest.raises(Interrupted):
        train.run(settings(train, corpus), told(tmp_path / "step", stop=True)[0])
    now = settings(train, corpus, **changed)
    job, _, events = told(tmp_path / "step")
    assert train.run(now, job).steps == now.training.max_steps
    resumed = next(event for event in events if event["event"] == "resumed")
    assert bool(resumed["changed"]) == ("training" in changed)


def _resumed_with(tmp_path: Path, corpus: dict[str, Path], before: Any, now: Any) -> str:
    folder = tmp_path / "demo-1" / "steps" / "train"
    with pytest.raises(Interrupted):
        train.run(settings(train, corpus, **before), told(folder, stop=True)[0])
    with pytest.raises(Failed) as caught:
        train.run(settings(train, corpus, **now), told(folder)[0])
    assert caught.value.cause == "settings"
    said = str(caught.value)
    assert said.endswith("; or start the step anew: resume demo-1 --redo train")
    assert "\n" not in said and len(said.replace(str(tmp_path), "")) < 250
    return said


BPE = {"vocabulary": "bpe", "vocabulary_size": 35}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {"model": {"hidden": 64}}, "write model: {hidden: 32}, not {hidden: 64}"),
        ({}, {"family": "baseline"}, "write family: lact, not baseline"),
        ({}, BPE, "its vocabulary is characters with 29 symbols, not bpe with 35 symbols"),
        (BPE, {}, "its vocabulary is bpe with 35 symbols, not characters with 29 symbols"),
        (BPE, {**BPE, "vocabulary_size": 34}, "is bpe with 35 symbols, not bpe with 34 symbols"),
        ({}, {"training": {"optim": {"method": "muon"}}}, "write the optim.method of the run"),
        ({}, {"ctc": {"intermediate": [1]}, "model": {"layers": 2}}, "write model: {layers: 1}"),
    ],
)
def test_a_step_that_cannot_go_on_with_other_settings_says_what_to_write(
    tmp_path, corpus, before, now, words
):
    assert words in _resumed_with(tmp_path, corpus, before, now)


def test_a_run_without_one_validated_model_ends_in_a_sentence(tmp_path, corpus):
    spoken = tones(tmp_path, 2, seed=1)
    long = [Utterance(u.id, u.audio, u.duration, "ABCDEFG " * 30, "") for u in spoken]
    write_manifest(corpus["dev"], long)  # CTC has no path for so many letters
    with pytest.raises(Failed, match=r"in 3 steps no validation.*dev\.jsonl are long enough"):
        train.run(settings(train, corpus), told(tmp_path / "step")[0])
