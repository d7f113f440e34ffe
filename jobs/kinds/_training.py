"""What the kinds that train a model share: which model, on what, and what comes of it.

A model is a family, a named size of it and what differs from that size; all is checked on the login
node. No torch at the top.
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from distill.config import models as distill_config
from jobs.errors import nearest
from jobs.job import Job
from jobs.pipeline import Fraction, Present
from lact_asr.config import model as lact_config
from lact_asr.config.base import Formerly, Frozen
from lact_asr.config.model import ModelConfig
from lact_asr.config.presets import PRESETS, merge_preset
from lact_asr.config.text import ENGLISH, TextConfig
from lact_asr.config.training import CTCConfig, TrainingConfig
from lact_asr.text.normalize import CHARACTERS
from lact_asr.utils.errors import Failed
from lact_asr.utils.files import read_json, write_json

if TYPE_CHECKING:
    from lact_asr.data.manifest import Utterance
    from lact_asr.model.interface import CTCModel, Model
    from lact_asr.text.vocabulary import Vocabulary
    from lact_asr.training.objective import SpeechObjective
    from lact_asr.training.trainer import FitResult

SIZES: dict[str, Mapping[str, BaseModel]] = {"lact": lact_config.SIZES, **distill_config.SIZES}


Preset = Annotated[Literal["modern", "original", "plain"], Formerly("founding", now="original")]


def size_field(*families: str, default: str = "tiny") -> Any:
    """A setting that names a size of one of these families."""
    named = "; ".join(f"{family}: {', '.join(SIZES[family])}" for family in families)
    return Field(default, description=f"named size of the model ({named})")


def changes_field(*families: str) -> Any:
    """A setting with what differs from the named size; editors get every field of the families."""
    schemas = [type(next(iter(SIZES[family].values()))).model_json_schema() for family in families]
    fields = {name: about for schema in schemas for name, about in schema["properties"].items()}
    return Field(
        {},
        description=f"what differs from that size: any of {', '.join(fields)}",
        json_schema_extra={"properties": fields, "additionalProperties": False},
    )


def init_from_field() -> Any:
    """A setting with the weights to begin with."""
    return Field(
        None,
        description="weights to begin with, for fine-tuning: a checkpoint, a `checkpoints` folder "
        "or a step's folder of any run, of the same model and vocabulary (a bpe vocabulary is "
        "taken over; of another one with new_head); optimizer, schedule and counters start anew",
    )


def teacher_layers_field() -> Any:
    """A setting with the part of a teacher to begin as."""
    return Field(
        (),
        description="blocks of the teacher, counted from 1, that the student begins with, and all "
        "that is around them: such as [1, 3, 5] for a student of three blocks; same family and "
        "widths as the teacher; none is a fresh student",
    )


def vocabulary_size_field() -> Any:
    """A setting with the size of a learned vocabulary."""
    return Field(
        500,
        ge=len(CHARACTERS) + 1,
        description="pieces of a bpe vocabulary, the blank and the characters among them, with "
        "text.alphabet: texts 256 bytes too",
    )


class ModelSettings(Frozen):
    """A model: subclasses say which families it may come from."""

    family: str = Field(description="model family")
    size: str = size_field(*SIZES)
    model: dict[str, Any] = changes_field(*SIZES)

    @model_validator(mode="after")
    def _model_exists(self) -> "ModelSettings":
        if self.size not in SIZES[self.family]:
            _refuse(
                ("size",),
                f"no {self.family} model {self.size!r}: {nearest(self.size, SIZES[self.family])}",
            )
        try:
            self.configuration()
        except ValidationError as error:
            fields = type(SIZES[self.family][self.size]).model_fields
            _refuse_all(
                {("model", *e["loc"]): _explain(e, self.family, fields) for e in error.errors()}
            )
        return self

    def configuration(self, **changes: object) -> Any:
        """The model's own configuration, with further changes."""
        wanted = {**self.model, **changes}
        if self.family == "lact":
            return lact_config.named_size(self.size, wanted)
        return distill_config.named_size(self.family, self.size, wanted)


