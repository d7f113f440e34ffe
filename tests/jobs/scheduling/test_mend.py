"""What a changed pipeline touches, decided from data; and the whole of it on this machine."""

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import UserError
from jobs.scheduling.mend import compare
from jobs.step_folder import StepDir
from tests.jobs.launcher import Launcher

CHAIN = """\
steps:
  first:
    kind: command
    settings: {argv: [sh, -c, 'echo first >> ran']}
  second:
    kind: command
    needs: [first]
    settings: {argv: [sh, -c, 'echo second >> ran; touch $TRAINYARD_STEP/kept; exit 1']}
  third:
    kind: command
    needs: [second]
    settings: {argv: [sh, -c, 'echo third >> ran']}
"""


def step(name: str, *needs: str, **changes: Any) -> dict[str, Any]:
    plain = {"kind": "command", "settings": {"argv": ["true"]}, "resources": {"time": "1h"}}
    return {"name": name, **plain, "needs": list(needs), "gate": {}, **changes}


RUN = [step("a"), step("b", "a"), step("c", "b"), step("beside")]
DONE = {each["name"]: {"seconds": 2.0} for each in RUN}
TRIED = dict.fromkeys(DONE, True)


def test_what_is_the_same_is_kept() -> None:
    mending = compare(RUN, RUN, DONE, TRIED, [])
    assert mending.lines == [] and mending.touched == set()


def test_a_changed_setting_of_a_finished_step_is_done_anew_with_all_behind_it() -> None:
    after = [RUN[0], step("b", "a", settings={"argv": ["false"]}), *RUN[2:]]
    mending = compare(RUN, after, DONE, TRIED, [])
    assert mending.anew == ["b", "c"]
    assert mending.lines == ["b: settings.argv.0: true -> false", "b: done anew", "c: done anew"]


def test_other_resources_of_a_finished_step_change_nothing_that_it_found() -> None:
    after = [step("a", resources={"time": "2h"}), *RUN[1:]]
    mending = compare(RUN, after, DONE, TRIED, [])
    assert mending.changed == {"a": ["resources.time: 1h -> 2h"]} and mending.anew == []


def test_a_failed_step_goes_on_with_the_new_setting_unless_it_is_to_be_redone() -> None:
    after = [RUN[0], step("b", "a", settings={"argv": ["false"]}), *RUN[2:]]
    results = {"a": {"seconds": 1.0}, "beside": {"seconds": 1.0}}
    assert compare(RUN, after, results, TRIED, []).anew == []
    assert compare(RUN, after, results, TRIED, ["b"]).anew == ["b", "c"]


def test_a_new_gate_counts_where_the_result_misses_it() -> None:
    loose, tight = (step("a", gate={"seconds": text}) for text in ("< 3", "< 1"))
    assert compare(RUN, [loose, *RUN[1:]], DONE, TRIED, []).anew == []
    assert compare(RUN, [tight, *RUN[1:]], DONE, TRIED, []).anew == ["a", "b", "c"]


def test_a_gate_beside_another_step_is_judged_by_what_that_has_come_to() -> None:
    gated = [RUN[0], step("b", "a", gate={"seconds": "<= ${a.seconds}"}), *RUN[2:]]
    for seconds, anew in ((2.0, []), (1.0, ["b", "c"])):
        results = {**DONE, "a": {"seconds": seconds}}
        assert compare(RUN, gated, results, TRIED, []).anew == anew
    for unknown in (None, {}):
        assert compare(RUN, gated, {**DONE, "a": unknown}, TRIED, []).anew == []


def test_steps_come_and_go_and_a_wrong_name_is_refused() -> None:
    after = [*RUN[:3], step("new", "c")]
    mending = compare(RUN, after, DONE, TRIED, [])
    assert mending.lines == ["new: new", "beside: no longer part of the run; its folder stays"]
    with pytest.raises(UserError, match="--redo cc: did you mean 'c'"):
        compare(RUN, RUN, DONE, TRIED, ["cc"])


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def ran(launch: Launcher) -> list[str]:
    return (launch.folder / "ran").read_text().split()


def test_a_failed_run_is_mended_by_set_and_keeps_what_has_succeeded(launch: Launcher) -> None:
    launch.run(launch.write(CHAIN), "--cluster", "local", "--wait")
    done = launch("resume", "p", "--set", "second.argv=[sh, -c, 'echo mended >> ran']", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "second: settings.argv.2: echo second >> ran;" in done.stdout
    assert ran(launch) == ["first", "second", "mended", "third"]
    done = launch("resume", "p", "--set", "third.resources.time=2h", "--wait")
    assert "nothing to submit" in done.stdout
    assert ran(launch) == ["first", "second", "mended", "third"]
    done = launch("resume", "p", "--redo", "first", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran(launch)[4:] == ["first", "mended", "third"], "the earlier --set still holds"


def test_an_edited_file_takes_the_place_of_the_first_and_what_it_touches_is_set_aside(
    launch: Launcher,
) -> None:
    run = launch.run(launch.write(CHAIN.replace("; exit 1", "")), "--cluster", "local", "--wait")
    edited = CHAIN.replace("; exit 1", "").replace("echo second", "echo edited")
    file = launch.write(edited, "edited.yaml")
    done = launch("resume", run.name, file, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "second: done anew\nthird: done anew" in done.stdout
    assert ran(launch) == ["first", "second", "third", "edited", "third"]
    earlier = StepDir(run / "steps" / "second").path / "earlier.1"
    assert (earlier / "result.json").is_file() and (earlier / "kept").is_file()
    assert (run / "pipeline.yaml").read_text() == edited


def test_a_running_step_is_not_changed_under_its_hands(launch: Launcher) -> None:
    sleeper = CHAIN.replace("exit 1", "sleep 60")
    run = launch.run(launch.write(sleeper), "--cluster", "local")
    launch.until("running", step="second")
    done = launch("resume", run.name, "--set", "second.resources.cpus=2")
    assert done.returncode == 2
    assert f"second: running; first end what changes: launch.py cancel {run.name}/second" in (
        done.stderr
    )
    assert launch("cancel", run.name).returncode == 0


def test_mistakes_in_what_is_to_be_changed_change_nothing(launch: Launcher) -> None:
    run = launch.run(launch.write(CHAIN), "--cluster", "local", "--wait")
    before = (run / "run.json").read_text()
    done = launch("resume", run.name, "--set", "second.resources.cpu=2")
    assert done.returncode == 2
    assert "write cpus: ..." in done.stderr
    assert (run / "run.json").read_text() == before
