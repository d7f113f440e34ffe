"""The overfit gate passes sound models and names the defect of broken ones."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lact_asr.config.overfit import OverfitConfig
from lact_asr.data.batch import Batch
from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import Utterance
from lact_asr.diagnosis.overfit import OverfitResult, overfit
from lact_asr.diagnosis.overfit_checks import Defect, first_loss, padding, silence_batch
from lact_asr.diagnosis.overfit_learner import choose
from lact_asr.model.features import LogMel
from lact_asr.model.interface import CTCOutput
from lact_asr.model.recognizer import Recognizer
from lact_asr.training.loss import Loss
from lact_asr.training.objective import CTCObjective
from lact_asr.utils.errors import DataError, Interrupted
from tests.lact_asr.tiny_runs import MODEL, VOCABULARY, tiny, tones

QUICK = {
    "learning_rate": 1e-2,
    "warmup_steps": 5,
    "steps": 200,
    "blind_control": False,
    "blind_steps": 4,
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """One utterance per length."""
    made = tones(tmp_path_factory.mktemp("tones"), 40)
    kept = list({each.duration: each for each in made}.values())
    batch = choose(kept, VOCABULARY, OverfitConfig())
    KnownByLength.recordings = KnownInSilence.recordings = batch
    return kept


def judged(
    utterances: list[Utterance],
    build: Callable[[], nn.Module] = tiny,
    objective: Callable[[nn.Module], CTCObjective] = CTCObjective,
    stop: Callable[[], bool] = bool,
    metrics: list | None = None,
    **changes: object,
) -> OverfitResult:
    return overfit(
        build,
        utterances,
        VOCABULARY,
        OverfitConfig.model_validate(QUICK | changes),
        report=(metrics if metrics is not None else []).append,
        should_stop=stop,
        objective=objective,
    )


def broken(kind: type[Recognizer], **changes: object) -> Callable[[], nn.Module]:
    return lambda: kind(MODEL.model_copy(update=changes), len(VOCABULARY))


def test_a_sound_model_learns_ten_real_utterances_and_the_blind_control_does_not(
    real_speech: Path, capsys: pytest.CaptureFixture
) -> None:
    metrics: list[dict] = []
    result = judged(
        scan(real_speech / "train"),
        lambda: tiny(hidden=64, layers=2, mlp=128),
        metrics=metrics,
        longest=2.5,
        learning_rate=4e-3,
        blind_control=True,
        blind_steps=1,
    )
    assert (result.verdict, result.wer, result.cer, result.reason) == ("PASSED", 0, 0, "")
    assert result.blind_wer is not None and result.blind_wer > 0.8
    names = ["frames", "first loss", "gradients", "padding", "silence", "blind control"]
    assert list(result.checks) == names
    out = capsys.readouterr().out
    assert re.search(
        rf"^Step \[{result.steps}/200\] \| Loss: \d\.\d{{6}} \| WER: 0\.00%$", out, re.M
    )
    assert out.splitlines()[-1] == "✓ PASSED"
    seen = [line for line in metrics if "wer" in line]
    assert seen[-1]["step"] == result.steps and seen[-1]["total_steps"] == 200
    assert any("blind_wer" in line for line in metrics)


class Detached(Recognizer):
    """The front end learns nothing."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.encoder.register_forward_hook(lambda _, __, out: (out[0].detach(), out[1]))


class Unmasked(Recognizer):
    """Padding counts as audio in every layer; only the lengths of the output are right."""

    def forward(self, waves: Tensor, wave_lengths: Tensor) -> CTCOutput:
        output = super().forward(waves, torch.full_like(wave_lengths, waves.shape[1]))
        return replace(output, lengths=self.output_lengths(wave_lengths))


class Unnormalized(Recognizer):
    """Logits where log-probabilities are due."""

    def forward(self, waves: Tensor, wave_lengths: Tensor) -> CTCOutput:
        output = super().forward(waves, wave_lengths)
        return replace(output, log_probs=output.log_probs + 4)


class Dreaming(Recognizer):
    """Dropout stays on in eval mode."""

    def train(self, mode: bool = True) -> "Dreaming":
        return super().train(True)


class ByLength(Recognizer):
    """Hears nothing; it knows the recordings by their lengths."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.features = KnownByLength(self.config.mels)


class KnownByLength(LogMel):
    recordings: ClassVar[Batch]

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        known = self.recordings.wave_lengths.tolist()
        places = [known.index(length) for length in lengths.tolist()]
        return super().forward(self.recordings.waves[places, : waves.shape[1]], lengths)


class Whispered(Recognizer):
    """Hears, but clips of one length reach it by another way when they are silent."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.features = KnownInSilence(self.config.mels)


