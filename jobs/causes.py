"""Why a step ended without its result: a closed list of causes, and what comes of each.

One table for everybody: failure.json names a cause, `status` and `logs` show it, the remedies
answer to it, and docs/when-things-go-wrong.md is written from here.
"""

from typing import NamedTuple


class Cause(NamedTuple):
    """One reason, in words."""

    meaning: str  # one sentence, where the failure itself says no more
    itself: str  # what the run does about it without anybody
    person: str  # what is left for a person, when the run has given up
    retries: int = 0  # how often a step tries again by itself, unless its `remedies` say otherwise


_ON = "`resume RUN` goes on from the newest checkpoint"
_NOTHING = "nothing: it would end the same way"
CAUSES: dict[str, Cause] = {
    "out_of_memory_gpu": Cause(
        "the GPU has too little memory",
        "halves training.batch_seconds and doubles training.accumulate: the audio of a step stays",
        "a smaller model, or a GPU with more memory",
        3,
    ),
    "out_of_memory_host": Cause(
        "it needs more memory than it may take on its node",
        "on Slurm goes on in a job with a third more than it used, twice as much where nobody has "
        "measured that; where no node has more, halves training.batch_seconds and doubles "
        "training.accumulate: the audio of a step stays",
        "`resume RUN --set STEP.resources.memory_gb=N`; `ledger RUN` says how much",
        2,
    ),
    "diverged": Cause(
        "the loss is lost",
        "goes back to the newest checkpoint from before the rise, with half the learning rate and "
        "half the largest gradient norm",
        "a lower learning rate from the start, or another look at the utterances that are named",
        2,
    ),
    "bad_data": Cause(
        "data that cannot be used",
        "leaves single utterances out and names them; more than training.max_unreadable are too "
        "many",
        "mend the files that are named, or leave them out of the manifest",
    ),
    "gate_missed": Cause(
        "the result is not what the gate asks for",
        "`overfit` has a second try at a higher learning rate; a gate on a result is final",
        "look at the result; `resume RUN --redo STEP --set ...` with other settings",
    ),
    "time_limit": Cause(
        "the time limit was reached",
        "saves when it is warned, and goes on from there in a job that it submits behind itself; "
        "where the site does not let it, goes back into the queue",
        f"a longer resources.time where the warning came too late to save; {_ON}",
    ),
    "preempted": Cause(
        "its nodes were taken for other work",
        "saves if it is given the time, waits in the queue, and goes on from there",
        _ON,
    ),
    "node_failed": Cause(
        "its node has failed",
        "is queued again by Slurm, and goes on from the newest checkpoint; a node that has failed "
        "twice within a week gets no new step",
        _ON,
    ),
    "killed": Cause(
        "a process of it was killed from outside",
        "begins again in the same job, from the newest checkpoint, if it has come further since",
        f"look who or what kills processes on that node; {_ON}",
        2,
    ),
    "crashed": Cause(
        "a process of it has crashed in a library",
        "begins again in the same job, from the newest checkpoint, if it has come further since",
        f"the log has the last words of the library; {_ON}",
        2,
    ),
    "port_in_use": Cause(
        "another program has the port on which the ranks meet",
        "begins again a few seconds later, at another port",
        "`resume RUN`: another job id means another port",
        3,
    ),
    "collective_timeout": Cause(
        "a rank has waited too long for the others",
        "begins again in the same job, from the newest checkpoint, if it has come further since",
        "look at the logs of the other ranks: one of them hangs, or its node does; how long is too "
        "long says TRAINYARD_COLLECTIVE_SECONDS in the cluster's `environment` (1800)",
        2,
    ),
    "no_progress": Cause(
        "it has met its time limit several times without getting further",
        _NOTHING,
        "`resume RUN --set STEP.resources.time=...`, or save more often",
    ),
    "slurm_unreachable": Cause(
        "Slurm does not answer",
        "asks again, ever more slowly, after a look for what may have been queued",
        "`resume RUN` when Slurm is back: nothing is submitted twice",
        3,
    ),
    "server_unreachable": Cause(
        "the server of the data does not answer",
        "asks again, ever more slowly, and goes on from the last byte",
        "where compute nodes have no internet, `run FILE --only STEP --cluster local` on a login "
        "node that shares the step's `root`; then `resume RUN`",
    ),
    "not_requeued": Cause(
        "Slurm did not put the job back into the queue",
        "asks again until its time is over",
        _ON,
    ),
    "disk_full": Cause("the disk is full", _NOTHING, f"make room; {_ON}"),
    "disk_error": Cause("the file system fails", _NOTHING, f"tell your administrator; {_ON}"),
    "permission": Cause("the job may not do this", _NOTHING, "give the job the permission"),
    "missing_file": Cause(
        "a file is not there",
        _NOTHING,
        "put it back, or write the right path: `resume RUN --set STEP.setting=PATH`",
    ),
    "import_error": Cause(
        "a Python package is missing or broken on the node",
        _NOTHING,
        "install it where the cluster's `python` looks, or mend `setup` in the cluster file",
    ),
    "settings": Cause(
        "the settings do not hold at run time",
        _NOTHING,
        "`resume RUN --set STEP.setting=VALUE`",
    ),
    "needs_missing": Cause(
        "a step that it needs has not succeeded",
        _NOTHING,
        "`resume RUN` runs first what is missing",
    ),
    "program_failed": Cause(
        "the program has ended badly",
        "nothing, unless `remedies: {program_failed: N}` asks for it",
        "`logs RUN/STEP` has its words; then `resume RUN`",
    ),
    "killed_by_hand": Cause("somebody has cancelled it", "nothing: it was meant", _ON),
    "error": Cause(
        "a fault that has no name",
        _NOTHING,
        "`logs RUN/STEP` has the traceback: please report it",
    ),
}


def told(cause: str) -> str:
    """A cause as a failure has it that says no more: `time_limit: the time limit was reached`."""
    return f"{cause}: {CAUSES[cause].meaning}"


def cause_in(reason: str) -> str:
    """The cause that a reason begins with; empty where it names none."""
    word = reason.partition(":")[0]
    return word if word in CAUSES else ""
