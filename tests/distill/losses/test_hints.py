"""Losses on hidden states inside the objective: what they cost, exact however a step is cut."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.config.distillation import DistillConfig
from distill.losses import functions as losses
from distill.teachers import Live
from lact_asr.model.masks import length_mask
from lact_asr.training import checkpoint
from lact_asr.training.loss import Outcome, Part
from lact_asr.training.trainer import fit
from lact_asr.utils.errors import DataError
from tests.distill.test_objective import assert_close, gradients, noise, objective, sum_of_one_rank
from tests.distill.tiny_models import (
    VOCABULARY,
    part,
    per_label,
    tiny_baseline,
    tiny_teacher,
    utterances,
)
from tests.lact_asr.tiny_runs import ended, settings

STUDENT = {"layers": 4, "hidden": 32}  # two layers with hidden states
TEACHER = {"blocks": 3, "mlp": 144}
ROUTED = {"feature_weight": 0.5, "router": {"kind": "recommended", "experts": "both"}}
EVERY: list[dict[str, Any]] = [
    {"layerwise_weight": 1.0},
    {"layerwise_weight": 1.0, "feature": "cosine", "layer_map": ((1, 3), (2, 1))},
    {"contrastive_weight": 1.0, "contrastive_apart": 40.0},
    ROUTED,
    {"feature_weight": 0.5, "router": {"kind": "original", "layers": 2}},
    {"layerwise_weight": 0.3, "balance": "uncertainty"},
]


def hinted_losses(**changes: Any):
    changes = {"curriculum": "all_on", **changes}
    return objective(tiny_baseline(**STUDENT), tiny_teacher(seed=1, **TEACHER), **changes)


@pytest.mark.parametrize("changes", EVERY)
def test_the_gradient_depends_neither_on_micro_batches_nor_on_padding(changes):
    hinted, whole = hinted_losses(**changes), noise()
    together = gradients(hinted, [whole])
    assert_close(together, gradients(hinted, [part(whole, rows) for rows in ([0], [3, 1], [2])]))
    moving = {name.split(".")[0] for name, each in together.items() if each.any()}
    assert moving == set(hinted.trainable)


def shown(hinted: Any, progress: float = 1.0) -> dict[str, float]:
    spoken = noise()
    hinted.begin_step([spoken], sum_of_one_rank)
    loss = hinted(spoken, progress)
    return {name: part.value for name, part in per_label(loss).items()}


def states(hinted: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    spoken = noise()
    student = hinted.model(spoken.waves, spoken.wave_lengths)
    mask = length_mask(student.lengths, student.log_probs.shape[1])
    return student.hidden, hinted.source.teacher(spoken.waves, spoken.wave_lengths).hidden, mask


def test_mapped_layers_cost_the_mean_of_their_distances():
    hinted = hinted_losses(layerwise_weight=1.0)
    assert hinted.hints.pairs == [(1, 2), (2, 3)]
    here, there, mask = states(hinted)
    maps = hinted.trainable["layerwise"]
    apart = [
        losses.layer_norm_mse(maps[i](here[i]), there[i + 1])[mask].mean().item() for i in range(2)
    ]
    assert shown(hinted)["layerwise"] == pytest.approx(sum(apart) / 2, rel=1e-4)
    assert shown(hinted)["layerwise"] == pytest.approx(2.0, abs=0.3)


def test_telling_frames_apart_costs_about_the_log_of_their_number_and_nothing_when_done():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 60, 64), torch.randn(2, 60, 64)
    mask = torch.ones(2, 60).bool()
    mask[1, 20:] = False
    cost = losses.contrastive(student, teacher, mask, 3, 1.0)
    middle = math.log(60 - 5 + 1)  # itself and all but the five around it
    assert float(cost[0, 10:50].mean()) == pytest.approx(middle, abs=0.1)
    assert float(cost[1, 5:15].mean()) == pytest.approx(math.log(16), abs=0.1)
    assert float(losses.contrastive(teacher, teacher, mask, 3, 0.01).abs().max()) < 1e-3
    junk = teacher.masked_fill(~mask[..., None], 99.0)
    torch.testing.assert_close(losses.contrastive(student, junk, mask, 3, 1.0)[mask], cost[mask])


def test_the_contrastive_loss_of_the_objective_is_that_of_its_parts():
    hinted = hinted_losses(contrastive_weight=1.0, contrastive_apart=100.0)
    here, there, mask = states(hinted)
    projected = hinted.trainable["contrastive"](here[-1])
    expected = losses.contrastive(projected, there[-1], mask, 2, 0.07)[mask].mean().item()
    assert shown(hinted)["contrastive"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("progress", "layerwise", "contrastive"), [(0.4, 0.0, 0.0), (0.55, 0.5, 0.0), (0.85, 1.0, 0.5)]
)
def test_the_curriculum_brings_them_in_one_after_the_other(progress, layerwise, contrastive):
    hinted = hinted_losses(layerwise_weight=1.0, contrastive_weight=1.0, curriculum="original")
    seen = shown(hinted, progress)
    for name, weight in (("layerwise", layerwise), ("contrastive", contrastive)):
        assert (name in seen) is (weight > 0), "what does not count is not computed"
        if weight:
            assert seen[f"{name}_weighted"] == pytest.approx(weight * seen[name])


def test_the_router_chooses_among_layers_and_modalities_and_its_use_adds_up():
    hinted = hinted_losses(**ROUTED)
    assert hinted.hints.experts == ["layer1", "layer2", "layer3", "mel", "pitch"]
    seen = shown(hinted)
    for kind in ("share", "first"):
        assert sum(seen[f"{kind}_{name}"] for name in hinted.hints.experts) == pytest.approx(1.0)
    assert seen["feature"] == pytest.approx(2.0, abs=0.4)


def test_maps_learn_five_times_as_fast_the_choice_twice_and_every_parameter_once():
    hinted = hinted_losses(**ROUTED, layerwise_weight=1.0, balance="uncertainty")
    groups = hinted.parameter_groups(1e-3)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(hinted.trainable.parameters()))
    rate = lambda module: {round(rates[id(p)], 6) for p in module.parameters()}
    router = hinted.trainable["router"]
    assert rate(router.gate) == {0.002} and rate(router.maps) == {0.005}
    assert rate(hinted.trainable["layerwise"]) == {0.005}
    assert rate(hinted.model) == {0.001} and rate(hinted.balancer) == {0.01}


def test_running_means_come_from_what_all_ranks_saw_and_are_used():
    hinted = hinted_losses(layerwise_weight=0.5, balance="ema")
    first = shown(hinted)
    assert first["layerwise_weighted"] == pytest.approx(0.5 * first["layerwise"])
    said: list[str] = []

    class Said:
        say = staticmethod(said.append)
        judge = staticmethod(lambda step, news: None)

    parts = {"ctc": Part(2.0, 5.0), "kd": Part(4.0, 8.0), "layerwise": Part(8.0, 2.0)}
    outcome = Outcome(1.0, 9.0, parts, {}, 1.0, 1.0, False, {}, 9, [])
    hinted.end_step(1, outcome, Said())
    second = shown(hinted)
    assert second["layerwise_weighted"] == pytest.approx(0.5 * 2 / 8 * second["layerwise"])
    assert second["kd_weighted"] == pytest.approx(0.7 * 2 / 4 * second["kd"])
    assert second["ctc_weighted"] == pytest.approx(0.3 * second["ctc"])
    assert said == [
        "[CURRICULUM] Step 1 (100.0%): kd=0.700, layerwise=0.500",
        "[BALANCE] kd=0.500, layerwise=0.250",
        "[RELATIVE] to what nothing learned costs: ctc=0.400, kd=0.500, layerwise=4.000",
        "[TOTAL] Loss: 1.0000, Components: 3",
    ]


def test_weights_and_router_are_told_in_five_steps_and_every_hundredth_a_collapse_at_its_third():
    hinted = hinted_losses(**ROUTED)
    said: list[str] = []
    judged: list[tuple[int, dict[str, Any]]] = []

    class Said:
        say = staticmethod(said.append)
        judge = staticmethod(lambda step, news: judged.append((step, news)))

    firsts, shares = [0.97, 0.03, 0.0, 0.0, 0.0], [0.98, 0.02, 0.0, 0.0, 0.0]
    parts = {"ctc": Part(2.0, 5.0), "kd": Part(4.0, 8.0), "feature": Part(1.0, 2.0)}
    for name, first, share in zip(hinted.hints.experts, firsts, shares, strict=True):
        parts |= {f"first_{name}": Part(first), f"share_{name}": Part(share)}
    outcome = Outcome(1.25, 9.0, parts, {}, 1.0, 1.0, False, {}, 9, [])
    told = {}
    for step in (1, 5, 6, 99, 100, 101, 200, 300):
        said.clear()
        hinted.end_step(step, outcome, Said())
        told[step] = list(said)
    assert [step for step, lines in told.items() if lines] == [1, 5, 100, 200, 300]
    lines = told[300]
    assert told[100][1:] == lines[1:] and lines == [
        "[CURRICULUM] Step 300 (0.0%): kd=0.100, feature=0.500",
        "[ROUTER] layer1=0.980, layer2=0.020, layer3=0.000, mel=0.000, pitch=0.000, evenness=0.061",
        "[RELATIVE] to what nothing learned costs: ctc=0.400, kd=0.500, feature=0.500",
        "[TOTAL] Loss: 1.2500, Components: 3",
    ]
    found = [(step, news["router_collapse"]) for step, news in judged if "router_collapse" in news]
    assert [step for step, collapse in found if collapse] == [300]
    assert found[-1][1].sentence.startswith("the router has collapsed: one expert comes")


def test_a_map_by_likeness_is_made_from_a_sample_and_said(capsys):
    student = tiny_baseline(**STUDENT)
    config = DistillConfig(layerwise_weight=1.0, layer_map="cka")
    make = lambda sample: type(hinted_losses())(
        student,
        Live(tiny_teacher(seed=1, **TEACHER), VOCABULARY),
        config,
        vocabulary=VOCABULARY,
        sample=sample,
    )
    pairs = make(noise()).hints.pairs
    assert [here for here, _ in pairs] == [1, 2] and pairs[0][1] <= pairs[1][1]
    assert "CKA" in capsys.readouterr().out
    with pytest.raises(ValueError, match="needs a sample"):
        make(None)


def test_a_router_of_modalities_is_refused_by_a_teacher_that_has_none():
    with pytest.raises(DataError, match="no modalities"):
        objective(tiny_baseline(**STUDENT), tiny_baseline(seed=1, **STUDENT), **ROUTED)
    with pytest.raises(ValueError, match="feature_weight weighs, and that is 0"):
        DistillConfig(router={"kind": "recommended"})


def test_a_killed_run_with_every_part_goes_on_bit_for_bit(speech, tmp_path):
    everything = {**ROUTED, "layerwise_weight": 0.1, "contrastive_weight": 0.1, "balance": "ema"}

    def run(folder: Path, stop_at: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        asked = iter(range(1, 99))
        ended(
            fit,
            hinted_losses(**everything),
            list(utterances(speech)),
            list(utterances(speech)[:1]),
            VOCABULARY,
            settings(batch_seconds=6.0, max_steps=4, valid_every=4, checkpoint_every=4),
            folder,
            report=lambda row: rows.append(dict(row)),
            event=lambda name, **facts: None,
            should_stop=lambda: next(asked) >= stop_at,
            device=torch.device("cpu"),
        )
        return [row for row in rows if "kd" in row]

    through = run(tmp_path / "one", 99)
    parts = run(tmp_path / "two", 2) + run(tmp_path / "two", 99)
    assert [row["step"] for row in parts] == [1, 2, 3, 4]
    for name in ("loss", "kd_weighted", "share_mel", "router", "layerwise_weighted"):
        assert [row[name] for row in parts] == [row[name] for row in through]
    saved = checkpoint.load(checkpoint.latest(tmp_path / "two" / "checkpoints") / "trainer.pt")
    assert {"balancer.means", "router.first"} <= saved["beside"].keys()
    assert F.relu(saved["beside"]["balancer.means"]).min() > 0


def test_a_router_over_a_teacher_of_one_layer_is_refused():
    with pytest.raises(DataError, match=r"gives 1 layer of hidden states; write router.kind: off"):
        hinted = {"feature_weight": 0.5, "router": {"kind": "recommended"}}
        objective(tiny_baseline(**STUDENT), tiny_teacher(blocks=1), **hinted)
