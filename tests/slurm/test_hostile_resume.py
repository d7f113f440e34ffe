"""Going on with a run, when everything is against it: on another cluster, or cut short."""

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, chain


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
