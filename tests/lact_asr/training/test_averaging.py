"""Means of weights: closed forms, what is validated and kept with them, and resumption."""

import pytest
import torch
from torch import nn

from lact_asr.config.training import AverageConfig, TrainingConfig
from lact_asr.data.dataset import whole_corpus
from lact_asr.data.manifest import Utterance
from lact_asr.distributed.processes import World
from lact_asr.training import checkpoint
from lact_asr.training.averaging import Average, mean
from lact_asr.training.objective import CTCObjective
from lact_asr.training.validation import Dev, validate
from lact_asr.utils.files import read_json
from tests.lact_asr.tiny_runs import VOCABULARY, run, tiny, tones

EVERY = {"checkpoint_every": 1, "keep_checkpoints": 9, "valid_every": 9}


def saved(folder, step: int, file: str = "model.safetensors"):
    return checkpoint.load(folder / f"checkpoints/{step:08d}" / file)


def test_the_running_mean_is_the_sum_it_stands_for():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.5)
    expected, weights = 1.0, [1.0, 3.0, -2.0, 5.0, 0.0, 4.0, 1.0, 1.0, 9.0, 7.0]
    for step, weight in enumerate(weights, start=1):
        model.weight.data.fill_(weight)
        average.follow(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    assert average.values["weight"].item() == pytest.approx(expected)
    assert decay == 0.5 and model.weight.item() == 7.0


def test_other_weights_are_there_inside_only_even_if_something_fails():
    model = nn.BatchNorm1d(2)
    parameter, own = model.weight, model.weight.detach().clone()
    average = Average(model, values={"weight": torch.tensor([5.0, 6.0])})
    with pytest.raises(ValueError, match="in between"), average.in_force():
        assert model.weight.tolist() == [5.0, 6.0]
        assert model.running_mean.tolist() == [0.0, 0.0]  # not given: the model's own
        raise ValueError("in between")
    assert torch.equal(model.weight, own) and model.weight is parameter
    nothing = Average(model)
    assert nothing.values == {}
    with nothing.in_force():
        assert torch.equal(model.weight, own)


def test_the_mean_of_checkpoints_is_exact_and_leaves_counters_alone():
    ones = {"w": torch.tensor([1.0, 1e8]), "n": torch.tensor(3)}
    threes = {"w": torch.tensor([3.0, 1e8 + 8]), "n": torch.tensor(5)}
    found = mean([ones, threes | {"n": torch.tensor(4)}, threes])
    assert found["w"].tolist() == pytest.approx([7 / 3, 1e8 + 16 / 3])
    assert found["w"].dtype == torch.float32
    assert found["n"] == 5


def test_training_is_the_same_with_a_running_mean_which_is_validated_and_kept(tmp_path):
    train = tones(tmp_path, 6)
    result, _ = run(tmp_path / "mean", train, average=AverageConfig(decay=0.9), **EVERY)
    run(tmp_path / "plain", train, **EVERY)
    expected = {name: value.clone() for name, value in tiny().state_dict().items()}
    for step in range(1, 7):
        own, alone = (saved(tmp_path / each, step) for each in ("mean", "plain"))
        assert all(torch.equal(own[name], alone[name]) for name in own)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * own[name] for name in own}
    best = checkpoint.load(result.checkpoint / "model.safetensors")
    assert all(torch.allclose(best[name], expected[name], atol=1e-6) for name in best)
    assert not torch.allclose(best["head.weight"], own["head.weight"], atol=1e-4)
    assert saved(tmp_path / "plain", 6, "trainer.pt")["average"] == {}


def test_a_running_mean_is_resumed_and_may_begin_later(tmp_path):
    train = tones(tmp_path, 6)
    given = {"average": AverageConfig(decay=0.9), **EVERY}
    run(tmp_path / "whole", train, **given)
    run(tmp_path / "cut", train, stop_at=4, **given)
    run(tmp_path / "cut", train, CTCObjective(tiny(seed=5)), **given)
    whole, cut = (saved(tmp_path / each, 6, "trainer.pt")["average"] for each in ("whole", "cut"))
    assert whole.keys() == cut.keys() and len(whole) > 5
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    run(tmp_path / "late", train, stop_at=4, **EVERY)
    run(tmp_path / "late", train, CTCObjective(tiny(seed=5)), **given)
    late, start = saved(tmp_path / "late", 6, "trainer.pt")["average"], saved(tmp_path / "late", 4)
    near = [(late[name] - start[name]).norm() for name in late]
    far = [(late[name] - tiny(seed=5).state_dict()[name]).norm() for name in late]
    assert sum(near) < 0.3 * sum(far)


def loss_of(weights: dict[str, torch.Tensor], utterances: list[Utterance]) -> float:
    """What a validation says of a tiny model with these weights."""
    model = tiny()
    model.load_state_dict(weights)
    corpus, config = whole_corpus(utterances, VOCABULARY), TrainingConfig(batch_seconds=8.0)
    dev, cpu = Dev.of(corpus, config, World(), 0), torch.device("cpu")
    return validate(model, dev, VOCABULARY, config, World(), cpu).loss


def test_the_mean_has_the_present_step_once_and_reads_nothing_but_weights(tmp_path):
    train = tones(tmp_path, 6)
    run(tmp_path, train, stop_at=4, **EVERY)
    (tmp_path / "checkpoints/00000003/trainer.pt").write_bytes(b"damaged")
    _, recorded = run(tmp_path, train, max_steps=4, average=AverageConfig(last=3), **EVERY)
    found = [line["valid_loss"] for line in recorded.metrics if "wer" in line]
    weights = mean([saved(tmp_path, step) for step in (2, 3, 4)])
    assert found[1] == pytest.approx(loss_of(weights, train[:2]), rel=1e-6)


def test_the_mean_of_the_last_checkpoints_is_measured_and_kept_if_it_is_the_best(tmp_path):
    train = tones(tmp_path, 6)
    given = {"average": AverageConfig(last=3), **EVERY, "keep_checkpoints": 1}
    result, recorded = run(tmp_path, train, **given)
    lines = [line for line in recorded.metrics if "wer" in line]
    assert [line["step"] for line in lines] == [6, 6]
    weights = mean([saved(tmp_path, step) for step in (4, 5, 6)])
    assert lines[1]["valid_loss"] == pytest.approx(loss_of(weights, train[:2]), rel=1e-6)
    better = min(lines, key=lambda line: (line["wer"], line["valid_loss"]))
    assert read_json(result.checkpoint / "state.json")["loss"] == better["valid_loss"]
    best = checkpoint.load(result.checkpoint / "model.safetensors")
    kept = weights if better is lines[1] else saved(tmp_path, 6)
    assert all(torch.equal(best[name], kept[name]) for name in best)
    again, recorded = run(tmp_path, train, CTCObjective(tiny(seed=2)), **given)
    assert again == result and recorded.metrics == []