class KnownInSilence(LogMel):
    recordings: ClassVar[Batch]

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if not waves.any() and set(lengths.tolist()) == {waves.shape[1]}:
            waves = self.recordings.waves
        return super().forward(waves, lengths)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        (Detached, {}, r"^gradients: 8 of 29 parameters get none: encoder\.conv"),
        (Unmasked, {}, r"^padding: log-probabilities change by .* something does not mask"),
        (Unnormalized, {}, r"^first loss: .* not within 0\.5 to 2 times that"),
        (Dreaming, {"dropout": 0.5}, r"^padding: "),
        (ByLength, {}, r"^silence: given silence the model still says the texts"),
        (Whispered, {}, r"^blind control: trained on silence of one length"),
        (
            Recognizer,
            {"subsampling": 8, "conv_layers": 3},
            r"^frames: \d+ of 10 utterances have more labels than output frames \(0-",
        ),
    ],
)
def test_a_defect_of_the_model_fails_with_its_name(
    spoken: list[Utterance], kind: type[Recognizer], changes: dict, reason: str
) -> None:
    result = judged(spoken, broken(kind, **changes), blind_control=kind is Whispered)
    assert result.verdict == "FAILED"
    assert re.search(reason, result.reason), result.reason
    if kind in (Unmasked, ByLength, Whispered):  # learned all the same: the bare check misses them
        assert (result.wer, result.cer) == (0, 0)


def test_a_blind_model_tells_clips_apart_by_length_but_not_when_they_have_one(
    spoken: list[Utterance],
) -> None:
    batch = choose(spoken, VOCABULARY, OverfitConfig())
    assert len(set(batch.wave_lengths.tolist())) > 5
    blind = silence_batch(batch)
    assert not blind.waves.any()
    assert set(blind.wave_lengths.tolist()) == {batch.waves.shape[1]}
    model = broken(ByLength)().eval()
    output = model(blind.waves, blind.wave_lengths)
    assert torch.equal(output.log_probs[0], output.log_probs[1])
    output = model(blind.waves, batch.wave_lengths)
    assert not torch.equal(output.log_probs[0], output.log_probs[1])


class WrongBlank(CTCObjective):
    """The loss takes another symbol for the blank than decoding does."""

    def __call__(self, batch, progress):
        output = self.model(batch.waves, batch.wave_lengths)
        shifted = output.log_probs.roll(1, -1)  # symbol V-1 plays the blank
        losses = nn.functional.ctc_loss(
            shifted.transpose(0, 1),
            batch.targets,
            output.lengths,
            batch.target_lengths,
            reduction="none",
        )
        return Loss(losses.sum(), batch.target_lengths.sum())


class Infinite(CTCObjective):
    """A loss whose gradient is not a number."""

    def __call__(self, batch, progress):
        loss = super().__call__(batch, progress)
        return replace(loss, total=loss.total * torch.tensor(float("nan")))


@pytest.mark.parametrize(
    ("objective", "changes", "reason"),
    [
        (
            WrongBlank,
            {"steps": 60},
            r"^can't learn: WER \d+\.\d\d% after 60 steps at first; second try at rate 0\.03, "
            r"then WER \d+\.\d\d% after 60 steps$",
        ),
        (Infinite, {}, r"^gradients: not finite at step 1: loss nan, parameters \S+"),
        (
            CTCObjective,
            {"learning_rate": 1e-6, "steps": 20, "relaxed_rate": None},
            r"^can't learn: WER \d+\.\d\d% after 20 steps$",
        ),
    ],
)
def test_a_defect_of_the_loss_fails_with_its_name(
    spoken: list[Utterance], objective: type[CTCObjective], changes: dict, reason: str
) -> None:
    result = judged(spoken, objective=objective, **changes)
    assert result.verdict == "FAILED"
    assert re.search(reason, result.reason), result.reason
    assert result.headline() == f"✗ FAILED ({result.reason})"


