"""Pitch against tones of known frequency; cepstra against the definition."""

import math

import pytest
import torch

from distill.models.pitch import PitchAndCepstra, cosine_transform


def voice(hertz: float, seconds: float = 0.5) -> torch.Tensor:
    """A pulse-like tone with ten harmonics."""
    time = torch.arange(int(16_000 * seconds)) / 16_000
    return sum(torch.sin(2 * math.pi * n * hertz * time) / n for n in range(1, 11)) * 0.1


@pytest.mark.parametrize("hertz", [70, 110, 173, 240, 390])
def test_the_pitch_of_a_tone_is_its_frequency_within_two_percent(hertz):
    waves = voice(hertz)[None]
    voicing, log_pitch = PitchAndCepstra(40, 20).pitch(waves, torch.tensor([8000]), 50)
    middle = slice(3, 44)
    assert (voicing[0, middle] > 0.9).all()
    assert log_pitch[0, middle].exp().sub(hertz).abs().max() < 0.02 * hertz


def test_noise_is_not_voiced_and_silence_is_finite():
    torch.manual_seed(0)
    waves = torch.stack([0.1 * torch.randn(8000), torch.zeros(8000)])
    features = PitchAndCepstra(40, 20)
    voicing, log_pitch = features.pitch(waves, torch.tensor([8000, 8000]), 50)
    assert voicing[0].median() < 0.5
    assert voicing[1].eq(0).all() and log_pitch.isfinite().all()
    assert features(waves, torch.tensor([8000, 8000]), torch.zeros(2, 50, 40)).isfinite().all()


def test_the_cosine_transform_is_orthonormal():
    basis = cosine_transform(40, 40)
    torch.testing.assert_close(basis @ basis.T, torch.eye(40), atol=1e-5, rtol=0)


def test_features_do_not_hear_what_lies_past_an_utterance():
    waves, mel = torch.full((1, 9600), torch.nan), torch.zeros(1, 60, 40)
    waves[0, :8000] = voice(150)
    features = PitchAndCepstra(40, 20)
    padded = features(waves, torch.tensor([8000]), mel)
    alone = features(waves[:, :8000], torch.tensor([8000]), mel[:, :50])
    torch.testing.assert_close(padded[:, :50], alone)
    assert not padded[:, 50:].any()
