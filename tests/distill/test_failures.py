"""The original failures, each reproduced in their way and then shown to be gone in ours."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distill.config.distillation import DistillConfig
from distill.objective import DistillObjective
from distill.teachers import Live
from lact_asr.config.training import OptimConfig, TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.distributed import processes
from lact_asr.model.masks import length_mask
from lact_asr.training import optim, train_step
from lact_asr.training.guard import BREAKER
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import fit
from lact_asr.utils.errors import Failed
from tests.distill.tiny_models import (
    VOCABULARY,
    batch,
    part,
    tiny_baseline,
    tiny_teacher,
    utterances,
)
from tests.ranks import in_ranks

SMALL = {"hidden": 32, "layers": 4}
CPU = torch.device("cpu")


def noise(seed: int) -> Batch:
    """Two utterances of noise."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([9000, 12_000])
    waves = 0.1 * torch.randn(2, 12_000, generator=generator) * length_mask(lengths, 12_000)
    targets = torch.randint(1, 29, (5,), generator=generator)
    return Batch(["a", "b"], ["", ""], waves, lengths, targets, torch.tensor([2, 3]))


def lessons(rank: int) -> list[Batch]:
    """Three batches; the second of rank 1 is broken."""
    found = [noise(10 * rank + number) for number in range(3)]
    if rank == 1:
        found[1] = replace(found[1], waves=found[1].waves * math.nan)
    return found


def each_rank_for_itself(folder: Path) -> None:
    """The original loop: a rank that meets a NaN goes on to its next batch."""
    world, model = processes.start(), tiny_baseline(**SMALL)
    objective = CTCObjective(model)
    for number, spoken in enumerate(lessons(world.rank)):
        loss = objective(spoken, 0.0)
        if not math.isfinite(float(loss.total.detach())):
            continue
        model.zero_grad()
        (loss.total / loss.weight).backward()
        print("batch", number, flush=True)
        for parameter in model.parameters():
            world.all_sum(parameter.grad)


def all_ranks_together(folder: Path) -> None:
    """Our step, distilling, on the same batches."""
    world = processes.start()
    student, teacher = tiny_baseline(**SMALL), tiny_baseline(seed=1, **SMALL)
    source = Live(teacher, VOCABULARY)
    objective = DistillObjective(student, source, DistillConfig(), vocabulary=VOCABULARY)
    config = TrainingConfig(optim=OptimConfig(warmup_steps=0))
    optimizer, module = (
        optim.build(objective, config.optim),
        world.wrap(train_step.ObjectiveModule(objective)),
    )
    taken = []
    for spoken in lessons(world.rank):
        objective.begin_step([spoken], world.all_sum)
        setting = train_step.Setting(config, world, CPU)
        outcome = train_step.take_step(module, optimizer, [spoken], 0.5, setting, False, {})
        taken.append((outcome.taken, outcome.suspects))
    weights = torch.cat([p.detach().flatten() for p in student.parameters()])
    torch.save((taken, weights), folder / f"{world.rank}.pt")


def test_a_nan_on_one_rank_ends_the_original_training_and_costs_ours_one_step(tmp_path):
    for name in ("original", "ours"):
        (tmp_path / name).mkdir()
    codes = in_ranks(each_rank_for_itself, tmp_path / "original", 2)
    logs = [(tmp_path / "original" / f"rank{rank}.log").read_text() for rank in range(2)]
    seen = [[line for line in log.splitlines() if line.startswith("batch")] for log in logs]
    assert seen == [["batch 0", "batch 1", "batch 2"], ["batch 0", "batch 2"]]  # mixed, then alone
    assert codes[0] != 0 and codes[1] == 0
    assert in_ranks(all_ranks_together, tmp_path / "ours", 2) == [0, 0]
    (one, weights), (other, same) = (
        torch.load(tmp_path / "ours" / f"{rank}.pt") for rank in range(2)
    )
    assert one == other == [(True, []), (False, ["a", "b"]), (True, [])]
    assert torch.equal(weights, same) and weights.isfinite().all()


def recorded(whole: Batch) -> Batch:
    """Eight utterances as rooms differ: noise from none to 30 dB below full scale."""
    levels = torch.tensor([0.03, 0.1, 0.0, 0.01, 0.0, 0.003, 0.001, 0.0])[:, None]
    generator = torch.Generator().manual_seed(0)
    heard = length_mask(whole.wave_lengths, whole.waves.shape[1])
    static = levels * torch.randn(whole.waves.shape, generator=generator) * heard
    return replace(whole, waves=whole.waves + static)


