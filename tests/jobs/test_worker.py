"""The compute node's side, as real processes."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from jobs import worker
from jobs.errors import UserError
from jobs.healing.cause import cause_of, sentence
from jobs.healing.leaving import stuck
from jobs.step_folder import StepDir
from jobs.worker import resolve
from lact_asr.training import checkpoint
from lact_asr.utils.errors import DataError, Failed
from tests.conftest import REPOSITORY
from tests.slurm.cluster import PATIENCE

COMPLETE = {"environment": {}, "folder": None, "handles_warning": False}  # as the launcher writes


def make_step(folder: Path, argv: list[str], **more: Any) -> StepDir:
    step = StepDir(folder)
    resources = {"time": "1h", "nodes": 1, "gpus": 0, "cpus": 1, "memory_gb": 1}
    job = {
        "kind": "command",
        "settings": {**COMPLETE, "argv": argv},
        "resources": resources,
        "gate": {},
        "needs": [],
    }
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
    begun, ended = step.events()
    assert begun["python"] == platform.python_version(), "of the node"
    assert "torch" not in ended, "it was not imported"


def test_a_program_without_references_runs_without_pydantic_and_one_with_them_is_checked(
    tmp_path: Path,
) -> None:
    """pydantic takes 0.1 s; a list in the place of a word is what it finds."""
    before = make_step(tmp_path / "before", ["true"])
    before.write_result({"word": "hello", "words": ["a", "b"]})
    blocked = "import sys; sys.modules['pydantic'] = None; from jobs.worker import main; main()"
    for name, argv in (("plain", ["echo", "hello"]), ("filled", ["echo", "${before.word}"])):
        step = make_step(tmp_path / name, argv)
        done = subprocess.run(
            [sys.executable, "-c", blocked, step.path], cwd=REPOSITORY, capture_output=True
        )
        assert (step.result() is not None) == (done.returncode == 0) == (name == "plain"), done
        assert start(step).wait() == 0
    wrong = make_step(tmp_path / "wrong", ["echo", "${before.words}"])
    assert start(wrong).wait() == 1
    assert "argv.1: Input should be a valid string" in wrong.failure()["message"]


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
    assert said.count("failed: program_failed: false ended with status 1") == 1
    assert "Traceback" not in said
    failure = step.failure()
    assert (failure["cause"], failure["job"], failure["rank"]) == ("program_failed", "7", 0)
    assert events(step) == ["started", "failed"]


def test_a_step_started_again_forgets_how_it_failed(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["test", "-e", str(tmp_path / "mended")])
    start(step).wait()
    assert step.failure() is not None
    (tmp_path / "mended").touch()
    assert start(step, TRAINYARD_JOB="8").wait() == 0
    assert step.failure() is None
    assert events(step) == ["started", "failed", "resumed", "finished"]


def test_what_another_rank_of_the_same_start_has_recorded_is_not_forgotten(tmp_path: Path) -> None:
    """Rank 1 may fail before rank 0 has come as far; what an earlier start has recorded goes."""
    step = make_step(tmp_path, ["false"])
    told = {"cause": "bad_data", "rank": 1, "job": "9"}
    step.write_failure({**told, "restart": 0, "message": "of the start before"})
    step.write_failure({**told, "restart": 1, "message": "of this start"})
    place = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
    place |= {"SLURM_JOB_ID": "9"}
    assert start(step, **place, SLURM_RESTART_COUNT="1").wait() == 1
    assert step.failure()["message"] == "of this start"
    assert start(step, **place, SLURM_RESTART_COUNT="2").wait() == 1
    assert step.failure()["cause"] == "program_failed"


def test_a_rank_that_is_told_to_end_waits_for_nobody_s_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm tells the others when a rank has died: what that could say, it has said."""
    step = make_step(tmp_path, ["true"])
    monkeypatch.setenv("TRAINYARD_JOB", "7")
    process = worker._Process(step)
    process.world_size, process.received = 2, signal.SIGTERM
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    process._record_failure("collective_timeout", "Connection closed by peer")
    assert step.failure()["cause"] == "collective_timeout"


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["no-such-program"])
    assert start(step).wait() == 1
    assert "cannot start 'no-such-program'" in step.failure()["message"]


def test_sigterm_interrupts_without_a_failure(tmp_path: Path) -> None:
    """What preemption does: every process of the job gets SIGTERM, and the job comes back."""
    step = make_step(tmp_path, ["sleep", "60"])
    assert _signalled(step, signal.SIGTERM) == 75
    assert step.failure() is None and step.result() is None
    assert step.events()[-1]["signal"] == "SIGTERM"


def test_a_warning_that_comes_when_the_step_is_done_makes_no_failed_job_of_it(
    tmp_path: Path,
) -> None:
    """From the result on, a warning comes every millisecond."""
    step = make_step(tmp_path, ["true"])
    process = start(step)
    while process.poll() is None:
        if (tmp_path / "result.json").exists():
            process.send_signal(signal.SIGUSR2)
        time.sleep(0.001)
    assert process.returncode == 0


