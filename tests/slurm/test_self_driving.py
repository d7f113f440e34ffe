"""A run with more steps than Slurm takes at once goes on by itself, each step once.

The limits are real ones, kept by slurmctld, and the jobs submit each other from the compute nodes.
"""

import getpass
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, chain, sh

SIX = ("one", "two", "three", "four", "five", "six")


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


@pytest.fixture
def limit(slurm: PrivateSlurm) -> Iterator[Callable[[int], None]]:
    """Says how many jobs the user may have in the queue."""

    def set_to(jobs: int) -> None:
        user = ["sacctmgr", "-i", "modify", "user", getpass.getuser(), "set"]
        slurm.run(*user, f"MaxSubmitJobs={jobs}")

    yield set_to
    set_to(-1)


def events(launcher: Launcher, step: str, name: str) -> list[dict[str, object]]:
    file = launcher.newest() / "steps" / step / "events.jsonl"
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return [line for line in lines if line["event"] == name]


def has_left(launcher: Launcher) -> Callable[[], bool]:
    """Whether nothing of the run is in the queue."""
    return lambda: launcher.queued() == []


def test_a_chain_of_six_with_room_for_two_runs_to_its_end_without_its_launcher(
    launcher: Launcher, limit: Callable[[int], None]
) -> None:
    limit(2)
    launcher.wrap("sbatch", 'if test $nth = 4; then sleep 1000; fi; exec "$real" "$@"')
    steps = {**chain(**dict.fromkeys(SIX, "")), "one": sh(f"{UNTIL_GO}; echo one >> ran")}
    said = launcher("run", launcher.write(steps))
    assert "three, four, five, six: Slurm takes no more jobs of yours for now" in said
    assert launcher.queued() == ["one", "two"]
    status = launcher.status(code=0)
    for name in SIX[2:]:
        assert status[name]["state"] == "new"
        assert status[name]["reason"].startswith("follows by itself: ")
    launcher.unwrap()
    launcher.touch("go")
    launcher.wait_for_states(six="succeeded")
    launcher.slurm.wait_for(has_left(launcher))
    assert launcher.ran() == [*SIX]
    launcher.expect_once(*SIX)
    assert not (launcher.newest() / "following.json").exists()
    launcher.status(code=0)