def trained_in_pairs(norm: str, whole: Batch) -> tuple[nn.Module, list[Batch]]:
    """A teacher after 40 steps of two utterances each."""
    pairs = [part(whole, [row, 7 - row]) for row in range(4)]
    model = tiny_teacher(norm=norm)
    objective = CTCObjective(model)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.98))
    for step in range(40):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        loss = objective(pairs[step % 4], 0.0)
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, pairs


@torch.no_grad()
def cost(model: nn.Module, pairs: list[Batch]) -> float:
    return sum(float(CTCObjective(model)(pair, 0.0).total) for pair in pairs)


@torch.no_grad()
def swayed(model: nn.Module, whole: Batch) -> float:
    """How far what the model hears in training depends on the other utterance of the batch."""
    lessons = (part(whole, [0]), part(whole, [0, 7]))
    alone, beside = (model(each.waves, each.wave_lengths).log_probs[0, :40] for each in lessons)
    return float((alone - beside).abs().max())


def test_batch_norm_over_two_utterances_trains_another_model_than_it_uses(speech):
    whole = recorded(batch(speech, 8))
    model, pairs = trained_in_pairs("batch", whole)
    assert swayed(model.train(), whole) > 1  # nats, of one frame's log-probability
    assert cost(model.eval(), pairs) > 1.3 * cost(model.train(), pairs)
    model, pairs = trained_in_pairs("group", whole)
    assert swayed(model.train(), whole) < 1e-4
    assert cost(model.eval(), pairs) == pytest.approx(cost(model.train(), pairs), rel=1e-5)


def halves(model: nn.Module, spoken: Batch, count: int, stuck: bool) -> list[Tensor]:
    """Gradient norms at learning rate 2e-4 in float16, scaled by 65,536 against underflow.

    `stuck` is the original loop: an infinite norm skips the batch, and with it the scaler's turn.
    """
    optimizer = torch.optim.Adam(model.parameters(), 2e-4)
    scaler, objective, norms = torch.amp.grad_scaler.GradScaler("cpu"), CTCObjective(model), []
    for _ in range(count):
        with torch.autocast("cpu", torch.float16):
            loss = objective(spoken, 0.0)
        optimizer.zero_grad()
        scaler.scale(loss.total / len(spoken.ids)).backward()
        if not stuck:
            scaler.unscale_(optimizer)
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 5.0))
        if stuck and not norms[-1].isfinite():
            continue
        scaler.step(optimizer)
        scaler.update()
    return norms


def test_norms_of_inf_at_2e_4_are_the_float16_scale_and_skipping_keeps_them_forever(speech):
    spoken, deep = batch(speech, 2), {"blocks": 8}  # 61 layers, as many as the original teacher
    assert not any(norm.isfinite() for norm in halves(tiny_teacher(**deep), spoken, 6, True))
    norms = halves(tiny_teacher(**deep), spoken, 8, False)
    assert not norms[0].isfinite() and norms[-1].isfinite()
    objective = CTCObjective(tiny_teacher(**deep))
    optim_config = OptimConfig(learning_rate=2e-4, warmup_steps=0)
    config = TrainingConfig(precision="bf16", optim=optim_config)
    optimizer = optim.build(objective, config.optim)
    module, setting = (
        train_step.ObjectiveModule(objective),
        train_step.Setting(config, processes.World(), CPU),
    )
    taken = [
        train_step.take_step(module, optimizer, [spoken], 0.0, setting, False, {}).taken
        for _ in range(6)
    ]
    assert all(taken)


def test_the_original_limit_of_10_stops_a_sound_teacher_and_one_by_its_own_past_does_not(
    speech, tmp_path
):
    def train(name: str, **guard: float):
        config = TrainingConfig(
            max_steps=BREAKER + 5,
            batch_seconds=6,
            valid_every=99,
            optim=OptimConfig(learning_rate=2e-3, warmup_steps=10),
            guard=guard,
        )
        rows: list[dict] = []
        result = fit(
            CTCObjective(tiny_teacher()),
            list(utterances(speech)),
            list(utterances(speech)[:1]),
            VOCABULARY,
            config.model_copy(update={"log_every": 1}),
            tmp_path / name,
            report=lambda row: rows.append(dict(row)),
            event=lambda name, **facts: None,
            should_stop=lambda: False,
            device=CPU,
        )
        return result, [row["loss"] for row in rows if "loss" in row]

    with pytest.raises(Failed, match="gradient norm above 10 while"):
        train("original", skip_above=10.0)
    result, losses = train("ours", skip_ratio=10.0)
    assert result.steps_skipped == 0
    assert losses[-1] < 0.75 * losses[0]
