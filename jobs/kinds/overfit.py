"""Learn ten utterances by heart, to 0 % WER: what a sound model can and a broken one mostly cannot.

With checks that give it power: the first loss against its exact value, a gradient for every
parameter, padding that changes nothing, and a control that hears only silence and must fail.
`gate: {wer: "<= 0.0"}` stops what stands behind it; a defect fails the step anyway, with its name.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jobs.job import Job
from jobs.kinds import _training
from jobs.pipeline import Resources
from lact_asr.config.base import Frozen
from lact_asr.config.overfit import OverfitConfig
from lact_asr.utils.errors import Failed

RESOURCES = Resources(time="1h", cpus=2, memory_gb=8)


class Settings(_training.ModelSettings, OverfitConfig):
    """Which model, on what, and how strict."""

    manifest: Path = Field(description="manifest to choose the utterances from")
    family: Literal["lact", "teacher", "baseline"] = Field("lact", description="model family")
    size: str = _training.size_field("lact", "teacher", "baseline")
    model: dict[str, Any] = _training.changes_field("lact", "teacher", "baseline")


class Result(Frozen):
    """The verdict, and what it rests on."""

    verdict: Literal["PASSED", "PASSED_SLOW", "PASSED_RELAXED", "MARGINAL"] = Field(
        description="0 % in good time, 0 % late, 0 % in the second try at a higher learning rate, "
        "or nearly 0 %; a defect is a failed step"
    )
    wer: float = Field(description="on the utterances learned, as a fraction")
    cer: float = Field(description="on the utterances learned, as a fraction")
    steps: int = Field(description="optimizer steps until then")
    blind_wer: float | None = Field(description="of the control that heard only silence")
    checks: dict[str, str] = Field(description="what each check measured")


def run(settings: Settings, job: Job) -> Result:
    """Judge a fresh model; without dropout, which would only blur the picture."""
    from distill.models.registry import FAMILIES
    from lact_asr.data.manifest import read_manifest
    from lact_asr.diagnosis.overfit import FAILED, overfit
    from lact_asr.distributed.processes import World
    from lact_asr.text.vocabulary import Vocabulary

    if job.world_size > 1:
        raise Failed("settings", "overfit runs as one process: write nodes: 1, gpus: 0 or 1")
    plain = {n: 0.0 for n in ("dropout", "modality_dropout") if n in _fields(settings)}
    configuration = settings.configuration(**plain).model_dump()
    vocabulary = Vocabulary.characters()
    judged = overfit(
        lambda: FAMILIES[settings.family](configuration, len(vocabulary)),
        read_manifest(settings.manifest),
        vocabulary,
        settings,
        report=job.report,
        should_stop=job.should_stop,
        device=World(job.rank, job.world_size, job.local_rank).device(),
    )
    if "relaxed" in judged.checks:
        job.event("remedy", cause="gate_missed", reason=judged.checks["relaxed"], changes={})
    if judged.verdict == FAILED:
        raise Failed("gate_missed", judged.reason)
    return Result(**{name: getattr(judged, name) for name in Result.model_fields})


def _fields(settings: Settings) -> set[str]:
    return set(type(settings.configuration()).model_fields)