def until_go(folder: Path) -> str:
    """A shell that goes on once there is a file `go`."""
    return f"until test -e {folder}/go; do sleep 0.05; done"


def test_the_warning_before_the_time_limit_does_not_end_a_program(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["sh", "-c", until_go(tmp_path)])
    process = start(step)
    _until(lambda: _child(process.pid))
    os.kill(process.pid, signal.SIGUSR2)
    os.kill(_child(process.pid), signal.SIGUSR2)
    (tmp_path / "go").touch()
    assert process.wait(timeout=PATIENCE) == 0
    assert step.result() is not None


@pytest.mark.parametrize(
    ("end", "words"),
    [("exit 3", "ended with status 3"), ("kill -KILL $$", "was ended by signal 9")],
)
def test_a_program_that_fails_after_the_warning_has_failed(
    tmp_path: Path, end: str, words: str
) -> None:
    step = make_step(tmp_path, ["sh", "-c", f"{until_go(tmp_path)}; {end}"])
    process = start(step)
    _until(lambda: _child(process.pid))
    os.kill(process.pid, signal.SIGUSR2)
    (tmp_path / "go").touch()
    assert process.wait(timeout=PATIENCE) == 1
    assert words in step.failure()["message"]
    assert events(step) == ["started", "failed"]


def test_a_bash_program_traps_the_warning_if_it_says_so_and_states_how_far_it_came(
    tmp_path: Path,
) -> None:
    save = 'trap "echo 7 > $TRAINYARD_POSITION; exit 75" USR2'
    argv = ["bash", "-c", f"{save}; touch {tmp_path}/ready; while :; do sleep 0.1; done"]
    step = make_step(tmp_path, argv, settings={**COMPLETE, "argv": argv, "handles_warning": True})
    process = start(step)
    _until((tmp_path / "ready").exists)
    for pid in (process.pid, _child(process.pid)):
        os.kill(pid, signal.SIGUSR2)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert step.failure() is None
    last = step.events()[-1]
    assert (last["event"], last["signal"], last["position"]) == ("interrupted", "SIGUSR2", 7)
    assert said.splitlines()[-1].endswith("was told to stop by SIGUSR2: saved at 7")


def test_the_status_of_an_interruption_without_an_interruption_is_a_failure(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["sh", "-c", "exit 75"])
    assert start(step).wait(timeout=PATIENCE) == 1
    assert "sh ended with status 75" in step.failure()["message"]


def limit(position: object, job: str = "7") -> dict[str, Any]:
    return {"event": "interrupted", "signal": "SIGUSR2", "position": position, "job": job}


def test_three_time_limits_without_progress_are_enough_whether_or_not_a_position_is_known() -> None:
    assert "write a longer resources.time or save more often" in stuck([limit(5)] * 3, {"7"})
    assert "at position 5 " in stuck([limit(3), limit(5), limit(5), limit(5)], {"7"})
    assert "the file $TRAINYARD_POSITION" in stuck([limit(None)] * 3, {"7"})
    assert stuck([limit(5), limit(4), limit(5)], {"7"}), "back and forth is no progress"
    assert not stuck([limit(None)] * 2, {"7"})
    assert not stuck([limit(3), limit(3), limit(4)], {"7"})
    assert not stuck([limit(None), limit(None), limit(1)], {"7"})


def test_time_limits_of_an_earlier_job_and_preemption_are_not_counted() -> None:
    preempted = {**limit(5), "signal": "SIGTERM"}
    assert not stuck([limit(5, job="6"), limit(5, job="6"), limit(5)], {"7"})
    assert not stuck([preempted, preempted, limit(5)], {"7"})
    assert not stuck([], {"7"})


def test_a_step_whose_need_has_no_result_does_not_run_and_says_so(tmp_path: Path) -> None:
    step = make_step(tmp_path / "train", ["touch", str(tmp_path / "ran")], needs=["corpus"])
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "result.json").touch()
    process = start(step)
    said, wrong = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "waiting 10 s for the result of corpus" in said
    assert step.failure()["cause"] == "needs_missing"
    assert "corpus/result.json cannot be read: it is empty" in step.failure()["message"]
    assert wrong.splitlines()[-1].startswith("train failed: needs_missing: corpus")
    assert "Traceback" not in wrong
    assert not (tmp_path / "ran").exists()


def test_a_result_that_another_node_sees_late_is_waited_for(tmp_path: Path) -> None:
    step = make_step(tmp_path / "train", ["true"], needs=["corpus"])
    upstream = StepDir(tmp_path / "corpus")
    upstream.path.mkdir()
    process = start(step)
    _until(lambda: events(step))
    upstream.write_result({})
    assert process.wait(timeout=PATIENCE) == 0


