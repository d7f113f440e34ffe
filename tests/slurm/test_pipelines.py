"""Whole pipelines through the real command line on a real Slurm: order, failure, cancelling, code.

What happens when a submission is cut short is in test_exactly_once, what happens to steps that are
interrupted in test_requeue.
"""

import shutil
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.cluster import PATIENCE, PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, chain, sh


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


def test_a_chain_is_submitted_at_once_runs_in_order_and_sacct_agrees(launcher: Launcher) -> None:
    file = launcher.write(chain(one=UNTIL_GO, two="", three="", four="", five=""))
    launcher("run", file)
    names = ["one", "two", "three", "four", "five"]
    assert launcher.queued() == sorted(names)
    launcher.wait_for_states(one="running", two="waiting", five="waiting")
    launcher.touch("go")
    launcher.wait_for_states(five="succeeded")
    assert launcher.ran() == names
    status = launcher.status(code=0)
    assert {step["state"] for step in status.values()} == {"succeeded"}
    assert [step["submissions"] for step in status.values()] == [1] * 5
    launcher.expect_once(*names)


def test_a_diamond_waits_for_both_arms_and_hands_results_down(launcher: Launcher) -> None:
    number = "echo '{\"found\": 41}' > $TRAINYARD_RESULT"
    steps = {
        "top": sh(number),
        "left": sh(
            "until grep right ran; do sleep 0.1; done; echo left ${top.found} >> ran", "top"
        ),
        "right": sh("echo right >> ran", "top"),
        "bottom": sh("echo bottom >> ran", "left", "right"),
    }
    launcher("run", launcher.write(steps, "diamond"), "--wait")
    assert launcher.ran() == ["right", "left", "41", "bottom"]


def test_a_failure_empties_the_queue_behind_it_and_resume_submits_only_the_rest(
    launcher: Launcher,
) -> None:
    breaks = "test -e mended || { echo the disk is full >&2; exit 3; }"
    file = launcher.write(chain(one="", two=breaks, three="", four=""))
    said = launcher("run", file, "--wait", code=1)
    launcher.slurm.wait_for(lambda: launcher.queued() == [])  # a failure comes before its job's end
    assert "two              failed  program_failed: sh ended with status 3" in said
    status = launcher.status(code=1)
    assert status["two"]["reason"] == "program_failed: sh ended with status 3: see its log"
    assert status["three"]["state"] == status["four"]["state"] == "cancelled"
    assert "two has not succeeded" in status["three"]["reason"]
    assert "the disk is full" in launcher("logs", "/two")

    launcher.touch("mended")
    said = launcher("resume", "--wait")
    assert [line for line in said.splitlines() if ": job" in line and "one" in line] == []
    assert launcher.ran() == ["one", "two", "three", "four"]
    assert launcher("resume").startswith("nothing to submit")
    launcher.expect_accounts(
        one=["COMPLETED"],
        two=["FAILED", "COMPLETED"],
        three=["COMPLETED"],
        four=["COMPLETED"],
    )


def test_the_queue_behind_a_failed_step_empties_by_itself(launcher: Launcher) -> None:
    launcher("run", launcher.write(chain(one=f"{UNTIL_GO}; exit 1", two="", three="", four="")))
    launcher.wait_for_states(one="running")
    launcher.touch("go")
    launcher.slurm.wait_for(lambda: launcher.states()["one"] == "failed")
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    states = launcher.states()
    assert [states[name] for name in ("two", "three", "four")] == ["cancelled"] * 3
    assert launcher.ran() == []


def test_a_missed_gate_stops_everything_behind_it_and_says_why(launcher: Launcher) -> None:
    steps = chain(quick="", behind="", last="")
    steps["quick"]["gate"] = {"seconds": "< 0"}
    launcher("run", launcher.write(steps), "--wait", code=1)
    status = launcher.status(code=1)
    assert status["quick"]["reason"].startswith("gate_missed: seconds is 0.")
    assert status["quick"]["reason"].endswith("the gate asks for < 0.0")
    assert status["behind"]["state"] == status["last"]["state"] == "cancelled"
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    assert launcher.ran() == ["quick"]


def test_cancelling_a_step_cancels_all_behind_it_and_resume_brings_them_back(
    launcher: Launcher,
) -> None:
    steps = chain(one=UNTIL_GO, two="", three="") | {"beside": sh("echo beside >> ran", "one")}
    launcher("run", launcher.write(steps))
    launcher.wait_for_states(one="running")
    assert launcher("cancel", "/two") == "cancelled: two, three\n"
    assert launcher.queued() == ["beside", "one"]
    status = launcher.status(code=1)
    assert status["two"]["state"] == status["three"]["state"] == "cancelled"
    assert status["two"]["reason"] == "by launch.py cancel"
    launcher("resume")
    assert launcher.queued() == ["beside", "one", "three", "two"]
    launcher.touch("go")
    launcher.wait_for_states(three="succeeded", beside="succeeded")
    assert sorted(launcher.ran()) == ["beside", "one", "three", "two"]


