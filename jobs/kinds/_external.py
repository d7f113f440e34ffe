"""An external program as the work of a step: started, watched, ended, its answer read.

This is what the kind `command` does on a node. It imports no pydantic, which takes 0.1 s of every
step: a chain of five trivial steps ends half a second sooner.
"""

import math
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from jobs.job import SAVED, Job
from lact_asr.utils.errors import Failed, Interrupted
from lact_asr.utils.files import read_json

_LATE = 1.0  # seconds that the cluster's signal may come after the program's end
_CHECK = 10.0  # seconds between two checks of whether a newer start has taken the step over


def run(settings: Any, job: Job) -> dict[str, Any]:
    """Run the program of the settings of kind `command`; what it wrote, and how long it took."""
    written = job.directory / f"result_of_rank_{job.rank}.json"
    written.unlink(missing_ok=True)
    environment = {
        **os.environ,
        **settings.environment,
        "TRAINYARD_STEP": str(job.directory),
        "TRAINYARD_RESULT": str(written),
        "TRAINYARD_POSITION": str(job.directory / "position"),
    }
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            settings.argv,
            cwd=settings.folder,
            env=environment,
            preexec_fn=None if settings.handles_warning else _ignore_warning,
        )
    except OSError as error:
        raise Failed("program_failed", f"cannot start {settings.argv[0]!r}: {error}") from None
    status = _wait_for_program(process, job)
    if status and _was_interrupted(status, job):
        raise Interrupted(_position(job.directory / "position"))
    if status:
        reason = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise Failed("program_failed", f"{settings.argv[0]} {reason}: see its log")
    return {**_read_result(written), "seconds": round(time.monotonic() - started, 3)}


def _wait_for_program(process: "subprocess.Popen[bytes]", job: Job) -> int:
    """The program's exit status; it is ended where a newer start has taken the step over."""
    while True:
        try:
            return process.wait(_CHECK)
        except subprocess.TimeoutExpired:
            try:
                job.fence()
            except Exception:
                process.terminate()
                raise


def _was_interrupted(status: int, job: Job) -> bool:
    """Whether the program saved on request, or died of the signal that the job got.

    The cluster signals every process of a step, one after the other: the end of the program may be
    seen before the signal that is meant for us.
    """
    if 0 < status < 128 and status != SAVED:
        return False
    patience = time.monotonic() + _LATE
    while time.monotonic() < patience:
        number = job.signal()
        if number is not None and status in (SAVED, -number, 128 + number):
            return True
        time.sleep(0.02)
    return False


def _position(path: Path) -> float | None:
    """The number that the program has written, None where there is none."""
    try:
        position = float(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        print(f"no position is known: {path} must hold a number: {error}", flush=True)
        return None
    if not math.isfinite(position):
        return None
    return int(position) if position.is_integer() else position


def _read_result(path: Path) -> dict[str, Any]:
    """The JSON object that the program has written, if it has; Failed for anything else."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        message = f"what the program wrote to $TRAINYARD_RESULT is not JSON: {path}: {error}"
        raise Failed("program_failed", message) from None
    if not isinstance(value, dict):
        raise Failed(
            "program_failed",
            f"the program must write a JSON object to $TRAINYARD_RESULT, {path}, and wrote "
            f'{type(value).__name__}: write {{"name": value}}',
        )
    return value


def _ignore_warning() -> None:
    """The time-limit warning reaches every process of the job and would end the program early."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
