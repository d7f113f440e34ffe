"""A teacher that writes otherwise: the original random projector, and one that learns the texts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distill.config.distillation import DistillConfig
from distill.losses import functions as losses
from distill.losses.projector import LogitProjector
from distill.objective import DistillObjective
from distill.teachers import Live
from lact_asr.data.batch import Batch
from lact_asr.decoding.greedy import collapse
from lact_asr.decoding.metrics import score
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.forward import forward_batch
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError
from tests.distill.tiny_models import (
    VOCABULARY,
    batch,
    heard,
    memorize,
    tiny_baseline,
    tiny_teacher,
)

SHUFFLED = Vocabulary(VOCABULARY.symbols[::-1])  # the same symbols under other ids
STATES, SYMBOLS = 1024, 8192


def divergence(projector: nn.Module, states: Tensor) -> float:
    """Mean KL at temperature 1 from a student who has not learned anything."""
    student = 0.1 * torch.randn(len(states), 1, SYMBOLS)
    return losses.frame_kd(student.log_softmax(-1), projector(states[:, None]), 1.0).mean().item()


def test_the_original_projector_is_ln_v_away_from_any_student_and_ours_starts_beside_it():
    torch.manual_seed(0)
    states = 33 * torch.randn(64, STATES)  # the size of hidden states that explains the original KL
    default = LogitProjector(STATES, SYMBOLS, normalize=False)
    nn.init.uniform_(default.map.weight, -1 / 32, 1 / 32)  # torch's own first weights
    original = LogitProjector(STATES, SYMBOLS, normalize=False)
    ours = LogitProjector(STATES, SYMBOLS)
    limit = math.log(SYMBOLS)
    assert divergence(default, states) > 0.85 * limit
    assert divergence(original, states) > 0.6 * limit, "smaller weights alone are no cure"
    assert divergence(ours, states) < 0.1


def taught(spoken: Batch, teacher: nn.Module, target: str, steps: int) -> tuple[float, float]:
    """Character error rate and last KL of a student whom no text reaches but through its teacher's
    projector.
    """
    student = tiny_baseline(hidden=64, layers=6)
    config = DistillConfig(alpha=1.0, kd_start=0.7, target=target, temperature=1.0)
    objective = DistillObjective(student, Live(teacher, SHUFFLED), config, vocabulary=VOCABULARY)
    groups = objective.parameter_groups(3e-3)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    for _ in range(steps):
        objective.begin_step([spoken], lambda sums: sums)
        loss = objective(spoken, 0.5)
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        nn.utils.clip_grad_norm_(objective.trainable.parameters(), 1.0)
        optimizer.step()
    rate = score(spoken.texts, heard(student, spoken)).cer
    return rate, float(loss.parts["kd"].value / loss.weight)


def test_a_low_divergence_from_the_original_projector_teaches_nothing_and_ours_teaches(speech):
    spoken, teacher = batch(speech, 2), tiny_teacher(blocks=1)
    backwards = replace(
        spoken, targets=len(VOCABULARY) - spoken.targets, texts=[""] * len(spoken.texts)
    )
    memorize(teacher, backwards, steps=60)
    learned, _ = taught(spoken, teacher, "projector", steps=120)
    nothing, low = taught(spoken, teacher, "original", steps=120)
    assert low < 0.1, "student and projector agree"
    assert nothing > 0.9, "on nothing"
    assert learned < 0.3


def test_the_projector_learns_from_texts_only_and_the_original_one_from_the_student_only(speech):
    spoken = batch(speech, 2)
    moved = {}
    for target in ("projector", "original"):
        for kd in (0.0, 0.7):
            torch.manual_seed(0)
            config = DistillConfig(kd_start=kd, kd_end=kd, target=target)
            source = Live(tiny_teacher(blocks=1), SHUFFLED)
            objective = DistillObjective(tiny_baseline(), source, config, vocabulary=VOCABULARY)
            objective.begin_step([spoken], lambda sums: sums)
            objective(spoken, 0.5).total.backward()
            moved[target, kd] = objective.trainable["logit_projector"].map.weight.grad.clone()
    assert moved["projector", 0.0].norm() > 0
    torch.testing.assert_close(moved["projector", 0.7], moved["projector", 0.0])
    assert not moved["original", 0.0].any()
    assert moved["original", 0.7].any()


def test_the_projectors_loss_is_shown_and_part_of_the_total(speech):
    spoken = batch(speech, 2)
    source = Live(tiny_teacher(blocks=1), SHUFFLED)
    objective = DistillObjective(
        tiny_baseline(), source, DistillConfig(target="projector"), vocabulary=VOCABULARY
    )
    objective.begin_step([spoken], lambda sums: sums)
    loss = objective(spoken, 0.5)
    parts = loss.parts
    assert parts["projector"].value > 0
    whole = sum(parts[name].value for name in ("ctc_weighted", "kd_weighted", "projector"))
    torch.testing.assert_close(loss.total.detach(), whole)
    rates = {group["lr"] for group in objective.parameter_groups(1.0)}
    assert rates == {1.0, 5.0}


def test_half_precision_weights_are_refused():
    projector = LogitProjector(8, 5).half()
    with pytest.raises(TypeError, match=r"weights are torch\.float16, they must stay float32"):
        projector(torch.randn(1, 2, 8))
    states = torch.randn(1, 2, 8).bfloat16()
    assert LogitProjector(8, 5)(states).dtype == torch.float32


def test_symbols_under_other_ids_are_never_compared_frame_by_frame():
    with pytest.raises(DataError, match=r"id 1 is ' ' and 'Z'.*target: projector, or .*sequence"):
        DistillObjective(
            tiny_baseline(),
            Live(tiny_teacher(blocks=1), SHUFFLED),
            DistillConfig(),
            vocabulary=VOCABULARY,
        )


def test_a_transcript_is_written_anew_in_the_students_symbols(speech):
    spoken, teacher = batch(speech, 2), tiny_teacher(blocks=1)
    backwards = replace(spoken, targets=len(VOCABULARY) - spoken.targets)
    memorize(teacher, backwards, steps=60)
    student = tiny_baseline()
    config = DistillConfig(kd="sequence")
    objective = DistillObjective(student, Live(teacher, SHUFFLED), config, vocabulary=VOCABULARY)
    objective.begin_step([spoken], lambda sums: sums)
    loss = objective(spoken, 0.5)
    torch.testing.assert_close(loss.parts["kd"].value, loss.parts["ctc"].value)


def test_transcripts_behind_a_projector_are_in_the_students_symbols_already(speech):
    spoken, teacher = batch(speech, 2), tiny_teacher(blocks=1).eval()
    config = DistillConfig(kd="sequence", target="projector")
    objective = DistillObjective(
        tiny_baseline().eval(), Live(teacher, SHUFFLED), config, vocabulary=VOCABULARY
    )
    projector = objective.trainable["logit_projector"]
    nn.init.normal_(projector.map.weight)  # it writes something
    with torch.no_grad():
        shown = forward_batch(teacher, spoken)
        written = collapse(projector(shown.hidden[-1]).argmax(-1), shown.lengths)
        assert all(written)
        said = forward_batch(objective.model, spoken)
        targets = torch.tensor([label for row in written for label in row])
        texts = replace(
            spoken, targets=targets, target_lengths=torch.tensor(list(map(len, written)))
        )
        expected = ctc_losses(said.log_probs, said.lengths, texts).sum()
    objective.begin_step([spoken], lambda sums: sums)
    torch.testing.assert_close(objective(spoken, 0.5).parts["kd"].value, expected)
