"""A rehearsal, decided: a pipeline made small, the faults for it, and what came of each.

`jobs.rehearse` carries it out. What a rehearsal does with each kind stands in `_DONE`, and is said
before anything runs.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from jobs.errors import UserError, nearest
from jobs.healing.faults import FATAL, FAULTS
from jobs.healing.remedies import EVENT, changes_of, in_words
from jobs.healing.usual_faults import USUAL
from jobs.pipeline import Fault, Pipeline, Step
from jobs.reading.paths import walk
from jobs.reading.references import references
from jobs.step_folder import StepDir
from lact_asr.utils.files import number

STEPS = 30  # of each training
SAVED_EVERY = 5
AT = 18  # the fault comes after a checkpoint, and not right after it: some work is lost
UTTERANCES = 64  # of each manifest
MINUTES = 20  # the longest time limit
_EVERYWHERE = ("time_limit",)  # a warning that every process of a job gets
_OF_QUEUES = ("preempt", "time_limit", "hang")
_LONGER = {"rate": 5}  # a single step at a thousand times the rate may be survived by luck
_OF_EVENT = {"unreadable": "bad_data", "quarantined": "bad_data"}
_DEEDS = {
    "unreadable": "left the utterance out",
    "quarantined": "left the utterance out",
    "step_retried": "took the step again",
    "step_dropped": "dropped the step",
}
_SIGNALS = {"SIGUSR2": "time_limit", "SIGTERM": "preempted"}
_ROUNDING = 1e-2  # of weights; a few steps of AdamW carry a last bit that far
_MANIFESTS = ("train", "dev", "manifest")
_LEFT_OUT = {
    "overfit": "left out: to learn by heart takes longer than a rehearsal",
    "command": "left out: nobody knows what a program touches",
}
_DONE = {
    "download": f"as it is, once; its manifests are cut to {UTTERANCES} utterances",
    "training": f"{STEPS} steps, small batches, a checkpoint every {SAVED_EVERY}",
    "other": f"as it is, on at most {UTTERANCES} utterances",
}
_SMALLEST = {  # settings of `training`, as far as a kind has them, and the largest value of each
    "valid_every": STEPS // 2,
    "checkpoint_every": SAVED_EVERY,
    "log_every": 1,
    "accumulate": 1,
    "samples": 1,
    "batch_tokens": 512,
    "batch_utterances": 2,
}


class Small(NamedTuple):
    """A pipeline made small, and a sentence on what became of each step."""

    pipeline: Pipeline
    done: dict[str, str]


class Came(NamedTuple):
    """What came of one fault."""

    fault: str
    injected: str  # "step 18, rank 0"; empty where it was never put in
    cause: str  # as the run has named it; empty where it named none
    did: str  # what the run did about it
    ended: str  # the state of the step
    seconds: float | None  # from the fault to the first step that was new; None: there was none
    lost: int | None  # steps taken twice
    weights: str  # "identical", or why not
    as_expected: bool  # it was put in, and the run has survived what a run should


def shrink(pipeline: Pipeline, few: Callable[[Path], Path]) -> Small:
    """The pipeline in minutes; `few` makes a small manifest of one."""
    kept, done = _keep(pipeline.steps)
    names = {step.name for step in kept}
    steps = []
    for step in kept:
        settings, word = _smaller(step, few)
        done[step.name] = _DONE[word]
        resources = step.resources
        if step.kind != "download":
            shorter = {"time": min(resources.time, MINUTES)}
            resources = resources.model_copy(update=shorter)
        changed = {"settings": settings, "resources": resources, "gate": {}, "faults": ()}
        needs = tuple(need for need in step.needs if need in names)
        steps.append(step.model_copy(update={**changed, "needs": needs}))
    return Small(pipeline.model_copy(update={"steps": tuple(steps)}), done)


def trains(step: Step) -> bool:
    """Whether faults can be put into a step."""
    return "training" in step.settings


def _keep(steps: Sequence[Step]) -> tuple[list[Step], dict[str, str]]:
    """The steps that are rehearsed, and why each of the others is not."""
    kept, gone = [], dict[str, str]()
    for step in steps:
        missing = [name for name in _asks(step) if name in gone]
        if step.kind in _LEFT_OUT:
            gone[step.name] = _LEFT_OUT[step.kind]
        elif missing:
            gone[step.name] = f"left out: it uses what {missing[0]} would have found"
        else:
            kept.append(step)
    return kept, gone


def _asks(step: Step) -> Iterator[str]:
    """The steps whose results the settings of a step refer to."""
    for _, value in walk(step.settings):
        if isinstance(value, str):
            yield from (reference.split(".")[0] for reference in references(value))


def _smaller(step: Step, few: Callable[[Path], Path]) -> tuple[dict[str, Any], str]:
    """The settings of a step for minutes, and which sentence of `_DONE` tells it."""
    if step.kind == "download":
        return step.settings, "download"
    settings = dict(step.settings)
    for key in _MANIFESTS:
        value = settings.get(key)
        if value is not None and "${" not in str(value):
            settings[key] = few(Path(value))
    if not trains(step):
        return settings, "other"
    if settings.get("vocabulary") == "bpe":
        settings |= {"vocabulary": "characters"}  # so few texts have too few pieces
    settings["training"] = _short_training(settings["training"])
    return settings, "training"


def _short_training(given: Mapping[str, Any]) -> dict[str, Any]:
    limits = {
        name: most if given[name] == "auto" else min(given[name], most)
        for name, most in _SMALLEST.items()
        if given.get(name) is not None
    }
    limits |= {"max_steps": min(given["max_steps"] or STEPS, STEPS), "epochs": None}
    if given.get("batch_seconds"):  # the smallest that holds the longest utterance
        limits["batch_seconds"] = min(given["batch_seconds"], given["max_duration"])
    optim = {**given["optim"], "warmup_steps": min(given["optim"]["warmup_steps"], STEPS // 5)}
    return {**given, **limits, "optim": optim}


def target(pipeline: Pipeline) -> Step:
    """The step that asks for most: faults are put into this one. UserError where none trains."""

    def cost(step: Step) -> float:
        return step.resources.time * step.resources.world_size

    found = [step for step in pipeline.steps if trains(step)]
    if not found:
        raise UserError(f"{pipeline.name} has no step of training to rehearse")
    return max(found, key=cost)


def planned(words: str, step: Step, queue: bool) -> list[Fault]:
    """The faults of a list such as `kill,nan_data` for a step; UserError for one there is not, and
    where there is no queue for one that needs it. The usual ones are those that there can be.
    """
    names = [word.strip() for word in words.split(",") if word.strip()]
    mistakes = [f"--faults {name}: {nearest(name, FAULTS)}" for name in names if name not in FAULTS]
    if not queue and words == USUAL:
        names = [name for name in names if name not in _OF_QUEUES]
    elif not queue:
        mistakes += [
            f"--faults {name}: this machine has no queue and no time limits: name a --cluster"
            for name in names
            if name in _OF_QUEUES
        ]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return [_fault(name, step.resources.world_size) for name in names]


def _fault(name: str, world_size: int) -> Fault:
    """A fault for a rehearsal; of several ranks it is the last that meets it, not the first."""
    rank = None if name in _EVERYWHERE else world_size - 1
    facts = {"fault": name, "at_step": AT, "rank": rank, "times": _LONGER.get(name, 1)}
    return Fault.model_validate(facts)


def judge(fault: str, quiet: StepDir, step: StepDir, state: str) -> Came:
    """What came of a fault: from the files of the step, and of the same step undisturbed."""
    lines = step.faults()
    first = lines[0] if lines else None
    return Came(
        fault=fault,
        injected=f"step {first['step']}, rank {first['rank']}" if first else "",
        cause=", ".join(dict.fromkeys(_causes(step))),
        did=", ".join(dict.fromkeys(_deeds(step))) or "nothing",
        ended=state,
        seconds=recovery(step),
        lost=_taken_twice(step) if step.result() else None,
        weights=_compare(quiet, step),
        as_expected=bool(first) and (state == "succeeded") == (fault not in FATAL),
    )


def _causes(step: StepDir) -> Iterator[str]:
    """The causes that the run has named, oldest first.

    What a rank says of its own end counts where nobody has judged it: it may have died of the death
    of another one.
    """
    said = ""
    for event in step.events():
        if event["event"] == "failed":
            said = event["cause"]
        elif event["event"] == EVENT:
            yield event["cause"]
            said = ""
        elif "host" in event and said:
            yield said
        elif event["event"] == "interrupted":
            yield _SIGNALS.get(event["signal"], event["signal"])
        elif event["event"] in _OF_EVENT:
            yield _OF_EVENT[event["event"]]
    if failure := step.failure():
        yield failure["cause"]


def _deeds(step: StepDir) -> Iterator[str]:
    """What the run has done about it, oldest first."""
    for event in step.events():
        if event["event"] in _DEEDS:
            yield _DEEDS[event["event"]]
        elif event["event"] == EVENT:
            yield in_words(changes_of(event)) or "began again in the same job"
        elif event["event"] == "resumed" and "checkpoint" in event:
            yield f"went on from step {event['step']}"
    if failure := step.failure():
        yield f"gave up: {failure['message'].splitlines()[0][:100]}"


def recovery(step: StepDir) -> float | None:
    """Seconds from a fault to the end of the next step of training that is new: of several faults
    the longest. None where nothing new was done after one.
    """
    faults = [number(line.get("time")) or 0.0 for line in step.faults()]
    times = [_recovery(step, at, end) for at, end in zip(faults, [*faults[1:], inf], strict=False)]
    return max((each for each in times if each is not None), default=None)


def _recovery(step: StepDir, fault: float, end: float) -> float | None:
    """The same for one fault; what happens from `end` on belongs to the next."""
    starts = [each["time"] for each in step.events() if "host" in each]
    begun = next((at for at in starts if fault < at < end), fault)  # of a process that came after
    taken = [(line["time"], line["step"]) for line in step.metrics() if "learning_rate" in line]
    reached = max((number for at, number in taken if at <= fault), default=0)
    ends = (at for at, number in taken if begun < at < end and number > reached)
    return next((round(at - fault, 1) for at in ends), None)


def _taken_twice(step: StepDir) -> int:
    steps = [line["step"] for line in step.metrics() if "learning_rate" in line]
    return len(steps) - len(set(steps))


def _compare(quiet: StepDir, step: StepDir) -> str:
    """Whether the last weights are bit for bit those of the undisturbed run, else why not."""
    if step.result() is None:
        return "none: it has not ended well"
    if _digest(quiet) == _digest(step):
        return "identical"
    dropped = [event for event in step.events() if event["event"] == "step_dropped"]
    left_out = [event for event in step.events() if event["event"] in _OF_EVENT]
    changed = [text for event in step.events() if (text := in_words(changes_of(event)))]
    if changed:
        return f"other settings: {'; '.join(changed)}"
    if left_out:
        return f"utterances left out: {len(left_out)}"
    if dropped:
        return f"{len(dropped)} steps dropped"
    return _unexplained(quiet, step)


def _unexplained(quiet: StepDir, step: StepDir) -> str:
    """How far weights differ although nothing on record says why.

    On other nodes three ranks or more may add up their gradients in another order, and round
    otherwise.
    """
    from safetensors.numpy import load_file

    files = [_newest(each) for each in (quiet, step)]
    if not all(files):
        return "none to compare"
    one, other = (load_file(file) for file in files if file)
    if one.keys() != other.keys():
        return "DIFFERENT: of another model"
    largest = max(float(abs(one[name] - other[name]).max()) for name in one if one[name].size)
    resources = step.job()["resources"]
    if resources["nodes"] * max(1, resources["gpus"]) > 2 and largest < _ROUNDING:
        return f"rounded otherwise, as the sums of many ranks are: by {largest:.1g} at most"
    return f"DIFFERENT by {largest:.1g}, and nothing on record says why"


def _digest(step: StepDir) -> str:
    """Of the weights of the newest checkpoint."""
    newest = _newest(step)
    return hashlib.sha256(newest.read_bytes()).hexdigest() if newest else ""


def _newest(step: StepDir) -> Path | None:
    found = sorted((step.path / "checkpoints").glob("[0-9]*/model.safetensors"))
    return found[-1] if found else None
