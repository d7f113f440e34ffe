"""The recipe in force: every setting of a step of training with its source, its size, its length.

What a file says and what comes of it differ by defaults and presets; this is what comes of it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs import kinds
from jobs.pipeline import Pipeline, Step
from jobs.reading.gates import is_decided
from jobs.reading.json_schema import leaves
from jobs.reading.paths import Place
from jobs.reading.yaml12 import Document
from lact_asr.config.memory import Heard, activation_bytes, in_half, weight_bytes
from lact_asr.config.model import ModelConfig
from lact_asr.config.text import ENGLISH
from lact_asr.config.training import CTCConfig, TrainingConfig
from lact_asr.text.normalize import CHARACTERS

if TYPE_CHECKING:
    from lact_asr.model.interface import CTCModel

GIB = 2**30


class Value(NamedTuple):
    """A setting in force."""

    name: str  # with dots
    value: Any
    source: str  # `default`, `preset NAME`, `size NAME`, or where it is written


def trains(step: Step) -> bool:
    """Whether a step has a recipe."""
    return "training" in step.settings


def overridden(pipeline: Pipeline, document: Document) -> list[str]:
    """One line for each step whose preset is changed by what the file says."""
    lines = []
    for step in pipeline.steps:
        changed = [
            f"{'.'.join(map(str, place))} {said} -> {'null' if now is None else now}"
            for place, said in preset(step).items()
            if said is not None and not _same(now := _at(step.settings, place), said)
        ]
        if changed:
            where = document.where(("steps", step.name, "settings"))
            name = step.settings["preset"]
            lines.append(f"{where}: {step.name} changes preset {name}: {', '.join(changed)}")
    return lines


def preset(step: Step) -> dict[Place, Any]:
    """What a step's preset says, by place in the settings."""
    if "preset" not in step.settings or not is_decided(step.settings):
        return {}
    chosen = kinds.load(step.kind).Settings.model_construct(**step.settings)
    training = TrainingConfig.others_off(chosen.recipe())
    found = dict(leaves(training, ("training",)))
    return found | {("model", key): value for key, value in chosen.shape().items()}


def values(step: Step, document: Document) -> list[Value]:
    """Every setting of a step of training that counts, the model's own included."""
    said, shape, found = preset(step), _shape(step), []
    for place, value in leaves({**step.settings, "model": {}, "training": {}}):
        found.append((place, value))
    found += leaves(step.settings["training"], ("training",))
    found += [(("model", key), value) for key, value in shape.items()]
    off = {other for pair in TrainingConfig.EITHER for other in pair}
    return [
        Value(".".join(map(str, place)), value, _source(step, place, value, said, document))
        for place, value in found
        if value is not None or place[-1] not in off
    ]


def _source(
    step: Step, place: Place, value: Any, said: Mapping[Place, Any], document: Document
) -> str:
    whole = ("steps", step.name, "settings", *place)
    if whole in document.places:
        return Path(document.places[whole]).name  # `--set` has no slash before its value
    if place in said:
        return f"preset {step.settings['preset']}"
    return f"size {step.settings['size']}" if place[0] == "model" else "default"


def facts(step: Step) -> Iterator[str]:
    """Size, memory, steps an epoch and hours, as far as they can be known before anything runs."""
    if not is_decided(step.settings):
        yield "size, steps an epoch: known when the results in its settings are there"
        return
    if _shape(step):
        yield from _size(step)
    train = str(step.settings["train"])
    if "batch_tokens" in step.settings["training"]:
        return
    if "${" in train or not Path(train).exists():
        yield f"steps an epoch, hours: known when {train} is there"
    else:
        yield _length(step, Path(train))


def _shape(step: Step) -> dict[str, Any]:
    """The model's own settings; none of a language model, which has no family."""
    if "family" not in step.settings or not is_decided(step.settings):
        return {}
    shape: dict[str, Any] = _configuration(step).model_dump()
    return shape


def _configuration(step: Step) -> Any:
    return kinds.load(step.kind).Settings.model_construct(**step.settings).configuration()


def _size(step: Step) -> Iterator[str]:
    """Of the model, and of the memory that it takes, with the symbols as far as they are known."""
    import torch

    from distill.models.registry import FAMILIES
    from lact_asr.model.interface import count_parameters

    learned = step.settings.get("vocabulary") == "bpe"
    symbols = step.settings["vocabulary_size"] if learned else len(CHARACTERS) + 1
    with torch.device("meta"):  # shapes alone
        model = FAMILIES[step.settings["family"]](_shape(step), symbols)
    counted = "" if _known(step) else " (those that it writes with are known when it starts)"
    yield f"model: {count_parameters(model) / 1e6:.3g} M parameters with {symbols} symbols{counted}"
    yield _memory(step, model, symbols)


