"""The convolutional baseline on speech."""

import torch

from distill.models.attention import SelfAttention
from lact_asr.training.objective import CTCObjective
from tests.distill.tiny_models import assert_same_alone, batch, memorize, part, tiny_baseline


def test_an_utterance_reads_the_same_alone_and_in_a_batch_with_junk_behind_it(speech):
    model, whole = tiny_baseline(), batch(speech, 4)
    assert_same_alone(model, whole, junk=10.0)


def test_batch_norm_in_training_ties_an_utterance_to_its_batch_and_group_norm_does_not(speech):
    whole = batch(speech, 2)
    single = part(whole, [0])
    drift = {}
    for norm in ("batch", "group"):
        model = tiny_baseline(norm=norm)
        alone = model(single.waves, single.wave_lengths).log_probs
        together = model(whole.waves, whole.wave_lengths).log_probs
        drift[norm] = (alone[0] - together[0, : alone.shape[1]]).abs().max().item()
    assert drift["batch"] > 0.1 > 1e-3 > drift["group"]


def test_it_has_no_attention_and_every_parameter_learns(speech):
    model = tiny_baseline()
    assert not any(
        isinstance(m, SelfAttention | torch.nn.MultiheadAttention) for m in model.modules()
    )
    CTCObjective(model)(batch(speech, 2), 0.0).total.backward()
    assert all(p.grad.any() and p.grad.isfinite().all() for p in model.parameters())


def test_the_tiny_baseline_learns_four_utterances_by_heart(speech):
    spoken = batch(speech, 4)
    assert memorize(tiny_baseline(), spoken, steps=120) == spoken.texts
