"""Train a student that learns from transcripts and from a trained teacher's outputs.

The student writes with the teacher's vocabulary, or with its own. The teacher stays as it is.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from distill.config.distillation import DistillConfig
from jobs.job import Job
from jobs.kinds import _training
from jobs.pipeline import Resources
from lact_asr.config.text import TextConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distill.teachers import Source
    from lact_asr.data.batch import Batch
    from lact_asr.data.manifest import Utterance
    from lact_asr.model.interface import CTCModel
    from lact_asr.text.vocabulary import Vocabulary

RESOURCES = Resources(time="12h", cpus=4, memory_gb=32)


class Settings(_training.TrainingSettings):
    """Who teaches whom, on what, and how."""

    teacher: Path = Field(description="the teacher's checkpoint, of any family")
    cache: Path | None = Field(
        None,
        description="folder that a `cache` step wrote with this teacher: what it said is read, and "
        "it is not run. A student that hears changed speeds (preset: modern) needs each of them in "
        "the `cache` step's speeds, or training.augment.speeds: [1.0]",
    )
    family: Literal["lact", "baseline"] = Field("lact", description="model family of the student")
    size: str = _training.size_field("lact", "baseline")
    model: dict[str, Any] = _training.changes_field("lact", "baseline")
    vocabulary: Literal["teacher", "characters", "bpe"] = Field(
        "teacher",
        description="what the student writes with: as the teacher does, or otherwise, which takes "
        "distill.target: projector or distill.kd: sequence",
    )
    vocabulary_size: int = _training.vocabulary_size_field()
    text: TextConfig = TextConfig()
    distill: DistillConfig = Field(
        DistillConfig(), description="what is learned from the teacher, and how much it counts"
    )


class Result(_training.Trained):
    """The trained student."""


def run(settings: Settings, job: Job) -> Result:
    """Train, or go on training."""
    from distill.models.registry import FAMILIES
    from distill.objective import DistillObjective
    from lact_asr.training import checkpoint

    teacher, written, _ = checkpoint.load_model(checkpoint.find(settings.teacher), FAMILIES)
    parts = _training.utterances(settings)
    own = settings.vocabulary != "teacher"
    vocabulary = _training.vocabulary(settings, parts[0], job) if own else written
    student = _training.fresh_model(settings, vocabulary, parts[0], job)
    source = _source(settings, teacher, written, parts[0])
    objective = DistillObjective(
        student,
        source,
        settings.distill,
        vocabulary=vocabulary,
        sample=_sample(settings, parts[0], vocabulary, source.video_shape),
    )
    trained = _training.fit(objective, settings, parts, vocabulary, job)
    return Result(**trained.model_dump())


def _sample(
    settings: Settings,
    train: "Sequence[Utterance]",
    vocabulary: "Vocabulary",
    shape: "tuple[int, ...] | None",
) -> "Batch | None":
    """The utterances that a layer map by likeness is made from, the shortest of the training."""
    if settings.distill.layer_map != "cka" or not settings.distill.layerwise_weight:
        return None
    from lact_asr.data.dataset import Reader, whole_corpus

    shortest = sorted(train, key=lambda each: (each.duration, each.id))
    chosen = shortest[: settings.distill.cka_utterances]
    return Reader(whole_corpus(chosen, vocabulary, shape))[list(range(len(chosen)))]


def _source(
    settings: Settings, teacher: "CTCModel", vocabulary: "Vocabulary", train: "Sequence[Utterance]"
) -> "Source":
    """The teacher, or its cache, checked to be this teacher's and to hold what will be asked."""
    if settings.cache is None:
        from distill.teachers import Live

        return Live(teacher, vocabulary)
    from distill.cache.filling import identity
    from distill.cache.teacher import Cached

    source, training = Cached(settings.cache, identity(teacher, vocabulary)), settings.training
    identities = [each.id for each in train if each.duration <= training.max_duration]
    source.require(identities, training.augment.speeds, training.max_unreadable)
    return source
