"""What the launcher costs beside raw sbatch, submitit and gwf, on a private Slurm of its own.

    python -m bench.launcher [--rounds 7] [--gwf PROGRAM] [--note WORDS] [PART]...

Submissions are timed with jobs that are held, so that no job runs beside them; all sides take
turns. `status` is asked about 100 jobs in the queue, then about 100 that failed without a trace and
that squeue has forgotten, so that sacct is needed. The chain of five runs `true` five times, one
job after the other; its time ends when the last job has left its mark. This Slurm starts jobs about
twice a second: what a job takes beyond the next such moment is what a chain loses.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import Row, argument_parser, command, commit, rounds, show, write
from bench.rivals import Call, Jobs, Rival, rivals
from tests.slurm.cluster import PACKAGES, REPOSITORY, PrivateSlurm, missing_programs


def names(count: int) -> list[str]:
    """s001, s002 ..."""
    return [f"s{number + 1:03}" for number in range(count)]


class Bench:
    """One private Slurm, the pipelines to submit, and the rows of the table."""

    def __init__(
        self, slurm: PrivateSlurm, folder: Path, gwf: str | None, *, tiny: bool, count: int
    ) -> None:
        self.slurm, self.folder, self.count = slurm, folder, 1 if tiny else count
        self.chain_names = names(2 if tiny else 5)
        self.fifty, self.hundred = (names(3 if tiny else many) for many in (50, 100))
        self.launch = [sys.executable, str(REPOSITORY / "launch.py")]
        counters = self.folder / "bin"
        self.environment = {**slurm.environment, "TRAINYARD_RUNS": str(folder / "runs")}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled once, as for every user
        self.rivals = rivals(folder, gwf, self.environment["PATH"])
        path = f"{counters}:{slurm.environment['PATH']}"
        self.counting = {**self.environment, "PATH": path}
        counters.mkdir()
        for program in ("squeue", "sacct"):
            real = shutil.which(program, path=slurm.environment["PATH"])
            script = f'#!/bin/sh\necho {program} >> {folder}/calls\nexec {real} "$@"\n'
            (counters / program).write_text(script)
            (counters / program).chmod(0o755)
        (folder / "held.yaml").write_text("extra: {hold: true}\n")
        (folder / "free.yaml").write_text("backend: slurm\n")
        (folder / "broken.yaml").write_text("setup: ['exit 1']\n")

    # --- what is submitted ------------------------------------------------------------------------

    def pipeline(self, name: str, steps: Mapping[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({"steps": steps}))
        return str(path)

    def file(self, name: str, jobs: Jobs) -> str:
        """The same jobs as a pipeline of ours."""
        before = [None, *jobs.names] if jobs.chained else [None] * len(jobs.names)
        steps = {
            name: self.step("true", need) for name, need in zip(jobs.names, before, strict=False)
        }
        if jobs.then != "true":
            steps[jobs.names[-1]] = self.step(f"true; {jobs.then}", before[len(jobs.names) - 1])
        return self.pipeline(name, steps)

    @staticmethod
    def step(script: str, need: str | None = None) -> dict[str, Any]:
        settings = {"argv": ["sh", "-c", script] if ";" in script else [script]}
        return {
            "kind": "command",
            "settings": settings,
            "needs": [need] if need else [],
            "resources": {"time": "5m", "memory_gb": 0.1},
        }

    # --- what is measured -------------------------------------------------------------------------

    def timed(self, values: list[float], call: Call, cpu: list[float] | None = None) -> None:
        environment = {**self.environment, **call.environment}
        took = command(call.words, environment, call.folder, codes=(0, 1))  # 1: a step has failed
        values.append(took.wall)
        if cpu is not None:
            cpu.append(took.cpu)

    def ours(self, *words: str) -> Call:
        return Call([*self.launch, *words], self.folder)

    def run(self, file: str, cluster: str) -> Call:
        return self.ours("run", file, "--cluster", str(self.folder / f"{cluster}.yaml"))

    def beside(self, what: str, goal: float | None = None, ratio: float | None = None) -> list[Row]:
        """A row for each rival; the first, raw sbatch, has the goal."""
        rows = [Row(f"{what}, beside {rival.name}") for rival in self.rivals]
        rows[0].goal, rows[0].goal_ratio = goal, ratio
        for row in rows[1:]:
            row.ours = rows[0].ours
        return rows

    def turns(self, rows: Sequence[Row], one: Callable[[Rival, Row], None]) -> list[Any]:
        """What each rival does in a round."""
        return [
            lambda rival=rival, row=row: one(rival, row)
            for rival, row in zip(self.rivals, rows, strict=True)
        ]

    def submission(self, what: str, jobs: Jobs, goal: float) -> list[Row]:
        """Our `run` and its rivals, for the same jobs, held."""
        rows, cpu = self.beside(what, goal), Row(f"{what}, processor time, beside raw sbatch")
        ours = self.run(self.file(what.replace(" ", "_"), jobs), "held")

        def theirs(rival: Rival, row: Row) -> None:
            used = cpu.theirs if row is rows[0] else None
            self.timed(row.theirs, rival.submission(jobs), used)

        rounds(
            self.count,
            lambda: self.timed(rows[0].ours, ours, cpu.ours),
            *self.turns(rows, theirs),
            after_each=self.slurm.clear,
        )
        return [*rows, cpu]

    def start_up(self) -> list[Row]:
        """`--help`, beside a Python that does nothing."""
        cpu, wall = Row("--help, processor time", goal=0.06), Row("--help")
        nothing = Call([sys.executable, "-c", ""], self.folder)
        rounds(
            3 * self.count,
            lambda: self.timed(wall.ours, self.ours("--help"), cpu.ours),
            lambda: self.timed(wall.theirs, nothing, cpu.theirs),
        )
        return [cpu, wall]

    def status(self, what: str, goal: float) -> list[Row]:
        """`status` and `status --json` of the newest run; its rivals are asked about its jobs."""
        rows = self.beside(f"status of {what}", goal)
        data = Row(f"status --json of {what}", goal=goal)
        cpu, quick = (Row(f"{row.what.split(', ')[0]}, processor time") for row in (rows[0], data))
        jobs = self.newest_jobs()
        ask = self.ours("status")
        rounds(
            3 * self.count,
            lambda: self.timed(rows[0].ours, ask, cpu.ours),
            lambda: self.timed(data.ours, self.ours("status", "--json"), quick.ours),
            *self.turns(rows, lambda rival, row: self.timed(row.theirs, rival.status(jobs))),
        )
        return [*rows, data, cpu, quick, *self.calls(what, ask.words)]

    def newest_jobs(self) -> dict[str, str]:
        """Step -> job id, of the newest run."""
        run = max((self.folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
        lines = {
            file.parent.name: file.read_text().splitlines()
            for file in sorted(run.glob("steps/*/submissions.jsonl"))
        }
        return {name: json.loads(told[-1])["job"] for name, told in lines.items()}

    def calls(self, what: str, ask: list[str]) -> list[Row]:
        """How often one `status` calls squeue and sacct."""
        trace = self.folder / "calls"
        trace.write_text("")
        command(ask, self.counting, self.folder, codes=(0, 1))
        called = trace.read_text().split()
        return [
            Row(f"{program} calls of that", unit="calls", goal=1, ours=[called.count(program)])
            for program in ("squeue", "sacct")
        ]

    def end_to_end(self) -> list[Row]:
        """From the first command to the mark that the last of five jobs leaves."""
        mark = self.folder / "mark"
        jobs = Jobs(self.chain_names, chained=True, held=False, then=f"date +%s.%N > {mark}")
        ours = self.run(self.file("quick", jobs), "free")

        def until_marked(call: Call, values: list[float]) -> None:
            mark.unlink(missing_ok=True)
            time.sleep(random.random())  # begin anywhere between two of the scheduler's moments
            began = time.time()
            command(call.words, {**self.environment, **call.environment}, call.folder)
            self.slurm.wait_for(lambda: mark.exists() and mark.read_text())
            values.append(float(mark.read_text()) - began)

        rows = self.beside(f"chain of {len(jobs.names)} trivial steps, end to end", ratio=1.1)
        rounds(
            self.count,
            lambda: until_marked(ours, rows[0].ours),
            *self.turns(rows, lambda rival, row: until_marked(rival.submission(jobs), row.theirs)),
            after_each=lambda: self.slurm.wait_for(lambda: not self.slurm.run("squeue", "-h")),
        )
        return rows

    # --- all of it --------------------------------------------------------------------------------

    def launched(self, name: str, cluster: str) -> None:
        """A run of 100 independent jobs."""
        call = self.run(self.file(name, Jobs(self.hundred)), cluster)
        command(call.words, self.environment, call.folder)

    def queued(self) -> list[Row]:
        """Status of a run whose 100 jobs are in the queue."""
        self.launched("hundred", "held")
        rows = self.status(f"{len(self.hundred)} queued jobs", 0.09)
        self.slurm.clear()
        return rows

    def forgotten(self) -> list[Row]:
        """Status of a run whose 100 jobs have failed and are known to sacct alone."""
        conf = self.slurm.conf
        conf.write_text(conf.read_text() + "MinJobAge=2\n")
        self.slurm.run("scontrol", "reconfigure")
        self.launched("failing", "broken")
        jobs = set(self.newest_jobs().values())
        known = ("squeue", "-h", "-t", "all", "-o", "%A")
        self.slurm.wait_for(lambda: not jobs & set(self.slurm.run(*known).split()))
        return self.status(f"{len(jobs)} ended jobs", 0.20)

    def submissions(self) -> list[Row]:
        """Five jobs behind each other, and fifty beside each other."""
        five, fifty = Jobs(self.chain_names, chained=True), Jobs(self.fifty)
        return [
            *self.submission(f"submit a chain of {len(five.names)}", five, 0.20),
            *self.submission(f"submit {len(fifty.names)} jobs", fifty, 0.50),
        ]


PARTS = {
    "start": Bench.start_up,
    "submit": Bench.submissions,
    "queued": Bench.queued,
    "chain": Bench.end_to_end,
    "ended": Bench.forgotten,  # last: it changes the cluster's configuration
}


def main() -> None:
    """Measure, print the table, write bench/results/launcher.json."""
    parser = argument_parser("launcher", __doc__, tiny="few jobs, once; nothing written")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each comparison")
    parser.add_argument("--gwf", metavar="PROGRAM", help="gwf's program; the one on PATH if any")
    parser.add_argument("--note", default="", help="what else is to be said of the measurement")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all, and written")
    given = parser.parse_args()
    if missing := missing_programs():
        sys.exit(f"{', '.join(missing)}: not installed. Debian: apt-get install {PACKAGES}")
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        PrivateSlurm(Path(name) / "slurm") as slurm,
    ):
        (work := Path(name) / "work").mkdir()
        bench = Bench(slurm, work, given.gwf, tiny=given.tiny, count=given.rounds)
        before = os.getloadavg()
        rows = [row for part in given.parts or PARTS for row in PARTS[part](bench)]
        compared = [rival.name for rival in bench.rivals]
        about = {
            "commit": commit(),
            "compared_with": [slurm.run("sbatch", "--version").strip(), *compared[1:]],
            "load": [round(load, 1) for load in (before[0], os.getloadavg()[0])],
            "note": given.note,
        }
    show("the launcher beside raw sbatch and others: median (least-most)", rows)
    if given.tiny or given.parts:
        return
    path = write("launcher", rows, **about)
    print(f"written to {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
