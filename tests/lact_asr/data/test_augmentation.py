"""Speed and masks: what they do to a batch, that limits hold, that a resumed run repeats them."""

import math
from dataclasses import replace

import pytest
import torch

from lact_asr.config.augment import AugmentConfig
from lact_asr.config.presets import PRESETS
from lact_asr.data.batch import Batch
from lact_asr.data.dataset import INFEASIBLE, TOO_LONG, usable
from lact_asr.data.specaugment import SpecAugment
from lact_asr.data.speed import change_speed, draw_speed
from lact_asr.training.objective import CTCObjective
from tests.lact_asr.tiny_runs import RATE, VOCABULARY, run, settings, tiny, tones
from tests.lact_asr.training.test_resume import assert_same_bits

MODERN = PRESETS["modern"]["augment"]


def batch(*waves: torch.Tensor) -> Batch:
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    none = torch.zeros(0, dtype=torch.int64)
    return Batch([""] * len(waves), [""] * len(waves), padded, lengths, none, none)


def sine(pitch: float, samples: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * pitch / RATE * torch.arange(samples))


@pytest.mark.parametrize(("speed", "samples"), [(0.9, 17778), (0.95, 16843), (1.1, 14546)])
def test_a_tone_played_at_a_speed_has_another_pitch_and_length(speed, samples):
    played = change_speed(batch(sine(440, 16_000)), speed)
    assert played.wave_lengths.tolist() == [samples]
    assert played.waves.shape == (1, samples)
    inside = slice(50, samples - 50)
    assert torch.allclose(played.waves[0, inside], sine(440 * speed, samples)[inside], atol=2e-3)


def test_at_its_own_speed_a_batch_stays_as_it_is_and_padding_never_matters():
    long, short = torch.randn(5000), torch.randn(3001)
    both = batch(long, short)
    assert change_speed(both, 1.0) is both
    together, alone = change_speed(both, 1.1), change_speed(batch(short), 1.1)
    length = int(alone.wave_lengths[0])
    assert together.wave_lengths[1] == length
    assert torch.allclose(together.waves[1, :length], alone.waves[0], atol=1e-6)


def test_every_speed_is_drawn_as_often():
    torch.manual_seed(0)
    drawn = [draw_speed(AugmentConfig(**MODERN)) for _ in range(900)]
    assert all(250 < drawn.count(speed) < 350 for speed in (0.9, 1.0, 1.1))


def test_time_masks_stay_within_their_share_of_each_utterance():
    torch.manual_seed(0)
    lengths = torch.tensor([1000, 400] * 100)
    hide = SpecAugment(AugmentConfig(**MODERN))
    frames = hide(torch.ones(200, 1000, 80), lengths).frames
    shares = frames.sum(1) / lengths
    assert shares.max() <= 0.15
    assert 0.08 < shares.mean() < 0.15
    assert not frames[1::2, 400:].any()
    assert len({tuple(row.tolist()) for row in frames}) == 200
    places = frames[::2].float().mean(0)  # of the long ones: everywhere, not at one end
    assert all(places[start : start + 250].mean() > 0.05 for start in range(0, 1000, 250))
    single = SpecAugment(AugmentConfig(**MODERN | {"time_masks": 1}))
    widest = single(torch.ones(200, 1000, 80), lengths).frames.sum(1)[::2]
    assert 40 < widest.max() <= 50


@pytest.mark.parametrize(("bands", "widest"), [(80, 27), (40, 13)])
def test_frequency_masks_hide_up_to_27_of_80_bands_each(bands, widest):
    torch.manual_seed(0)
    hide = SpecAugment(AugmentConfig(frequency_masks=1))
    hidden = hide(torch.ones(400, 10, bands), torch.full((400,), 10)).bands.sum(1)
    assert widest - 2 <= hidden.max() <= widest
    assert hidden.float().mean() == pytest.approx(widest / 2, abs=widest / 10)
    assert {len(row.nonzero()) for row in hide(torch.ones(9, 1, 80), torch.ones(9)).bands} != {0}


