"""The compute node's side, as real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import UserError
from jobs.store import StepDir
from jobs.failures import failure_class
from jobs.worker import resolve
from tests.conftest import REPOSITORY


def make_step(folder: Path, argv: list[str], **more: Any) -> StepDir:
    step = StepDir(folder)
    resources = {"time": "1h", "nodes": 1, "gpus": 0, "cpus": 1, "memory_gb": 1}
    job = {"kind": "command", "settings": {"argv": argv}, "resources": resources, "gate": {}, "needs": []}
    step.write_job({**job, **more})
    return step


def start(step: StepDir, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.worker", str(step.path)],
        cwd=REPOSITORY,
        env={**os.environ, "TRAINYARD_JOB": "7", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(step: StepDir) -> list[str]:
    return [event["event"] for event in step.events()]


def test_a_step_leaves_a_result_and_its_events(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["sh", "-c", 'echo "{\\"x\\": 1}" > $TRAINYARD_RESULT'])
    assert start(step).wait() == 0
    assert step.result()["x"] == 1
    assert events(step) == ["started", "finished"]


def test_a_step_that_has_its_result_is_not_run_again(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["touch", str(tmp_path / "ran")])
    step.write_result({"seconds": 1})
    assert start(step).wait() == 0
    assert not (tmp_path / "ran").exists()


def test_a_failure_is_recorded_in_a_line_and_the_log_has_no_traceback(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["false"])
    process = start(step)
    _, said = process.communicate()
    assert process.returncode == 1
    assert said.count("failed: command: false ended with status 1") == 1
    assert "Traceback" not in said
    failure = step.failure()
    assert (failure["class"], failure["job"], failure["rank"]) == ("command", "7", 0)
    assert events(step) == ["started", "failed"]


def test_a_step_started_again_forgets_how_it_failed(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["test", "-e", str(tmp_path / "mended")])
    start(step).wait()
    assert step.failure() is not None
    (tmp_path / "mended").touch()
    assert start(step).wait() == 0
    assert step.failure() is None
    assert events(step) == ["started", "failed", "resumed", "finished"]


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["no-such-program"])
    assert start(step).wait() == 1
    assert "cannot start 'no-such-program'" in step.failure()["message"]


def test_sigterm_interrupts_without_a_failure(tmp_path: Path) -> None:
    """What preemption does: every process of the job gets SIGTERM, and the job comes back."""
    step = make_step(tmp_path, ["sleep", "60"])
    process = start(step)
    _until(lambda: _child(process.pid))
    os.kill(process.pid, signal.SIGTERM)
    os.kill(_child(process.pid), signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert step.failure() is None and step.result() is None
    assert step.events()[-1]["signal"] == "SIGTERM"


def test_the_warning_before_the_time_limit_does_not_end_a_program(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["sleep", "1"])
    process = start(step)
    _until(lambda: _child(process.pid))
    os.kill(process.pid, signal.SIGUSR2)
    os.kill(_child(process.pid), signal.SIGUSR2)
    assert process.wait(timeout=20) == 0
    assert step.result() is not None


def test_references_become_values_of_their_own_type_or_part_of_a_text(tmp_path: Path) -> None:
    upstream = StepDir(tmp_path / "corpus")
    upstream.path.mkdir()
    upstream.write_result({"hours": 1.5, "manifests": {"dev": "/d"}})
    settings = {"a": "${corpus.hours}", "b": ["x-${corpus.manifests.dev}-${corpus.hours}"], "c": 1}
    step = StepDir(tmp_path / "train")
    assert resolve(step, settings) == {"a": 1.5, "b": ["x-/d-1.5"], "c": 1}
    with pytest.raises(UserError, match="the result of corpus has no 'minutes'"):
        resolve(step, {"a": "${corpus.minutes}"})


def test_failures_have_a_class() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch's."""

    assert failure_class(OutOfMemoryError()) == "out_of_memory"
    assert failure_class(MemoryError()) == "out_of_memory"
    assert failure_class(ValueError()) == "error"


def test_metrics_of_a_step_are_lines_of_json(tmp_path: Path) -> None:
    step = StepDir(tmp_path)
    step.add_metrics({"step": 3, "checkpoint": Path("/x")})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["step"], line["checkpoint"]) == (3, "/x")
    assert abs(line["time"] - time.time()) < 60


def _child(pid: int) -> int:
    """A child of a process that has become the program: sh -c of the test, not our Python."""
    import psutil

    for child in psutil.Process(pid).children():
        if "sleep" in " ".join(child.cmdline()):
            return int(child.pid)
    return 0


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
