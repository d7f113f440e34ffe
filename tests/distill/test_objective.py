"""The distillation objective: its formula, its invariances, and that a student learns from it."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.config.distillation import DistillConfig
from distill.losses import functions as losses
from distill.models.registry import FAMILIES
from distill.objective import DistillObjective
from distill.teachers import Live
from lact_asr.config.augment import AugmentConfig
from lact_asr.config.model import SIZES
from lact_asr.config.training import CTCConfig, OptimConfig, TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.data.specaugment import Masks, SpecAugment
from lact_asr.distributed import processes
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.forward import autocast
from lact_asr.model.interface import CTCModel
from lact_asr.model.masks import length_mask
from lact_asr.text.ctc import uniform_ctc_loss
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import optim, train_step
from lact_asr.training.loss import shown
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import fit
from lact_asr.utils.errors import DataError
from tests.distill.tiny_models import (
    VOCABULARY,
    batch,
    heard,
    memorize,
    part,
    per_label,
    shares_of,
    tiny_baseline,
    tiny_teacher,
    utterances,
)
from tests.lact_asr.tiny_runs import tiny
from tests.ranks import in_ranks

SMALL = {"blocks": 1, "mlp": 144}


def sum_of_one_rank(tensor: Tensor) -> Tensor:
    """The sum over ranks where there is one."""
    return tensor


def objective(
    student: Any = None, teacher: Any = None, ctc: CTCConfig | None = None, **changes: Any
) -> DistillObjective:
    return DistillObjective(
        student or tiny_baseline(),
        Live(teacher or tiny_teacher(seed=1, **SMALL), VOCABULARY),
        DistillConfig(**changes),
        vocabulary=VOCABULARY,
        ctc=ctc,
    )


def teacher_of(taught: DistillObjective) -> CTCModel:
    """The model that says what its student is taught."""
    assert isinstance(taught.source, Live)
    return taught.source.teacher


def noise(count: int = 4) -> Batch:
    """Utterances of different lengths and texts, of noise."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.arange(count) * 4321 + 9000
    waves = 0.1 * torch.randn(count, int(lengths.max()), generator=generator)
    waves *= length_mask(lengths, waves.shape[1])
    labels = torch.arange(count) % 3 + 2
    targets = torch.randint(1, 29, (int(labels.sum()),), generator=generator)
    return Batch([str(n) for n in range(count)], [""] * count, waves, lengths, targets, labels)


def uniform_ctc(spoken: Batch, frames: Tensor) -> float:
    """By the closed form."""
    labels = spoken.targets.split(spoken.target_lengths.tolist())
    pairs = zip(frames.tolist(), labels, strict=True)
    return sum(uniform_ctc_loss(count, each.tolist(), len(VOCABULARY)) for count, each in pairs)


@pytest.mark.parametrize(
    "changes",
    [{}, {"top_k": 5}, {"kd": "guided"}, {"kd": "sequence"}, {"blank_policy": "drop_class"}],
)
def test_a_student_that_knows_nothing_costs_what_is_expected_of_it(changes):
    taught, spoken = objective(**changes), noise()
    torch.nn.init.zeros_(taught.model.head.weight)  # every symbol is as likely
    taught.begin_step([spoken], sum_of_one_rank)
    shares = shares_of(per_label(taught(spoken, 0.0)))
    assert shares == pytest.approx({"ctc": 1, "kd": 1}, rel=1e-5)


def even_attention(taught: DistillObjective, spoken: Batch) -> float:
    """The attention loss over ln K - H of the teacher, K the keys that both look at."""
    mine = taught.model(spoken.waves, spoken.wave_lengths, attention=True)
    theirs = teacher_of(taught)(spoken.waves, spoken.wave_lengths, attention=True)
    seen = length_mask(mine.lengths, mine.log_probs.shape[1])
    mean = theirs.attention.detach().exp().mean(1)  # heads differ in number; the window is wide
    keys = mine.lengths[:, None].expand(seen.shape)
    entropy = -torch.xlogy(mean, mean).masked_fill(~seen[:, None], 0).sum(-1)
    paid = losses.attention(mine.attention, theirs.attention, seen)[seen].sum()
    cost = (keys[seen].log() - entropy[seen]).sum()
    return float(paid.detach() / cost)