class TrainingSettings(ModelSettings):
    """A model, what it learns from, and how."""

    train: Path = Field(description="manifest to learn from")
    dev: Path = Field(description="manifest that chooses the best checkpoint")
    init_from: Annotated[Path | None, Present()] = init_from_field()
    new_head: bool = Field(
        False,
        description="with init_from: the output layer begins anew, for other symbols: another "
        "language, or pieces of words after characters",
    )
    stage: bool = Field(
        False,
        description="copy the audio to each node's own disk first ($SLURM_TMPDIR, else $TMPDIR), "
        "for a shared file system that is slow at many small files; 961 h are 60 GB",
    )
    training: TrainingConfig = Field(
        TrainingConfig(), description="length, batches, optimizer, checkpoints"
    )
    preset: Preset = Field(
        "modern",
        description="what completes `training`: modern adds speed perturbation, SpecAugment, a "
        "running mean of the weights and bfloat16 on GPUs; original is the project's first recipe "
        "(24 utterances a step, peak learning rate 1e-4, float32, 100,000 steps); plain adds "
        "nothing. What is in force: `kinds NAME --preset PRESET`",
    )
    ctc: CTCConfig = CTCConfig()

    @model_validator(mode="after")
    def _preset(self) -> "TrainingSettings":
        given = self.training.model_dump(exclude_unset=True)
        training = TrainingConfig.model_validate(merge_preset(given, self.recipe()))
        object.__setattr__(self, "training", training)  # frozen for everybody else
        return self

    @model_validator(mode="after")
    def _has_weights(self) -> "TrainingSettings":
        if self.new_head and self.init_from is None:
            _refuse(("new_head",), "without init_from every layer begins anew: leave new_head out")
        return self

    @model_validator(mode="after")
    def _ctc_fits(self) -> "TrainingSettings":
        try:
            self.ctc.check(self.configuration().blocks)
        except ValueError as error:
            _refuse(("ctc",), str(error))
        if self.ctc.consistency and not self.training.augment.hides:
            _refuse(
                ("ctc", "consistency"),
                "the two views of an utterance would be the same: write training.augment with "
                "time_masks and frequency_masks, or preset: modern",
            )
        return self

    @property
    def vocabulary_from(self) -> Path | None:
        """The checkpoint whose vocabulary is taken over."""
        return None if self.new_head else self.init_from

    def recipe(self) -> Mapping[str, Any]:
        """What the preset says about `training`."""
        return PRESETS[self.preset]

    def shape(self) -> Mapping[str, Any]:
        """What the preset says about `model`."""
        return {}


class CTCSettings(TrainingSettings):
    """Training from transcripts alone, with a vocabulary of its own."""

    vocabulary: Literal["characters", "bpe"] = Field(
        "characters",
        description="what the model writes with: characters, or bpe, frequent pieces of words "
        "learned from the training texts",
    )
    vocabulary_size: int = vocabulary_size_field()
    text: TextConfig = TextConfig()


class Trained(Frozen):
    """What training leaves behind."""

    checkpoint: Path = Field(description="folder of the best checkpoint, by WER on dev")
    wer: Fraction = Field(description="of that checkpoint on dev, as a fraction")
    cer: Fraction = Field(description="of that checkpoint on dev, as a fraction")
    loss: float = Field(description="of that checkpoint on dev, nats per label token")
    steps: int = Field(description="optimizer steps taken")
    steps_skipped: int = Field(description="steps dropped because a number was not finite")
    parameters: int = Field(description="numbers that the model has learned")


def utterances(settings: TrainingSettings) -> "tuple[list[Utterance], list[Utterance]]":
    """Training and dev utterances; their audio on the node's own disk if that is asked for."""
    from lact_asr.data.manifest import read_manifest

    train, dev = read_manifest(settings.train), read_manifest(settings.dev)
    if not settings.stage:
        return train, dev
    from lact_asr.data.local_copy import scratch, stage_files

    every = stage_files([*train, *dev], scratch())
    return every[: len(train)], every[len(train) :]


