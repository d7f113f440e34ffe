"""Run a teacher over a corpus once and keep what it says, for `distill` to read.

A student then learns without the teacher's forward passes. The step goes on where it was stopped;
several processes share the work.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from jobs.job import Job
from jobs.pipeline import Resources
from lact_asr.config.augment import Speeds
from lact_asr.config.base import Frozen
from lact_asr.config.precision import MEANING, Precision
from lact_asr.utils.errors import Failed

if TYPE_CHECKING:
    from distill.cache.filling import Filled
    from lact_asr.data.manifest import Utterance
    from lact_asr.model.interface import CTCModel
    from lact_asr.text.vocabulary import Vocabulary

RESOURCES = Resources(time="4h", cpus=4, memory_gb=32)


class Settings(Frozen):
    """Which teacher, on what, and what is kept of it."""

    teacher: Path = Field(description="the teacher's checkpoint, of any family")
    manifest: Path = Field(description="utterances that students will learn from")
    top_k: int = Field(
        16,
        ge=1,
        le=4096,
        description="likeliest symbols kept of each frame, with the exact mass of the rest; "
        "vocabularies up to 256 are kept whole",
    )
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 2.0, 3.0),
        min_length=1,
        description="temperatures at which a student may learn; vocabularies up to 256 serve any",
    )
    hidden: Literal["none", "last", "all"] = Field(
        "none",
        description="hidden states that are kept too: last for a feature or contrastive loss or a "
        "projector, all for a layerwise loss or a router. 2 bytes a channel, layer and frame: for "
        "360 h of 9 layers of 512 channels last is 33 GB, all 300 GB",
    )
    speeds: Speeds = Field(
        (1.0,),
        description="speeds at which every utterance is heard, each with records of its own: all "
        "that the student's training.augment.speeds names (preset modern: 0.9, 1.0, 1.1)",
    )
    batch_seconds: float = Field(320.0, gt=0, description="padded audio of a batch, seconds")
    precision: Precision = Field("fp32", description=f"arithmetic of the teacher: {MEANING}")


class Result(Frozen):
    """The filled cache."""

    cache: Path = Field(description="folder for `distill`")
    utterances: int = Field(description="utterances in it, each at every speed")
    unreadable: int = Field(description="utterances whose audio could not be read")
    bytes: int = Field(description="size of all records")


def run(settings: Settings, job: Job) -> Result:
    """Hear what has not been heard yet."""
    from distill.models.registry import FAMILIES
    from lact_asr.data.manifest import read_manifest
    from lact_asr.training import checkpoint

    teacher, vocabulary, _ = checkpoint.load_model(checkpoint.find(settings.teacher), FAMILIES)
    utterances = read_manifest(settings.manifest)
    folder = job.directory / "cache"
    filled = _fill(folder, settings, job, teacher, vocabulary, utterances)
    if not filled.records:
        raise Failed("bad_data", f"none of {len(utterances)} utterances could be read")
    return Result(
        cache=folder,
        utterances=len(utterances) - len(filled.unreadable),
        unreadable=len(filled.unreadable),
        bytes=sum(path.stat().st_size for path in folder.glob("*.bin")),
    )


def _fill(
    folder: Path,
    settings: Settings,
    job: Job,
    teacher: "CTCModel",
    vocabulary: "Vocabulary",
    utterances: "Sequence[Utterance]",
) -> "Filled":
    """Keep what the teacher says of these utterances, as the settings ask for it."""
    from distill.cache import filling
    from lact_asr.distributed import processes
    from lact_asr.model.forward import in_force

    world = processes.start()
    form = filling.form_of(
        teacher,
        vocabulary,
        kept=settings.top_k,
        temperatures=settings.temperatures,
        hidden=settings.hidden,
        precision=in_force(world.device(), settings.precision),  # what is in the records
    )
    return filling.fill(
        folder,
        teacher,
        vocabulary,
        utterances,
        form,
        speeds=settings.speeds,
        batch_seconds=settings.batch_seconds,
        world=world,
        device=world.device(),
        report=job.report,
        should_stop=job.should_stop,
        fence=job.fence,
    )
