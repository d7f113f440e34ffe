"""Learn ten utterances by heart, to 0 % WER: what a sound model can and a broken one mostly cannot.

With checks that give it power: the first loss against its exact value, a gradient for every
parameter, padding that changes nothing, and a control that hears only silence and must fail.
`gate: {wer: "<= 0.0"}` stops what stands behind it; a defect fails the step anyway, with its name.
`like: STEP` takes model, optimizer, losses, vocabulary and precision of the training step that it
guards, without its dropout and augmentation; `check` says where a gate differs from what it guards.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.job import Job
from jobs.kinds import _training
from jobs.pipeline import Fraction, Resources
from lact_asr.config.base import Frozen
from lact_asr.config.overfit import OverfitConfig
from lact_asr.config.text import TextConfig
from lact_asr.config.training import CTCConfig
from lact_asr.utils.errors import Failed

if TYPE_CHECKING:
    from lact_asr.data.manifest import Utterance
    from lact_asr.text.vocabulary import Vocabulary

RESOURCES = Resources(time="1h", cpus=2, memory_gb=8)


class Settings(_training.ModelSettings, OverfitConfig):
    """Which model, on what, and how strict."""

    like: str | None = Field(
        None,
        description="the training step of this file that it guards: what is not written here - "
        "manifest, family, size, model, vocabulary, optimizer, ctc, precision - is that step's",
    )
    manifest: Path = Field(description="manifest to choose the utterances from")
    family: Literal["lact", "teacher", "baseline"] = Field("lact", description="model family")
    size: str = _training.size_field("lact", "teacher", "baseline")
    model: dict[str, Any] = _training.changes_field("lact", "teacher", "baseline")
    vocabulary: Literal["characters", "bpe"] = Field(
        "characters", description="what the model writes with; bpe is learned from `manifest`"
    )
    vocabulary_size: int = _training.vocabulary_size_field()
    text: TextConfig = TextConfig()
    vocabulary_from: Path | None = Field(
        None, description="checkpoint whose vocabulary it writes with, in place of `vocabulary`"
    )
    ctc: CTCConfig = Field(CTCConfig(), description="without consistency, which needs masks")


class Result(Frozen):
    """The verdict, and what it rests on."""

    verdict: Literal["PASSED", "PASSED_SLOW", "PASSED_RELAXED", "MARGINAL"] = Field(
        description="0 % in good time, 0 % late, 0 % in the second try at a higher learning rate, "
        "or nearly 0 %; a defect is a failed step"
    )
    wer: Fraction = Field(description="on the utterances learned, as a fraction")
    cer: Fraction = Field(description="on the utterances learned, as a fraction")
    steps: int = Field(description="optimizer steps until then")
    blind_wer: Fraction | None = Field(description="of the control that heard only silence")
    checks: dict[str, str] = Field(description="what each check measured")


def run(settings: Settings, job: Job) -> Result:
    """Judge a fresh model; without dropout, which would only blur the picture."""
    from distill.models.registry import FAMILIES
    from lact_asr.data.manifest import read_manifest
    from lact_asr.diagnosis.overfit import FAILED, overfit
    from lact_asr.distributed.processes import World
    from lact_asr.training.objective import CTCObjective

    if job.world_size > 1:
        raise Failed("settings", "overfit runs as one process: write nodes: 1, gpus: 0 or 1")
    plain = {name: 0.0 for name in _fields(settings) if "drop" in name}
    configuration = settings.configuration(**plain).model_dump()
    utterances = read_manifest(settings.manifest)
    vocabulary = _vocabulary(settings, utterances, job)
    print(_recipe(settings, len(vocabulary)), flush=True)
    judged = overfit(
        lambda: FAMILIES[settings.family](configuration, len(vocabulary)),
        utterances,
        vocabulary,
        settings,
        objective=lambda model: CTCObjective(model, settings.ctc, vocabulary),
        report=job.report,
        should_stop=job.should_stop,
        device=World(job.rank, job.world_size, job.local_rank).device(),
    )
    if "relaxed" in judged.checks:
        job.event("remedy", cause="gate_missed", reason=judged.checks["relaxed"], changes={})
    if judged.verdict == FAILED:
        raise Failed("gate_missed", judged.reason)
    return Result(**{name: getattr(judged, name) for name in Result.model_fields})


def _vocabulary(settings: Settings, utterances: "Sequence[Utterance]", job: Job) -> "Vocabulary":
    """What the model writes with."""
    from lact_asr.text.load import load_vocabulary
    from lact_asr.training import checkpoint

    if settings.vocabulary_from is None:
        return _training.vocabulary(settings, utterances, job)
    config = checkpoint.read_config(checkpoint.find(settings.vocabulary_from))
    return load_vocabulary(config["vocabulary"])


def _recipe(settings: Settings, symbols: int) -> str:
    """One line that states what is judged, and at which rate."""
    guarded = f" like {settings.like}" if settings.like else ""
    return (
        f"Learning{guarded}: {settings.family} {settings.size}, {symbols} symbols, "
        f"{settings.optimizer.method} at rate {settings.learning_rate:g}, {settings.precision}, no "
        "dropout, no augmentation"
    )


def _fields(settings: Settings) -> set[str]:
    return set(type(settings.configuration()).model_fields)
