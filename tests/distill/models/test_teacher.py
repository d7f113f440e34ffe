"""The teacher on speech: padding, missing modalities, video, gradients, ten words by heart."""

from dataclasses import replace

import pytest
import torch

from lact_asr.data.batch import Batch
from lact_asr.text.ctc import uniform_ctc_loss
from lact_asr.training.objective import CTCObjective
from tests.distill.tiny_models import (
    VOCABULARY,
    assert_same_alone,
    batch,
    memorize,
    tiny_teacher,
)

# as in the tiny size and as in the default one: time stride in the clips, or in the trunk
STRIDES = [{}, {"clip_hop": 2, "hold_edges": True}]


@pytest.mark.parametrize("changes", STRIDES)
@pytest.mark.parametrize("training", [True, False])
def test_an_utterance_reads_the_same_alone_and_in_a_batch_with_junk_behind_it(
    speech, changes, training
):
    model, whole = tiny_teacher(**changes).train(training), batch(speech, 4)
    assert_same_alone(model, whole, junk=torch.nan)


def test_lengths_are_the_arithmetic_that_training_plans_with(speech):
    model, whole = tiny_teacher(), batch(speech, 2)
    output = model(whole.waves[:, :-123], whole.wave_lengths - 123)
    assert output.lengths.equal(model.output_lengths(whole.wave_lengths - 123))
    assert output.log_probs.shape[1] == model.output_lengths(whole.waves.shape[1] - 123)


def test_every_parameter_learns_and_the_first_loss_is_near_the_uniform_one(speech):
    model, whole = tiny_teacher(), batch(speech, 4)
    loss = CTCObjective(model)(whole, 0.0)
    loss.total.backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    assert all(p.grad.isfinite().all() for p in model.parameters())
    frames = model.output_lengths(whole.wave_lengths).tolist()
    labels = whole.targets.split(whole.target_lengths.tolist())
    uniform = sum(
        uniform_ctc_loss(length, row.tolist(), len(VOCABULARY))
        for length, row in zip(frames, labels, strict=True)
    )
    assert 0.7 * uniform < loss.total.item() < 1.5 * uniform


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("absent", [[0], [1], [0, 1]])
def test_absent_modalities_full_of_nan_leave_outputs_and_gradients_finite(speech, absent, training):
    model, whole = tiny_teacher(modality_dropout=0.5).train(training), batch(speech, 2)
    present = torch.ones(2, 2).bool()
    present[1, absent] = False
    waves = whole.waves.clone()
    if len(absent) == 2:
        waves[1] = torch.nan
    output = model(waves, whole.wave_lengths, present=present)
    output.log_probs[0].exp().square().sum().backward()
    assert output.log_probs.isfinite().all()
    assert output.modality_weights[1, :, absent].eq(0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_absent_modality_leaves_the_other_utterances_alone(speech):
    model, whole = tiny_teacher().eval(), batch(speech, 2)
    everything = model(whole.waves, whole.wave_lengths).log_probs
    present = torch.tensor([[True, True], [True, False]])
    without = model(whole.waves, whole.wave_lengths, present=present).log_probs
    torch.testing.assert_close(without[0], everything[0])
    assert (without[1] - everything[1]).abs().max() > 1e-3


WATCHING = [
    {"video": "frames", "video_width": 0.0625},
    {"video": "features", "video_features": 7},
]


def film(model: torch.nn.Module, frames: int) -> torch.Tensor:
    """Of two utterances: pictures in 0..255, or features."""
    shape = (3, 32, 32) if model.config.video == "frames" else (7,)
    return 255 * torch.rand(2, frames, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changes", WATCHING)
def test_video_counts_where_there_is_some_and_nowhere_else(speech, changes):
    model = tiny_teacher(**changes).eval()
    whole = batch(speech, 2)
    lengths = model.output_lengths(whole.wave_lengths)
    shot = film(model, int(lengths.max()))
    without = model(whole.waves, whole.wave_lengths)
    shown = torch.stack([lengths[0], torch.tensor(0)])
    shot[1] = torch.nan  # the second has none
    output = model(whole.waves, whole.wave_lengths, video=shot, video_lengths=shown)
    torch.testing.assert_close(output.log_probs[1], without.log_probs[1])
    assert (output.log_probs[0] - without.log_probs[0]).abs().max() > 1e-3
    assert output.modality_weights[1, :, 2].eq(0).all()
    assert output.modality_weights[0, : lengths[0], 2].gt(0).all()
    present = torch.tensor([[True, True, False], [True, True, True]])
    hidden = model(
        whole.waves, whole.wave_lengths, video=shot, video_lengths=shown, present=present
    )
    torch.testing.assert_close(hidden.log_probs, without.log_probs)
    longer = torch.cat([shot, torch.full_like(shot[:, :7], torch.nan)], dim=1)
    again = model(whole.waves, whole.wave_lengths, video=longer, video_lengths=shown)
    torch.testing.assert_close(again.log_probs, output.log_probs)


@pytest.mark.parametrize("changes", WATCHING)
def test_a_teacher_that_could_watch_trains_on_audio_alone(speech, changes):
    model, whole = tiny_teacher(**changes), batch(speech, 2)
    CTCObjective(model)(whole, 0.0).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def subtitled(whole: Batch, seed: int | None = None) -> Batch:
    """The batch with features that say its labels, each as long as the next; or only noise."""
    lengths, labels = whole.wave_lengths // 640, whole.targets.split(whole.target_lengths.tolist())
    shot = torch.zeros(len(whole), int(lengths.max()), len(VOCABULARY))
    for row, (length, spelt) in enumerate(zip(lengths.tolist(), labels, strict=True)):
        said = spelt[torch.arange(length) * len(spelt) // length]
        shot[row, :length] = torch.nn.functional.one_hot(said, len(VOCABULARY))
    if seed is not None:
        shot = torch.rand(shot.shape, generator=torch.Generator().manual_seed(seed))
    return replace(whole, video=shot, video_lengths=lengths)


def test_features_that_say_the_answer_are_learned_from_and_noise_is_not(speech):
    whole, costs = batch(speech, 4), {}
    for name, spoken in {"answer": subtitled(whole), "noise": subtitled(whole, 0)}.items():
        model = tiny_teacher(video="features", video_features=len(VOCABULARY))
        assert CTCObjective(model).video_shape == (len(VOCABULARY),)
        memorize(model, spoken, steps=25)
        with torch.no_grad():
            costs[name] = float(CTCObjective(model)(spoken, 1.0).total)
        model.zero_grad()
        CTCObjective(model)(spoken, 1.0).total.backward()
        assert model.fusion.projections[2].weight.grad.abs().sum() > 0
    assert costs["answer"] < 0.8 * costs["noise"]


def test_the_tiny_teacher_learns_four_utterances_by_heart(speech):
    spoken = batch(speech, 4)
    assert memorize(tiny_teacher(), spoken, steps=60) == spoken.texts