class Writes(Protocol):
    """Settings that name a vocabulary."""

    @property
    def vocabulary(self) -> str:
        """Its kind."""

    @property
    def vocabulary_size(self) -> int:
        """Pieces of a learned one."""

    @property
    def text(self) -> TextConfig:
        """The form of texts."""

    @property
    def vocabulary_from(self) -> Path | None:
        """The checkpoint whose one is taken over."""


def vocabulary(settings: Writes, train: "Sequence[Utterance]", job: Job) -> "Vocabulary":
    """The vocabulary to train with; a learned one is kept in the step's folder for resumption.

    Every rank learns the same one from the same texts (1,519 sentences: 0.04 s).
    """
    from lact_asr.text.vocabulary import Vocabulary

    if settings.vocabulary == "characters" and settings.text == ENGLISH:
        return Vocabulary.characters()
    kept = job.directory / "vocabulary.json"
    found = _known_vocabulary(settings, kept)
    if found is None or not _is_wanted(found, settings):
        found = _learn_vocabulary(settings, [each.text for each in train])
    if job.rank == 0:
        write_json(kept, found.to_dict())
    return found


def _is_wanted(found: "Vocabulary", settings: Writes) -> bool:
    """Whether a vocabulary is what the settings ask for."""
    alike = (found.kind, found.form) == (settings.vocabulary, settings.text)
    return alike and (found.kind == "characters" or len(found) == settings.vocabulary_size)


def _learn_vocabulary(settings: Writes, texts: "Sequence[str]") -> "Vocabulary":
    """The characters of the training texts, or pieces of their words."""
    from lact_asr.text.bpe import BPEVocabulary
    from lact_asr.text.vocabulary import Vocabulary

    if settings.vocabulary == "characters":
        return Vocabulary.found(texts, settings.text)
    return BPEVocabulary.learn(texts, settings.vocabulary_size, settings.text)


def _known_vocabulary(settings: Writes, kept: Path) -> "Vocabulary | None":
    """The one of an earlier start of the step, else of the checkpoint that it is taken from."""
    from lact_asr.text.load import load_vocabulary
    from lact_asr.training import checkpoint

    if kept.exists():
        return load_vocabulary(read_json(kept))
    if settings.vocabulary_from is None:
        return None
    config = checkpoint.read_config(checkpoint.find(settings.vocabulary_from))
    return load_vocabulary(config["vocabulary"])


def fresh_model(
    settings: TrainingSettings, vocabulary: "Vocabulary", train: "Sequence[Utterance]", job: Job
) -> "CTCModel":
    """An untrained model, whose weights depend on the seed only, or that of `init_from`.

    Failed where fast weights would never be updated on utterances as short as these.
    """
    import torch

    from distill.models.registry import FAMILIES

    configuration = settings.configuration()
    if isinstance(configuration, ModelConfig):
        longest = min(max(each.duration for each in train), settings.training.max_duration)
        try:
            configuration.check_updates(longest)
        except ValueError as error:
            raise Failed("settings", f"settings.model: {error}") from None
    torch.manual_seed(settings.training.seed)
    model = FAMILIES[settings.family](configuration.model_dump(), len(vocabulary))
    begin(model, vocabulary, settings.init_from, job, settings.new_head)
    return model


