"""The launcher as a user has it: `python launch.py ...` in a folder of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from tests.slurm.cluster import PATIENCE

# a locale that knows no other letters, as Latin-1 knows few
ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


class Launcher:
    """Runs commands in `folder`; runs are kept in its `runs`."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        code: Path = REPOSITORY,
    ) -> None:
        self.folder, self.code = folder, code
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRAINYARD")}
        self.environment = {**inherited, **(environment or {})}

    def __call__(
        self, *arguments: object, stdout: int = subprocess.PIPE
    ) -> "subprocess.CompletedProcess[str]":
        """One command, whatever its exit code."""
        return subprocess.run(
            [sys.executable, str(self.code / "launch.py"), *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=280,
        )

    def write(self, text: str, name: str = "p.yaml") -> Path:
        """A pipeline file."""
        path = self.folder / name
        path.write_text(text)
        return path

    def run(self, *arguments: object) -> Path:
        """`run`, which must succeed in submitting; the run's folder."""
        done = self("run", *arguments)
        assert "Traceback" not in done.stderr, done.stderr
        return Path(done.stdout.splitlines()[0])

    def status(self, *arguments: object) -> dict[str, Any]:
        """The steps of `status --json`, by name."""
        done = self("status", *arguments, "--json")
        assert done.returncode in (0, 1), done.stderr
        return {step["step"]: step for step in json.loads(done.stdout)["steps"]}

    def until(self, *states: str, step: str) -> dict[str, Any]:
        """The status once `step` is in one of `states`."""
        deadline = time.monotonic() + PATIENCE
        while (status := self.status())[step]["state"] not in states:
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        return status
