"""A gate stands for what it guards: what `like: STEP` takes over, and where the two differ.

A gate is an `overfit` step; it guards the steps of training that need it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jobs import kinds
from jobs.pipeline import Pipeline, Step
from jobs.reading.paths import walk
from jobs.reading.references import references
from jobs.reading.yaml12 import Document

_GATE = "overfit"
_SHARED = ("family", "vocabulary", "precision")


def can_be_guarded(settings: Mapping[str, Any]) -> bool:
    """Whether a gate can stand for a step with these settings: it trains a model of speech."""
    return "training" in settings and "family" in settings


def is_decided(settings: Mapping[str, Any]) -> bool:
    """Whether a recipe is known now, not a result of another step."""
    named = {name: settings.get(name) for name in ("family", "size", "model", "preset", "training")}
    return not any(isinstance(value, str) and references(value) for _, value in walk(named))


def taken_over(
    kind: str,
    settings: Mapping[str, Any],
    settings_of: Callable[[str], Mapping[str, Any] | None],
) -> dict[str, Any]:
    """The settings of a gate that stands for a step with these settings, complete and checked.

    `settings_of` gives those of the step of a name.
    """
    chosen = kinds.load(kind).Settings.model_construct(**settings)
    training = settings["training"]
    ctc = {**settings["ctc"], "consistency": 0.0} if "ctc" in settings else None
    found = {
        "manifest": settings["train"],
        "family": settings["family"],
        "size": settings["size"],
        "model": {**chosen.shape(), **settings["model"]},
        "precision": training["precision"],
        "optimizer": training["optim"],
        **({"ctc": ctc} if ctc else {}),
        **_writing(settings, settings_of),
    }
    return {name: value for name, value in found.items() if value is not None}


def _writing(
    settings: Mapping[str, Any], settings_of: Callable[[str], Mapping[str, Any] | None]
) -> dict[str, Any]:
    """The vocabulary; that of a teacher or of first weights is in their checkpoint, where it is."""
    begun = None if settings.get("new_head") else settings.get("init_from")
    if settings["vocabulary"] == "teacher":
        named = next(iter(references(str(settings["teacher"]))), "").split(".")[0]
        of_teacher = settings_of(named) if named else None
        if of_teacher is not None and can_be_guarded(of_teacher):
            return _writing(of_teacher, settings_of)
        return {"vocabulary_from": str(settings["teacher"])}
    size = settings["vocabulary_size"]
    kept = {"vocabulary_from": str(begun)} if begun and settings["vocabulary"] == "bpe" else {}
    about = {"vocabulary": settings["vocabulary"], "vocabulary_size": size}
    return {**about, "text": settings["text"], **kept}


def differences(pipeline: Pipeline, document: Document) -> list[str]:
    """One line for each gate that is not like a step that needs it."""
    lines = []
    steps = {step.name: step for step in pipeline.steps}
    for step in pipeline.steps:
        gates = [steps[need] for need in step.needs if _is_meant(steps[need], step, pipeline)]
        if not gates or not can_be_guarded(step.settings):
            continue
        if not all(is_decided(each.settings) for each in (step, *gates)):
            continue
        found = [(_unlike(gate, step, steps), gate) for gate in gates]
        if all(unlike for unlike, _ in found):
            unlike, gate = min(found, key=lambda pair: len(pair[0]))
            where = document.where(("steps", gate.name))
            lines.append(
                f"{where}: {gate.name} is another recipe than {step.name}, which it guards: "
                f"{', '.join(unlike)}; write like: {step.name} in a gate of its own"
            )
    return lines


def idle(pipeline: Pipeline, document: Document) -> list[str]:
    """One line for each gate for which no step waits: it would stop nothing."""
    trained = [step.name for step in pipeline.steps if can_be_guarded(step.settings)]
    needed = {need for step in pipeline.steps for need in step.needs}
    return [
        f"{document.where(('steps', gate.name))}: no step needs {gate.name}, which so stops "
        f"nothing: write it into the needs of {' or '.join(trained)}"
        for gate in pipeline.steps
        if gate.kind == _GATE and trained and gate.name not in needed
    ]


def _is_meant(gate: Step, step: Step, pipeline: Pipeline) -> bool:
    """Whether a step is a gate that guards another: one of another family that guards its own
    stands in front of the others for the order only.
    """
    if gate.kind != _GATE:
        return False
    family = gate.settings["family"]
    guarded = (each.settings for each in pipeline.steps if gate.name in each.needs)
    return step.settings.get("family") == family or all(
        settings.get("family") != family for settings in guarded
    )


def _unlike(gate: Step, step: Step, steps: Mapping[str, Step]) -> list[str]:
    """What a gate has otherwise than a step: `model.hidden 768, not 384`."""
    wanted = taken_over(
        step.kind, step.settings, lambda name: steps[name].settings if name in steps else None
    )
    if gate.settings["family"] != wanted["family"]:
        return [f"family {gate.settings['family']}, not {wanted['family']}"]
    here, there = _recipe(gate.settings), _recipe({**gate.settings, **wanted})
    return [
        f"{name} {here.get(name)}, not {there.get(name)}"
        for name in [*there, *(name for name in here if name not in there)]
        if here.get(name) != there.get(name)
    ]


def _recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be alike, by name; dropout is off in every gate."""
    model = kinds.load(_GATE).Settings.model_construct(**settings).configuration().model_dump()
    learned = settings["vocabulary"] == "bpe" and not settings["vocabulary_from"]
    return {
        **{name: settings[name] for name in _SHARED},
        **({"vocabulary_size": settings["vocabulary_size"]} if learned else {}),
        "vocabulary_from": settings["vocabulary_from"] and str(settings["vocabulary_from"]),
        **{f"text.{name}": value for name, value in settings["text"].items()},
        "optimizer.method": settings["optimizer"]["method"],
        **{f"model.{name}": value for name, value in model.items() if "drop" not in name},
    }
