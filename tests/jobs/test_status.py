"""What `status` and `logs` say, whatever the files of a run hold or lack."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.backends.local import LocalBackend
from jobs.cli import main
from jobs.scheduling.observe import Queue
from jobs.status import describe, exit_code, summary, table
from jobs.step_folder import StepDir
from jobs.store import Run, RunStore, user

JOB = "999999999.second.t1"  # a process id that no machine has
SOUND: dict[str, list[dict[str, Any]]] = {
    "submissions.jsonl": [{"time": 5.0, "token": "second.t1"}, {"time": 6.0, "token": "second.t1"}],
    "events.jsonl": [
        {"time": 6.0, "event": "started", "host": "n1", "job": JOB},
        {"time": 7.0, "event": "interrupted", "job": JOB},
        {"time": 8.0, "event": "resumed", "host": "n1", "job": JOB},
        {"time": 8.1, "event": "watched", "step": 3, "open": {"drift": "it drifts"}},
        {"time": 8.2, "event": "finding", "step": 4, "word": "slow", "sentence": "it is slow"},
        {"time": 8.3, "event": "healthy", "step": 9, "word": "slow", "sentence": "it is slow"},
    ],
    "metrics.jsonl": [
        {"time": 9.0, "step": 3, "total_steps": 10, "loss": 1.5, "seconds_left": 70.0, "wer": 0.5},
        {"time": 9.5, "steps_skipped": 2},
    ],
    "failure.json": [{"cause": "error", "message": "it broke", "job": JOB, "time": 9.0}],
    "result.json": [{"verdict": "good", "wer": 0.25, "steps": 3, "hours": 0.5}],
}
SOUND["submissions.jsonl"][1] |= {"job": JOB, "cancel_requested": True, "ended": False}
WRONG = [
    *("null", "true", '"x"', '"\\ud800\\u001b[31m\\u0007"', "[]", "{}", "-1", "0"),
    *("1e308", "NaN", "1" * 400),
]
DAMAGED = [
    *(b"", b"\n\n", b"null", b"[]", b"{}", b'"text"', b"12", b'{"time": 5.0, "tok', b"NaN"),
    *(b"\xff\xfe\x00\x80binary\x00", b"[" * 100_000, b"1" * 5000, b'{"a": ' * 50_000),
]


def make_run(root: Path, name: str = "demo-1", second: str = "second") -> Run:
    """A run on this machine: `first` has succeeded, files tell of `second`."""
    run = RunStore(root).create(name)
    steps = [
        {"name": "first", "kind": "command", "needs": []},
        {"name": second, "kind": "train", "needs": ["first"]},
    ]
    run.write_info(
        {
            "name": name,
            "pipeline": "demo",
            "cluster": {"name": "local", "backend": "local"},
            "created": 1.0,
            "user": user(),
            "cwd": str(root),
            "steps": steps,
        }
    )
    for step in steps:
        run.step(str(step["name"])).write_job(step)
    run.step("first").write_result({"wer": 0.125})
    return run


def write(step: StepDir, name: str, lines: list[dict[str, Any]]) -> None:
    (step.path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_sound(step: StepDir, *but: str) -> None:
    """All files of a step, but some: with a result it has succeeded, else it was cancelled."""
    for name, lines in SOUND.items():
        if name not in but:
            write(step, name, lines)
    (step.logs / f"{JOB}_0_log.out").write_text("a line of its log\n")


def write_ended(step: StepDir) -> None:
    """Files of a step that a job was submitted for, and that says nothing of its end."""
    write_sound(step, "result.json", "failure.json", "submissions.jsonl")
    write(step, "submissions.jsonl", [{"time": 5, "token": "second.t1", "job": JOB}])


def show_steps(run: Run, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """The steps of a run after every command that looks at it; none may end in a traceback."""
    assert main(["status", str(run.path)]) in (0, 1)
    shown = capsys.readouterr().out
    assert "first" in shown and "WER 12.50 %" in shown
    assert main(["status", str(run.path), "--watch"]) in (0, 1)
    assert main(["logs", f"{run.path}/{run.steps()[1]['name']}"]) in (0, 1, 2)
    capsys.readouterr()
    assert main(["status", "--json", str(run.path)]) in (0, 1)
    status = json.loads(capsys.readouterr().out)
    assert status["steps"][0]["state"] == "succeeded"
    return {step["step"]: step for step in status["steps"]}


def test_a_loss_that_is_not_finite_is_said_with_the_steps_dropped(tmp_path: Path) -> None:
    """What the trainer writes then: JSON has no NaN, so loss and norm are null."""
    run = make_run(tmp_path)
    write_sound(run.step("second"), "result.json")
    metrics = {"step": 40, "total_steps": 100, "loss": None, "grad_norm": None, "steps_skipped": 14}
    write(run.step("second"), "metrics.jsonl", [{"step": 20, "loss": 3.0}, metrics])
    step = describe(run, Queue(LocalBackend()))["steps"][1]
    said = summary({**step, "state": "running", "reason": "", "last_line": ""})
    assert said == "40/100 (40 %), loss not finite, 14 steps dropped"


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[Run]:
    """A run whose second step is kept by a living process, which has a worker."""
    run, token = make_run(tmp_path), "second.t1"
    process = subprocess.Popen(["sh", "-c", "sleep 600 & wait", token], start_new_session=True)
    job = f"{process.pid}.{token}"
    write(run.step("second"), "submissions.jsonl", [{"time": 5.0, "token": token, "job": job}])
    while len(psutil.Process(process.pid).children()) < 1:
        time.sleep(0.01)
    yield run
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_health_of_a_running_step_is_what_was_found_last_and_is_not_over(alive: Run) -> None:
    drift, slow = ({"word": word, "sentence": f"{word} it is"} for word in ("drift", "slow"))
    started = {"event": "started", "host": "n1"}
    watched = {"event": "watched", "open": {"drift": "drift it is"}}
    found, over = {"event": "finding", **slow}, {"event": "healthy", **slow}
    cases: list[tuple[str | None, list[dict[str, Any]]]] = [
        (None, [started]),
        (None, [started, found]),  # the watch has not begun
        ("drift it is", [started, watched]),
        ("slow it is", [started, watched, found]),
        ("drift it is", [started, watched, found, over]),
        ("HEALTHY", [started, watched, {"event": "healthy", **drift}]),
        (None, [started, watched, found, {**started, "event": "resumed"}]),
        ("HEALTHY", [started, {"event": "watched", "open": {}}, {"event": "resumed", "step": 3}]),
    ]
    for expected, events in cases:
        write(alive.step("second"), "events.jsonl", [{**each, "time": 6.0} for each in events])
        step = describe(alive, Queue(LocalBackend()))["steps"][1]
        assert (step["state"], step["health"]) == ("running", expected)
        assert summary(step) == (expected or "")


def test_a_step_has_run_for_the_time_of_all_its_starts_and_never_for_less_than_none(
    alive: Run,
) -> None:
    """The clocks of two nodes, and of who looks, differ."""
    now, host = time.time(), {"host": "n1"}
    began, again = {"event": "started", **host}, {"event": "resumed", **host}
    cases: list[tuple[float, list[tuple[float, dict[str, Any]]]]] = [
        (3.0, [(6, began), (7, {"event": "interrupted"}), (8, again), (10, {"event": "failed"})]),
        (2.0, [(6, began), (3, {"event": "interrupted"}), (8, again), (10, {"event": "failed"})]),
        (60.0, [(now - 60, began), (now - 50, {"event": "resumed", "step": 3})]),
        (0.0, [(now + 600, began)]),
    ]
    for expected, events in cases:
        written = [{"time": at, **event} for at, event in events]
        write(alive.step("second"), "events.jsonl", written)
        step = describe(alive, Queue(LocalBackend()))["steps"][1]
        assert step["state"] == "running"
        assert step["seconds"] == pytest.approx(expected, abs=5 if expected == 60 else 0)


def test_a_running_step_whose_log_has_long_been_silent_is_not_called_healthy(alive: Run) -> None:
    folder, watched = alive.step("second"), {"event": "watched", "time": 7.0}
    started = {"event": "started", "host": "n1", "time": 6.0}
    drift = {"drift": "drift it is"}
    silent = "nothing in its log for 20m"
    log, _ = folder.logs_of(latest.job if (latest := folder.latest()) else "")
    log.parent.mkdir(exist_ok=True)
    log.touch()
    for minutes, found, expected in [
        (14, {}, "HEALTHY"),
        (20, {}, silent),
        (20, drift, f"drift it is; {silent}"),
    ]:
        write(folder, "events.jsonl", [started, {**watched, "open": found}])
        written = time.time() - 60 * minutes - 1
        os.utime(log, (written, written))
        step = describe(alive, Queue(LocalBackend()))["steps"][1]
        assert summary(step).startswith(expected)
        assert (step["silent"] is None) == (expected == "HEALTHY")


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("data", DAMAGED, ids=lambda data: repr(data[:12]))
def test_a_damaged_file_hides_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes
) -> None:
    run = make_run(tmp_path)
    write_sound(run.step("second"), *([] if name == "result.json" else ["result.json"]))
    (run.step("second").path / name).write_bytes(data)
    step = show_steps(run, capsys)["second"]
    if name == "failure.json" or (name == "result.json" and data != b"{}"):
        assert f"{name} cannot be read: " in step["unreadable"][0], step
        assert step["state"] != "succeeded"


@pytest.mark.parametrize("name", SOUND)
def test_a_value_of_the_wrong_type_hides_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = make_run(tmp_path)
    step = run.step("second")
    write_sound(step, *([] if name == "result.json" else ["result.json"]))
    for number, line in enumerate(SOUND[name]):
        for key in line:
            for value in ["absent", *WRONG]:
                lines = [json.dumps(each) for each in SOUND[name]]
                others = {other: line[other] for other in line if other != key}
                lines[number] = json.dumps(others)
                if value != "absent":
                    lines[number] = json.dumps({**others, key: "?"}).replace('"?"', value)
                (step.path / name).write_text("\n".join(lines) + "\n")
                status = describe(run, Queue(LocalBackend()))
                assert "first" in table(status).plain and exit_code(status) in (0, 1)
                table(status).plain.encode()  # no half characters
                assert "\x1b" not in table(status).plain
    show_steps(run, capsys)


def replace_by_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def replace_by_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("name", [*SOUND, f"logs/{JOB}_0_log.out"])
@pytest.mark.parametrize("replace", [replace_by_folder, replace_by_link_to_itself])
def test_what_is_no_file_is_said_with_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, replace: Callable[[Path], None]
) -> None:
    run = make_run(tmp_path)
    write_sound(run.step("second"), *([] if name == "result.json" else ["result.json"]))
    path = run.step("second").path / name
    replace(path)
    step = show_steps(run, capsys)["second"]
    if "log" in name:
        assert main(["logs", f"{run.path}/second"]) in (1, 2)
        assert f"{path} cannot be read: " in capsys.readouterr().err or path.is_symlink()
    else:
        assert [each for each in step["unreadable"] if f"{path} cannot be read: " in each]
    assert step["state"] != "succeeded"


def test_a_step_folder_that_is_a_file_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    folder = run.step("second").path
    folder.rename(tmp_path / "away")
    folder.write_text("")
    step = show_steps(run, capsys)["second"]
    assert step["state"] == "lost"
    assert step["reason"] == f"{folder}/submissions.jsonl cannot be read: Not a directory"


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root reads everything, so tests that root runs become somebody else for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def open_to_all(run: Run) -> None:
    """Somebody shares a run, which is for its user alone as it is made."""
    for path in (run.path, *run.path.rglob("*")):
        path.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own is for its user alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("name", [*SOUND, "logs", ".", f"logs/{JOB}_0_log.out"])
def test_what_may_not_be_read_is_said_with_its_path(
    open_folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = make_run(open_folder)
    write_sound(run.step("second"), *([] if name == "result.json" else ["result.json"]))
    show_steps(run, capsys)  # imports what it needs while it may
    open_to_all(run)
    path = run.step("second").path / name
    path.chmod(0)
    try:
        with as_nobody():
            step = show_steps(run, capsys)["second"]
            assert main(["logs", f"{run.path}/second"]) in (0, 1, 2)
    finally:
        path.chmod(0o755)
    said = capsys.readouterr().err + "\n".join(step["unreadable"])
    assert f"{path} cannot be read: Permission denied" in said or name == "."
    if name == ".":
        assert f"{path}/result.json cannot be read: Permission denied" in said
    assert step["state"] != "succeeded"


def test_a_lock_that_is_not_ours_to_open_keeps_nobody_from_looking(
    open_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(open_folder)
    with run.lock():
        pass
    show_steps(run, capsys)
    open_to_all(run)
    (run.path / "lock").chmod(0)
    with as_nobody():
        assert show_steps(run, capsys)["second"]["state"] == "new"


def test_resume_does_nothing_where_it_cannot_tell_what_was_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    facts = run.info()
    run.write_info({**facts, "user": user()})
    (run.step("second").path / "submissions.jsonl").mkdir()
    assert main(["resume", str(run.path)]) == 2
    assert "submissions.jsonl cannot be read: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("data", DAMAGED, ids=lambda data: repr(data[:12]))
def test_a_damaged_run_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    run = make_run(tmp_path)
    (run.path / "run.json").write_bytes(data)
    for command in (["status"], ["status", "--json"], ["status", "--watch"], ["logs"]):
        what = f"{run.path}/second" if command == ["logs"] else str(run.path)
        assert main([*command, what]) == 2
        assert f"{run.path}/run.json cannot be read: " in capsys.readouterr().err


def test_a_run_with_a_key_missing_or_wrong_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    sound = run.info()
    texts = [json.dumps({k: v for k, v in sound.items() if k != key}) for key in sound]
    texts += [
        json.dumps({**sound, key: "?"}).replace('"?"', value) for key in sound for value in WRONG
    ]
    for field in sound["steps"][0]:
        for value in WRONG:
            step = json.dumps({**sound["steps"][0], field: "?"}).replace('"?"', value)
            texts.append(json.dumps({**sound, "steps": "?"}).replace('"?"', f"[{step}]"))
    for field in sound["cluster"]:
        for value in WRONG:
            cluster = json.dumps({**sound["cluster"], field: "?"}).replace('"?"', value)
            texts.append(json.dumps({**sound, "cluster": "?"}).replace('"?"', cluster))
    for text in texts:
        (run.path / "run.json").write_text(text)
        if main(["status", "--json", str(run.path)]) == 2:
            assert "run.json cannot be read: " in capsys.readouterr().err, text
        main(["status", str(run.path)])
        main(["logs", f"{run.path}/first"])


def test_names_of_240_characters_are_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINYARD_RUNS", str(tmp_path))
    run = make_run(tmp_path, "r" * 240, "s" * 240)
    write_sound(run.step("s" * 240), "result.json")
    assert show_steps(run, capsys)["s" * 240]["state"] == "cancelled"
    assert main(["status", "n" * 300]) == 2
    assert "no run begins with" in capsys.readouterr().err


def test_an_empty_result_is_no_success_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    (run.step("second").path / "result.json").touch()
    assert main(["status", str(run.path)]) == 1
    assert f"{run.path}/steps/second/result.json cannot be read: it is empty" in (
        capsys.readouterr().out
    )


def test_a_step_that_nobody_submits_is_no_success_and_says_what_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    assert main(["status", str(run.path)]) == 1
    assert "never submitted: launch.py resume" in capsys.readouterr().out
    with run.lock():  # somebody does
        assert main(["status", str(run.path)]) == 0
        assert f"being submitted by process {os.getpid()}" in capsys.readouterr().out


def test_a_line_that_a_crash_has_cut_hides_neither_the_one_before_nor_the_next(
    tmp_path: Path,
) -> None:
    step = StepDir(tmp_path)
    step.add_submission("t1")
    with (tmp_path / "submissions.jsonl").open("a") as file:
        file.write('{"time": 6.0, "token": "t1", "jo')
    step.add_submission("t2")
    assert [each.token for each in step.submissions()] == ["t1", "t2"]


def test_a_reason_of_several_lines_is_its_first_and_where_the_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    write_ended(run.step("second"))
    failure = {"cause": "bad_data", "message": "a.wav: silent\nb.wav: silent", "job": JOB}
    write(run.step("second"), "failure.json", [{**failure, "time": 9.0}])
    assert show_steps(run, capsys)["second"]["reason"] == "bad_data: a.wav: silent"
    main(["status", str(run.path)])
    row = capsys.readouterr().out.splitlines()[3]
    assert "bad_data: a.wav: silent; there is more: launch.py logs demo-1/second" in row
    write(run.step("second"), "failure.json", [{**failure, "message": "one", "time": 9.0}])
    assert show_steps(run, capsys)["second"]["more"] == ""


def test_the_last_line_of_the_log_says_what_no_file_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    write_ended(run.step("second"))
    log = run.step("second").logs / f"{JOB}_0_log.err"
    log.write_bytes(
        b"one\n\x1b[31mOut of memory: \x07Killed\x1b[0m\tprocess" + b"!" * 500 + b"\n\n"
    )
    step = show_steps(run, capsys)["second"]
    assert step["last_line"].startswith("Out of memory: Killed process!!!")
    assert len(step["last_line"]) == 160
    main(["status", str(run.path)])
    row = capsys.readouterr().out.splitlines()[3]
    assert "its log ends: Out of memory: Killed process" in row
    assert "(launch.py logs demo-1/second)" in row
    log.write_text("second failed: missing_file: its folder is not there any more\n")
    assert (step["cause"], show_steps(run, capsys)["second"]["cause"]) == ("", "missing_file")
    log.write_text("\n")
    assert show_steps(run, capsys)["second"]["last_line"] == "a line of its log"
