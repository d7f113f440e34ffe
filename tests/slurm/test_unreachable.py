"""slurmctld goes away while a run is being submitted, and comes back: each step runs once.

A Slurm of its own, whose controller is stopped and started again. The clients of the launcher give
up after 2 s instead of 50, so that it is the launcher that waits.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import PATIENCE, PrivateSlurm, new_slurm
from tests.slurm.launcher import UNTIL_GO, Launcher, chain

STEPS = ("one", "two", "three", "four")
BEGUN = "until test -e begun; do sleep 0.1; done"  # Slurm may lose a job that is just starting


class Controller:
    """The slurmctld of a private Slurm."""

    def __init__(self, slurm: PrivateSlurm) -> None:
        self.slurm = slurm
        self.started: subprocess.Popen[bytes] | None = None

    def process(self) -> psutil.Process:
        file = self.slurm.directory / "run" / "slurmctld.pid"
        return psutil.Process(int(file.read_text()))

    def stop(self) -> None:
        process = self.process()
        process.send_signal(signal.SIGTERM)
        if self.started:
            self.started.wait(60)
        self.slurm.wait_for(
            lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        )

    def start(self) -> None:
        with (self.slurm.directory / "log" / "again.out").open("a") as log:
            self.started = subprocess.Popen(
                ["slurmctld", "-D"], env=self.slurm.environment, stdout=log, stderr=log
            )
        self.slurm.wait_for(lambda: self.slurm.run("sinfo", "-h", "-t", "idle,mix,alloc"))


@pytest.fixture(scope="module")
def own() -> Iterator[PrivateSlurm]:
    with new_slurm(nodes=1) as cluster:
        yield cluster


@pytest.fixture
def controller(own: PrivateSlurm) -> Iterator[Controller]:
    controller = Controller(own)
    yield controller
    own.clear()


@pytest.fixture(scope="module", autouse=True)
def nothing_stays(own: PrivateSlurm) -> Iterator[None]:
    """What a test has started ends with the Slurm that it belongs to."""
    yield
    Controller(own).process().kill()


@pytest.fixture
def launcher(tmp_path: Path, own: PrivateSlurm) -> Launcher:
    hasty = own.directory / "hasty.conf"
    lines = own.conf.read_text().splitlines()
    rest = [line for line in lines if not line.startswith(("MessageTimeout", "TCPTimeout"))]
    hasty.write_text("\n".join([*rest, "MessageTimeout=2", "TCPTimeout=2", ""]))
    launcher = Launcher(tmp_path, own)
    launcher.environment["SLURM_CONF"] = str(hasty)
    return launcher


def read_until(running: "subprocess.Popen[str]", words: str) -> str:
    assert running.stdout is not None
    said = ""
    for line in running.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it has ended, and never said {words!r}: {said}")


def test_run_waits_for_a_controller_that_is_down_and_says_so(
    launcher: Launcher, controller: Controller
) -> None:
    file = launcher.write(chain(**dict.fromkeys(STEPS, "")))
    controller.stop()
    running = launcher.start("run", file)
    said = read_until(running, "trying again in 2 s")
    assert "Unable to contact slurm controller (connect failure)" in said
    controller.start()
    more = running.communicate(timeout=PATIENCE)[0]
    assert running.returncode == 0, more
    launcher.wait_for_states(four="succeeded")
    assert launcher.ran() == [*STEPS]
    launcher.expect_once(*STEPS)


@pytest.mark.parametrize("queued", [False, True], ids=["before the job is queued", "after that"])
def test_a_controller_that_goes_away_between_two_submissions_has_each_step_once(
    launcher: Launcher, controller: Controller, queued: bool
) -> None:
    """sbatch then answers that it could not connect, or that its answer got lost."""
    stop = f"{BEGUN}; kill $(cat {controller.slurm.directory}/run/slurmctld.pid); sleep 2"
    lost = "echo 'sbatch: error: Batch job submission failed: Zero Bytes were transmitted' >&2"
    trouble = f'"$real" "$@" > queued; {stop}; {lost}; exit 1' if queued else stop
    launcher.wrap("sbatch", f'if test $nth = 2; then {trouble}; fi; exec "$real" "$@"')
    one = f"touch begun; {UNTIL_GO}"
    running = launcher.start("run", launcher.write(chain(one=one, two="", three="", four="")))
    said = read_until(running, "trying again in ")
    assert "two" in said or "Unable to contact" in said
    controller.start()
    said += running.communicate(timeout=PATIENCE)[0]
    assert running.returncode == 0, said
    assert all(f"  {name}: job " in said for name in STEPS)
    assert (launcher.folder / "queued").exists() == queued
    launcher.touch("go")
    launcher.wait_for_states(four="succeeded")
    assert launcher.ran() == [*STEPS]
    launcher.expect_once(*STEPS)


def test_ctrl_c_ends_the_waiting_and_says_what_to_do(
    launcher: Launcher, controller: Controller
) -> None:
    file = launcher.write(chain(one=f"touch begun; {UNTIL_GO}", two=""))
    later = f"{BEGUN}; touch second; sleep 1"
    launcher.wrap("sbatch", f'if test $nth = 2; then {later}; fi; exec "$real" "$@"')
    running = launcher.start("run", file)
    launcher.slurm.wait_for((launcher.folder / "second").exists)
    controller.stop()
    read_until(running, "trying again in ")
    os.kill(running.pid, signal.SIGINT)
    assert "stopped while submitting" in running.communicate(timeout=PATIENCE)[0]
    assert running.returncode == 130
    controller.start()
    launcher.touch("go")
    launcher("resume", "--wait")
    assert launcher.ran() == ["one", "two"]
