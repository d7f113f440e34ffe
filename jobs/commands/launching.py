"""A new run: created, submitted, and told about. Several commands make one."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.commands.interrupted import submitting, watching
from jobs.commands.subject import backend, backend_of, preflight
from jobs.program import NAME

if TYPE_CHECKING:
    from jobs.backends.base import Backend
    from jobs.cluster import Cluster
    from jobs.pipeline import Pipeline
    from jobs.scheduling.plan import Submit
    from jobs.store import Run, RunStore


def launch(
    pipeline: "Pipeline", text: str, cluster: "Cluster", *, wait: bool, **facts: Any
) -> "tuple[Run, int]":
    """Submit a new run; the run and the exit code. `facts` go into run.json."""
    from jobs.scheduling.submit import submit_patiently
    from jobs.store import RunStore

    store = RunStore()
    run = create(pipeline, text, cluster, store, store.new_name(pipeline.name), **facts)
    print(run.path, flush=True)
    backend = backend_of(run)
    with submitting(run):
        todo = submit_patiently(run, backend)
    return run, report(run, backend, todo, wait)


def create(
    pipeline: "Pipeline", text: str, cluster: "Cluster", store: "RunStore", name: str, **facts: Any
) -> "Run":
    """A new run, nothing of which is submitted yet, on a cluster that would take it."""
    from concurrent.futures import ThreadPoolExecutor

    from jobs.scheduling.create import create

    if cluster.backend == "slurm":
        from jobs.backends.slurm.backend import load_early

        load_early()
    asked = backend(cluster.model_dump(mode="json"))
    with ThreadPoolExecutor(1) as pool:  # the answers come while the run's files are written
        checked = pool.submit(_ask_first, pipeline, cluster, asked)
        return create(store, pipeline, cluster, text, name, checked.result, **facts)


def _ask_first(pipeline: "Pipeline", cluster: "Cluster", backend: "Backend") -> str:
    """Which scheduler answers, as soon as it does, and what it would refuse (ClusterError)."""
    from jobs.scheduling.patience import patiently

    home = patiently(backend.identity)
    preflight(pipeline, cluster)
    return home


def report(run: "Run", backend: "Backend", todo: "Sequence[Submit]", wait: bool) -> int:
    """Say what was submitted, and stay until it has ended where asked for; the exit code."""
    from jobs.healing.nodes import explain, nodes_to_exclude

    for submit in todo:
        latest = run.step(submit.step).latest()
        print(f"  {submit.step}: job {latest.job.split('.')[0] if latest else ''}{_behind(submit)}")
    if rest := run.following():
        print(
            f"  {', '.join(rest.steps)}: Slurm takes no more jobs of yours for now; they follow by "
            "themselves as jobs of this run end"
        )
    elif not todo:
        print("nothing to submit: every step has succeeded or is under way")
    if excluded := nodes_to_exclude(run.path.parent, run.info().get("scheduler", "")):
        print(f"  {explain(excluded)}")
    sys.stdout.flush()
    if not wait:
        print(f"look: {NAME} status {run.name}\n      {NAME} logs {run.name}/STEP -f")
        return 0
    from jobs.scheduling.observe import Queue
    from jobs.status import exit_code, watch

    with watching(run):
        return exit_code(watch(run, Queue(backend, backend.every)))


def dry_run(pipeline: "Pipeline", cluster: "Cluster") -> int:
    """Show what would be submitted."""
    from jobs.scheduling.plan import State, plan

    needs = {step.name: step.needs for step in pipeline.steps}
    print(f"{pipeline.name} on {cluster.name}: nothing is submitted")
    for submit in plan(needs, {name: State.NEW for name in needs}):
        step = pipeline.step(submit.step)
        wants = step.resources.model_dump(mode="json")
        amounts = " ".join(f"{name}={value}" for name, value in wants.items())
        print(f"  {step.name} ({step.kind}) {amounts}{_behind(submit)}")
    return 0


def _behind(submit: "Submit") -> str:
    return f" after {', '.join(submit.after)}" if submit.after else ""
