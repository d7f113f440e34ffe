"""The benches of the notes' pathologies and of the useful share: what they say of what came."""

from pathlib import Path

import pytest

from bench import ettr, pathologies
from jobs.step_folder import StepDir


def test_the_useful_share_of_an_hour_follows_from_what_a_fault_costs() -> None:
    """Of 100 s 80 are useful, two faults cost 6 s each, the first start 3.6 s: in an hour 0.1 %
    are lost to that, 1 % to faults, 4.4 % to what else there is.
    """
    lost = [{"seconds": 6.0}, {"seconds": 6.0}]
    seconds = {"useful": 80.0, "starting": 10.8}
    step = {"allocated": 100.0, "seconds": seconds, "recoveries": lost, "starts": 3}
    scaled, hour, each = ettr.rows(step)
    assert scaled.ours == [pytest.approx(0.2)] and hour.ours == [pytest.approx(0.055)]
    assert hour.met is False and each.ours == [6.0, 6.0] and each.met


def test_a_pathology_that_did_not_come_as_it_should_says_so(tmp_path: Path) -> None:
    which = pathologies.PATHOLOGIES[0]
    nothing = {which.step: StepDir(tmp_path)}
    row = pathologies.described(which, nothing, {which.step: "succeeded"})
    assert not row["good"] and row["why"].startswith("NOT AS IT SHOULD BE: IndexError")
    about = {"slurm": "slurm 22", "cores": 2, "speech": "real speech", "commit": "abc"}
    assert "for the reason that is given: 0 of 1" in pathologies.page([row], about)


def test_every_pathology_has_its_step_in_the_pipeline() -> None:
    assert {each.step for each in pathologies.PATHOLOGIES} <= pathologies.steps().keys()
    assert len(pathologies.PATHOLOGIES) == 9
