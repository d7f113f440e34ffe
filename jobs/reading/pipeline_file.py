"""From a YAML file to a `Pipeline`, or to every mistake in it at once, each with file:line and what
to write instead.

Nothing is created and nothing is asked of a cluster here. References (`${step.field}`) are checked
against the `Result` of the step they name, and stay in the settings: the worker fills them in when
the step starts.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel

from jobs import gate, kinds
from jobs.errors import SpecError, nearest
from jobs.pipeline import NAME, Inside, Made, Pipeline, Present, Resources, Step
from jobs.reading.file_schema import PipelineFile, StepFile
from jobs.reading.former import former
from jobs.reading.gates import can_be_guarded, is_decided, taken_over
from jobs.reading.overrides import override
from jobs.reading.paths import Place, replace, walk
from jobs.reading.references import (
    escape_references,
    fill_references,
    has_unclosed,
    references,
    without_braces,
)
from jobs.reading.results import decided_already, sample_of
from jobs.reading.validation import ANYTHING, validate
from jobs.reading.yaml12 import Document, read
from lact_asr.utils.files import is_there

FEW = 20  # names that a message lists

_Model = TypeVar("_Model", bound=BaseModel)


def read_pipeline(
    path: Path, overrides: Sequence[str] = (), folder: Path | None = None
) -> Pipeline:
    """The pipeline in `path` with `--set` overrides laid over it (SpecError with every mistake).

    Relative paths in it start from `folder`, the present one if not given.
    """
    return pipeline_in(overlaid(path, overrides), path, folder)


def pipeline_in(document: Document, path: Path, folder: Path | None = None) -> Pipeline:
    """As `read_pipeline`, of what has been read from `path`.

    Values under a former name are read, and told of on stderr, one line each.
    """
    header = validate(document, PipelineFile, document.value, ())
    _stop(document)
    assert header is not None
    default_name = re.sub(r"[^a-z0-9_]", "_", path.stem.lower())[:40]  # as long as NAME
    steps = _Steps(document, header.steps, folder or Path.cwd()).read()
    _stop(document)
    for notice in document.notices:
        print(notice, file=sys.stderr)
    return Pipeline(
        name=header.name or default_name, description=header.description, steps=tuple(steps)
    )


def overlaid(path: Path, overrides: Sequence[str]) -> Document:
    """What the file says with `--set` laid over it, and where each value stands."""
    document = read(path)
    for text in overrides:
        override(document, text)
    _stop(document)
    return document


def read_step(file: dict[str, Any], overrides: Sequence[str]) -> Pipeline:
    """The pipeline of a command that is one step: what a file would hold, under the step's name.

    SpecError with every mistake, in the words of the command: without the step's name.
    """
    name = file["name"]
    document = Document(file, {(): name})
    for text in overrides:
        override(document, text)
    steps = _Steps(document, document.value["steps"], Path.cwd()).read()
    if document.mistakes:
        raise SpecError([_of_one_step(mistake, name) for mistake in document.mistakes])
    return Pipeline(name=name, description=file["description"], steps=tuple(steps))


def _of_one_step(mistake: str, name: str) -> str:
    for words in (f"steps.{name}.settings.", f"steps.{name}.", f"steps.{name}: "):
        mistake = mistake.replace(words, "")
    return mistake.replace(f"--set {name}.", "--set ").replace("step.setting=", "setting=")


def read_model(path: Path, model: type[_Model]) -> _Model:
    """A file that holds one settings block, such as a cluster (SpecError with every mistake)."""
    document = read(path)
    value = validate(document, model, document.value, ())
    _stop(document)
    assert value is not None
    return value


def _stop(document: Document) -> None:
    if document.mistakes:
        raise SpecError(document.mistakes)


def _limit(text: str) -> gate.Limit | None:
    """What a condition compares with; None where a result of that type cannot be a limit."""
    try:
        return gate.parse_condition(text)[1]
    except ValueError:
        return None


class _Steps:
    """The steps of one file: every check that needs more than one value."""

    def __init__(self, document: Document, raw: dict[str, Any], folder: Path) -> None:
        self.document, self.raw, self.folder = document, raw, folder
        self.files: dict[str, StepFile] = {}
        self.kinds: dict[str, ModuleType] = {}
        self.settings: dict[str, dict[str, Any] | None] = {}  # of the steps that have been checked

    def read(self) -> list[Step]:
        """The steps in dependency order; what is wrong goes to the document's mistakes."""
        for place, value in walk(self.raw, ("steps",)):
            if isinstance(value, float) and not math.isfinite(value):
                words = "write a number that has an end, not .inf or .nan"
                self.document.mistake(place, words)
        for name, raw in self.raw.items():
            self._read_one(name, raw)
        order = self._order()
        steps = [step for name in order if (step := self._check(name)) is not None]
        for step in steps:
            self._beside(step, {each.name: each.settings for each in steps})
        return steps

    def _read_one(self, name: str, raw: Any) -> None:
        place = ("steps", name)
        if not re.fullmatch(NAME, name):
            self.document.mistake(
                place, "a step's name is lower-case letters, digits and _, and begins with a letter"
            )
        named = raw.get("kind") if isinstance(raw, dict) else None
        if isinstance(named, str) and named in kinds.NAMES:
            self.kinds[name] = kinds.load(named)
        step = validate(self.document, StepFile, raw, place, beside=self._blocks(name))
        if step is None:
            return
        self.files[name] = step
        if name not in self.kinds:
            hint = nearest(step.kind, kinds.NAMES)
            self.document.mistake((*place, "kind"), f"no kind {step.kind!r}: {hint}")

    def _blocks(self, name: str) -> dict[str, type[BaseModel]]:
        """The blocks of a step, as far as they are known."""
        kind = self.kinds.get(name)
        return {"resources": Resources, **({"settings": kind.Settings} if kind else {})}

    def _order(self) -> list[str]:
        """Names so that every step follows its needs, otherwise in the file's order."""
        left = {name: self._needs(name) for name in self.files}
        order: dict[str, None] = {}
        for first in self.files:
            trail = [first]  # each step needs the one behind it
            while trail:
                need = next((need for need in left[trail[-1]] if need not in order), None)
                if need is None:
                    order[trail.pop()] = None
                elif need in trail:
                    left[trail[-1]].remove(need)
                    circle = " -> ".join([*trail[trail.index(need) :], need])
                    message = f"steps need each other in a circle: {circle}; take one need out"
                    self.document.mistake(("steps", need, "needs"), message)
                else:
                    trail.append(need)
        return list(order)

    def _needs(self, name: str) -> list[str]:
        """The steps that a step needs, as far as they exist."""
        for index, need in enumerate(self.files[name].needs):
            if need not in self.raw:
                hint = nearest(need, [other for other in self.raw if other != name])
                self.document.mistake(("steps", name, "needs", index), f"no step {need!r}: {hint}")
        return [need for need in dict.fromkeys(self.files[name].needs) if need in self.files]

    def _check(self, name: str) -> Step | None:
        file, kind = self.files[name], self.kinds.get(name)
        if kind is None:
            return None
        place = ("steps", name)
        settings = self._settings(name)
        base = kind.RESOURCES.model_dump(mode="json")
        resources = validate(
            self.document,
            Resources,
            {**base, **file.resources},
            (*place, "resources"),
            beside=self._blocks(name),
        )
        self._gate(name, kind)
        self._faults(name, kind)
        if resources is None or settings is None:
            return None
        return Step(
            name=name,
            kind=file.kind,
            settings=settings,
            resources=resources.model_dump(mode="json"),
            needs=tuple(file.needs),
            gate=file.gate,
            remedies=file.remedies,
            faults=tuple(file.faults),
        )

    def _beside(self, step: Step, known: Mapping[str, dict[str, Any]]) -> None:
        """What only shows beside the settings of the steps whose results a step refers to, and in
        files that are there.
        """
        kind = self.kinds[step.name]
        if hasattr(kind, "wrong_files") and not step.needs:  # which could write them anew
            for place, message in kind.wrong_files(step.settings):
                self.document.mistake(("steps", step.name, "settings", *place), message)
        if not hasattr(kind, "misfits"):
            return
        referred = {}
        for key, value in step.settings.items():
            names = references(value) if isinstance(value, str) else []
            steps = [name.partition(".")[0] for name in names]
            if len(steps) == 1 and steps[0] in known:
                referred[key] = known[steps[0]]
        for place, message in kind.misfits(step.settings, referred):
            self.document.mistake(("steps", step.name, "settings", *place), message)

    def _gate(self, name: str, kind: ModuleType) -> None:
        """A gate on results that the kind has, against limits of their types."""
        fields = kind.Result.model_fields
        free = kind.Result.model_config.get("extra") == "allow"  # results of a program's own
        for key, text in self.files[name].gate.items():
            place = ("steps", name, "gate", key)
            if key not in fields:
                if not free:
                    self.document.mistake(place, f"no such result: {nearest(key, fields)}")
                continue
            sample, filled = sample_of(kind.Result, key), text
            if "${" in text:
                filled = str(self._sample(name, place, text))
            if ANYTHING in filled or sample == ANYTHING:
                continue
            is_a, asked = gate.type_of(sample), gate.type_of(_limit(filled))
            if is_a != asked:
                self.document.mistake(place, f"{key} is {is_a}, and {text!r} is about {asked}")
            elif filled == text and not free and (why := decided_already(kind.Result, key, text)):
                self.document.mistake(place, why)

    def _faults(self, name: str, kind: ModuleType) -> None:
        """Faults are put into steps of training: another kind would never meet one."""
        if self.files[name].faults and "training" not in kind.Settings.model_fields:
            message = f"{self.files[name].kind} does not train: faults go with kinds that do"
            self.document.mistake(("steps", name, "faults"), message)

    def _settings(self, name: str) -> dict[str, Any] | None:
        """The kind's settings, complete with defaults, paths absolute, references as written.

        None for a step without a kind, and where there are mistakes.
        """
        kind = self.kinds.get(name)
        if kind is None or name not in self.files:
            return None
        if name not in self.settings:
            self.settings[name] = None  # gates that are like each other in a circle end here
            self.settings[name] = self._complete(name, kind, self._written(name))
        return self.settings[name]

    def _written(self, name: str) -> dict[str, Any]:
        """The settings of the file; those of a gate with what it takes over from another step."""
        file = self.files[name]
        other = file.settings.get("like")
        if file.kind != "overfit" or not isinstance(other, str):
            return file.settings
        place = ("steps", name, "settings", "like")
        if other not in self.raw or other == name:
            hint = nearest(other, [step for step in self.raw if step != name])
            self.document.mistake(place, f"no step {other!r}: {hint}")
            return file.settings
        settings = self._settings(other)
        if settings is None:  # its own mistakes are told
            return file.settings
        if not can_be_guarded(settings):
            said = f"{other} trains no recognizer: write a step of kind train, teacher or distill"
            self.document.mistake(place, said)
            return file.settings
        if not is_decided(settings):
            said = f"the recipe of {other} has results of other steps in it: write it out here"
            self.document.mistake(place, said)
            return file.settings
        return {**taken_over(self.files[other].kind, settings, self._settings), **file.settings}

    def _complete(self, name: str, kind: ModuleType, raw: dict[str, Any]) -> dict[str, Any] | None:
        place = ("steps", name, "settings")
        self._expect_braces(place, raw)
        written = {at: value for at, value in walk(raw) if isinstance(value, str) and "${" in value}
        unknown = tuple(at for at, value in written.items() if references(value))
        sample = raw
        for inner, value in written.items():
            sample = replace(sample, inner, self._sample(name, (*place, *inner), value))
        blocks = self._blocks(name)
        model = validate(self.document, kind.Settings, sample, place, unknown, blocks)
        if model is None:
            return None
        for inner, mark in former(kind.Settings, raw):
            words = f"{mark.name!r} is called {mark.now!r} now: write {inner[-1]}: {mark.now}"
            self.document.notice((*place, *inner), words)
        settings: dict[str, Any] = model.model_dump(warnings=False)  # references are no numbers
        for inner, value in list(walk(settings)):
            if isinstance(value, Path):
                whole = self._whole(name, inner, value, known=inner not in unknown)
                settings = replace(settings, inner, escape_references(str(whole)))
        for inner, value in written.items():
            settings = replace(settings, inner, value)
        self._expect_inside(name, kind, settings)
        return settings

    def _expect_braces(self, place: Place, raw: dict[str, Any]) -> None:
        """`$step.field` would be a path, or a word of a program, that nobody has meant."""
        for inner, value in walk(raw):
            bare = without_braces(value) if isinstance(value, str) else ""
            if bare.partition(".")[0] in self.raw:
                self.document.mistake((*place, *inner), f"write a result in braces: ${{{bare}}}")

    def _whole(self, name: str, inner: Place, path: Path, known: bool) -> Path:
        """A path from the pipeline's folder on; if it is `known` now, what is missing is said."""
        try:
            whole = self.folder / path.expanduser()
        except RuntimeError:
            words = f"nobody knows the home of {path.parts[0]}: write a path that begins with /"
            self.document.mistake(("steps", name, "settings", *inner), words)
            return path
        if known:
            self._expect_there(name, inner, whole)
        return whole

    def _expect_there(self, name: str, inner: Place, path: Path) -> None:
        """Say what is missing: a mistake where it has to be there now. Else it may be seen from the
        compute nodes only, but no other step can make it for a step that needs none.
        """
        marks = self.kinds[name].Settings.model_fields[str(inner[0])].metadata
        place = ("steps", name, "settings", *inner)
        if Made() in marks or is_there(path):
            return
        if Present() in marks:
            self.document.mistake(place, f"{path} does not exist: write a path that does")
        elif not self.files[name].needs:
            words = f"{path} does not exist here, and {name} needs no step that could make it"
            self.document.notice(place, words)

    def _expect_inside(self, name: str, kind: ModuleType, settings: Mapping[str, Any]) -> None:
        """Say which names are not in a folder that is there, of a step that no other step feeds."""
        for key, field in kind.Settings.model_fields.items():
            marks = [mark for mark in field.metadata if isinstance(mark, Inside)]
            folder = Path(settings[marks[0].setting] or "") if marks else Path()
            if self.files[name].needs or not marks or not folder.name or not folder.is_dir():
                continue
            names = settings[key] if isinstance(settings[key], list) else [settings[key]]
            for each in names:
                if each and "${" not in each and not is_there(folder / each):
                    place = ("steps", name, "settings", key)
                    there = _few_names(folder)
                    hint = f": {nearest(each, there)}" if there else ""
                    self.document.notice(place, f"{folder} has no {each!r} here{hint}")

    def _sample(self, name: str, place: Place, text: str) -> Any:
        """A value of the type that the text will have, for checking the settings now."""
        if has_unclosed(text):
            message = "write a reference as ${step.field}, and $${ for the text ${ itself"
            self.document.mistake(place, message)
        return fill_references(text, lambda reference: self._target(name, place, reference))

    def _target(self, name: str, place: Place, reference: str) -> Any:
        step, _, field = reference.partition(".")
        if step not in self.raw:
            hint = nearest(step, [other for other in self.raw if other != name])
            self.document.mistake(place, f"${{{reference}}}: no step {step!r}: {hint}")
        elif step not in self._upstream(name):
            message = f"${{{reference}}}: {name} does not need {step}: write needs: [{step}]"
            self.document.mistake(place, message)
        elif kind := self.kinds.get(step):
            head, _, inner = field.partition(".")
            if head in kind.Result.model_fields:
                self._expect_key(place, reference, self._keys(step).get(head), inner)
                return sample_of(kind.Result, head, bool(inner))
            if kind.Result.model_config.get("extra") != "allow":
                hint = nearest(field, kind.Result.model_fields)
                self.document.mistake(
                    place,
                    f"${{{reference}}}: {self.files[step].kind} has no result {field!r}: {hint}",
                )
        return ANYTHING

    def _keys(self, step: str) -> dict[str, list[str]]:
        """The keys of a step's results that hold more than one value, where its settings tell."""
        kind, settings = self.kinds[step], self._settings(step) or {}
        texts = [value for _, value in walk(settings) if isinstance(value, str)]
        known: dict[str, list[str]] = {}
        if settings and hasattr(kind, "keys") and not any(map(references, texts)):
            known = kind.keys(settings)
        return known

    def _expect_key(
        self, place: Place, reference: str, known: list[str] | None, inner: str
    ) -> None:
        """Days of training may lie between a name here and who looks for it."""
        if known is not None and inner and inner not in known:
            message = f"${{{reference}}}: no {inner!r}: {nearest(inner, known)}"
            self.document.mistake(place, message)

    def _upstream(self, name: str) -> set[str]:
        found: set[str] = set()
        queue = [name]
        while queue:
            for need in self.files[queue.pop()].needs:
                if need in self.files and need not in found:
                    found.add(need)
                    queue.append(need)
        return found


def _few_names(folder: Path) -> list[str]:
    """What is in a folder, if it can be listed and a message can: names that begin with no dot."""
    try:
        found = sorted(islice((each.name for each in folder.glob("[!.]*")), FEW + 1))
    except OSError:
        return []
    return found if len(found) <= FEW else []
