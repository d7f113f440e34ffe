"""`rehearse`: a pipeline in minutes, undisturbed and with faults, before GPU-days are spent."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.commands.interrupted import when_stopped
from jobs.commands.launching import create
from jobs.commands.options import FILE, Add, add_cluster, add_set
from jobs.commands.subject import backend_of, cluster_of, pipeline_of
from jobs.healing.usual_faults import USUAL
from jobs.program import NAME

if TYPE_CHECKING:
    from jobs.backends.base import Backend
    from jobs.pipeline import Pipeline
    from jobs.store import Run

_EPILOG = f"""\
The pipeline is made small: every step of training takes 30 steps in small batches, on 64 utterances
of your own data, with a checkpoint every 5. `download` runs once, and what is there is not brought
again; `overfit` and `command` are left out, gates too. It runs on the cluster, through its queue,
with the nodes and GPUs that you ask for. Then the step of training that asks for most meets one
fault after the other, at step 18:

  kill                the last rank gets SIGKILL
  preempt             its job is put back into the queue, as a preemption does
  time_limit          the warning that comes before the time limit
  out_of_memory_gpu, out_of_memory_host
  nan_gradient, inf_gradient, nan_data, nan_weight
  rate                the learning rate times 1000, for five steps
  disk_full, missing_file, import_error, port_in_use, bug
  hang                a rank waits for ever, until the time limit

The table says for each: the cause that the run has named, what it did, seconds until a step that is
new was taken, steps taken twice, and whether the last weights are bit for bit those of the
undisturbed run. Exit 1 where something was not survived that should be. All files lie in
$TRAINYARD_RUNS/rehearsal-TIME-HEX, each run in a folder of its own; your runs are not touched.

example: {NAME} rehearse jobs/pipelines/demo.yaml --faults kill,nan_data
"""


def add(add_command: Add) -> None:
    """The command and its options."""
    about = "run a pipeline in minutes, once undisturbed and once with each of some faults"
    parser = add_command("rehearse", about, _EPILOG)
    parser.add_argument("file", metavar="FILE", help=FILE)
    add_cluster(parser)
    add_set(parser)
    parser.add_argument(
        "--faults",
        default=USUAL,
        metavar="LIST",
        help=f"which, with commas; default: {USUAL.replace(',', ', ')}, as far as there is a queue",
    )
    parser.add_argument("--json", action="store_true", help="the table as data")
    parser.set_defaults(act=rehearse)


def rehearse(given: argparse.Namespace) -> int:
    """Run all of it and print the table; 1 where something was not survived that should be."""
    from jobs import rehearse
    from jobs.healing.rehearsal import planned, target
    from jobs.printing import print_json
    from jobs.scheduling.submit import submit_pending
    from jobs.store import RunStore

    (pipeline, document), cluster = pipeline_of(given), cluster_of(given)
    store = RunStore()
    store = RunStore(store.root / store.new_name("rehearsal"))
    store.root.mkdir(mode=0o700, parents=True)

    def launch(
        small: "Pipeline", name: str, prepare: "Callable[[Run], None]"
    ) -> "tuple[Run, Backend]":
        run = create(small, document.text, cluster, store, name, overrides=given.set)
        prepare(run)
        backend = backend_of(run)
        with run.lock():
            submit_pending(run, backend)
        return run, backend

    faults = planned(given.faults, target(pipeline), cluster.backend == "slurm")
    rehearse.tell(f"rehearsal of {pipeline.name} on {cluster.name}: {store.root}")
    stopped = f"stopped; what is in the queue stays there: {NAME} cancel {store.root}/RUN"
    with when_stopped(stopped):
        rows = rehearse.rehearse(pipeline, faults, store.root, launch)
    if given.json:
        print_json([row._asdict() for row in rows])
    else:
        print(rehearse.table(rows))
    return int(not all(row.as_expected for row in rows))
