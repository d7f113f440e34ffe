"""The words of the command line: commands, options, and the help that teaches them."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from jobs.program import NAME

_Add = Callable[..., argparse.ArgumentParser]

_ABOUT = f"""\
Training pipelines on Slurm, or on this machine: one YAML file names the steps.

  {NAME} check FILE                 every mistake in a pipeline file, at once
  {NAME} run FILE --cluster NAME    submit all steps; --wait stays until they have ended
  {NAME} status                     the newest run: state, progress, why a step failed
  {NAME} logs RUN/STEP -f           follow a step's log
  {NAME} resume RUN                 submit what is left after a failure is mended

FILE is a path, or the name of a pipeline that comes with trainyard, such as demo.
RUN is a folder, a run's name, a unique beginning of it, or nothing for the newest. Runs are kept
in $TRAINYARD_RUNS (default ./runs). Where Slurm is not installed, steps run on this machine.
"""

_REHEARSAL = f"""\
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
USUAL = "kill,preempt,time_limit,out_of_memory_gpu,nan_gradient,nan_data,rate,disk_full"
_FILE = "pipeline file, or the name of one that comes with trainyard: demo"


def parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    top = argparse.ArgumentParser(
        prog=NAME, description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, about: str, epilog: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _add_for_pipelines(add)
    _add_for_runs(add)
    _add_for_checkpoints(add)
    _add_for_jobs(commands)
    return top


def _add_for_pipelines(add: _Add) -> None:
    """Commands about a pipeline file and what it may say."""
    run = add(
        "run",
        "submit a pipeline as a chain of jobs",
        f"example: {NAME} run demo --set train.training.max_steps=300 --wait",
    )
    run.add_argument("file", metavar="FILE", help=_FILE)
    _add_cluster(run)
    _add_set(run)
    run.add_argument(
        "--only", action="append", metavar="STEP", help="this step and what it needs (repeatable)"
    )
    run.add_argument("--dry-run", action="store_true", help="show what would be submitted")
    run.add_argument("--wait", action="store_true", help="stay until every step has ended")

    check = add("check", "report every mistake in a pipeline file; nothing is created")
    check.add_argument("file", metavar="FILE", help=_FILE)
    _add_cluster(check, "also ask this cluster: partitions, limits, accounts, paths, disk")
    _add_set(check)
    check.add_argument(
        "--effective",
        action="store_true",
        help="print the recipe in force of every step of training: each setting with its source, "
        "the model's size, GPU memory (reckoned), steps an epoch",
    )

    kinds = add("kinds", "what steps can do, with every setting, its default, unit and meaning")
    kinds.add_argument("name", nargs="?", metavar="NAME", help="one kind, in full")
    kinds.add_argument("--preset", default="", metavar="P", help="with what this preset sets")

    add("schema", "print the JSON Schema of pipeline files, for editors")

    render = add("render", "write standalone sbatch scripts and submit_all.sh")
    render.add_argument("file", metavar="FILE", help=_FILE)
    render.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    _add_cluster(render)
    _add_set(render)
    _add_rehearse(add)


def _add_for_runs(add: _Add) -> None:
    """Commands about a run."""
    status = add("status", "the state of every step; exit 1 where one has ended without success")
    _add_run(status)
    status.add_argument("--watch", action="store_true", help="redraw until nothing is active")
    status.add_argument("--json", action="store_true", help="the same as data")

    logs = add("logs", "print or follow the log of a step")
    logs.add_argument("step", metavar="RUN/STEP", help="the step; /STEP means the newest run")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the step ends")
    logs.add_argument("--grep", metavar="RE", help="only lines that match this expression")
    logs.add_argument("--rank", type=_amount, default=0, metavar="N", help="process (default 0)")
    logs.add_argument(
        "--lines", type=_amount, default=100, metavar="N", help="how many (default 100)"
    )

    cancel = add("cancel", "cancel a run, or a step and all behind it")
    cancel.add_argument("run", metavar="RUN[/STEP]", nargs="?", help="named always: no default")
    _add_resume(add)
    _add_ledger(add)


def _add_ledger(add: _Add) -> None:
    ledger = add(
        "ledger",
        "where every second of a run went, and what to ask for next time",
        "queued      could run, and was in the queue; not part of what was allocated\n"
        "starting    Python, data, model: until the first training step begins\n"
        "useful      training steps; in a step of another kind all work that led to its result\n"
        "replayed    training steps that an earlier start had computed and not saved\n"
        "stalled     waiting for data\n"
        "validating  on the dev data\n"
        "saving      standing still for a checkpoint\n"
        "idle        allocated, and nothing came of it: killed since the last line of metrics, "
        "hung, leaving\n"
        "unknown     not on record, or not yet\n"
        "ETTR        useful / allocated\n\n"
        "Everything comes from the run's files; Slurm's accounts are asked once, for when jobs "
        "began\nand ended and for memory. A run that goes on is shown as it is.\n\n"
        f"example: {NAME} ledger RUN --json",
    )
    _add_run(ledger)
    ledger.add_argument("--json", action="store_true", help="the same as data")


def _add_resume(add: _Add) -> None:
    resume = add(
        "resume",
        "submit what is left of a run: failed, cancelled and lost steps",
        "A failed step goes on from its checkpoint. What has succeeded is kept, unless it is "
        "touched by\na changed setting, or behind a step that is; what a step had done before it "
        "is done anew\nstays in its folder as earlier.N.\n\n"
        f"example: {NAME} resume RUN --set train.resources.memory_gb=64\n"
        f"         {NAME} resume RUN changed.yaml --redo evaluate",
    )
    _add_run(resume)
    resume.add_argument(
        "file", nargs="?", metavar="FILE", help="a pipeline in place of the one it has"
    )
    _add_set(resume)
    resume.add_argument(
        "--redo",
        action="append",
        default=[],
        metavar="STEP",
        help="do this step and what is behind it anew, from the beginning (repeatable)",
    )
    resume.add_argument("--fresh-code", action="store_true", help="with the code as it is now")
    resume.add_argument("--wait", action="store_true", help="stay until every step has ended")


def _add_rehearse(add: _Add) -> None:
    rehearse = add(
        "rehearse",
        "run a pipeline in minutes, once undisturbed and once with each of some faults",
        _REHEARSAL,
    )
    rehearse.add_argument("file", metavar="FILE", help=_FILE)
    _add_cluster(rehearse)
    _add_set(rehearse)
    rehearse.add_argument(
        "--faults",
        default=USUAL,
        metavar="LIST",
        help=f"which, with commas; default: {USUAL.replace(',', ', ')}, as far as there is a queue",
    )
    rehearse.add_argument("--json", action="store_true", help="the table as data")


def _add_for_jobs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """What a job calls; people have `resume`."""
    commands.add_parser("follow").add_argument("step", type=Path)
    relay = commands.add_parser("relay")
    relay.add_argument("step", type=Path)
    relay.add_argument("--out-of-memory", metavar="REASON", default="", help="it needs more")


def _add_for_checkpoints(add: _Add) -> None:
    """Commands about a trained model."""
    infer = add(
        "infer",
        "transcribe with a checkpoint, and score where the text is known",
        f"example: {NAME} infer --checkpoint-dir runs/RUN/steps/train a.flac b.flac",
    )
    _add_checkpoint(infer)
    infer.add_argument("--num-samples", type=int, default=0, metavar="N", help="0: all of them")
    _add_one_step(infer, "evaluate")

    diagnose = add(
        "diagnose",
        "walk one batch through a checkpoint and name the first module with a wrong value",
        f"example: {NAME} diagnose --checkpoint-dir runs/RUN/steps/train --manifest dev.jsonl",
    )
    _add_checkpoint(diagnose)
    diagnose.add_argument(
        "--utterances", type=int, default=8, metavar="N", help="in the batch (default 8)"
    )
    diagnose.add_argument(
        "--limit", type=float, default=1e4, metavar="X", help="largest sound value (default 1e4)"
    )
    _add_one_step(diagnose, "diagnose")


def _amount(text: str) -> int:
    """0, 1, 2 ...; one that is too large for a count of lines means all of them."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2 ...")
    return min(int(text[:30]), sys.maxsize)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="default: the newest run")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint-dir", type=Path, required=True, metavar="DIR")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--test-subset", metavar="NAME", help="a subset that a download step made")
    what.add_argument("--manifest", type=Path, metavar="F", help="a manifest (JSON lines)")
    what.add_argument("audio", nargs="*", default=[], type=Path, metavar="AUDIO")


def _add_one_step(parser: argparse.ArgumentParser, kind: str) -> None:
    """Where the step of one command runs, and on how much; a GPU where the cluster has some."""
    _add_cluster(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="path=value",
        help=f"a setting of the kind {kind}, or resources.memory_gb=32, ... (repeatable)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be submitted")
    parser.add_argument("--no-wait", action="store_true", help="submit, and do not wait for it")


def _add_cluster(parser: argparse.ArgumentParser, about: str = "") -> None:
    text = about or "a file in slurm_templates/clusters, or a path; `local` is this machine"
    parser.add_argument("--cluster", metavar="NAME", help=text)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="step.path=value",
        help="override a value of the file (repeatable); the value is YAML",
    )
