"""Carry out a rehearsal: the small pipeline undisturbed, then with one fault after the other.

Everything lies in one folder, rehearsal-TIME-HEX among the runs, and is its owner's alone: the few
utterances, the run `data` that brings them, `undisturbed`, and a run for each fault. What has
succeeded undisturbed is not done again for a fault: its result is taken over. What is already in
the data folder or in other runs is read, and never written.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import status
from jobs.backends.base import Backend
from jobs.errors import ClusterError
from jobs.healing.rehearsal import UTTERANCES, Came, judge, shrink, target
from jobs.pipeline import Fault, Pipeline, Step
from jobs.scheduling.observe import Queue
from jobs.scheduling.plan import ACTIVE, State, restrict, with_all_behind
from jobs.store import Run

_POLL = 1.0  # seconds


# submits a pipeline as a run of that name, once it is prepared
Launch = Callable[[Pipeline, str, Callable[[Run], None]], tuple[Run, Backend]]


def rehearse(
    pipeline: Pipeline, faults: Sequence[Fault], folder: Path, launch: Launch
) -> list[Came]:
    """Run the small pipeline, then each fault; ClusterError where it does not even run undisturbed.

    The small manifests go into `folder`; what happens is told on standard error.
    """
    small = shrink(pipeline, lambda manifest: cut(manifest, folder / "few"))
    for name, done in small.done.items():
        tell(f"  {name}: {done}")
    data = _results_of_downloads(small.pipeline, folder, launch)
    quiet, ended = _run(small.pipeline, "undisturbed", launch, data)
    if bad := [name for name, state in ended.items() if state is not State.SUCCEEDED]:
        raise ClusterError(
            f"undisturbed, {', '.join(bad)} did not succeed: look there first: {quiet.path}"
        )
    step = target(small.pipeline)
    results = {name: quiet.step(name).result() or {} for name in quiet.names()}
    return [_disturb(small.pipeline, step, fault, quiet, results, launch) for fault in faults]


def _disturb(
    pipeline: Pipeline,
    step: Step,
    fault: Fault,
    quiet: Run,
    results: Mapping[str, Mapping[str, Any]],
    launch: Launch,
) -> Came:
    """One fault: the step that meets it, and what is behind it; the rest has been done."""
    tell(f"{fault.fault}: into {step.name}, at step {fault.at_step}")
    needs = {each.name: each.needs for each in pipeline.steps}
    behind = with_all_behind([step.name], needs)
    wanted = restrict(needs, behind)
    steps = [each for each in pipeline.steps if each.name in wanted]
    steps = [
        each.model_copy(update={"faults": (fault,)}) if each.name == step.name else each
        for each in steps
    ]
    there = {name: results[name] for name in wanted if name not in behind}
    small = pipeline.model_copy(update={"steps": tuple(steps)})
    run, ended = _run(small, fault.fault, launch, there)
    return judge(fault.fault, quiet.step(step.name), run.step(step.name), ended[step.name].value)


def _results_of_downloads(
    pipeline: Pipeline, folder: Path, launch: Launch
) -> dict[str, Mapping[str, Any]]:
    """The results of the steps that bring data, which name a few utterances of each part."""
    needs = {step.name: step.needs for step in pipeline.steps}
    wanted = restrict(needs, [step.name for step in pipeline.steps if step.kind == "download"])
    steps = tuple(step for step in pipeline.steps if step.name in wanted)
    if not steps:
        return {}
    run, ended = _run(pipeline.model_copy(update={"steps": steps}), "data", launch, {})
    if bad := [name for name, state in ended.items() if state is not State.SUCCEEDED]:
        raise ClusterError(f"{', '.join(bad)} brought no data: look there first: {run.path}")
    return {
        step.name: _with_few(run.step(step.name).result() or {}, folder / "few") for step in steps
    }


def _with_few(value: Any, folder: Path) -> Any:
    """A result in which every manifest is a small one."""
    if isinstance(value, dict):
        return {key: _with_few(inner, folder) for key, inner in value.items()}
    if isinstance(value, str) and value.endswith(".jsonl"):
        return str(cut(Path(value), folder))
    return value


def cut(manifest: Path, folder: Path) -> Path:
    """A manifest of a few utterances, of all lengths, the longest among them."""
    from lact_asr.data.manifest import read_manifest, write_manifest

    mark = hashlib.sha256(str(manifest).encode()).hexdigest()[:8]
    small = folder / f"{manifest.stem}-{mark}.jsonl"
    if not small.exists():
        ordered = sorted(read_manifest(manifest), key=lambda each: (-each.duration, each.id))
        write_manifest(small, ordered[:: max(1, -(-len(ordered) // UTTERANCES))])
    return small


def _run(
    pipeline: Pipeline, name: str, launch: Launch, there: Mapping[str, Mapping[str, Any]]
) -> tuple[Run, dict[str, State]]:
    """Submit a run, some results of which are there, and wait; the state of each step."""

    def prepare(run: Run) -> None:
        for step, result in there.items():
            run.step(step).write_result(result)

    run, backend = launch(pipeline, name, prepare)
    queue, known = Queue(backend, backend.every), dict[str, str]()
    while True:
        seen = status.describe(run, queue)
        states = {step["step"]: State(step["state"]) for step in seen["steps"]}
        for step in seen["steps"]:
            line = f"  {name}/{step['step']} {step['state']}  {status.summary(step)}".rstrip()
            if step["step"] not in there and known.get(step["step"]) != step["state"]:
                known[step["step"]] = step["state"]
                tell(f"{time.strftime('%H:%M:%S')}{line}")
        if not any(state in ACTIVE for state in states.values()):
            return run, states
        time.sleep(_POLL)


def tell(line: str) -> None:
    """Progress is no part of the answer."""
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Came]) -> str:
    """The rows in columns, below each what the run did."""
    heads = ("fault", "cause named", "ended", "seconds", "lost", "weights")
    cells = [heads, *map(_cells, rows)]
    widths = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
    lines = [
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    deeds = [f"\n    {row.did}" for row in rows]
    return "\n".join(map("".join, zip(lines, ["", *deeds], strict=True)))


def _cells(row: Came) -> tuple[str, ...]:
    seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
    lost = "" if row.lost is None else str(row.lost)
    cause = row.cause or ("none" if row.injected else "never put in")
    return row.fault, cause, row.ended, seconds, lost, row.weights