def test_cancelling_a_run_empties_the_queue_and_resume_starts_where_it_was(
    launcher: Launcher,
) -> None:
    launcher("run", launcher.write(chain(one="", two=UNTIL_GO, three="")))
    launcher.wait_for_states(two="running")
    assert launcher("cancel", launcher.newest().name) == "cancelled: two, three\n"
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    assert launcher.states() == {"one": "succeeded", "two": "cancelled", "three": "cancelled"}
    assert "no job of it is in the queue" in launcher("cancel", launcher.newest().name)
    launcher.touch("go")
    launcher("resume", "--wait")
    assert launcher.ran() == ["one", "two", "three"]


def test_edits_after_submission_touch_no_queued_job_until_fresh_code_is_asked_for(
    tmp_path: Path, slurm: PrivateSlurm
) -> None:
    checkout = tmp_path / "checkout"  # launched from inside it, where Python would look first
    for part in ("jobs", "lact_asr", "distill", "slurm_templates"):
        shutil.copytree(REPOSITORY / part, checkout / part)
    shutil.copy(REPOSITORY / "launch.py", checkout)
    launcher = Launcher(checkout, slurm, code=checkout)
    launcher("run", launcher.write(chain(one=UNTIL_GO, two="test -e mended", three="")))
    launcher.wait_for_states(one="running")
    with (checkout / "jobs" / "kinds" / "_external.py").open("a") as kind:
        kind.write("\nprint('this is the edited code')\n")
    launcher.touch("go")
    launcher.wait_for_states(two="failed")
    launcher.touch("mended")
    launcher("resume", "--wait")
    assert "edited" not in launcher("logs", "/two") + launcher("logs", "/three")

    (launcher.newest() / "steps" / "three" / "result.json").unlink()
    launcher("resume", "--fresh-code", "--wait")
    assert "this is the edited code" in launcher("logs", "/three")
    assert "edited" not in launcher("logs", "/two")


def test_following_a_log_ends_when_the_step_ends_and_every_rank_has_its_own(
    launcher: Launcher,
) -> None:
    step = sh(f"echo rank $SLURM_PROCID starts; {UNTIL_GO}; echo rank $SLURM_PROCID ends")
    step["resources"]["gpus"] = 2
    launcher("run", launcher.write({"both": step, "behind": sh("", "both")}))
    launcher.wait_for_states(both="running")
    following = launcher.start("logs", "/both", "--follow")
    assert following.stdout is not None
    assert following.stdout.readline() == "rank 0 starts\n"
    assert following.poll() is None
    launcher.touch("go")
    rest, _ = following.communicate(timeout=PATIENCE)
    assert "rank 0 ends\n" in rest and following.returncode == 0
    said = launcher("logs", "/both", "--rank", "1", "--grep", "^rank")
    assert said == "rank 1 starts\nrank 1 ends\n"
    assert "no log of rank 2" in launcher("logs", "/both", "--rank", "2", code=2)


def test_a_rank_that_fails_after_the_others_fails_the_step(launcher: Launcher) -> None:
    wide = sh("test $SLURM_PROCID = 0 || { sleep 1; exit 1; }")
    wide["resources"] |= {"gpus": 2, "nodes": 2}
    launcher("run", launcher.write({"wide": wide, "behind": sh("", "wide")}), "--wait", code=1)
    assert launcher.states() == {"wide": "failed", "behind": "cancelled"}


@pytest.mark.parametrize(
    ("cluster", "resources", "words"),
    [
        ("partition: nowhere", {}, ["partition", "nowhere"]),
        ("account: nobody", {}, ["account"]),
        ("partition: short", {"time": "1h"}, ["time", "short"]),
        ("partition: gpu", {"gpus": 16}, ["wide", "gpus", "4"]),
        ("partition: gpu", {"nodes": 9}, ["wide", "nodes", "4"]),
    ],
)
def test_what_the_cluster_would_refuse_is_said_before_anything_exists(
    launcher: Launcher, cluster: str, resources: dict[str, object], words: list[str]
) -> None:
    site = launcher.folder / "site.yaml"
    site.write_text(cluster + "\n")
    step = sh("echo wide >> ran", "narrow")
    step["resources"] |= resources
    file = launcher.write({"narrow": sh(""), "wide": step})
    said = launcher("run", file, "--cluster", str(site), code=1)
    assert all(word in said for word in words), said
    assert not (launcher.folder / "runs").exists()
    assert launcher.queued() == []
