"""Log-mel features, with torchaudio's spectrogram as the independent truth."""

import pytest
import torch
import torchaudio

from lact_asr.model.features import FFT, FLOOR, WINDOW, LogMel, mel_filters


def noise(*sizes: int) -> torch.Tensor:
    return 0.1 * torch.randn(*sizes, generator=torch.Generator().manual_seed(0))


def test_mel_energies_are_those_of_torchaudio():
    waves = noise(2, 16_000)
    truth = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=FFT, win_length=WINDOW, hop_length=160, center=False, n_mels=80
    )
    # torchaudio centres its window of 400 in 512 samples and leaves out frames without a full one.
    margin = (FFT - WINDOW) // 2
    expected = truth(torch.nn.functional.pad(waves, (margin, margin))).mT
    found = LogMel().energies(waves, torch.tensor([16_000, 16_000]))
    assert found.shape == (2, 100, 80)
    assert expected.shape[1] == 98
    torch.testing.assert_close(found[:, :98], expected, rtol=1e-4, atol=1e-7)


def test_every_band_has_a_filter():
    filters = mel_filters(80)
    assert (filters.amax(0) > 0.1).all()
    torch.testing.assert_close(
        filters, torchaudio.functional.melscale_fbanks(257, 0, 8000, 80, 16_000), atol=1e-4, rtol=0
    )


def test_features_have_mean_zero_and_variance_one_per_utterance_and_band():
    lengths = torch.tensor([16_000, 7_000])
    mel, frames = LogMel()(noise(2, 16_000), lengths)
    assert frames.tolist() == [100, 44]
    for row, count in zip(mel, frames, strict=True):
        torch.testing.assert_close(row[:count].mean(0), torch.zeros(80), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            row[:count].var(0, correction=0), torch.ones(80), atol=1e-3, rtol=0
        )
        assert not row[count:].any()


@pytest.mark.parametrize("junk", [1.0, float("nan")])
def test_padding_changes_no_feature(junk):
    waves, lengths = noise(1, 16_000), torch.tensor([7_001])
    padded = torch.cat((waves[:, :7_001], torch.full((1, 9_000), junk)), 1)
    expected, _ = LogMel()(waves[:, :7_001], lengths)
    found, frames = LogMel()(padded, lengths)
    torch.testing.assert_close(found[:, : frames[0]], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 400, 401])
def test_a_wave_of_any_length_has_a_frame_for_each_begun_10_ms(samples):
    mel, frames = LogMel()(noise(1, samples), torch.tensor([samples]))
    assert mel.shape[1] == frames.item() == -(-samples // 160)
    assert mel.isfinite().all()


def test_silence_is_finite_and_loudness_does_not_matter():
    lengths = torch.tensor([8_000])
    silent, _ = LogMel()(torch.zeros(1, 8_000), lengths)
    assert silent.abs().max() < 1e-2  # rounding of the mean, divided by almost no deviation
    wave = noise(1, 8_000)
    quiet, _ = LogMel()(wave / 4, lengths)
    loud, _ = LogMel()(wave, lengths)
    assert FLOOR < 1e-7
    torch.testing.assert_close(quiet, loud, atol=1e-2, rtol=0)
