"""Going on with a run, when everything is against it: on another cluster, or cut short."""

import json
import signal
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, chain, sh

# the launcher, which is killed when it has moved the result of step `one`
DIES = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
from jobs.cli import main
rename = Path.rename
def once(path, target):
    if path.name != "result.json" and path.parent.name == "one" and "earlier" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = once
main()
"""


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


def test_a_run_of_another_slurm_is_not_resumed_here_even_if_no_job_of_it_is_left(
    launcher: Launcher,
) -> None:
    """All that was submitted was cancelled: there is no job that this Slurm could be asked for."""
    launcher("run", launcher.write(chain(one=UNTIL_GO, two="")))
    run = launcher.newest()
    launcher("cancel", run.name)
    launcher.wait_for_states(one="cancelled", two="cancelled")
    record = run / "run.json"
    info = json.loads(record.read_text())
    record.write_text(json.dumps({**info, "scheduler": "mini at elsewhere:6817"}))
    said = launcher("resume", run.name, code=1)
    assert f"belongs to the Slurm mini at elsewhere:6817, and here is {info['scheduler']}" in said
    assert launcher.queued() == []
    record.write_text(json.dumps(info))
    launcher.touch("go")
    launcher("resume", run.name, "--wait")
    assert launcher.ran() == ["one", "two"]


@pytest.mark.parametrize("again", [True, False], ids=["asked again", "just resumed"])
def test_a_resume_killed_while_it_sets_a_step_aside_leaves_nothing_of_it_to_the_next_start(
    launcher: Launcher, again: bool
) -> None:
    """The result is gone by then; a checkpoint that had stayed would make the step a finished one.

    The first move is made, and the second, of what the program keeps, is where the launcher dies.
    """
    count = "echo line >> $TRAINYARD_STEP/kept; wc -l < $TRAINYARD_STEP/kept >> lines"
    launcher("run", launcher.write({"one": sh(count), "two": sh("echo two >> ran", "one")}))
    launcher.wait_for_states(one="succeeded", two="succeeded")
    run = launcher.newest()
    (launcher.folder / "launch_and_die.py").write_text(DIES)
    change = ["--set", f"one.argv=[sh, -c, '{count}; true']"]
    working, launcher.command[1] = launcher.command[1], str(launcher.folder / "launch_and_die.py")
    launcher("resume", run.name, *change, code=-signal.SIGKILL)
    launcher.command[1] = working
    assert (run / "steps" / "one" / "kept").exists()
    assert not (run / "steps" / "one" / "result.json").exists()
    launcher("resume", run.name, *(change if again else []), "--wait")
    assert (launcher.folder / "lines").read_text().split() == ["1", "1"]
    assert (run / "steps" / "one" / "earlier.1" / "kept").exists()
    assert launcher.ran() == ["two", "two"]
