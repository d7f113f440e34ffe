"""A new run: its folder, the code it will run, one job.json per step. Nothing is submitted yet."""

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.cluster import Cluster
from jobs.errors import UserError
from jobs.pipeline import Pipeline
from jobs.snapshot import copy_code, provenance
from jobs.store import Run, RunStore, user

_PARALLEL = 4  # files written at once


def create(
    store: RunStore,
    pipeline: Pipeline,
    cluster: Cluster,
    given: str,
    name: str,
    scheduler: Callable[[], str] = str,
    **facts: Any,
) -> Run:
    """A new run with its snapshot and one job.json per step; nothing is submitted yet.

    `scheduler` tells which Slurm, or which machine, the run's jobs will be known to, or why it
    would refuse them (UserError); `facts` are further entries of run.json. UserError where the disk
    does not take it; what was written of a run that does not come to be is removed.
    """
    first = not store.root.exists()
    try:
        run = store.create(name)
        try:
            _fill(run, pipeline, cluster, given, scheduler, facts)
        except BaseException:  # Ctrl-C, too
            _remove(run, store.root if first else None)
            raise
    except OSError as error:
        raise UserError(
            f"{store.root / name} cannot be created: {error.strerror}: make room there, or name "
            "another folder (TRAINYARD_RUNS, or --out of render)"
        ) from None
    except UnicodeEncodeError:  # nor could run.json be read by others
        raise UserError(
            f"{store.root / name} cannot be created from {Path.cwd()}: a name of these folders is "
            "not UTF-8: rename it, or work in another one"
        ) from None
    return run


def _remove(run: Run, root: Path | None) -> None:
    """Remove what was written of a run, and the folder of runs that was made for it."""
    shutil.rmtree(run.path, ignore_errors=True)
    if root:
        with contextlib.suppress(OSError):  # another launcher's run is in it
            root.rmdir()


def _fill(
    run: Run,
    pipeline: Pipeline,
    cluster: Cluster,
    given: str,
    scheduler: Callable[[], str],
    facts: Mapping[str, Any],
) -> None:
    """Everything that a run has before its first job; run.json, which makes it one, last."""
    steps = [step.model_dump(mode="json") for step in pipeline.steps]
    with ThreadPoolExecutor(_PARALLEL) as pool:  # they wait for the disk, for git and for Slurm
        code = run.next_code()
        home, origin = pool.submit(scheduler), pool.submit(provenance, run.dirty(code))
        written = [pool.submit(run.step(step["name"]).write_job, step) for step in steps]
        written.append(pool.submit(run.write_given, given))
        copy_code(code)
        for future in written:
            future.result()
    known = {**_present(run, pipeline, cluster), "scheduler": home.result(), **origin.result()}
    run.write_info({**known, **facts, "steps": steps})


def renew_code(run: Run) -> None:
    """Let the next jobs of a run use our code as it is now; what the earlier ones use, and of which
    commit that is, stays on record.
    """
    earlier, code = run.codes()[-1], run.next_code()
    origin = provenance(run.dirty(code))
    copy_code(code)
    info = run.info()
    before = {"folder": earlier.name, **{key: info.get(key) for key in origin}}
    run.write_info({**info, **origin, "earlier_code": [*info.get("earlier_code", []), before]})


def _present(run: Run, pipeline: Pipeline, cluster: Cluster) -> dict[str, Any]:
    """What is known of a run without asking anybody: whose it is, when, where and for what."""
    return {
        "name": run.name,
        "pipeline": pipeline.name,
        "description": pipeline.description,
        "cluster": cluster.model_dump(mode="json"),
        "created": time.time(),
        "user": user(),
        "host": socket.gethostname(),
        "cwd": str(Path.cwd()),
    }
