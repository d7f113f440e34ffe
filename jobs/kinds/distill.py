"""Train a student that learns from transcripts and from a trained teacher's outputs.

The student writes with the teacher's vocabulary, or with its own. The teacher stays as it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.config.distillation import DistillConfig
from distill.config.kept import Kept, kept_symbols, kept_temperatures, lacking
from distill.config.presets import DISTILL
from jobs.job import Job
from jobs.kinds import _training
from jobs.pipeline import Resources
from lact_asr.config.text import TextConfig
from lact_asr.utils.files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from distill.teachers import Source
    from lact_asr.data.batch import Batch
    from lact_asr.data.manifest import Utterance
    from lact_asr.model.interface import CTCModel
    from lact_asr.text.vocabulary import Vocabulary

RESOURCES = Resources(time="12h", cpus=4, memory_gb=32)


class Settings(_training.TrainingSettings):
    """Who teaches whom, on what, and how."""

    teacher: Path | None = Field(
        None, description="the teacher's checkpoint, of any family; null for a cache of one's own"
    )
    cache: Path | None = Field(
        None,
        description="folder that a `cache` step wrote with this teacher: what it said is read, and "
        "it is not run. A student that hears changed speeds (preset: modern) needs each of them in "
        "the `cache` step's speeds, or training.augment.speeds: [1.0]",
    )
    family: Literal["lact", "baseline"] = Field("lact", description="model family of the student")
    size: str = _training.size_field("lact", "baseline")
    model: dict[str, Any] = _training.changes_field("lact", "baseline")
    teacher_layers: tuple[Annotated[int, Field(ge=1)], ...] = _training.teacher_layers_field()
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
    preset: _training.Preset = Field(
        "modern",
        description="what completes `training`: as in `train`, and with modern and original "
        "training ends after 20 validations without a gain. What is in force: "
        "`kinds distill --preset PRESET`",
    )

    @model_validator(mode="after")
    def _somebody_teaches(self) -> "Settings":
        if self.teacher is None and self.cache is None:
            raise ValueError(
                "teacher: write the teacher's checkpoint, or cache: a folder that holds its words"
            )
        if self.teacher_layers and (self.init_from or self.teacher is None):
            raise ValueError("teacher_layers goes with a teacher's checkpoint, without init_from")
        return self

    def recipe(self) -> Mapping[str, Any]:
        """What the preset says about `training`."""
        return DISTILL[self.preset]


class Result(_training.Trained):
    """The trained student."""


def misfits(
    settings: Mapping[str, Any], referred: Mapping[str, Mapping[str, Any]]
) -> "Iterator[tuple[tuple[str, ...], str]]":
    """What the student will ask for and the cache does not keep: that of a `cache` step of the same
    file, or one that is there already.
    """
    cache, teacher = referred.get("cache", {}), referred.get("teacher", {})
    parts = (settings["distill"], settings["training"], {**cache, "teacher": "", "manifest": ""})
    if any("${" in str(part) for part in parts):
        return
    kept = _is_kept(str(settings["cache"]))
    if "speeds" in cache:
        yield from _missing_speeds(settings["training"]["augment"]["speeds"], cache["speeds"])
        kept = _will_be_kept(cache, _symbols(teacher))
    if kept is None:
        return
    for setting, words in lacking(kept, DistillConfig.model_validate(settings["distill"])):
        yield ("distill", setting), f"the cache {words}"


def _missing_speeds(
    heard: "Sequence[float]", played: "Sequence[float]"
) -> "Iterator[tuple[tuple[str, ...], str]]":
    if missing := [f"{speed:g}" for speed in heard if speed not in played]:
        yield (
            ("training", "augment", "speeds"),
            f"the student hears speed {', '.join(missing)}, which the cache does not hold: write "
            f"speeds: {sorted({*heard, *played})} in the `cache` step, or here [1.0]",
        )


def _will_be_kept(cache: Mapping[str, Any], symbols: int) -> Kept:
    """What a `cache` step with these settings keeps."""
    return Kept(
        symbols,
        kept_symbols(symbols, cache["top_k"]),
        kept_temperatures(symbols, cache["temperatures"]),
        cache["hidden"],
    )


def _is_kept(folder: str) -> Kept | None:
    """What a folder keeps; None where it is no cache, or will be one later."""
    try:
        form = read_json(Path(folder) / "cache.json")
        return Kept(*(form[name] for name in Kept._fields))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _symbols(teacher: Mapping[str, Any]) -> int:
    """The size of the vocabulary that a step trains with, where it is one that is not kept whole
    for sure; 0 where that is not known.
    """
    size = teacher.get("vocabulary_size")
    return size if teacher.get("vocabulary") == "bpe" and isinstance(size, int) else 0


def run(settings: Settings, job: Job) -> Result:
    """Train, or go on training."""
    from distill.objective import DistillObjective

    parts = _training.utterances(settings)
    teacher = _teacher(settings)
    source = _source(settings, teacher, parts[0])
    own = settings.vocabulary != "teacher"
    vocabulary = _training.vocabulary(settings, parts[0], job) if own else source.vocabulary
    student = _training.fresh_model(settings, vocabulary, parts[0], job)
    if teacher:
        _training.inherit(student, teacher[0], settings.teacher_layers, job)
    objective = DistillObjective(
        student,
        source,
        settings.distill,
        vocabulary=vocabulary,
        ctc=settings.ctc,
        log_every=settings.training.log_every,
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


def _teacher(settings: Settings) -> "tuple[CTCModel, Vocabulary] | None":
    """The teacher and its vocabulary, if there is more of it than a cache."""
    from distill.models.registry import FAMILIES
    from lact_asr.training import checkpoint

    if settings.teacher is None:
        return None
    teacher, vocabulary, _ = checkpoint.load_model(checkpoint.find(settings.teacher), FAMILIES)
    return teacher, vocabulary


def _source(
    settings: Settings,
    teacher: "tuple[CTCModel, Vocabulary] | None",
    train: "Sequence[Utterance]",
) -> "Source":
    """The teacher, or its cache, checked to be this teacher's and to hold what will be asked."""
    from distill.cache.filling import identity
    from distill.cache.teacher import Cached
    from distill.teachers import Live

    if settings.cache is None:
        assert teacher is not None
        return Live(*teacher)
    source = Cached(settings.cache, identity(*teacher) if teacher else None)
    training = settings.training
    identities = [each.id for each in train if each.duration <= training.max_duration]
    source.require(identities, training.augment.speeds, training.max_unreadable)
    return source
