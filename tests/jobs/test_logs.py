"""`logs`: the last lines, those that match, and what comes, of files of any size and kind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.logs import Log
from jobs.store import Run
from tests.conftest import REPOSITORY
from tests.jobs.test_status import JOB, make_run, write

_SECONDS = 120.0  # that something may take which takes none


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose step `second` has a log."""
    run = make_run(tmp_path)
    write(run.step("second"), "submissions.jsonl", [{"time": 5, "token": "second.t1", "job": JOB}])
    log_of(run).write_text("".join(f"line {number}\n" for number in range(1000)))
    return run


def log_of(run: Run, ending: str = "out", rank: int = 0, job: str = JOB) -> Path:
    return run.step("second").logs / f"{job}_{rank}_log.{ending}"


def logs(run: Run, *arguments: str) -> str:
    """What `logs` prints, and complains of."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "launch.py", "logs", f"{run.path}/second", *arguments],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_last_lines_are_those_of_the_newest_files(run: Run) -> None:
    os.utime(log_of(run), (1, 1))
    log_of(run, "err").write_text("warned\nfailed\n")
    assert logs(run, "--lines", "4") == "line 998\nline 999\nwarned\nfailed\n"
    assert logs(run, "--lines", "2") == "warned\nfailed\n"
    assert logs(run, "--lines", "1", "--grep", "9") == "line 999\n"
    assert len(logs(run, "--lines", "1" * 40).splitlines()) == 1002
    assert logs(run, "--lines", "0") == logs(run, "--lines", "0", "--grep", "9") == ""


@pytest.mark.parametrize("option", ["--lines", "--rank"])
def test_an_amount_below_nothing_is_refused(run: Run, option: str) -> None:
    for amount in ("-1", "x", "1.5", ""):
        assert f"argument {option}: {amount!r} is not 0, 1, 2 ..." in logs(
            run, f"{option}={amount}"
        )


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("length", [1, 70, 65_535, 65_536, 65_537, 200_000])
def test_the_last_lines_are_found_across_the_blocks_of_a_file(
    tmp_path: Path, length: int, end: str
) -> None:
    """The file is looked at in blocks of 65,536 bytes from its end."""
    lines = [f"{number}".ljust(length, "x") for number in range(5)]
    path = tmp_path / "log"
    path.write_text("\n".join(lines) + end)
    for count in range(7):
        log = Log(path)
        assert log.go_to_last(count, rest=True) == min(count, 5)
        assert list(log.lines(rest=True)) == lines[max(0, 5 - count) :]
        log = Log(path)
        whole = lines if end else lines[:-1]
        log.go_to_last(count, rest=False)
        assert list(log.lines(rest=False)) == whole[max(0, len(whole) - count) :]
        assert list(log.lines(rest=True)) == lines[len(whole) :]


@pytest.mark.parametrize(
    "arguments", [[], ["--grep", "7$"], ["--grep", "never"], ["--lines", "10000000"]]
)
@pytest.mark.parametrize("line", [b"%0100d\n", b"%0100d"])
def test_a_large_log_is_never_held_in_memory(run: Run, arguments: list[str], line: bytes) -> None:
    """120 MB took 480 MB and more; Python alone takes 20 MB. Without line ends it is one line."""
    with log_of(run).open("wb") as file:
        for begin in range(0, 1_200_000, 10_000):
            file.write(b"".join(line % number for number in range(begin, begin + 10_000)))
    program = (
        "import sys; from jobs.cli import main\n"
        "code = main(sys.argv[1:]); sys.stdout.flush()\n"
        "facts = dict(line.split(':') for line in open('/proc/self/status'))\n"
        "print(facts['VmHWM'].split()[0], file=sys.stderr); exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "logs", f"{run.path}/second", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stderr) < 60_000, f"{done.stderr.strip()} KiB"


@pytest.fixture
def following(run: Run) -> "Iterator[subprocess.Popen[str]]":
    """`logs -f` of a step that a living process keeps, as far as this machine can tell."""
    keeper = subprocess.Popen([sys.executable, "-c", "input()", "second.t1"], stdin=subprocess.PIPE)
    job = f"{keeper.pid}.second.t1"
    write(run.step("second"), "submissions.jsonl", [{"time": 5, "token": "second.t1", "job": job}])
    command = ["logs", f"{run.path}/second", "-f", "--lines", "1"]
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "launch.py", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()
    keeper.communicate()


def test_following_prints_each_line_once_and_whole(
    run: Run, following: "subprocess.Popen[str]"
) -> None:
    """A writer's buffer ends in the middle of a line, or of a character."""
    said = following.stdout
    assert said is not None and said.readline() == "line 999\n"
    with log_of(run).open("ab", buffering=0) as log:
        for part in (b"half ", b"a line, and \xc3", b"\xa9t\xc3", b"\xa9\nnext\n"):
            log.write(part)
            time.sleep(1.0)  # two looks of the reader's: each part is seen alone
        assert said.readline() == "half a line, and été\n"
        assert said.readline() == "next\n"
        log.write("Gesagt: é".encode())
    run.step("second").write_result({})
    assert following.communicate(timeout=_SECONDS)[0] == "Gesagt: é\n"
    assert following.returncode == 0


