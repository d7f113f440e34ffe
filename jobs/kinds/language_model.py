"""Train a language model on transcripts, from texts alone or taught by another one.

The result is its perplexity on held-out texts: exp of the mean negative log-likelihood of a symbol,
ends of texts included. With `teacher` it also learns from that model's distributions, whose
vocabulary it takes; with `own_vocabulary` from how likely that model finds stretches of the texts.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from distill.config.language_model import (
    LM_SIZES,
    LanguageModelConfig,
    LMDistillConfig,
    LMTrainingConfig,
)
from jobs.job import Job
from jobs.kinds import _training
from jobs.pipeline import Present, Resources
from lact_asr.config.base import Frozen, changed
from lact_asr.config.text import TextConfig

if TYPE_CHECKING:
    from distill.language_model.model import LanguageModel
    from lact_asr.text.vocabulary import Vocabulary

RESOURCES = Resources(time="4h", cpus=2, memory_gb=16)


class Settings(Frozen):
    """Which model, on which texts, taught by whom."""

    train: Path = Field(description="manifest whose texts are learned from")
    dev: Path = Field(description="manifest whose texts choose the best checkpoint")
    size: Literal["tiny", "small", "large"] = Field(
        "small", description="named size of the model (0.1 M, 5 M and 38 M parameters)"
    )
    model: dict[str, Any] = Field(
        {},
        description=f"what differs from that size: {', '.join(LanguageModelConfig.model_fields)}",
        json_schema_extra={
            "properties": LanguageModelConfig.model_json_schema()["properties"],
            "additionalProperties": False,
        },
    )
    vocabulary: Literal["characters", "bpe"] = Field(
        "characters",
        description="what is predicted: characters, or bpe, frequent pieces of words learned from "
        "the training texts; a teacher brings its own",
    )
    vocabulary_size: int = _training.vocabulary_size_field()
    own_vocabulary: bool = Field(
        False,
        description="With a teacher, write with `vocabulary` all the same: where the teacher has "
        "other symbols, KD is about the likelihood of stretches of text that both cut in one place",
    )
    text: TextConfig = TextConfig()
    init_from: Annotated[Path | None, Present()] = _training.init_from_field()
    teacher: Path | None = Field(None, description="checkpoint of a language model to learn from")
    teacher_layers: tuple[Annotated[int, Field(ge=1)], ...] = _training.teacher_layers_field()
    distill: LMDistillConfig = Field(
        LMDistillConfig(), description="what is learned from the teacher, and how much it counts"
    )
    training: LMTrainingConfig = Field(LMTrainingConfig(), description="length, batches, optimizer")

    @property
    def vocabulary_from(self) -> Path | None:
        """The checkpoint whose vocabulary is taken over."""
        return self.init_from

    @model_validator(mode="after")
    def _model_exists(self) -> "Settings":
        try:
            self.configuration()
        except ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"model: {said}") from None
        if self.teacher_layers and (self.init_from or self.teacher is None):
            raise ValueError("teacher_layers goes with a teacher, without init_from")
        return self

    @model_validator(mode="after")
    def _taught_across(self) -> "Settings":
        if not self.own_vocabulary:
            return self
        if self.teacher is None:
            raise ValueError("own_vocabulary goes with a teacher; without one it is always its own")
        if self.teacher_layers:
            raise ValueError("teacher_layers wants the teacher's vocabulary: own_vocabulary: false")
        names = ("feature_weight", "layerwise_weight", "attention_weight")
        given = [name for name, value in self.distill.model_dump(include={*names}).items() if value]
        if given:
            raise ValueError(
                f"distill.{given[0]} compares place by place, and two vocabularies have no places "
                "in common: write 0, or own_vocabulary: false"
            )
        return self

    def configuration(self) -> LanguageModelConfig:
        """The model's own configuration."""
        return changed(LM_SIZES[self.size], self.model)


class Result(Frozen):
    """The trained model."""

    checkpoint: Path = Field(description="folder of the best checkpoint, by perplexity on dev")
    perplexity: float = Field(description="of that checkpoint on dev, per symbol")
    loss: float = Field(description="of that checkpoint on dev, nats per symbol")
    teacher_perplexity: float | None = Field(
        description="of the teacher on dev, per symbol of its own vocabulary; null without one"
    )
    steps: int = Field(description="optimizer steps taken")
    steps_skipped: int = Field(description="steps dropped because a number was not finite")
    parameters: int = Field(description="numbers that the model has learned")


def run(settings: Settings, job: Job) -> Result:
    """Train, or go on training."""
    import torch

    from distill.language_model.across import Across
    from distill.language_model.model import LanguageModel, LMObjective
    from distill.language_model.trainer import fit_texts
    from lact_asr.data.manifest import read_manifest
    from lact_asr.model.interface import count_parameters
    from lact_asr.training.trainer import Launcher

    train, dev = read_manifest(settings.train), read_manifest(settings.dev)
    texts, held_out = [each.text for each in train], [each.text for each in dev]
    teacher, written = _teacher(settings)
    vocabulary = written
    if vocabulary is None or settings.own_vocabulary:
        vocabulary = _training.vocabulary(settings, train, job)
    torch.manual_seed(settings.training.seed)
    model = LanguageModel(settings.configuration(), len(vocabulary))
    _training.begin(model, vocabulary, settings.init_from, job)
    if teacher:
        _training.inherit(model, teacher, settings.teacher_layers, job)
    with _training.going_on(job):
        done = fit_texts(
            LMObjective(
                model,
                settings.training.chunk,
                teacher,
                settings.distill,
                settings.training.log_every,
                Across(vocabulary, written) if written and written != vocabulary else None,
            ),
            texts,
            held_out,
            vocabulary,
            settings.training,
            job.directory,
            Launcher(job.report, job.event, job.should_stop, job.fence, job.disturb),
        )
    _training.require_best(done, settings.dev)
    return Result(
        checkpoint=done.checkpoint,
        perplexity=done.best["perplexity"],
        loss=done.loss,
        teacher_perplexity=_perplexity(teacher, held_out, written, settings)
        if teacher and written
        else None,
        steps=done.step,
        steps_skipped=done.steps_skipped,
        parameters=count_parameters(model),
    )


def _teacher(settings: Settings) -> "tuple[LanguageModel, Vocabulary] | tuple[None, None]":
    """The teacher, if there is one, and what it writes with."""
    from distill.language_model.model import LM_FAMILIES
    from lact_asr.training import checkpoint

    if settings.teacher is None:
        return None, None
    teacher, vocabulary, _ = checkpoint.load_model(checkpoint.find(settings.teacher), LM_FAMILIES)
    return teacher, vocabulary


def _perplexity(
    model: "LanguageModel", texts: list[str], vocabulary: "Vocabulary", settings: Settings
) -> float:
    """The perplexity of a model on texts."""
    from distill.language_model.texts import Texts
    from distill.language_model.trainer import held_out
    from lact_asr.distributed import processes

    world = processes.start()
    batches = Texts(texts, vocabulary, settings.training.batch_tokens)
    return held_out(model, batches, world, world.device()).figures["perplexity"]
