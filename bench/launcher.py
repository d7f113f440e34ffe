"""What the launcher costs beside raw sbatch, on a private Slurm of its own.

    python -m bench.launcher [--rounds 7]

Submissions are timed with jobs that are held, so that no job runs beside them; both sides take
turns. `status` is asked about 100 jobs in the queue, then about 100 that failed without a trace and
that squeue has forgotten, so that sacct is needed. The chain of five runs `true` five times, one
job after the other; its time ends when the last job has left its mark. This Slurm starts jobs about
twice a second: what a job takes beyond the next such moment is what a chain loses.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.harness import Row, command, rounds, show, write
from tests.slurm.cluster import PACKAGES, REPOSITORY, PrivateSlurm, missing_programs

CHAIN = [f"s{i}" for i in range(1, 6)]
FIFTY, HUNDRED = ([f"s{i:03}" for i in range(count)] for count in (50, 100))
RAW = """\
set -e
after=""
for step in {steps}; do
  id=$(sbatch --parsable --job-name=$step --time=5 --mem=100M --nodes=1 --ntasks-per-node=1 \\
    --cpus-per-task=1 --output=/dev/null {hold} $after --wrap='{work}')
  {link}
done
"""


class Bench:
    """One private Slurm, the pipelines to submit, and the rows of the table."""

    def __init__(self, slurm: PrivateSlurm, folder: Path, count: int) -> None:
        self.slurm, self.folder, self.count = slurm, folder, count
        self.launch = [sys.executable, str(REPOSITORY / "launch.py")]
        counters = self.folder / "bin"
        self.environment = {**slurm.environment, "TRAINYARD_RUNS": str(folder / "runs")}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled once, as for every user
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

    def independent(self, name: str, steps: list[str]) -> str:
        return self.pipeline(name, {step: self.step("true") for step in steps})

    def chain(self, name: str, then: str = ":") -> str:
        needs = dict(zip(CHAIN[1:], CHAIN, strict=False))
        steps = {name: self.step("true", needs.get(name)) for name in CHAIN}
        steps[CHAIN[-1]] = self.step(f"true; {then}", needs[CHAIN[-1]])
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

    def raw(self, steps: list[str], *, chained: bool, hold: bool, work: str = "true") -> list[str]:
        script = RAW.format(
            steps=" ".join(steps),
            hold="--hold" if hold else "",
            work=work,
            link='after="--dependency=afterok:$id --kill-on-invalid-dep=yes"' if chained else ":",
        )
        return ["bash", "-c", script]

    # --- what is measured -------------------------------------------------------------------------

    def timed(
        self, row: Row, words: list[str], *, ours: bool = True, cpu: Row | None = None
    ) -> None:
        took = command(words, self.environment, self.folder, codes=(0, 1))  # 1: a step has failed
        (row.ours if ours else row.theirs).append(took.wall)
        if cpu:
            (cpu.ours if ours else cpu.theirs).append(took.cpu)

    def run(self, file: str, cluster: str) -> list[str]:
        return [*self.launch, "run", file, "--cluster", str(self.folder / f"{cluster}.yaml")]

    def submission(self, what: str, file: str, raw: list[str], goal: float) -> list[Row]:
        """Our `run` and a shell loop over sbatch, for the same jobs, held."""
        wall, cpu = Row(what, goal=goal), Row(f"{what}, processor time")
        rounds(
            self.count,
            lambda: self.timed(wall, self.run(file, "held"), cpu=cpu),
            lambda: self.timed(wall, raw, ours=False, cpu=cpu),
            after_each=self.slurm.clear,
        )
        return [wall, cpu]

    def start_up(self) -> list[Row]:
        """`--help`, beside a Python that does nothing."""
        cpu, wall = Row("--help, processor time", goal=0.06), Row("--help")
        rounds(
            3 * self.count,
            lambda: self.timed(wall, [*self.launch, "--help"], cpu=cpu),
            lambda: self.timed(wall, [sys.executable, "-c", ""], ours=False, cpu=cpu),
        )
        return [cpu, wall]

    def status(self, what: str, raw: list[str]) -> list[Row]:
        """`status` and `status --json` of the newest run, beside one squeue or sacct."""
        table, data = (
            Row(f"status of {what}", goal=0.20),
            Row(f"status --json of {what}", goal=0.10),
        )
        cpu = Row(f"status of {what}, processor time", goal=0.14)
        quick = Row(f"status --json of {what}, processor time")
        ask = [*self.launch, "status"]
        rounds(
            3 * self.count,
            lambda: self.timed(table, ask, cpu=cpu),
            lambda: self.timed(data, [*ask, "--json"], cpu=quick),
            lambda: self.timed(table, raw, ours=False),
        )
        data.theirs = table.theirs
        return [table, data, cpu, quick, *self.calls(what, ask)]

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
        then = f"date +%s.%N > {mark}"
        file = self.chain("quick", then)

        def until_marked(words: list[str], values: list[float]) -> None:
            mark.unlink(missing_ok=True)
            time.sleep(random.random())  # begin anywhere between two of the scheduler's moments
            began = time.time()
            command(words, self.environment, self.folder)
            self.slurm.wait_for(lambda: mark.exists() and mark.read_text())
            values.append(float(mark.read_text()) - began)

        def raw(work: str) -> list[str]:
            last = f"{work}; test $SLURM_JOB_NAME != {CHAIN[-1]} || {then}"
            return self.raw(CHAIN, chained=True, hold=False, work=last)

        wall = Row("chain of 5 trivial steps, end to end, beside `true`", goal_ratio=1.1)
        floor = Row("the same, beside a Python that does nothing, under srun")
        rounds(
            self.count,
            lambda: until_marked(self.run(file, "free"), wall.ours),
            lambda: until_marked(raw("true"), wall.theirs),
            lambda: until_marked(raw(f"srun {sys.executable} -c pass"), floor.theirs),
            after_each=lambda: self.slurm.wait_for(lambda: not self.slurm.run("squeue", "-h")),
        )
        floor.ours = wall.ours
        return [wall, floor]

    # --- all of it --------------------------------------------------------------------------------

    def queued(self) -> list[Row]:
        """Status of a run whose 100 jobs are in the queue."""
        command(
            self.run(self.independent("hundred", HUNDRED), "held"), self.environment, self.folder
        )
        rows = self.status("100 queued jobs", ["squeue", "-h"])
        self.slurm.clear()
        return rows

    def forgotten(self) -> list[Row]:
        """Status of a run whose 100 jobs have failed and are known to sacct alone."""
        conf = self.slurm.conf
        conf.write_text(conf.read_text() + "MinJobAge=2\n")
        self.slurm.run("scontrol", "reconfigure")
        file = self.independent("failing", HUNDRED)
        command(self.run(file, "broken"), self.environment, self.folder)
        known = ["squeue", "-h", "-t", "all", "-n"]
        run = max((self.folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
        names = {
            json.loads(line)["token"]
            for file in run.glob("steps/*/submissions.jsonl")
            for line in file.read_text().splitlines()
        }
        self.slurm.wait_for(lambda: not self.slurm.run(*known, ",".join(names)), 120)
        return self.status("100 ended jobs", ["sacct", "-X", "-n"])

    def submissions(self) -> list[Row]:
        """Five jobs behind each other, and fifty beside each other."""
        fifty = self.independent("fifty", FIFTY)
        raw_fifty = self.raw(FIFTY, chained=False, hold=True)
        raw_chain = self.raw(CHAIN, chained=True, hold=True)
        return [
            *self.submission("submit a chain of 5", self.chain("chain"), raw_chain, 0.35),
            *self.submission("submit 50 jobs", fifty, raw_fifty, 0.70),
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
    parser = argparse.ArgumentParser(prog="python -m bench.launcher", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each comparison")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all, and written")
    given = parser.parse_args()
    if missing := missing_programs():
        sys.exit(f"{', '.join(missing)}: not installed. Debian: apt-get install {PACKAGES}")
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        PrivateSlurm(Path(name) / "slurm") as slurm,
    ):
        (work := Path(name) / "work").mkdir()
        bench = Bench(slurm, work, given.rounds)
        rows = [row for part in given.parts or PARTS for row in PARTS[part](bench)]
        version = slurm.run("sbatch", "--version").strip()
    show("the launcher beside raw sbatch: median (least-most)", rows)
    if given.parts:
        return
    path = write("launcher", rows, compared_with=version)
    print(f"written to {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
