"""Steps that heal inside their job, on a real Slurm: what is behind them never notices."""

from pathlib import Path

import pytest

from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import Launcher, sh


@pytest.fixture
def launcher(private_slurm: PrivateSlurm, tmp_path: Path) -> Launcher:
    return Launcher(tmp_path, private_slurm)


def test_a_killed_worker_begins_again_in_the_same_allocation_and_its_dependents_run(
    launcher: Launcher,
) -> None:
    steps = {
        "first": sh("echo x >> tries; [ $(wc -l < tries) -gt 2 ] || kill -9 $PPID"),
        "behind": sh("echo behind >> ran", "first"),
    }
    launcher("run", launcher.write(steps))
    launcher.wait_for_states(behind="succeeded")
    status = launcher.status(code=0)
    assert (status["first"]["submissions"], status["first"]["remedies"]) == (1, 2)
    assert (launcher.folder / "tries").read_text() == "x\nx\nx\n"
    launcher.expect_accounts(first=["COMPLETED"], behind=["COMPLETED"])


def test_a_rank_of_several_that_is_killed_is_named_and_all_begin_again(launcher: Launcher) -> None:
    script = "[ $SLURM_PROCID = 0 ] && sleep 2 || [ -e killed ] || { touch killed; kill -9 $PPID; }"
    steps = {"first": sh(script, resources={"nodes": 2, "memory_gb": 0.1})}
    launcher("run", launcher.write(steps))
    launcher.wait_for_states(first="succeeded")
    events = (launcher.newest() / "steps/first/events.jsonl").read_text()
    assert '"cause": "killed"' in events
    assert launcher.status(code=0)["first"]["remedies"] == 1


def test_a_failure_without_a_remedy_ends_the_job_and_what_is_behind(launcher: Launcher) -> None:
    steps = {"first": sh("exit 3"), "behind": sh("echo never >> ran", "first")}
    launcher("run", launcher.write(steps))
    launcher.wait_for_states(first="failed", behind="cancelled")
    assert launcher.status(code=1)["first"]["cause"] == "program_failed"
    assert not launcher.ran()