def _known(step: Step) -> bool:
    """Whether the symbols can be known before a text or another step's checkpoint is read."""
    writes = step.settings["vocabulary"]
    english: bool = step.settings["text"] == ENGLISH.model_dump()
    return bool(writes == "bpe") or (writes == "characters" and english)


def _memory(step: Step, model: "CTCModel", symbols: int) -> str:
    config, training = _configuration(step), _training(step)
    if not isinstance(config, ModelConfig):
        return f"GPU memory: not reckoned for family {step.settings['family']}"
    heard, weights = _heard(step, symbols), _weights(step, model)
    again = training.activation_checkpointing
    kept = activation_bytes(config, _ctc(step), heard, in_half(training), again)
    return (
        f"GPU memory: about {(weights + kept) / GIB:.2g} GiB (reckoned, not measured: weights, "
        f"gradients and optimizer {weights / GIB:.2g}, a micro-batch of {heard.seconds:.4g} s "
        f"{kept / GIB:.2g}; a teacher beside it is not counted)"
    )


def _heard(step: Step, symbols: int) -> Heard:
    """The largest micro-batch: all of it at the slowest speed, as often as it is heard."""
    training, views = _training(step), _ctc(step).views
    budget, slowest = training.budget(views), min(1.0, *training.augment.speeds)
    longest = training.max_duration
    most = max(longest, budget.seconds or budget.room(longest) * longest)
    return Heard(views * most / slowest, longest / slowest, symbols)


def _weights(step: Step, model: "CTCModel") -> float:
    """Bytes of the weights on a process, and of what training keeps beside them."""
    from lact_asr.training import optim
    from lact_asr.training.objective import CTCObjective

    training = _training(step)
    groups = optim.build(CTCObjective(model), training.optim).param_groups
    kept: int = sum(
        parameter.numel() * weight_bytes(training, group["muon"])
        for group in groups
        for parameter in group["params"]
    )
    shares = _shares(step)
    return kept if shares == 1 else kept / shares + _gathered(model)


def _shares(step: Step) -> int:
    """The processes that have one copy of the model among them."""
    sharded = _training(step).sharded
    if sharded == "node":
        return step.resources.processes_per_node
    return step.resources.world_size if sharded else 1


def _gathered(model: "CTCModel") -> int:
    """Bytes of the weights that a sharded model has whole at a time, and of their gradients: those
    outside its blocks, of the block that is computed, and of the one fetched meanwhile.
    """
    from lact_asr.model.interface import count_parameters

    blocks = [count_parameters(block) for block in model.blocks]
    whole = count_parameters(model) - sum(blocks) + sum(sorted(blocks)[-2:])
    return 2 * 4 * whole


def _length(step: Step, train: Path) -> str:
    import numpy as np

    from lact_asr.data.batch_plan import epoch_plan
    from lact_asr.data.manifest import read_manifest

    training = _training(step)
    seconds = np.array([each.duration for each in read_manifest(train)])
    seconds = seconds[seconds <= training.max_duration]
    ranks = step.resources.world_size
    plan = epoch_plan(seconds, training.budget(_ctc(step).views), training.seed, 0, ranks)
    pace = len(plan[0]) / training.accumulate
    epochs = training.epochs or (training.max_steps or 0) / pace
    hours = seconds.sum() / 3600
    return (
        f"{len(seconds):,} utterances, {hours:.2f} h: {pace:g} steps an epoch on {ranks} "
        f"processes; {epochs:.3g} epochs, {round(epochs * pace):,} steps, {epochs * hours:.4g} h "
        "of audio in all"
    )


def _training(step: Step) -> TrainingConfig:
    return TrainingConfig.model_validate(step.settings["training"])


def _ctc(step: Step) -> CTCConfig:
    return CTCConfig.model_validate(step.settings.get("ctc", {}))


def _at(value: Any, place: Place) -> Any:
    for part in place:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _same(one: Any, other: Any) -> bool:
    """Lists and tuples of the same values are the same setting."""
    return one == other or (isinstance(one, (list, tuple)) and list(one) == list(other))
