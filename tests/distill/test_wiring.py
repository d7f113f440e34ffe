"""That distillation calls what it is made of: each test goes red when one call is taken out of it.

The real loop trains a student of tones for a few steps; what was told to the router, the balancer
and the maps is read from the run's own files and from what it reports.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.cache import filling
from distill.cache.format import Form, read_index
from distill.cache.teacher import Cached
from distill.config.distillation import DistillConfig
from distill.objective import DistillObjective
from distill.teachers import Live
from jobs.job import Job
from jobs.kinds import cache, distill, language_model
from lact_asr.config.augment import AugmentConfig
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import Utterance, write_manifest
from lact_asr.distributed.processes import World
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint
from lact_asr.training.loss import Loss, Part
from lact_asr.utils.errors import Interrupted
from tests.lact_asr.tiny_runs import (
    MODEL,
    VOCABULARY,
    RecordedEvents,
    run,
    save_untrained,
    tiny,
    tones,
)

CPU = torch.device("cpu")
AT_ONCE = {"curriculum": "all_on"}
STILL = {"learning_rate": 1e-30, "weight_decay": 0.0}


def taught_by(teacher: Recognizer, student: Recognizer | None = None, **changes: Any):
    """The objective of a tiny student."""
    source = Live(teacher, VOCABULARY)
    torch.manual_seed(0)
    config = DistillConfig(**changes)
    return DistillObjective(student or tiny(), source, config, vocabulary=VOCABULARY)


def beside(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """What a checkpoint holds beside the student and the optimizer."""
    return checkpoint.load(folder / f"checkpoints/{step:08d}/trainer.pt")["beside"]


def steps(recorded: RecordedEvents) -> list[dict[str, Any]]:
    return [line for line in recorded.metrics if "loss" in line]


def sure(model: Recognizer) -> Recognizer:
    """The model as one that has learned: it says something, right or wrong."""
    torch.nn.init.normal_(model.head.weight, std=1.0)
    return model


ROUTED = {"feature_weight": 1.0, "router": {"kind": "recommended"}, **AT_ONCE}


def test_the_router_is_told_who_came_first_in_every_step(tmp_path):
    objective = taught_by(tiny(seed=1, layers=2), **ROUTED)
    _, recorded = run(tmp_path, tones(tmp_path, 4), objective, max_steps=4)
    expected = torch.tensor([0.5, 0.5])
    for line in steps(recorded):
        expected = 0.9 * expected + 0.1 * torch.tensor([line["first_layer1"], line["first_layer2"]])
    found = beside(tmp_path, 4)["router.first"]
    assert not torch.allclose(found, torch.tensor([0.5, 0.5]), atol=1e-3)
    torch.testing.assert_close(found, expected)


def test_a_router_that_has_collapsed_is_said_to_the_launcher(tmp_path):
    """Two hundred and more steps are too long for a test: the same step is told at their places."""
    kept: list[Any] = []

    class Kept(DistillObjective):
        """Keeps what it was told."""

        def end_step(self, *told: Any) -> None:
            kept[:] = told
            super().end_step(*told)

    source = Live(tiny(seed=1, layers=2), VOCABULARY)
    objective = Kept(tiny(), source, DistillConfig(**ROUTED), vocabulary=VOCABULARY)
    _, recorded = run(tmp_path, tones(tmp_path, 2), objective, max_steps=1)
    _, outcome, *rest = kept
    alone = {"first_layer1": 1.0, "first_layer2": 0.0, "share_layer1": 0.99, "share_layer2": 0.01}
    parts = {name: Part(value) for name, value in alone.items()}
    collapsed = replace(outcome, parts={**outcome.parts, **parts})
    for step in range(100, 600, 100):
        objective.end_step(step, collapsed, *rest)
    (found,) = (each for each in recorded.named("finding") if each["word"] == "router_collapse")
    assert found["step"] == 300 and found["numbers"] == {"layer1": 0.99, "layer2": 0.01}
    objective.end_step(600, outcome, *rest)
    assert ["router_collapse", 600] in [[e["word"], e["step"]] for e in recorded.named("healthy")]


def test_a_teacher_that_has_learned_nothing_is_found_and_is_no_measure(tmp_path, capsys):
    silent = tiny(seed=1)
    silent.head.weight.data *= 0.01
    objective = DistillObjective(
        tiny(), Live(silent, VOCABULARY), DistillConfig(**AT_ONCE), vocabulary=VOCABULARY
    )
    _, recorded = run(tmp_path, tones(tmp_path, 2), objective, max_steps=2)
    (found,) = recorded.named("finding")
    assert found["word"] == "teacher_unlearned" and found["numbers"].keys() == {"kd_expected"}
    assert all("kd_relative" not in line for line in steps(recorded))
    said = capsys.readouterr().out
    assert "the teacher finds all symbols about equally likely" in said
    assert "[RELATIVE]" in said and "kd=" not in said.split("[RELATIVE]")[1].splitlines()[0]
    _, recorded = run(
        tmp_path / "sure", tones(tmp_path, 2), taught_by(sure(tiny(seed=1))), max_steps=2
    )
    assert not recorded.named("finding"), "a false alarm"


BALANCED = {"balance": "ema", "feature_weight": 0.5, **AT_ONCE}


def test_running_means_are_told_every_step_and_weigh_the_next_one(tmp_path, capsys):
    objective = taught_by(tiny(seed=1), **BALANCED)
    _, recorded = run(tmp_path, tones(tmp_path, 4), objective, max_steps=3)
    means = torch.zeros(3)
    for number, line in enumerate(steps(recorded)):
        factors = (means[0] / means[1:] if number else torch.ones(2)).tolist()
        kd_weight = 0.1 + 0.6 * min(1.0, number / 3 / 0.2)
        assert line["kd_weighted"] == pytest.approx(kd_weight * factors[0] * line["kd"], rel=1e-4)
        assert line["feature_weighted"] == pytest.approx(
            0.5 * factors[1] * line["feature"], rel=1e-4
        )
        means = 0.99 * means + 0.01 * torch.tensor([line["ctc"], line["kd"], line["feature"]])
    torch.testing.assert_close(beside(tmp_path, 3)["balancer.means"], means)
    said = capsys.readouterr().out
    assert said.count("[CURRICULUM] Step ") == said.count("[BALANCE] ") == 3


def test_learned_scales_and_maps_are_trained_and_kept(tmp_path):
    hints = {"feature_weight": 0.5, "layerwise_weight": 0.5, "contrastive_weight": 0.5}
    objective = taught_by(tiny(seed=1), balance="uncertainty", **hints, **AT_ONCE)
    short = {"max_steps": 2, "checkpoint_every": 1, "optim": {"warmup_steps": 0}}
    _, recorded = run(tmp_path, tones(tmp_path, 4), objective, **short)
    first, second = beside(tmp_path, 1), beside(tmp_path, 2)
    scale, line = float(first["balancer.scales"][0]), steps(recorded)[1]
    weighted = 0.7 * (math.exp(-scale) * line["kd"] / 2 + scale / 2)  # per label, like every loss
    assert scale != 0 and line["kd_weighted"] == pytest.approx(weighted, rel=1e-4)
    assert first.keys() == {
        "balancer.scales",
        *(f"{name}.{part}" for name in ("projector", "contrastive") for part in ("weight", "bias")),
        *(f"layerwise.0.{part}" for part in ("weight", "bias")),
    }
    assert not [name for name in first if torch.equal(first[name], second[name])]
    groups = checkpoint.load(tmp_path / "checkpoints/00000002/trainer.pt")["optimizer"]
    peaks = sorted({group["peak"] / 4e-3 for group in groups["param_groups"]})
    assert peaks == pytest.approx([1, 5, 10])


@pytest.mark.parametrize("kd", [{}, {"top_k": 5}])
def test_what_counts_how_much_follows_the_settings_and_the_progress(tmp_path, kd):
    weights = {"alpha": 0.6, "kd_start": 0.2, "kd_end": 0.8, "kd_ramp": 0.5, "feature_weight": 0.3}
    objective = taught_by(sure(tiny(seed=1)), **weights, curriculum="ramp_0_60", **kd)
    _, recorded = run(tmp_path, tones(tmp_path, 4), objective, max_steps=5)
    for number, line in enumerate(steps(recorded)):
        progress = number / 5
        kd_weight, gate = 0.2 + 0.6 * min(1, progress / 0.5), min(1, progress / 0.6)
        assert line["ctc_weighted"] == pytest.approx(0.4 * line["ctc"], rel=1e-5)
        assert line["kd_weighted"] == pytest.approx(kd_weight * line["kd"], rel=1e-5)
        assert ("feature" in line) is (number > 0), "at first it counts nothing"
        if number:
            assert line["feature_weighted"] == pytest.approx(0.3 * gate * line["feature"], rel=1e-5)
        feature = line.get("feature_weighted", 0.0)
        parts = line["ctc_weighted"] + line["kd_weighted"] + feature
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
    first, second = steps(recorded)[:2]
    assert second["feature_relative"] == pytest.approx(second["feature"] / 2, rel=1e-5)
    assert first["kd_relative"] > 0 and not any(name.endswith("_expected") for name in first)


def test_what_is_expected_before_learning_is_that_of_a_uniform_student_whoever_learns(tmp_path):
    expected = []
    for spread in (0.01, 1.0):
        student = tiny()
        torch.nn.init.normal_(student.head.weight, std=spread)
        objective, folder = taught_by(sure(tiny(seed=1)), student), tmp_path / str(spread)
        _, recorded = run(folder, tones(tmp_path, 2), objective, max_steps=1)
        (line,) = steps(recorded)
        expected.append([line[name] / line[f"{name}_relative"] for name in ("kd", "ctc")])
    assert expected[0] == pytest.approx(expected[1], rel=1e-4)


def test_the_temperature_softens_what_is_taught(tmp_path):
    """A divergence is multiplied by the square of the temperature: of a teacher with one symbol in
    every frame the rest shows only so.
    """
    teacher, shown = tiny(seed=1), {}
    torch.nn.init.normal_(teacher.head.weight, std=2.0)
    for top_k in (None, 5):
        for temperature in (1.0, 8.0):
            objective = taught_by(teacher, temperature=temperature, top_k=top_k)
            folder = tmp_path / f"{top_k}-{temperature}"
            _, recorded = run(folder, tones(tmp_path, 2), objective, max_steps=1)
            shown[temperature] = steps(recorded)[0]["kd"]
        assert shown[8.0] > 3 * shown[1.0]


def test_a_teacher_given_in_training_mode_teaches_frozen_in_evaluation_mode_and_without_masks(
    tmp_path,
):
    teacher, seen = tiny(seed=1, dropout=0.5).train(), []
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.register_forward_pre_hook(
        lambda _, given, more: seen.append(
            (teacher.training, torch.is_grad_enabled(), more.get("augment"))
        ),
        with_kwargs=True,
    )
    hears = {"augment": AugmentConfig(time_masks=2)}
    run(tmp_path, tones(tmp_path, 2), taught_by(teacher), max_steps=3, **hears)
    assert len(seen) >= 3 and set(seen) == {(False, False, None)}
    assert not any(each.requires_grad or each.grad is not None for each in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_router_and_a_projector_pay_their_own_part_of_the_loss(tmp_path):
    _, recorded = run(
        tmp_path / "a", tones(tmp_path, 2), taught_by(tiny(seed=1, layers=2), **ROUTED), max_steps=2
    )
    for line in steps(recorded):
        parts = sum(value for name, value in line.items() if name.endswith("_weighted"))
        assert line["router"] != 0 and line["router_weighted"] == line["router"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
    projected = taught_by(tiny(seed=1), target="projector")
    _, recorded = run(tmp_path / "b", tones(tmp_path, 2), projected, max_steps=2)
    for line in steps(recorded):
        parts = sum(value for name, value in line.items() if name.endswith("_weighted"))
        assert line["projector_weighted"] == line["projector"] > 0
        assert line["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize(("target", "alike"), [("projector", True), ("original", False)])
def test_our_projector_reads_states_of_any_size_alike_and_the_original_does_not(target, alike):
    projector = taught_by(tiny(seed=1), target=target).trainable["logit_projector"]
    torch.nn.init.normal_(projector.map.weight)
    states = torch.randn(1, 2, 32)
    assert torch.allclose(projector(states), projector(9 * states), atol=1e-4) is alike


def test_a_step_that_was_dropped_tells_router_and_balancer_nothing(tmp_path):
    class Broken(DistillObjective):
        """Its loss is no number, its parts are."""

        def __call__(self, *given: Any) -> Loss:
            loss = super().__call__(*given)
            return replace(loss, total=loss.total * math.nan)

    source, config = (
        Live(tiny(seed=1, layers=2), VOCABULARY),
        DistillConfig(balance="ema", **ROUTED),
    )
    objective = Broken(tiny(), source, config, vocabulary=VOCABULARY)
    run(tmp_path, tones(tmp_path, 2), objective, max_steps=2)
    kept = beside(tmp_path, 2)
    assert kept["router.first"].tolist() == [0.5, 0.5]
    assert kept["balancer.means"].tolist() == [0.0] * 3


def test_losses_are_float32_where_the_forward_pass_is_bfloat16(tmp_path):
    """A loss in half precision has 8 bits: of a sum of some hundred nats the first two digits.

    The hidden states that are compared come as bfloat16; all that is done with them does not.
    """
    kinds: set[tuple[str, torch.dtype]] = set()

    def note(module: torch.nn.Module, given: Any, output: torch.Tensor) -> None:
        kinds.add((type(module).__name__, output.dtype))

    objective = taught_by(tiny(seed=1), **BALANCED)
    objective.trainable["projector"].register_forward_hook(note)
    _, recorded = run(tmp_path, tones(tmp_path, 2), objective, max_steps=2, precision="bf16")
    assert kinds == {("Linear", torch.float32)}
    assert len(steps(recorded)) == 2


def filled(
    folder: Path, model: Recognizer, said: Sequence[Utterance], **given: Any
) -> tuple[filling.Filled, Form]:
    form = filling.form_of(
        model, VOCABULARY, kept=8, temperatures=[], hidden="last",
        precision=given.pop("precision", "fp32"),
    )  # fmt: skip
    plain: dict[str, Any] = {
        "speeds": [1.0], "batch_seconds": 99.0, "report": lambda line: None,
        "should_stop": lambda: False,
    }  # fmt: skip
    done = filling.fill(
        folder, model, VOCABULARY, said, form, world=World(), device=CPU, **{**plain, **given}
    )
    return done, form


def test_a_cache_holds_what_the_teacher_says_without_dropout_whatever_mode_it_came_in(tmp_path):
    said = tones(tmp_path, 3)
    model = tiny(seed=1, dropout=0.5).train()
    filled(tmp_path / "cache", model, said)
    lesson = Reader(whole_corpus(said, VOCABULARY))[[0, 1, 2]]
    live = Live(model, VOCABULARY)(lesson, 1.0)
    read = Cached(tmp_path / "cache", filling.identity(model, VOCABULARY))(lesson, 1.0)
    for row, frames in enumerate(live.lengths.tolist()):
        apart = (live.log_probs[row, :frames].exp() - read.log_probs[row, :frames].exp()).abs()
        assert apart.max() < 1e-3


def test_filling_a_cache_uses_its_precision_its_budget_its_fence_and_stops_when_asked(tmp_path):
    said, model, seen = tones(tmp_path, 4), tiny(seed=1), []
    model.register_forward_pre_hook(
        lambda _, given: seen.append((torch.is_autocast_enabled("cpu"), tuple(given[0].shape)))
    )
    longest = max(each.duration for each in said)
    done, _ = filled(
        tmp_path / "half", model, said, precision="bf16", batch_seconds=longest, speeds=[0.9]
    )
    heard = [shape for half, shape in seen if half]
    assert [rows for rows, _ in heard] == [1] * 4 and done.records == 4
    assert max(size for _, size in heard) == pytest.approx(longest / 0.9 * 16_000, rel=1e-3)
    seen.clear()
    filled(tmp_path / "pairs", model, said, batch_seconds=2.1 * longest)
    assert [rows for _, (rows, size) in seen if size > 1600] == [2, 2]
    seen.clear()
    with pytest.raises(Interrupted) as stopped:
        filled(tmp_path / "stop", model, said, batch_seconds=longest, should_stop=lambda: True)
    assert stopped.value.position == 1
    done, _ = filled(tmp_path / "stop", model, said, batch_seconds=longest)
    assert done.records == 4
    assert sum(rows for _, (rows, size) in seen if size > 1600) == 4, "none is heard twice"

    def fence() -> None:
        raise PermissionError("a newer process has the folder")

    with pytest.raises(PermissionError):
        filled(tmp_path / "fence", model, said, fence=fence)
    assert not list((tmp_path / "fence").glob("*.bin"))


def test_a_cache_step_reports_how_far_it_is_and_names_what_it_could_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "TELL", 0.0)  # seconds between two reports
    said, lines = tones(tmp_path, 3), []
    said[1].audio.write_bytes(b"")
    shortest = min(each.duration for each in said)
    done, _ = filled(
        tmp_path / "c", tiny(seed=1), said, report=lines.append, batch_seconds=shortest,
        speeds=[0.9, 1.0],
    )  # fmt: skip
    assert lines == [{"utterances": n, "total": 6} for n in (1, 2, 3, 4)]
    assert done.unreadable.keys() == {said[1].id} and done.records == 4


def job(folder: Path, **more: Any) -> tuple[Job, RecordedEvents]:
    """A step's folder, and everything that the step says."""
    folder.mkdir()
    recorded = RecordedEvents()
    about = {"rank": 0, "world_size": 1, "local_rank": 0, "should_stop": lambda: False, **more}
    noted = lambda line: recorded.metrics.append(dict(line))
    return Job(directory=folder, report=noted, event=recorded.event, **about), recorded


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A manifest of tones and an untrained teacher of letters with dropout."""
    write_manifest(tmp_path / "train.jsonl", tones(tmp_path, 4))
    teacher = save_untrained(tmp_path / "checkpoints" / "best", tiny(seed=1, dropout=0.3))
    return {"manifest": tmp_path / "train.jsonl", "teacher": teacher}


def student(files: dict[str, Path], **given: Any) -> distill.Settings:
    short = {"max_steps": 2, "batch_seconds": 14, "valid_every": 2, "log_every": 1}
    given = {"preset": "plain", "model": MODEL.model_dump(), **given}
    return distill.Settings(
        teacher=files["teacher"], train=files["manifest"], dev=files["manifest"],
        training={**short, **given.pop("training", {})}, **given,
    )  # fmt: skip


def test_a_distill_step_passes_on_how_it_is_to_be_taught_and_from_whom(files, tmp_path):
    given = {"distill": {"alpha": 0.25, "feature_weight": 0.5, "curriculum": "all_on"}}
    worker, _ = job(tmp_path / "cache_step")
    made = cache.run(
        cache.Settings(
            teacher=files["teacher"], manifest=files["manifest"], hidden="last", speeds=[1.0],
            batch_seconds=5.0,
        ),
        worker,
    )  # fmt: skip
    rows = {}
    for name, more in (("live", {}), ("read", {"cache": made.cache})):
        worker, recorded = job(tmp_path / name)
        distill.run(student(files, **given, **more), worker)
        rows[name] = steps(recorded)[0]
        assert rows[name]["ctc_weighted"] == pytest.approx(0.75 * rows[name]["ctc"], rel=1e-5)
        assert rows[name]["feature_weighted"] == pytest.approx(0.5 * rows[name]["feature"])
    assert rows["read"]["kd"] == pytest.approx(rows["live"]["kd"], rel=1e-3)
    assert rows["read"]["kd"] != rows["live"]["kd"], "a cache is rounded"
    assert rows["read"]["ctc"] == rows["live"]["ctc"], "weights come from the seed"


def test_a_distill_step_passes_on_what_is_added_to_ctc_and_how_often_it_logs(
    files, tmp_path, monkeypatch
):
    measure, measured = DistillObjective._of_a_uniform_student, []

    def counted(*given: Any) -> dict[str, torch.Tensor]:
        measured.append(True)
        return measure(*given)

    monkeypatch.setattr(DistillObjective, "_of_a_uniform_student", counted)
    worker, recorded = job(tmp_path / "step")
    given = {"ctc": {"intermediate": [1]}, "model": {**MODEL.model_dump(), "layers": 2}}
    distill.run(student(files, training={"max_steps": 7, "log_every": 7}, **given), worker)
    assert len(measured) == 6, "in the first five steps and in the seventh, which is logged"
    first, last = steps(recorded)
    assert {"intermediate", "ctc_relative"} <= first.keys() & last.keys()
    whole = 0.7 * last["ctc"] + 0.3 * last["intermediate"]
    assert last["ctc_weighted"] == pytest.approx(0.3 * whole, rel=1e-4)


def test_a_student_stops_early_as_the_original_recipe_wants_it(files):
    for preset, patience in (("modern", 20), ("original", 20), ("plain", 0)):
        stopping = student(files, preset=preset).training.stopping
        assert (stopping.patience, stopping.min_delta) == (patience, 0.001)
        assert (stopping.warmup_steps, stopping.not_before) == (1000, 0.4)


def test_a_cache_step_keeps_what_it_is_told_to_keep(files, tmp_path):
    many = Vocabulary([chr(0x4E00 + number) for number in range(300)])
    torch.manual_seed(0)
    model = Recognizer(MODEL, len(many))
    teacher = save_untrained(tmp_path / "many" / "best", model, many)
    worker, _ = job(tmp_path / "cache_step")
    made = cache.run(
        cache.Settings(
            teacher=teacher, manifest=files["manifest"], hidden="all", top_k=7,
            temperatures=[1.5], speeds=[1.0, 1.1], precision="bf16",
        ),
        worker,
    )  # fmt: skip
    form = Cached(made.cache, filling.identity(model, many)).form
    assert (form.kept, form.temperatures, form.hidden) == (7, [1.0, 1.5], "all")
    assert form.precision == "bf16"
    assert len(read_index(made.cache)) == 8, "each utterance at each speed"


def texts(folder: Path, count: int = 12) -> dict[str, Path]:
    """Manifests of short sentences, for language models."""
    words = ["THE CAT", "SAT ON", "A MAT", "AND SO", "DID HER", "DOG"]
    said = [
        Utterance(str(n), Path("none.wav"), 1.0, f"{words[n % 6]} {words[(n + 2) % 6]}", "")
        for n in range(count)
    ]
    for name in ("train", "dev"):
        write_manifest(folder / f"{name}.jsonl", said)
    return {name: folder / f"{name}.jsonl" for name in ("train", "dev")}


def spoken(folder: Path, name: str, **given: Any) -> tuple[language_model.Result, RecordedEvents]:
    """The kind with a tiny model, every text in one batch."""
    worker, recorded = job(folder / name)
    short = {"max_steps": 4, "batch_tokens": 9999, "valid_every": 1, "log_every": 1}
    training = {**short, **given.pop("training", {})}
    model = {"hidden": 32, "heads": 2, "blocks": 1, "mlp": 32, **given.pop("model", {})}
    settings = language_model.Settings(
        **texts(folder), size="tiny", model=model, training=training, **given
    )
    return language_model.run(settings, worker), recorded


def test_a_language_model_trains_with_dropout_and_is_measured_without(tmp_path):
    _, recorded = spoken(tmp_path, "one", model={"dropout": 0.4}, training={"optim": STILL})
    measured = [line["valid_loss"] for line in recorded.metrics if "valid_loss" in line]
    assert len(measured) == 4
    assert measured == pytest.approx([measured[0]] * 4, rel=1e-6)
    assert len(set(recorded.losses().values())) == 4, "each step draws its own dropout"


def test_a_language_model_moves_by_the_scheduled_rate_which_its_log_shows(tmp_path):
    optim = {"learning_rate": 1e-3, "warmup_steps": 4, "weight_decay": 0.0, "decay": "constant"}
    _, recorded = spoken(tmp_path, "one", training={"optim": optim})
    shown = [line["learning_rate"] for line in recorded.metrics if "learning_rate" in line]
    assert shown == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    still, moved = (
        spoken(tmp_path, name, training={"optim": {**optim, **given}, "max_steps": 1})[0]
        for name, given in (("still", STILL), ("moved", {}))
    )
    first, then = (
        checkpoint.load(each.checkpoint / "model.safetensors") for each in (still, moved)
    )
    furthest = max((then[name] - first[name]).abs().max() for name in first)
    assert furthest == pytest.approx(0.25e-3, rel=0.02), "AdamW's first step is the rate itself"


def test_a_language_model_is_taught_by_a_teacher_without_dropout_as_the_settings_say(tmp_path):
    teacher, _ = spoken(tmp_path, "teacher", model={"dropout": 0.4})
    weights = {"alpha": 0.6, "kd_start": 0.2, "kd_end": 0.8, "kd_ramp": 0.5, "top_k": 5}
    student, recorded = spoken(
        tmp_path, "student", model={"dropout": 0.0}, teacher=teacher.checkpoint,
        init_from=teacher.checkpoint, distill=weights, training={"optim": STILL},
    )  # fmt: skip
    lines = steps(recorded)
    for line in lines:
        assert abs(line["kd"]) < 1e-5, "the student is its teacher"
        assert line["lm_weighted"] == pytest.approx(0.4 * line["lm"], rel=1e-5)
    assert student.perplexity == pytest.approx(student.teacher_perplexity, rel=1e-5)
    _, recorded = spoken(tmp_path, "fresh", teacher=teacher.checkpoint, distill=weights)
    found = [line["kd_weighted"] / line["kd"] for line in steps(recorded)]
    assert found == pytest.approx([0.2, 0.5, 0.8, 0.8], rel=1e-4)
    soft = {**weights, "temperature": 9.0}
    _, other = spoken(tmp_path, "soft", teacher=teacher.checkpoint, distill=soft)
    assert steps(other)[0]["kd"] != pytest.approx(steps(recorded)[0]["kd"], rel=0.05)
