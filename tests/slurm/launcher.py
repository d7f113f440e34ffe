"""Driving the real command line on the private Slurm, from a folder of its own.

Pipelines are written as JSON, which is YAML. Steps are small shell scripts that leave traces in the
folder: `echo $name >> ran` tells how often each one ran.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from tests.slurm.cluster import PATIENCE, PrivateSlurm

UNTIL_GO = "until test -e go; do sleep 0.1; done"
SOCKET_TIMED_OUT = (
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
)


def sh(script: str, *needs: str, **more: Any) -> dict[str, Any]:
    """A command step that runs a shell script behind the steps it needs."""
    step: dict[str, Any] = {"kind": "command", "settings": {"argv": ["sh", "-c", script]}}
    step["resources"] = {"time": "5m", "memory_gb": 0.25}
    return {**step, "needs": list(needs), **more}


def chain(**scripts: str) -> dict[str, Any]:
    """Steps that run one after the other and each add their name to the file `ran`."""
    names = list(scripts)
    return {
        name: sh(f"{scripts[name] or ':'} && echo {name} >> ran", *names[max(0, i - 1) : i])
        for i, name in enumerate(names)
    }


class Launcher:
    """`python launch.py` in one folder: pipelines, runs and traces of steps lie in it."""

    def __init__(self, folder: Path, slurm: PrivateSlurm, code: Path = REPOSITORY) -> None:
        self.folder, self.slurm = folder, slurm
        self.command = [sys.executable, str(code / "launch.py")]
        wrappers = folder / "bin"  # programs in here are found before Slurm's own
        path = f"{wrappers}:{slurm.environment['PATH']}"
        self.environment = {**slurm.environment, "PATH": path, "TRAINYARD_CLUSTER": "slurm"}
        for name in ("TRAINYARD_RUNS", "TRAINYARD_DATA", "PYTHONPATH"):
            self.environment.pop(name, None)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What a command prints; AssertionError where its exit code is not `code`."""
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, f"exit {done.returncode}, not {code}: {said}{self.queue()}"
        assert "Traceback" not in said
        return said

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command that goes on while the test looks at it."""
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def write(self, steps: Mapping[str, Any], name: str = "chain") -> str:
        """A pipeline file."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({"steps": steps}))
        return str(path)

    def wrap(self, program: str, script: str) -> None:
        """Put a shell script before a program of Slurm's, which it finds as $real.

        $nth counts its calls, without the questions that the preflight asks.
        """
        (self.folder / "bin").mkdir(exist_ok=True)
        path = self.folder / "bin" / program
        path.write_text(
            f'#!/bin/bash\nreal=$(PATH="${{PATH#*:}}" command -v {program})\n'
            f'case "$*" in *--test-only*) exec "$real" "$@";; esac\n'
            f"echo call >> {path}.calls; nth=$(wc -l < {path}.calls)\n{script}\n"
        )
        path.chmod(0o755)

    def unwrap(self) -> None:
        """Slurm's own programs again."""
        for path in (self.folder / "bin").iterdir():
            path.unlink()

    def touch(self, name: str) -> None:
        """Make the file that a step waits for or misses."""
        (self.folder / name).touch()

    def newest(self) -> Path:
        """The folder of the newest run."""
        return max((self.folder / "runs").glob("*/"), key=lambda path: path.stat().st_mtime)

    def status(self, code: int | None = None, run: str = "") -> dict[str, dict[str, Any]]:
        """`status --json` of a run, by step."""
        done = subprocess.run(
            [*self.command, "status", *filter(None, [run]), "--json"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert code in (None, done.returncode), f"exit {done.returncode}: {done.stderr}"
        return {step["step"]: step for step in json.loads(done.stdout)["steps"]}

    def states(self) -> dict[str, str]:
        """The state of each step of the newest run."""
        return {name: step["state"] for name, step in self.status().items()}

    def ran(self) -> list[str]:
        """The names that steps have written, in order."""
        trace = self.folder / "ran"
        return trace.read_text().split() if trace.exists() else []

    def queue(self) -> str:
        """The jobs submitted from this folder, for people."""
        said = self.slurm.run("squeue", "-h", "-t", "all", "-o", "%i %T %P %j %E %R %Z")
        return "\n".join(line for line in said.splitlines() if str(self.folder) in line)

    def queued(self) -> list[str]:
        """The steps submitted from this folder that are in the queue and have not ended."""
        said = self.slurm.run("squeue", "-h", "-o", "%j|%Z").splitlines()
        jobs = [line.split("|") for line in said]
        return sorted(name.split(".")[0] for name, cwd in jobs if Path(cwd) == self.folder)

    def accounted(self) -> dict[str, list[str]]:
        """By step submitted from this folder: how each of its jobs ended, as sacct says.

        A job that left the queue and came back has one record for each stay. Jobs that were
        cancelled before they started are left out: sacct has them at one time and not at another.
        """
        fields = ["-o", "JobIDRaw,State,WorkDir,JobName"]
        said = self.slurm.run("sacct", "-n", "-P", "-X", "-D", "-S", "now-1hour", *fields)
        found: dict[str, list[str]] = {}
        for line in said.splitlines():
            _, state, cwd, name = [*line.split("|", 3), "", "", ""][:4]  # names may have two lines
            if Path(cwd) == self.folder and not state.startswith("CANCELLED"):
                found.setdefault(name.split(".")[0], []).append(state.split()[0])
        return found

    def expect_accounts(self, **expected: list[str]) -> None:
        """Wait until sacct, which lags by seconds, has exactly these jobs of each step."""
        with contextlib.suppress(AssertionError):
            self.slurm.wait_for(lambda: self.accounted() == expected)
        found = self.accounted()
        assert found == expected, f"sacct has {found}, not {expected}"

    def expect_once(self, *names: str) -> None:
        """Each of these steps was one job, which completed, and there was no other job."""
        self.expect_accounts(**{name: ["COMPLETED"] for name in names})

    def wait_for_states(self, **states: str) -> None:
        """Wait until steps of the newest run are in these states."""

        def reached() -> bool:
            now = self.states()
            return all(now[name] == state for name, state in states.items())

        with contextlib.suppress(AssertionError):
            self.slurm.wait_for(reached)
        assert reached(), f"not {states} within {PATIENCE} s: {self.states()}\n{self.queue()}"
