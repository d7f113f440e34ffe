"""`infer` and `diagnose`: a run of one step on a checkpoint."""

import argparse
import json
from pathlib import Path

from jobs.commands.launching import dry_run, launch
from jobs.commands.options import Add, add_cluster, add_dry_run
from jobs.commands.subject import cluster_of
from jobs.program import NAME


def add(add_command: Add) -> None:
    """Both commands and their options."""
    infer = add_command(
        "infer",
        "transcribe with a checkpoint, and score where the text is known",
        f"example: {NAME} infer --checkpoint-dir runs/RUN/steps/train a.flac b.flac",
    )
    _add_checkpoint(infer)
    infer.add_argument("--num-samples", type=int, default=0, metavar="N", help="0: all of them")
    _add_step(infer, "evaluate")

    diagnose = add_command(
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
    _add_step(diagnose, "diagnose")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, and what it is to hear."""
    parser.add_argument("--checkpoint-dir", type=Path, required=True, metavar="DIR")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--test-subset", metavar="NAME", help="a subset that a download step made")
    what.add_argument("--manifest", type=Path, metavar="F", help="a manifest (JSON lines)")
    what.add_argument("audio", nargs="*", default=[], type=Path, metavar="AUDIO")


def _add_step(parser: argparse.ArgumentParser, kind: str) -> None:
    """Where the step runs, and on how much; a GPU where the cluster has some."""
    add_cluster(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="path=value",
        help=f"a setting of the kind {kind}, or resources.memory_gb=32, ... (repeatable)",
    )
    add_dry_run(parser)
    parser.add_argument("--no-wait", action="store_true", help="submit, and do not wait for it")
    parser.set_defaults(act=infer if kind == "evaluate" else diagnose)


def infer(given: argparse.Namespace) -> int:
    """Transcribe."""
    return _run_step(given, "evaluate", num_samples=given.num_samples)


def diagnose(given: argparse.Namespace) -> int:
    """Look for the first wrong value."""
    return _run_step(given, "diagnose", utterances=given.utterances, limit=given.limit)


def _run_step(given: argparse.Namespace, kind: str, **settings: object) -> int:
    from jobs.logs import print_log
    from jobs.one_step import one_step
    from jobs.reading.pipeline_file import read_step

    name, cluster = given.command, cluster_of(given)
    file = one_step(
        name,
        kind,
        cluster,
        checkpoint=given.checkpoint_dir,
        subset=given.test_subset,
        manifest=given.manifest,
        audio=given.audio,
        **settings,
    )
    overrides = [f"{name}.{override}" for override in given.set]
    pipeline = read_step(file, overrides)
    if given.dry_run:
        return dry_run(pipeline, cluster)
    text, wait = json.dumps(file, indent=1) + "\n", not given.no_wait
    run, code = launch(pipeline, text, cluster, wait=wait, overrides=overrides)
    if wait:
        print_log(run.step(name))
    return code
