"""Find where a model's numbers go wrong: one batch forward and backward, module by module.

Names the first module that makes a value that is NaN, infinite or larger than a limit from sound
inputs. The log has the ranges of every module; diagnosis.json in the step's folder has them as
data. Audio without texts is walked with an empty text. An unsound model is an answer, not a failed
step: a gate on `verdict` makes it one.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from jobs.job import Job
from jobs.kinds import _inference
from jobs.pipeline import Resources
from lact_asr.config.base import Frozen
from lact_asr.config.precision import MEANING, Precision
from lact_asr.utils.errors import Failed
from lact_asr.utils.files import write_json
from lact_asr.utils.spread import spread

if TYPE_CHECKING:
    from lact_asr.data.batch import Batch
    from lact_asr.text.vocabulary import Vocabulary

RESOURCES = Resources(time="30m", cpus=2, memory_gb=16)


class Settings(_inference.ListeningSettings):
    """Which model, with what in its batch."""

    utterances: int = Field(
        8, gt=0, description="utterances in the batch, evenly spread over the list"
    )
    ids: list[str] = Field(
        [], description="these utterances instead, such as those that a dropped step has named"
    )
    limit: float = Field(
        1e4,
        gt=0,
        description="largest sound activation, or gradient per label token; sound models stay "
        "below 100",
    )
    precision: Precision = Field("fp32", description=f"arithmetic of the model: {MEANING}")


class Result(Frozen):
    """What was found."""

    verdict: str = Field(description="healthy, or the first module that is not and why")
    healthy: bool = Field(description="whether every value was finite and within the limit")
    first: str | None = Field(description="name of the first module with a wrong value")
    where: str | None = Field(description="forward, loss, backward or weights")
    loss: float | None = Field(description="CTC loss of the batch, nats per label token")
    utterances: int = Field(description="utterances in the batch")
    report: Path = Field(description="ranges of every module's values, JSON")


def run(settings: Settings, job: Job) -> Result:
    """Walk one batch through the model, print and store what was seen."""
    from distill.models.registry import FAMILIES
    from lact_asr.diagnosis.diagnose import diagnose, table
    from lact_asr.training import checkpoint

    if job.world_size > 1:
        raise Failed("settings", "diagnose runs as one process: write nodes: 1, gpus: 0 or 1")
    path = checkpoint.find(settings.checkpoint)
    model, vocabulary, _ = checkpoint.load_model(path, FAMILIES)
    batch = _batch(settings, vocabulary, model.video_shape)
    print(f"Walking {len(batch)} utterances through {path}", flush=True)
    diagnosis = diagnose(
        model.to(_inference.device(job)), batch, settings.limit, settings.precision
    )
    report = job.directory / "diagnosis.json"
    job.fence()
    write_json(report, {"checkpoint": str(path), "ids": batch.ids, **diagnosis.report()})
    first = diagnosis.first
    verdict = f"{first.module} ({first.where}): {first.why}" if first else "healthy"
    print(f"{table(diagnosis)}\n\nVerdict: {verdict}", flush=True)
    return Result(
        verdict=verdict,
        healthy=diagnosis.healthy,
        first=first.module if first else None,
        where=first.where if first else None,
        loss=diagnosis.loss if math.isfinite(diagnosis.loss) else None,
        utterances=len(batch),
        report=report,
    )


def _batch(
    settings: Settings, vocabulary: "Vocabulary", shape: "tuple[int, ...] | None"
) -> "Batch":
    """The chosen utterances as one batch; Failed where one is unknown or unreadable."""
    from lact_asr.data.dataset import Reader, whole_corpus

    offered = _inference.utterances(settings)
    chosen = [each for each in offered if each.id in settings.ids]
    if missing := sorted(set(settings.ids) - {each.id for each in chosen}):
        raise Failed("settings", f"ids: no utterance {', '.join(missing)}")
    chosen = chosen or spread(offered, settings.utterances)
    batch = Reader(whole_corpus(chosen, vocabulary, shape))[range(len(chosen))]
    if batch.unreadable:
        named = "; ".join(f"{identity}: {why}" for identity, why in batch.unreadable)
        raise Failed("bad_data", f"cannot read {named}")
    return batch
