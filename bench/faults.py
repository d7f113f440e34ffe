"""The fault matrix: real faults put into real training on a real Slurm, and what came of each.

A private cluster runs a small recognizer on speech, 30 steps with a checkpoint every 5, and one
step behind it: once undisturbed, then once for each fault. The table says which cause was named,
what the run did without anybody, how long it took, what was lost, and whether the last weights are
bit for bit those of the undisturbed run. Speech: the folder given with --data, else espeak-ng's.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.disturbances import UTTERANCES, Case, Disturbed, fill_disk
from bench.fault_cases import CASES, QUIET
from bench.fault_page import cells, known_rows, page, with_row, write
from bench.harness import argument_parser, commit
from jobs.healing.rehearsal import Came, judge
from jobs.step_folder import StepDir
from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import write_manifest
from lact_asr.data.synthetic.corpus import synthesize
from lact_asr.data.synthetic.sentences import Synthetic
from tests.slurm.cluster import PACKAGES, PrivateSlurm, missing_programs


@dataclass
class Outcome:
    """One row, measured."""

    case: Case
    came: Came | None = None
    named_right: bool | None = None  # None: there was nothing to name
    behind: int = 0  # how often the step behind it ran
    seconds: float = 0.0
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether it came as it should."""
        came = self.came
        if came is None or self.named_right is False:
            return False
        done = came.ended == "succeeded"
        return done == self.case.survives and self.behind == int(done)


def carry_out(slurm: PrivateSlurm, work: Path, case: Case, few: Path) -> Outcome:
    """One run with its fault; what goes wrong with the matrix itself is told in the row."""
    began, name = time.time(), case.name.replace(" ", "_").replace(",", "")
    run, outcome = Disturbed(slurm, work / name, case, few), Outcome(case)
    quiet = (
        StepDir(next((work / case.like.replace(" ", "_")).glob("runs/*")) / "steps" / "train")
        if (case.name != case.like)
        else None
    )
    try:
        with small_disk(run.folder / "runs") if case.act is fill_disk else contextlib.nullcontext():
            state = run.run()
            step = quiet or run.step
            outcome.came = judge(case.name, step, run.step, state)
            if said := run.said or named_by_slurm(run, state):
                outcome.came = outcome.came._replace(cause=said)
    except Exception as error:
        outcome.note = f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ")
        with contextlib.suppress(AssertionError, ValueError):
            run.launcher("cancel", run.launcher.newest().name)
    outcome.behind = run.launcher.ran().count("behind")
    outcome.seconds = round(time.time() - began, 1)
    if (run.folder / "note").exists():
        outcome.note += (run.folder / "note").read_text()
    if case.cause and outcome.came:
        outcome.named_right = outcome.came.cause == case.cause
    return outcome


def named_by_slurm(run: Disturbed, state: str) -> str:
    """The cause of an end that no file of the step tells of: who has cancelled it, a bad node."""
    if state == "cancelled":
        return str(run.launcher.status()["train"]["cause"])
    nodes = run.launcher.newest().parent / "nodes.jsonl"
    return "node_failed" if nodes.exists() else ""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 1.2 GB at a folder, as much as the preflight asks for; mounting takes root."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1200m", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def about_machine(slurm: PrivateSlurm, data: Path | None) -> dict[str, Any]:
    """What was measured with, and on what."""
    return {
        "slurm": slurm.run("sbatch", "--version").strip(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "speech": "real speech" if data else "speech of espeak-ng",
        "commit": commit(),
    }


def speech_of(data: Path | None, work: Path, count: int = UTTERANCES) -> Path:
    """A manifest of the shortest utterances; of espeak-ng's where no real speech is given."""
    utterances = sorted(scan(data or spoken(work)), key=lambda each: (each.duration, each.id))
    write_manifest(work / "few.jsonl", utterances[:count])
    return work / "few.jsonl"


def spoken(work: Path) -> Path:
    made = synthesize(
        Synthetic(utterances=48, test_utterances=8, words=5, voices=8), work / "speech"
    )
    return made / "train"


def described(outcome: Outcome, commit: str) -> dict[str, Any]:
    """A row of the results, as data."""
    case, came = outcome.case, outcome.came
    return {
        "fault": case.name,
        "how": case.how,
        "right_cause": case.cause,
        "survivable": case.survives,
        "person": case.person,
        "named_right": outcome.named_right,
        "behind": outcome.behind,
        "wall_seconds": outcome.seconds,
        "note": outcome.note,
        "good": outcome.good,
        "came": came and came._asdict(),
        "commit": commit,
    }


def main() -> None:
    """Run the matrix; write bench/results/faults.md and faults.json."""
    parser = argument_parser("faults", __doc__, tiny="one case; nothing is written")
    parser.add_argument("--data", type=Path, help="speech in LibriSpeech layout")
    parser.add_argument(
        "--only", default="", help="these cases, with commas: their rows are made anew"
    )
    parser.add_argument("--at-once", type=int, default=3, help="runs side by side (default 3)")
    given = parser.parse_args()
    if missing := missing_programs():
        sys.exit(f"{', '.join(missing)}: not installed. Debian: apt-get install {PACKAGES}")
    only = ["kill"] if given.tiny else [name for name in given.only.split(",") if name]
    cases = [case for case in CASES if not only or case.name in only]
    quiet = [case for case in QUIET if case.name in {each.like for each in cases}]
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as name,
        PrivateSlurm(Path(name) / "slurm") as slurm,
    ):
        about = about_machine(slurm, given.data)
        version, rows = about["commit"], [] if given.tiny else known_rows()
        names, one_at_a_time = [case.name for case in CASES], threading.Lock()

        def note(outcome: Outcome) -> None:
            with one_at_a_time:
                rows[:] = with_row(rows, described(outcome, version), names)
                print(" | ".join(cells(described(outcome, version))), flush=True)
                if not given.tiny:
                    write(rows, about)

        measure(slurm, Path(name), quiet, cases, given.data, given.at_once, note)
    print(page(rows, about))


def measure(
    slurm: PrivateSlurm,
    folder: Path,
    quiet: Sequence[Case],
    cases: Sequence[Case],
    data: Path | None,
    at_once: int,
    note: Callable[[Outcome], None],
) -> None:
    """The undisturbed runs, then all others, those that touch daemons one after the other.

    What is known after each is noted: a matrix that is cut short has its first rows.
    """
    (work := folder / "work").mkdir()
    few = speech_of(data, folder)

    def one(case: Case) -> None:
        note(carry_out(slurm, work, case, few))

    for group in (quiet, [case for case in cases if not case.alone]):
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(one, group))
    for case in cases:
        if case.alone:
            one(case)


if __name__ == "__main__":
    main()
