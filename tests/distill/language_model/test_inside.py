"""What a language model learns from the inside of another: the losses, when, and how weighed."""

import pytest
import torch

from distill.config.language_model import LMDistillConfig
from distill.language_model.batch import PAD
from distill.language_model.model import Inside, LMObjective
from distill.losses import functions as losses
from lact_asr.training import checkpoint
from tests.distill.language_model.test_language_model import batch, model
from tests.distill.test_wiring import spoken, steps

HINTS = {"feature_weight": 0.5, "layerwise_weight": 0.25, "attention_weight": 0.1}
AT_ONCE = {**HINTS, "curriculum": "all_on"}


def objective(**changes) -> LMObjective:
    teacher = model(seed=1, blocks=3, hidden=48, heads=4).eval()
    return LMObjective(model().eval(), 64, teacher, LMDistillConfig(top_k=5, **changes))


def test_each_loss_on_hidden_states_is_the_sum_over_the_symbols_of_the_texts():
    taught, texts = objective(**AT_ONCE), batch(["CAT SAT", "ON"])
    loss, there = taught(texts, 1.0), texts.targets != PAD
    mine, theirs = Inside(True), Inside(True)
    taught.model(texts.inputs, mine), taught.teacher(texts.inputs, theirs)
    assert [len(each.hidden) for each in (mine, theirs)] == [2, 3]
    apart = lambda project, here, other: losses.layer_norm_mse(project(here), other)[there].sum()
    feature = apart(taught.maps["projector"], mine.hidden[-1], theirs.hidden[-1])
    pairs = zip(taught.maps["layerwise"], (0, 1), (1, 2), strict=True)
    layerwise = sum(apart(project, mine.hidden[h], theirs.hidden[t]) for project, h, t in pairs) / 2
    attention = losses.attention(mine.attention, theirs.attention, there)[there].sum()
    expected = {"feature": feature, "layerwise": layerwise, "attention": attention}
    for name, value in expected.items():
        torch.testing.assert_close(loss.parts[name].value, value.detach(), rtol=1e-4, atol=1e-4)
        assert float(loss.parts[name].value) > 0.01
        weighted = HINTS[f"{name}_weight"] * value.detach()
        torch.testing.assert_close(loss.parts[f"{name}_weighted"].value, weighted)
    total = sum(float(loss.parts[f"{name}_weighted"].value) for name in ("lm", "kd", *expected))
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5)
    unlearned = float(loss.parts["feature"].expected / loss.weight)
    assert unlearned == 2.0


def test_attention_looks_at_nothing_that_comes_later():
    inside, texts = Inside(True), batch(["CAT SAT"])
    model().eval()(texts.inputs, inside)
    paid = inside.attention.exp()[0]
    assert torch.allclose(paid.sum(-1), torch.ones(paid.shape[:2]))
    assert paid.triu(1).abs().max() == 0


def test_a_model_beside_itself_pays_nothing_for_its_attention():
    teacher = model().eval()
    config = LMDistillConfig(attention_weight=1.0, curriculum="all_on")
    loss = LMObjective(model().eval(), 64, teacher, config)(batch(["CAT SAT", "ON"]), 1.0)
    assert float(loss.parts["attention"].value) == pytest.approx(0, abs=1e-5)
    assert float(loss.parts["attention"].expected) > 0.1


def test_gradients_do_not_depend_on_the_batch_around_a_text():
    taught = objective(**AT_ONCE)

    def gradients(*parts: list[str]) -> torch.Tensor:
        taught.trainable.zero_grad()
        for part in parts:
            taught(batch(part), 1.0).total.backward()
        return torch.cat([each.grad.flatten() for each in taught.trainable.parameters()])

    whole, cut = gradients(["CAT SAT ON A MAT", "ON"]), gradients(["CAT SAT ON A MAT"], ["ON"])
    assert (whole - cut).norm() < 1e-5 * whole.norm()


def test_what_the_curriculum_holds_back_is_not_computed_and_stays_in_the_total():
    taught, seen = objective(**HINTS), []
    taught.maps["projector"].register_forward_hook(lambda *_: seen.append("feature"))
    for progress, known in ((0.05, set()), (0.3, {"feature", "attention"}), (1.0, {*NAMES})):
        taught.trainable.zero_grad(set_to_none=True)
        seen.clear()
        loss = taught(batch(["CAT"]), progress)
        loss.total.backward()
        assert {*NAMES} & loss.parts.keys() == known and bool(seen) is bool(known)
        assert all(each.grad is not None for each in taught.trainable.parameters())


NAMES = ("feature", "attention", "layerwise")


def test_plain_distillation_keeps_nothing_beside_the_model():
    """A checkpoint of before has nothing there."""
    taught = LMObjective(model(), 64, model(seed=1))
    assert taught.trainable is taught.model and not taught.maps


def test_maps_and_scales_learn_at_their_rates_and_are_kept(tmp_path, capsys):
    teacher, _ = spoken(tmp_path, "teacher")
    given = {**AT_ONCE, "balance": "uncertainty"}
    _, recorded = spoken(tmp_path, "student", teacher=teacher.checkpoint, distill=given)
    for line in steps(recorded):
        parts = [value for name, value in line.items() if name.endswith("_weighted")]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-5) and len(parts) == 5
    newest = checkpoint.latest(tmp_path / "student" / "checkpoints")
    kept = checkpoint.load(newest / "trainer.pt")
    assert {"projector.weight", "layerwise.0.weight", "balancer.scales"} <= kept["beside"].keys()
    assert kept["beside"]["balancer.scales"].abs().min() > 0
    peaks = {group["peak"] for group in kept["optimizer"]["param_groups"]}
    assert sorted(peak / min(peaks) for peak in peaks) == pytest.approx([1, 5, 10])
    said = capsys.readouterr().out
    assert "[CURRICULUM] Step 4 (75.0%): kd=0.700, feature=0.500, attention=0.100" in said
    assert "[BALANCE] kd=" in said


def test_running_means_weigh_the_next_step(tmp_path):
    teacher, _ = spoken(tmp_path, "teacher")
    given = {"feature_weight": 0.5, "curriculum": "all_on", "balance": "ema"}
    _, recorded = spoken(tmp_path, "student", teacher=teacher.checkpoint, distill=given)
    first, second = steps(recorded)[:2]
    assert first["feature_weighted"] == pytest.approx(0.5 * first["feature"], rel=1e-5)
    factor = first["lm"] / first["feature"]
    assert second["feature_weighted"] == pytest.approx(0.5 * factor * second["feature"], rel=1e-3)


def test_what_is_expected_is_measured_only_in_steps_that_are_logged():
    taught = objective(**AT_ONCE)
    taught.looks.log_every = 10
    for step, measured in ((1, True), (6, False), (9, True), (10, False)):
        taught.looks.after(step)
        loss = taught(batch(["CAT"]), 1.0)
        assert (loss.parts["kd"].expected is not None) is measured
        assert (loss.parts["feature"].expected is not None) is measured