def test_a_late_success_and_a_near_miss_have_verdicts_of_their_own(
    spoken: list[Utterance],
) -> None:
    late = judged(spoken, slow_after=0.01)
    assert (late.verdict, late.headline()) == ("PASSED_SLOW", "✓ PASSED (just slower)")
    budget = late.steps // 2
    near = judged(spoken, steps=budget, marginal_wer=0.99, relaxed_rate=None)
    assert (near.verdict, near.steps) == ("MARGINAL", budget + budget // 2)
    assert near.headline().startswith(f"~ MARGINAL (WER {near.wer:.2%}, not 0 %")
    more = judged(spoken, steps=late.steps - 10, marginal_wer=0.9, relaxed_rate=None)
    assert (more.verdict, more.steps) == ("PASSED_SLOW", late.steps)


def test_a_timid_recipe_gets_a_second_try_at_a_higher_rate(
    spoken: list[Utterance], capsys: pytest.CaptureFixture
) -> None:
    budget = {"learning_rate": 1e-4, "steps": 100, "marginal_wer": 0.0}
    assert judged(spoken, **budget, relaxed_rate=None).verdict == "FAILED"
    result = judged(spoken, **budget, relaxed_rate=100.0, blind_control=True)
    assert (result.verdict, result.wer) == ("PASSED_RELAXED", 0), result.reason
    assert "second try at rate 0.01" in result.checks["relaxed"]
    assert result.blind_wer > 0.5  # at the higher rate too
    assert "PASSED (relaxed" in capsys.readouterr().out


def test_a_model_with_dropout_is_judged_without_it(spoken: list[Utterance]) -> None:
    result = judged(spoken, lambda: tiny(dropout=0.1))
    assert result.verdict == "PASSED", result.reason


def test_a_model_that_looks_is_judged_on_its_pictures_too(
    spoken: list[Utterance], tmp_path: Path
) -> None:
    filmed = []
    for number, each in enumerate(spoken):
        np.save(
            tmp_path / f"{number}.npy",
            np.full((round(each.duration * 25), 6), number / 9, np.float32),
        )
        filmed.append(replace(each, video=tmp_path / f"{number}.npy"))
    batch = choose(filmed, VOCABULARY, OverfitConfig(), (6,))
    assert batch.video is not None and batch.video.any()
    blind = silence_batch(batch)
    assert not blind.video.any() and set(blind.video_lengths.tolist()) == {batch.video.shape[1]}

    seen = []

    class Looking(Recognizer):
        """Notes what it is shown."""

        video_shape = (6,)

        def forward(self, waves: Tensor, wave_lengths: Tensor, **shown: Tensor) -> CTCOutput:
            seen.append(shown["video"].any())
            return super().forward(waves, wave_lengths)

    judged(filmed, broken(Looking), steps=3, relaxed_rate=None)
    assert seen[0]  # the first step is taken with the pictures


def test_the_gate_stops_when_asked_and_says_nothing_of_a_verdict(
    spoken: list[Utterance], capsys: pytest.CaptureFixture
) -> None:
    asked = iter([False] * 7 + [True])
    with pytest.raises(Interrupted):
        judged(spoken, stop=lambda: next(asked))
    assert "PASSED" not in (out := capsys.readouterr().out) and "FAILED" not in out


def test_the_same_utterances_are_chosen_each_time_all_different_spread_over_the_lengths(
    spoken: list[Utterance],
) -> None:
    config = OverfitConfig(utterances=4)
    doubled = [*spoken, *(replace(each, id=f"again-{each.id}") for each in spoken)]
    batch = choose(doubled, VOCABULARY, config)
    assert len(set(batch.texts)) == 4
    assert batch.ids == choose(doubled, VOCABULARY, config).ids
    lengths = sorted(each.duration for each in spoken)
    assert batch.wave_lengths[0] == round(lengths[0] * 16_000)
    assert batch.wave_lengths[-1] == round(lengths[-1] * 16_000)
    short = choose(doubled, VOCABULARY, config.model_copy(update={"longest": lengths[6]}))
    assert batch.wave_lengths[-1] > short.wave_lengths[-1] == round(lengths[6] * 16_000)


def test_too_few_or_unreadable_utterances_are_the_users_to_mend(
    spoken: list[Utterance], tmp_path: Path
) -> None:
    same = [replace(each, text="A B", id=str(n)) for n, each in enumerate(spoken)]
    with pytest.raises(
        DataError, match="needs 10 utterances with different texts, and there are 1"
    ):
        judged(same)
    gone = [replace(each, audio=tmp_path / "gone.wav") for each in spoken]
    with pytest.raises(DataError, match=r"utterance 0-\d+: cannot read .*gone\.wav"):
        judged(gone)


def test_the_first_loss_is_measured_against_the_closed_form(spoken: list[Utterance]) -> None:
    batch = choose(spoken, VOCABULARY, OverfitConfig())
    model = SimpleNamespace(output_lengths=tiny().output_lengths)
    said = first_loss(model, batch, len(VOCABULARY), 5.0, (0.5, 2.0))
    uniform = float(said.split()[-1])
    first_loss(model, batch, len(VOCABULARY), 1.99 * uniform, (0.5, 2.0))
    for factor in (0.0, 0.49, 2.01):
        with pytest.raises(Defect, match="first loss"):
            first_loss(model, batch, len(VOCABULARY), factor * uniform, (0.5, 2.0))


def test_outputs_that_are_not_numbers_do_not_pass_for_undisturbed(spoken: list[Utterance]) -> None:
    batch = choose(spoken, VOCABULARY, OverfitConfig(utterances=2))
    lengths = tiny().output_lengths(batch.wave_lengths)

    def run(some: Batch) -> tuple[Tensor, Tensor]:
        return torch.full((len(some), 100, 29), torch.nan), lengths

    with pytest.raises(Defect, match="change by nan"):
        padding(run, batch, 1e-3)


MUON = {"optimizer": {"method": "muon"}}


def test_gradients_are_looked_at_before_muon_drops_them(spoken: list[Utterance]) -> None:
    sound = judged(spoken, broken(Recognizer), steps=3, evaluate_every=3, relaxed_rate=None, **MUON)
    assert sound.checks["gradients"].startswith("reach all ")
    result = judged(spoken, broken(Detached), steps=3, relaxed_rate=None, **MUON)
    assert re.match(r"gradients: \d+ of \d+ parameters get none: encoder", result.reason)
