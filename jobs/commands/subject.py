"""What a command is about: the pipeline, the cluster or the run that its arguments name."""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.errors import ClusterError, UserError, nearest

if TYPE_CHECKING:
    from jobs.backends.base import Backend
    from jobs.cluster import Cluster
    from jobs.pipeline import Pipeline
    from jobs.reading.yaml12 import Document
    from jobs.store import Run


def pipeline_of(given: argparse.Namespace) -> "tuple[Pipeline, Document]":
    """The pipeline that is named, and what its file says; UserError with every mistake in it."""
    from jobs.reading.pipeline_file import overlaid, pipeline_in
    from jobs.reading.shipped import find_pipeline

    file = find_pipeline(given.file)
    document = overlaid(file, given.set)
    return only(pipeline_in(document, file), getattr(given, "only", None)), document


def only(pipeline: "Pipeline", names: Sequence[str] | None) -> "Pipeline":
    """Some steps of a pipeline, with all that they need; all steps where none is named."""
    from jobs.scheduling.plan import restrict

    if not names:
        return pipeline
    known = {step.name: step.needs for step in pipeline.steps}
    unknown = [f"--only {name}: {nearest(name, known)}" for name in names if name not in known]
    if unknown:
        raise UserError("\n".join(unknown))
    wanted = restrict(known, names)
    steps = tuple(step for step in pipeline.steps if step.name in wanted)
    return pipeline.model_copy(update={"steps": steps})


def cluster_of(given: argparse.Namespace) -> "Cluster":
    """The cluster that is named, or the one of this machine."""
    from jobs.cluster import load_cluster

    return load_cluster(given.cluster)


def preflight(pipeline: "Pipeline", cluster: "Cluster") -> None:
    """ClusterError with everything the cluster would refuse, before anything is submitted."""
    from jobs.backends.slurm.preflight import problems
    from jobs.store import RunStore

    found = problems(pipeline, cluster, RunStore().root)
    if found:
        raise ClusterError("\n".join(found))


def run_of(given: argparse.Namespace) -> "tuple[Run, Backend]":
    """The run that is named, and the backend of its cluster."""
    from jobs.store import RunStore

    run = RunStore().find(given.run)
    return run, backend_of(run)


def backend_of(run: "Run") -> "Backend":
    """The backend of the cluster that the run was submitted to; anywhere else it refuses."""
    info = run.info()
    return backend(info["cluster"], info.get("scheduler", ""), info["user"])


def backend(cluster: "Mapping[str, Any]", scheduler: str = "", user: str = "") -> "Backend":
    """The backend of a cluster, as its file describes it."""
    if cluster["backend"] == "slurm":
        from jobs.backends.slurm.backend import SlurmBackend

        return SlurmBackend(cluster, scheduler, user)
    from jobs.backends.local import LocalBackend

    return LocalBackend(scheduler)