@pytest.mark.parametrize("content", ["", "[]", '{"wer": 0.', "\xff"])
def test_a_result_file_that_is_none_is_no_success(tmp_path: Path, content: str) -> None:
    step = make_step(tmp_path, ["true"])
    (tmp_path / "result.json").write_bytes(content.encode("latin-1"))
    process = start(step)
    said, wrong = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, wrong
    assert "that is no success, the step runs" in said
    assert step.result()["seconds"] >= 0


@pytest.mark.parametrize(
    ("text", "words"), [("{x: 1}", "is not JSON"), ("[1]", "write a JSON object"), ("", "not JSON")]
)
def test_a_program_that_writes_no_json_object_is_told_what_to_write(
    tmp_path: Path, text: str, words: str
) -> None:
    step = make_step(tmp_path, ["sh", "-c", f"printf %s '{text}' > $TRAINYARD_RESULT"])
    process = start(step)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert words in step.failure()["message"] and "$TRAINYARD_RESULT" in said
    assert "Traceback" not in said


def test_a_full_disk_is_a_sentence_that_names_the_file_and_a_class_of_its_own(
    tmp_path: Path,
) -> None:
    """The worker's temporary file is /dev/full, which the program can name: its parent is us."""
    fill = "ln -s /dev/full $TRAINYARD_STEP/.result.json.$(uname -n).$PPID"
    step = make_step(tmp_path, ["sh", "-c", fill])
    process = start(step)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    words = f"{tmp_path}/result.json: No space left on device: make room"
    assert step.failure()["cause"] == "disk_full" and words in step.failure()["message"]
    assert words in said.splitlines()[-1]
    assert "Traceback" not in said
    assert step.result() is None


def test_metrics_on_a_full_disk_say_which_file_it_was(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        StepDir(tmp_path).add_metrics({"step": 1})
    assert sentence(caught.value).startswith(f"{tmp_path}/metrics.jsonl: No space left on device")


def test_where_not_even_a_failure_can_be_written_the_log_still_has_a_last_line(
    tmp_path: Path,
) -> None:
    step = make_step(tmp_path, ["true"])
    (tmp_path / "failure.json").mkdir()
    process = start(step)
    said, wrong = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "the record of the failure is not whole" in said
    words = (
        f"failed: disk_error: {tmp_path}/failure.json: Is a directory: a folder lies where a file"
    )
    assert words in wrong.splitlines()[-1]
    assert "Traceback" not in wrong


def test_a_file_that_may_not_be_written_is_a_sentence(tmp_path: Path) -> None:
    step = make_step(tmp_path, ["true"])
    (tmp_path / "events.jsonl").symlink_to("/sys/kernel/uevent_seqnum")  # closed to root too
    process = start(step)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert step.failure()["cause"] == "permission"
    assert "events.jsonl: Permission denied" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_folder_without_a_job_is_a_sentence(tmp_path: Path) -> None:
    for step in (StepDir(tmp_path), StepDir(tmp_path / "moved")):
        process = start(step)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "does not say what to do" in said.splitlines()[-1]
        assert "Traceback" not in said


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
    import torch

    assert cause_of(torch.OutOfMemoryError()) == "out_of_memory_gpu"
    assert cause_of(Failed("gate_missed", "missed")) == "gate_missed"
    assert cause_of(MemoryError()) == "out_of_memory_host"
    assert cause_of(ValueError()) == "error"
    assert cause_of(DataError()) == "bad_data"
    assert cause_of(FileNotFoundError(2, "No such file or directory")) == "missing_file"


def test_a_full_disk_is_recognized_behind_the_words_of_torch_and_safetensors(
    tmp_path: Path,
) -> None:
    import torch

    (tmp_path / "trainer.pt").symlink_to("/dev/full")
    with pytest.raises((OSError, RuntimeError)) as caught:
        checkpoint._write(tmp_path / "trainer.pt", {"a": torch.zeros(1000)})
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    for error in (caught.value, SafetensorError(said)):
        assert cause_of(error) == "disk_full"
        assert "No space left on device" in sentence(error)


def test_metrics_of_a_step_are_lines_of_json(tmp_path: Path) -> None:
    step = StepDir(tmp_path)
    step.add_metrics({"step": 3, "checkpoint": Path("/x")})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["step"], line["checkpoint"]) == (3, "/x")
    assert abs(line["time"] - time.time()) < 60


def _signalled(step: StepDir, sent: signal.Signals) -> int:
    """How a step ends that is signalled with its program, as Slurm does it."""
    process = start(step)
    _until(lambda: _child(process.pid))
    os.kill(process.pid, sent)
    os.kill(_child(process.pid), sent)
    return process.wait(timeout=PATIENCE)


def _child(pid: int) -> int:
    """A child of a process that has become the program: sh -c of the test, not our Python."""
    import psutil

    for child in psutil.Process(pid).children():
        if "sleep" in " ".join(child.cmdline()):
            return int(child.pid)
    return 0


def _until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