def test_every_hint_begins_near_what_is_expected_of_it():
    hints = {"layerwise_weight": 1.0, "contrastive_weight": 1.0, "attention_weight": 1.0}
    at_once = {"contrastive_temperature": 1.0, "curriculum": "all_on"}
    config = DistillConfig(feature_weight=1.0, **at_once, **hints)
    source, spoken = Live(tiny_teacher(seed=1), VOCABULARY), noise()
    taught = DistillObjective(tiny(layers=2), source, config, vocabulary=VOCABULARY)
    taught.begin_step([spoken], sum_of_one_rank)
    shares = shares_of(per_label(taught(spoken, 0.0)))
    for name in ("feature", "layerwise", "contrastive"):
        assert shares[name] == pytest.approx(1, abs=0.2), name
    even = even_attention(taught, spoken)
    assert shares["attention"] == pytest.approx(even, rel=1e-4)


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25, 1.0])
def test_the_total_is_the_formula_per_label_and_per_frame(progress):
    taught, spoken = objective(feature_weight=0.5), noise()
    taught.begin_step([spoken], sum_of_one_rank)
    loss = taught(spoken, progress)
    student = taught.model(spoken.waves, spoken.wave_lengths)
    teacher = teacher_of(taught)(spoken.waves, spoken.wave_lengths)
    mask = length_mask(student.lengths, student.log_probs.shape[1])
    ctc = ctc_losses(student.log_probs, student.lengths, spoken).sum() / loss.weight
    p, q = ((x.log_probs[mask] / 2).softmax(-1) for x in (teacher, student))
    kd = 4 * (p * (p / q).log()).sum() / mask.sum()
    projected = taught.trainable["projector"](student.hidden[-1])[mask]
    target = teacher.hidden[-1][mask]
    feature = (
        (F.layer_norm(projected, (144,)) - F.layer_norm(target, (144,))).square().mean(-1).mean()
    )
    kd_weight = {0.0: 0.1, 0.1: 0.4, 0.25: 0.7, 1.0: 0.7}[progress]
    gate = {0.0: 0.0, 0.1: 0.0, 0.25: 0.5, 1.0: 1.0}[progress]
    expected = 0.3 * ctc + kd_weight * kd + 0.5 * gate * feature
    torch.testing.assert_close(loss.total / loss.weight, expected, atol=1e-4, rtol=1e-4)
    parts = per_label(loss)
    paid = {"ctc": ctc, "ctc_weighted": 0.3 * ctc, "kd": kd, "kd_weighted": kd_weight * kd}
    if gate:
        paid |= {"feature": feature, "feature_weighted": 0.5 * gate * feature}
    paid = {name: value.item() for name, value in paid.items()}
    assert {name: part.value for name, part in parts.items()} == pytest.approx(paid, rel=1e-3)
    even_kd = 4 * (math.log(len(VOCABULARY)) + (p * p.log()).sum() / mask.sum()).item()
    even_ctc = uniform_ctc(spoken, student.lengths) / int(loss.weight)
    expected = {name: part.expected for name, part in parts.items() if part.expected is not None}
    known = {"ctc": even_ctc, "kd": even_kd, **({"feature": 2.0} if gate else {})}
    assert expected == pytest.approx(known, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "modules"),
    [
        ({"feature_weight": 0.5}, {"projector"}),
        ({"feature_weight": 0.5, "router": {"kind": "recommended", "experts": "both"}}, {"router"}),
        ({"layerwise_weight": 0.5, "contrastive_weight": 0.5}, {"layerwise", "contrastive"}),
    ],
)
def test_a_part_of_weight_0_is_not_computed_and_its_map_stays_in_the_total(changes, modules):
    taught, spoken, seen = objective(**changes), noise(), set()
    for name in modules:
        for inner in taught.trainable[name].modules():
            inner.register_forward_hook(lambda *_, name=name: seen.add(name))
    for progress, expected in ((0.05, set()), (1.0, modules)):
        seen.clear()
        taught.trainable.zero_grad(set_to_none=True)
        taught.begin_step([spoken], sum_of_one_rank)
        loss = taught(spoken, progress)
        loss.total.backward()
        assert seen == expected
        learned = taught.trainable.named_parameters()
        assert not [name for name, each in learned if each.grad is None], "stops data-parallel"
        names = {name.removesuffix("_weight") for name in changes} - {"router"}
        assert names & loss.parts.keys() == (names if expected else set())