def test_following_goes_on_in_a_file_that_was_cut_or_replaced_and_in_a_new_one(
    run: Run, following: "subprocess.Popen[str]"
) -> None:
    said = following.stdout
    assert said is not None and said.readline() == "line 999\n"
    log_of(run).write_text("cut\n")
    assert said.readline() == "cut\n"
    longer = run.path / "longer"
    longer.write_text("replaced by a longer one\n")
    longer.replace(log_of(run))
    assert said.readline() == "replaced by a longer one\n"
    log_of(run, job="8").write_text("the next job\n")
    assert said.readline() == "the next job\n"
    log_of(run, "err").mkdir()
    assert said.readline() == f"{log_of(run, 'err')} cannot be read: Is a directory\n"
    with log_of(run).open("a") as log:
        log.write("it goes on\n")
    assert said.readline() == "it goes on\n"
    run.step("second").write_result({})
    assert following.communicate(timeout=_SECONDS)[0] == ""
    assert following.returncode == 1


def test_a_log_of_anything_is_printed_on_a_terminal_of_any_kind(run: Run) -> None:
    log_of(run).write_bytes(b"\xff\xfe\x00 \xc3\xa9 \xf0\x9f\x98\x80\n")
    done = subprocess.run(
        [sys.executable, REPOSITORY / "launch.py", "logs", f"{run.path}/second"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.stdout == b"\\ufffd\\ufffd\x00 \\xe9 \\U0001f600\n"
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "name",
    [
        "{runs}/demo-1/steps/second",
        "{runs}/demo-1/steps/second/",
        "{runs}/demo-1/second",
        "./{runs}/demo-1/second/",
        "demo-1/second",
        "demo-1/steps/second/",
        "demo/second",
        "/second",
    ],
)
def test_a_step_has_the_names_that_a_shell_completes(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(run.path.parents[1])
    monkeypatch.setenv("TRAINYARD_RUNS", run.path.parent.name)
    step = name.format(runs=run.path.parent.name)
    assert main(["logs", step, "--lines", "1"]) == 0
    assert capsys.readouterr().out == "line 999\n"


def test_a_step_is_found_from_within_its_run(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in ((run.path, "steps/second"), (run.path / "steps", "second")):
        monkeypatch.chdir(folder)
        assert main(["logs", name, "--lines", "1"]) == 0
        assert capsys.readouterr().out == "line 999\n"
    monkeypatch.chdir(run.path / "steps" / "second")
    assert main(["logs", ".", "--lines", "1"]) == 0


def test_a_rank_without_a_log_is_said_with_those_that_have_one(run: Run) -> None:
    log_of(run, rank=1).write_text("rank 1\n")
    log_of(run, rank=11).write_text("rank 11\n")
    assert logs(run, "--rank", "1") == "rank 1\n"
    said = "second has no log of rank 2: failed (its process is gone: see its log)"
    assert logs(run, "--rank", "2") == f"{said}; ranks with a log: 0, 1, 11\n"