def test_what_is_hidden_is_the_mean_and_the_rest_is_untouched():
    torch.manual_seed(3)
    mel = torch.randn(2, 100, 80) + 5
    masks = SpecAugment(AugmentConfig(**MODERN))(mel, torch.tensor([100, 60]))
    shown = masks.on(mel)
    hidden = masks.frames[:, :, None] | masks.bands[:, None]
    assert (shown[hidden] == 0).all()
    assert torch.equal(shown[~hidden], mel[~hidden])
    assert masks.frames.any() and masks.bands.any()
    assert torch.equal(masks.over_time(mel)[~masks.frames], mel[~masks.frames])


class Everything(SpecAugment):
    """Hides all there is."""

    def __call__(self, mel, lengths):
        masks = super().__call__(mel, lengths)
        return replace(masks, frames=torch.ones_like(masks.frames))


def test_the_recognizer_hears_nothing_behind_masks_over_everything():
    model, hide = tiny().eval(), Everything(AugmentConfig(**MODERN))
    lengths = torch.tensor([8000])
    one, other = torch.randn(1, 8000), torch.randn(1, 8000)
    assert not torch.allclose(model(one, lengths).log_probs, model(other, lengths).log_probs)
    deaf = [model(wave, lengths, hide).log_probs for wave in (one, other)]
    assert torch.equal(*deaf)


def test_lengths_at_every_speed_are_judged_before_training(tmp_path):
    short, *others = tones(tmp_path, 6)
    frames = len(short.text) + sum(a == b for a, b in zip(short.text, short.text[1:], strict=False))
    tight = replace(short, duration=(4 * frames + 0.5) * 0.01)  # fits, but not at 1.1
    long = replace(others[0], duration=7.5)  # fits a batch of 8 s, but not at 0.9
    offered = [tight, long, *others[1:]]
    judge = lambda augment: usable(
        offered, VOCABULARY, tiny().output_lengths, settings(augment=augment, batch_seconds=8.0)
    )[1]
    assert judge(AugmentConfig()) == {}
    assert judge(AugmentConfig(**MODERN)) == {INFEASIBLE: [tight.id], TOO_LONG: [long.id]}


def test_batches_keep_their_budget_at_the_slowest_speed(tmp_path):
    seen = []

    class Watched(CTCObjective):
        def __call__(self, batch, progress):
            seen.append((batch.waves.numel() / RATE, batch.augment is not None))
            return super().__call__(batch, progress)

    train = tones(tmp_path, 12)
    slow = {"augment": AugmentConfig(speeds=(0.5,), time_masks=1), "batch_seconds": 12.0}
    run(tmp_path, train, Watched(tiny()), **slow)
    seconds, augmented = zip(*seen, strict=True)
    assert max(seconds) <= 12.01
    assert max(seconds) > 6.0
    assert all(augmented)


def test_an_augmented_run_goes_on_bit_for_bit(tmp_path):
    train = tones(tmp_path, 10)
    given = {
        "augment": AugmentConfig(**MODERN),
        "max_steps": 6,
        "accumulate": 2,
        "batch_seconds": 5.0,
    }
    _, whole = run(tmp_path / "whole", train, CTCObjective(tiny(dropout=0.2)), **given)
    run(tmp_path / "cut", train, CTCObjective(tiny(dropout=0.2)), stop_at=4, **given)
    run(tmp_path / "cut", train, CTCObjective(tiny(dropout=0.2)), **given)
    assert_same_bits(tmp_path / "cut", tmp_path / "whole", "00000006")
    _, plain = run(
        tmp_path / "plain",
        train,
        CTCObjective(tiny(dropout=0.2)),
        **given | {"augment": AugmentConfig()},
    )
    assert plain.losses() != whole.losses()