def begin(
    model: "Model",
    vocabulary: "Vocabulary",
    given: Path | None,
    job: Job,
    new_head: bool | None = None,
) -> None:
    """Give a fresh model the weights of `init_from`, unless the step has a checkpoint of its own;
    all but its output layer where that is to begin anew (None: no setting asks for it).

    Failed where that is of another model or vocabulary.
    """
    from lact_asr.training import checkpoint
    from lact_asr.training.origin import begin_from
    from lact_asr.utils.errors import Misfit

    if given is None or checkpoint.latest(job.directory / "checkpoints"):
        return
    try:
        facts = begin_from(given, model, None if new_head else vocabulary)
    except Misfit as error:
        other = "" if new_head is not False else ", or of another vocabulary write new_head: true"
        raise Failed("settings", f"init_from: {error}; or leave init_from out{other}") from None
    job.event("begun_from", **facts)
    if job.rank == 0:
        print(f"Begun with the weights of {facts['checkpoint']}", flush=True)


def inherit(model: "Model", teacher: "Model", layers: Sequence[int], job: Job) -> None:
    """Give a fresh student these blocks of its teacher, unless the step has a checkpoint."""
    from distill.models.inherit import take_layers
    from lact_asr.training import checkpoint

    if layers and not checkpoint.latest(job.directory / "checkpoints"):
        take_layers(model, teacher, layers)
        job.event("inherited", layers=list(layers))


@contextmanager
def going_on(job: Job) -> Iterator[None]:
    """Inside, a checkpoint of the step that does not fit the settings any more is Failed with
    the command that starts the step anew.
    """
    from lact_asr.utils.errors import Misfit

    try:
        yield
    except Misfit as error:
        run, step = job.directory.parents[1].name, job.directory.name
        anew = f"resume {run} --redo {step}"
        raise Failed("settings", f"{error}; or start the step anew: {anew}") from None


def learn(settings: CTCSettings, job: Job) -> Trained:
    """Train a model on transcribed speech alone, or go on training it."""
    from lact_asr.training.objective import CTCObjective

    parts = utterances(settings)
    symbols = vocabulary(settings, parts[0], job)
    model = fresh_model(settings, symbols, parts[0], job)
    return fit(CTCObjective(model, settings.ctc, symbols), settings, parts, symbols, job)


def require_best(done: "FitResult", dev: Path) -> None:
    """Failed where training ended without a best model."""
    if not done.best:
        raise Failed(
            "diverged",
            f"in {done.step} steps no validation has found a model to keep: each had a loss that "
            "is not finite. Lower training.optim.learning_rate, or look whether the utterances of "
            f"{dev} are long enough for their texts",
        )


def fit(
    objective: "SpeechObjective",
    settings: TrainingSettings,
    parts: "tuple[list[Utterance], list[Utterance]]",
    vocabulary: "Vocabulary",
    job: Job,
) -> Trained:
    """Train to the end, or raise Interrupted with the work saved."""
    from lact_asr.model.interface import count_parameters
    from lact_asr.training import trainer as training

    with going_on(job):
        done = training.fit(
            objective,
            *parts,
            vocabulary,
            settings.training,
            job.directory,
            report=job.report,
            event=job.event,
            should_stop=job.should_stop,
            fence=job.fence,
            disturb=job.disturb,
        )
    require_best(done, settings.dev)
    return Trained(
        checkpoint=done.checkpoint,
        wer=done.wer,
        cer=done.best["cer"],
        loss=done.loss,
        steps=done.step,
        steps_skipped=done.steps_skipped,
        parameters=count_parameters(objective.model),
    )


def _explain(item: Any, family: str, fields: Mapping[str, object]) -> str:
    name = str(item["loc"][-1]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        return f"the {family} model has no {name!r}: {nearest(name, fields)}"
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "write")
    return message if not item["loc"] else f"{message}, not {reprlib.repr(item['input'])}"


def _refuse(place: tuple[str | int, ...], message: str) -> None:
    _refuse_all({place: message})


def _refuse_all(mistakes: Mapping[tuple[str | int, ...], str]) -> None:
    """ValidationError with each mistake at its place inside the settings."""
    details: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError("value_error", "{message}", {"message": message}),
            "loc": place,
            "input": None,
        }
        for place, message in mistakes.items()
    ]
    raise ValidationError.from_exception_data("settings", details)