def test_a_student_is_judged_by_its_inner_blocks_too_like_one_that_is_trained_alone():
    ctc = CTCConfig(intermediate=(1, 2), intermediate_weight=0.4)
    taught, spoken = objective(tiny_baseline(), ctc=ctc), noise()
    taught.begin_step([spoken], sum_of_one_rank)
    loss, alone = taught(spoken, 0.0), CTCObjective(taught.model, ctc)(spoken, 0.0)
    for name in ("ctc", "intermediate"):
        torch.testing.assert_close(loss.parts[name].value, alone.parts[name].value)
    torch.testing.assert_close(loss.parts["ctc_weighted"].value, 0.3 * alone.total.detach())
    total = 0.3 * alone.total + loss.parts["kd_weighted"].value
    torch.testing.assert_close(loss.total, total)


def test_utterances_too_short_for_their_text_are_counted_like_those_of_a_student_alone():
    taught, spoken = objective(tiny_baseline()), noise()
    spoken = replace(spoken, wave_lengths=spoken.wave_lengths // 40)
    taught.begin_step([spoken], sum_of_one_rank)
    counts = taught(spoken, 0.0).counts
    assert counts == CTCObjective(taught.model)(spoken, 0.0).counts and counts["zeroed"] > 0


def test_the_source_is_asked_at_the_temperature_of_the_settings():
    """A cache keeps more of a distribution for a higher one."""
    asked = []

    class Asked(Live):
        def __call__(self, batch: Batch, temperature: float) -> Any:
            asked.append(temperature)
            return super().__call__(batch, temperature)

    source = Asked(tiny_teacher(**SMALL), VOCABULARY)
    settings = DistillConfig(temperature=3.0)
    taught = DistillObjective(tiny_baseline(), source, settings, vocabulary=VOCABULARY)
    taught.begin_step([noise()], sum_of_one_rank)
    taught(noise(), 0.5)
    assert asked == [3.0]


@pytest.mark.parametrize("kd", ["frames", "guided", "sequence"])
def test_of_two_views_of_an_utterance_both_are_taught_and_the_teacher_hears_it_once(kd):
    changes = {"kd": kd, "feature_weight": 0.5, "curriculum": "all_on"}
    taught = objective(ctc=CTCConfig(consistency=0.2), **changes)
    once, spoken, heard = objective(**changes), noise(), []
    once.trainable.load_state_dict(taught.trainable.state_dict())
    teacher_of(taught).register_forward_pre_hook(lambda _, given: heard.append(len(given[0])))
    for each in (taught, once):
        each.trainable.eval()
        each.begin_step([spoken], sum_of_one_rank)
    assert (taught.views, once.views) == (2, 1)
    both, single = taught(spoken, 0.5), once(spoken, 0.5)
    assert heard == [4] and both.weight == single.weight
    assert float(both.parts["consistency"].value) == pytest.approx(0, abs=1e-4), "unmasked: alike"
    for name, known in single.parts.items():
        found = both.parts[name]
        torch.testing.assert_close(found.value, known.value, rtol=1e-4, atol=1e-4)
        if known.expected is not None:
            torch.testing.assert_close(found.expected, known.expected, rtol=1e-4, atol=1e-4)
    masked = replace(spoken, augment=SpecAugment(AugmentConfig(time_masks=5, frequency_masks=2)))
    assert float(taught(masked, 0.5).parts["consistency"].value) > 1e-3


def test_what_is_expected_is_measured_only_in_steps_that_are_logged(speech, tmp_path):
    measured: list[int] = []

    class Counted(DistillObjective):
        """Notes when it is measured."""

        def _of_a_uniform_student(self, *given: Any) -> dict[str, Tensor]:
            measured.append(self.looks._next or 1)
            return super()._of_a_uniform_student(*given)

    source = Live(tiny_teacher(seed=1, head_std=1.0, **SMALL), VOCABULARY)
    taught = Counted(tiny_baseline(), source, DistillConfig(), vocabulary=VOCABULARY, log_every=6)
    rows: list[dict[str, Any]] = []
    fit(
        taught, list(utterances(speech)), list(utterances(speech)[:1]), VOCABULARY,
        TrainingConfig(max_steps=12, batch_seconds=3, valid_every=12, checkpoint_every=12,
                       log_every=6),
        tmp_path, report=lambda metrics: rows.append(dict(metrics)),
        event=lambda name, **facts: None, should_stop=lambda: False, device=torch.device("cpu"),
    )  # fmt: skip
    assert measured == [1, 2, 3, 4, 5, 6, 12]
    assert [row["step"] for row in rows if "kd_relative" in row] == [1, 6, 12]


WAYS = {  # settings: what one frame then costs, and what its sum is divided by
    "top_k": (
        {"top_k": 5},
        lambda q, p: losses.top_k_kd(q, losses.top_k(p, 5, 2.0), 2.0),
        "frames",
    ),
    "drop_class": (
        {"blank_policy": "drop_class"},
        lambda q, p: losses.frame_kd(losses.drop_blank(q), losses.drop_blank(p), 2.0),
        "frames",
    ),
    "nonblank": (
        {"blank_policy": "nonblank"},
        lambda q, p: losses.frame_kd(q, p, 2.0) * (p.argmax(-1) != 0),
        "frames",
    ),
    "guided": ({"kd": "guided"}, losses.guided, "labels"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_teaching_costs_what_it_says(way):
    changes, cost, unit = WAYS[way]
    taught, spoken = objective(**changes), noise()
    taught.begin_step([spoken], sum_of_one_rank)
    loss = taught(spoken, 0.0)
    student = taught.model(spoken.waves, spoken.wave_lengths)
    teacher = teacher_of(taught)(spoken.waves, spoken.wave_lengths)
    mask = length_mask(student.lengths, student.log_probs.shape[1])
    total = losses.masked_sum(cost(student.log_probs, teacher.log_probs), mask)
    expected = total / (mask.sum() if unit == "frames" else loss.weight)
    assert expected > 0.01
    torch.testing.assert_close(loss.parts["kd"].value / loss.weight, expected, atol=1e-6, rtol=1e-5)


def gradients(taught: DistillObjective, batches: list[Batch]) -> dict[str, Tensor]:
    """Of a whole step over these micro-batches, normalized as the loop does."""
    taught.trainable.zero_grad()
    taught.begin_step(batches, sum_of_one_rank)
    every = [taught(each, 0.5) for each in batches]
    labels = sum(loss.weight for loss in every)
    (sum(loss.total for loss in every) / labels).backward()
    return {n: p.grad.clone() for n, p in taught.trainable.named_parameters()}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    size = torch.cat([gradient.flatten() for gradient in one.values()]).norm()
    apart = torch.cat([(one[name] - other[name]).flatten() for name in one]).norm()
    assert apart / size < 1e-5, f"gradients differ by {apart / size:.1e}"


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_weight": 0.5},
        {"top_k": 5, "blank_policy": "selected", "blank_radius": 40},
        {"blank_policy": "drop_class", "feature_weight": 1.0, "feature": "cosine"},
        {"kd": "guided", "blank_policy": "nonblank"},
        {"kd": "sequence"},
    ],
)
def test_the_gradient_depends_neither_on_micro_batches_nor_on_padding(changes):
    taught, whole = objective(**changes), noise()
    together = gradients(taught, [whole])
    pieces = [part(whole, [0]), part(whole, [3, 1]), part(whole, [2])]
    assert_close(together, gradients(taught, pieces))
    wide = copy.copy(whole)
    wide.waves = F.pad(whole.waves, (0, 7000))
    assert_close(together, gradients(taught, [wide]))


def one_step(folder: Path) -> None:
    """One optimizer step over four utterances, two per rank, or all in one process."""
    world, whole = processes.start(), noise()
    taught = objective(feature_weight=0.5)
    rows = [[0, 1], [2, 3]]
    mine = [part(whole, rows[world.rank])] if world.world_size > 1 else [whole]
    config = TrainingConfig(optim=OptimConfig(learning_rate=0.01, warmup_steps=0))
    optimizer = optim.build(taught, config.optim)
    module = world.wrap(train_step.ObjectiveModule(taught))
    taught.trainable.train()
    taught.begin_step(mine, world.all_sum)
    setting = train_step.Setting(config, world, torch.device("cpu"))
    outcome = train_step.take_step(module, optimizer, mine, 0.5, setting, False, {})
    state = {"loss": outcome.loss, "parts": shown(outcome.parts), "norm": outcome.grad_norm}
    state["gradients"] = {n: p.grad for n, p in taught.trainable.named_parameters()}
    torch.save(state, folder / f"of{world.world_size}-{world.rank}.pt")


def test_two_processes_take_the_step_that_one_takes(tmp_path):
    one_step(tmp_path)
    assert in_ranks(one_step, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    single = torch.load(tmp_path / "of1-0.pt")
    for rank in range(2):
        double = torch.load(tmp_path / f"of2-{rank}.pt")
        assert_close(single["gradients"], double["gradients"])
        assert double["parts"] == pytest.approx(single["parts"], rel=1e-5)
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-5)


def test_in_bfloat16_the_losses_stay_float32_and_close():
    taught, spoken = objective(feature_weight=0.5, curriculum="all_on"), noise()
    taught.begin_step([spoken], sum_of_one_rank)
    exact = taught(spoken, 0.5)
    with autocast(torch.device("cpu"), "bf16"):
        loss = taught(spoken, 0.5)
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    for name, known in exact.parts.items():
        assert float(loss.parts[name].value) == pytest.approx(float(known.value), rel=0.05), name
    assert all(p.grad.isfinite().all() for p in taught.trainable.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    teacher = tiny_teacher(**SMALL).eval()
    student = copy.deepcopy(teacher)
    taught, spoken = objective(student, teacher, alpha=1.0, kd_start=0.7), noise()
    student.eval()
    taught.begin_step([spoken], sum_of_one_rank)
    loss = taught(spoken, 0.0)
    loss.total.backward()
    assert abs(loss.total.item()) < 1e-3
    assert max(p.grad.abs().max() for p in student.parameters()) < 1e-3


def test_the_teacher_is_frozen_and_stays_in_evaluation_mode():
    taught, spoken = objective(teacher=tiny_teacher(dropout=0.5, **SMALL)), noise()
    taught.trainable.train()
    taught.begin_step([spoken], sum_of_one_rank)
    first, second = (taught(spoken, 0.0).total for _ in range(2))
    second.backward()
    assert first.equal(second), "a teacher with live dropout says something else each time"
    assert all(p.grad is None and not p.requires_grad for p in teacher_of(taught).parameters())
    inside = {id(p) for p in taught.trainable.parameters()}
    assert not inside & {id(p) for p in teacher_of(taught).parameters()}


def test_the_projector_learns_five_times_as_fast_and_every_parameter_once():
    taught = objective(feature_weight=1.0)
    groups = taught.parameter_groups(2e-4)
    assert [group["lr"] for group in groups] == pytest.approx([2e-4, 1e-3])
    assert groups[1]["params"] == list(taught.trainable["projector"].parameters())
    assert sum(len(group["params"]) for group in groups) == len(list(taught.trainable.parameters()))
    assert len(objective().parameter_groups(2e-4)) == 1


def test_the_feature_loss_starts_near_two_on_speech(speech):
    taught, spoken = objective(feature_weight=1.0), batch(speech, 2)
    taught.begin_step([spoken], sum_of_one_rank)
    loss = taught(spoken, 1.0)
    assert float(loss.parts["feature"].value / loss.weight) == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize("subsampling", [2, 8])
@pytest.mark.parametrize("kd", ["frames", "guided", "sequence"])
def test_students_of_other_frame_rates_are_taught(subsampling, kd):
    changes = {"subsampling": subsampling, "conv_layers": 3, "layers": 1, "dropout": 0.0}
    config = SIZES["tiny"].model_dump() | changes
    student = FAMILIES["lact"](config, len(VOCABULARY))
    taught, spoken = objective(student, kd=kd, feature_weight=1.0), noise()
    assert taught.ratio == subsampling / 4
    together = gradients(taught, [spoken])
    assert all(gradient.isfinite().all() for gradient in together.values())
    assert_close(together, gradients(taught, [part(spoken, [2]), part(spoken, [0, 1, 3])]))


def test_a_foreign_vocabulary_is_refused_by_name():
    symbols = VOCABULARY.symbols
    for other, message in (
        (Vocabulary([*symbols[:-1], "5"]), "only one of them has '5', 'Z'"),
        (Vocabulary([symbols[1], symbols[0], *symbols[2:]]), "id 1 is ' ' and"),
        (Vocabulary([*symbols, "-"]), "29 and 30 symbols with the blank; only one of them has '-'"),
    ):
        with pytest.raises(DataError, match=message):
            DistillObjective(
                tiny_baseline(),
                Live(tiny_teacher(**SMALL), other),
                DistillConfig(),
                vocabulary=VOCABULARY,
            )


def test_a_film_is_read_if_either_of_the_two_looks_at_it():
    watching = {**SMALL, "video": "features", "video_features": 3}
    assert objective(teacher=tiny_teacher(**watching)).video_shape == (3,)
    assert objective(student=tiny_teacher(**watching)).video_shape == (3,)
    assert objective().video_shape is None


def test_a_step_must_be_announced():
    with pytest.raises(RuntimeError, match="begin_step"):
        objective()(noise(), 0.0)


def test_a_student_that_never_sees_a_text_writes_what_its_teacher_hears(speech):
    spoken, teacher, student = batch(speech, 3), tiny_teacher(), tiny_baseline()
    assert memorize(teacher, spoken, steps=60) == spoken.texts
    taught = objective(student, teacher, alpha=1.0, kd_start=0.7)
    optimizer = torch.optim.AdamW(student.parameters(), 2e-3, betas=(0.9, 0.98))
    divergences = []
    for _ in range(80):
        taught.begin_step([spoken], sum_of_one_rank)
        loss = taught(spoken, 0.5)
        divergences.append(float(loss.parts["kd"].value / loss.weight))
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    assert divergences[-1] < 0.1 * divergences[0]
    assert heard(student, spoken) == spoken.texts


def test_the_training_loop_distils_and_reports_every_component(speech, tmp_path):
    rows: list[dict[str, Any]] = []
    config = TrainingConfig(
        max_steps=3, batch_seconds=6, accumulate=2, valid_every=3, checkpoint_every=3, log_every=1
    )
    taught = objective(feature_weight=0.1, curriculum="all_on")
    result = fit(
        taught,
        list(utterances(speech)),
        list(utterances(speech)[:2]),
        VOCABULARY,
        config,
        tmp_path,
        report=lambda metrics: rows.append(dict(metrics)),
        event=lambda name, **facts: None,
        should_stop=lambda: False,
        device=torch.device("cpu"),
    )
    assert result.step == 3 and result.steps_skipped == 0
    steps_shown = [row for row in rows if "kd" in row]
    assert len(steps_shown) == 3
    for row in steps_shown:
        assert row["loss"] == pytest.approx(
            row["ctc_weighted"] + row["kd_weighted"] + row["feature_weighted"], rel=1e-4
        )
        assert row["ctc_weighted"] == pytest.approx(0.3 * row["ctc"], rel=1e-4)


def test_the_student_hears_masked_features_and_the_teacher_clean_ones():
    taught, spoken = objective(), noise()
    masked = replace(
        spoken, augment=SpecAugment(AugmentConfig(time_masks=9, time_width=0.5, time_total=0.9))
    )
    taught.begin_step([masked], sum_of_one_rank)
    torch.manual_seed(5)
    loss = taught(masked, 1.0)
    torch.manual_seed(5)
    student = taught.model(spoken.waves, spoken.wave_lengths, masked.augment)
    teacher = teacher_of(taught)(spoken.waves, spoken.wave_lengths)
    mask = length_mask(student.lengths, student.log_probs.shape[1])
    kd = losses.masked_sum(losses.frame_kd(student.log_probs, teacher.log_probs, 2.0), mask)
    expected = taught.labels_per_frame * kd
    assert loss.parts["kd"].value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.allclose(
        loss.parts["kd"].value, taught(spoken, 1.0).parts["kd"].value, rtol=1e-3
    )


@pytest.mark.parametrize("model", [tiny_baseline(), tiny_teacher(**SMALL)], ids=["plain", "i3d"])
def test_behind_masks_over_all_of_time_a_model_hears_nothing(model):
    def everything(mel: Tensor, lengths: Tensor) -> Masks:
        hidden = torch.ones(mel.shape[:2]).bool()
        return Masks(hidden, torch.zeros(len(mel), mel.shape[2]).bool())

    lessons = [noise(), replace(noise(), waves=noise().waves.flip(1))]
    heard = [model.eval()(each.waves, each.wave_lengths) for each in lessons]
    deaf = [model(each.waves, each.wave_lengths, augment=everything) for each in lessons]
    assert not torch.allclose(*(output.log_probs for output in heard))
    assert torch.equal(*(output.log_probs for output in deaf))


@pytest.mark.parametrize(
    "model", [tiny(layers=2), tiny_baseline(), tiny_teacher()], ids=["lact", "baseline", "teacher"]
)
def test_every_family_of_ours_reads_out_its_last_states_as_its_output(model):
    waves, lengths = torch.randn(2, 9000), torch.tensor([9000, 6000])
    output = model.eval()(waves, lengths)
    assert len(output.hidden) == model.config.blocks
    last = model.read_out(output.hidden[-1], output.lengths)
    for row, length in enumerate(output.lengths.tolist()):
        assert torch.equal(last[row, :length], output.log_probs[row, :length])
    first = model.read_out(output.hidden[0], output.lengths)
    assert first.shape == last.shape and not torch.allclose(first, last)
