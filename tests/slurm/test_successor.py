"""A step that is warned of its time limit goes on in a job that it has submitted itself.

`scancel --signal=USR2` sends what Slurm itself sends some time before the limit. What goes wrong on
the way is made by scripts before Slurm's own programs; the jobs, and their dependencies, are real.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.step_folder import StepDir
from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import write_manifest
from tests.slurm import test_self_driving
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, sh

POSITION = "echo $(wc -l < ran) > $TRAINYARD_POSITION"
SAVES = f"trap '{POSITION}; exit 75' USR2; echo train >> ran"
# the worker is the parent of the process that submits, which is the parent of these programs
KILL_SUBMITTER = "kill -KILL $PPID; exit 1"
KILL_WORKER = "kill -KILL $(ps -o ppid= -p $PPID) $PPID; exit 1"
UPDATES = 'test "$1" = update || exec "$real" "$@"'
REQUEUED = ["REQUEUED", "COMPLETED"]
limit = test_self_driving.limit  # a fixture: how many jobs the user may have in the queue
GOOD = {"waiting", "queued", "running", "succeeded"}


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


def saves(starts: int, *needs: str, **more: Any) -> dict[str, Any]:
    """A program that saves when it is warned, until it has been started so often."""
    step = sh("", *needs, **more)
    loop = f"{SAVES}; until test $(grep -c train ran) -ge {starts}; do sleep 0.1; done"
    step["settings"] = {"argv": ["bash", "-c", loop], "handles_warning": True}
    return step


def run(launcher: Launcher, steps: dict[str, Any]) -> None:
    """Submit, and wait until `train` runs."""
    launcher("run", launcher.write(steps))
    launcher.slurm.wait_for(lambda: launcher.ran().count("train") == 1)


def chain(starts: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "train": saves(starts, **more),
        "behind": sh("echo behind >> ran", "train"),
        "last": sh("echo last >> ran", "behind"),
    }


def tries(launcher: Launcher, step: str = "train") -> list[dict[str, Any]]:
    path = launcher.newest() / "steps" / step / "submissions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def job(launcher: Launcher) -> str:
    """The newest job of `train`."""
    return str([line["job"] for line in tries(launcher) if "job" in line][-1])


def events(launcher: Launcher, name: str) -> list[dict[str, Any]]:
    path = launcher.newest() / "steps" / "train" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def warn(launcher: Launcher) -> None:
    launcher.slurm.run("scancel", "--signal=USR2", job(launcher))


def ends_well(launcher: Launcher, *train: str) -> None:
    """The jobs of `train` ended like this; what is behind has run once, after success."""
    launcher.wait_for_states(train="succeeded", behind="succeeded", last="succeeded")
    assert launcher.ran()[-2:] == ["behind", "last"]
    assert launcher.ran().count("behind") == 1
    launcher.expect_accounts(train=[*train], behind=["COMPLETED"], last=["COMPLETED"])
    launcher.status(code=0)


def test_a_step_goes_on_in_a_successor_and_all_that_waits_for_it_waits_on(
    launcher: Launcher,
) -> None:
    steps = chain()
    steps["first"] = sh(UNTIL_GO.replace("go", "first"))
    steps["behind"]["needs"] = ["first", "train"]
    run(launcher, steps)
    by_hand = ["--parsable", f"--dependency=afterok:{job(launcher)}", "--output=/dev/null"]
    other = launcher.slurm.run("sbatch", *by_hand, "--wrap=true").strip()
    old = job(launcher)
    warn(launcher)
    launcher.wait_for_states(train="succeeded")
    assert job(launcher) != old
    launcher.touch("first")
    launcher.wait_for_states(last="succeeded")
    launcher.slurm.wait_for(lambda: launcher.slurm.state(other) == "COMPLETED")
    assert launcher.ran() == ["train", "train", "behind", "last"]
    log = launcher("logs", f"{launcher.newest().name}/train", "--lines", "1000")
    said = f"train goes on as job {job(launcher)}; 2 that waited for job {old} wait for it now"
    assert said in log
    assert [event["job"] for event in events(launcher, "handed_over")] == [old]
    made = json.loads(launcher("ledger", "--json"))
    assert made["slurm_calls"]["scontrol requeue"] == 0


def test_a_successor_has_the_variables_of_the_launcher_and_none_of_the_job_before(
    launcher: Launcher,
) -> None:
    launcher.environment["GREETING"] = "hello \udcff you"
    shown = "env -0 | sort -z | grep -azv '^SLURM' > env.$(grep -c train ran)"
    step = chain()
    step["train"]["settings"]["argv"][2] = step["train"]["settings"]["argv"][2].replace(
        SAVES, f"{SAVES}; {shown}"
    )
    run(launcher, step)
    launcher.slurm.wait_for((launcher.folder / "env.1").exists)
    warn(launcher)
    launcher.wait_for_states(train="succeeded")
    one, two = (
        [
            line
            for line in (launcher.folder / f"env.{start}").read_bytes().split(b"\0")
            if not line.startswith((b"TRAINYARD_SHELL", b"HOSTNAME"))
        ]
        for start in (1, 2)
    )
    assert one == two and b"GREETING=hello \xff you" in one


@pytest.mark.parametrize("program", ["worker", "submitter"])
@pytest.mark.parametrize(
    "when", ["before sbatch", "after sbatch", "before the dependents", "after one dependent"]
)
def test_a_kill_on_the_way_to_a_successor_costs_nothing(
    launcher: Launcher, program: str, when: str
) -> None:
    """Killed with its sbatch before or after that has queued, and around the first update."""
    kill = KILL_WORKER if program == "worker" else KILL_SUBMITTER
    run(launcher, {**chain(), "beside": sh("echo beside >> ran", "train")})
    if "sbatch" in when:
        queued = '"$real" "$@" > /dev/null; ' if "after" in when else ""
        launcher.wrap("sbatch", f'if test $nth = 1; then {queued}{kill}; fi; exec "$real" "$@"')
    else:
        moved = '"$real" "$@"; ' if "after" in when else ""
        once = f"if mkdir {launcher.folder}/killed; then {moved}{kill}; fi"
        launcher.wrap("scontrol", f'{UPDATES}; {once}; exec "$real" "$@"')
    warn(launcher)
    launcher.wait_for_states(
        train="succeeded", behind="succeeded", last="succeeded", beside="succeeded"
    )
    assert sorted(launcher.ran()) == ["behind", "beside", "last", "train", "train"]
    launcher.expect_accounts(
        train=["COMPLETED"] * 2, behind=["COMPLETED"], last=["COMPLETED"], beside=["COMPLETED"]
    )
    assert launcher.status(code=0)["train"]["remedies"] == (program == "worker")


def test_without_sbatch_on_its_node_a_step_goes_back_into_the_queue(launcher: Launcher) -> None:
    tools = launcher.folder / "tools"
    tools.mkdir()
    for folder in filter(os.path.isdir, launcher.environment["PATH"].split(":")):
        for entry in os.scandir(folder):
            if not (tools / entry.name).exists():
                (tools / entry.name).symlink_to(entry.path)
    launcher.environment["PATH"] = str(tools)
    run(launcher, chain())
    (tools / "sbatch").unlink()
    warn(launcher)
    ends_well(launcher, *REQUEUED)
    (refused,) = events(launcher, "not_handed_over")
    assert refused["reason"].startswith("sbatch is not installed here")


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("sbatch: error: AssocMaxSubmitJobLimit\n", "AssocMaxSubmitJobLimit"),
        ("sbatch: error: Batch job submission failed: Invalid account", "Invalid account"),
    ],
)
def test_a_step_whose_successor_is_refused_goes_back_into_the_queue(
    launcher: Launcher, trouble: str, said: str
) -> None:
    run(launcher, chain())
    failed = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
    launcher.wrap("sbatch", f"echo '{trouble}' >&2; echo '{failed}' >&2; exit 1")
    warn(launcher)
    ends_well(launcher, *REQUEUED)
    (refused,) = events(launcher, "not_handed_over")
    assert said in refused["reason"] or "Job violates" in refused["reason"]


def test_a_step_that_has_the_last_place_in_the_queue_goes_back_into_it(
    launcher: Launcher, limit: Callable[[int], None]
) -> None:
    limit(2)
    run(launcher, chain())
    assert launcher.queued() == ["behind", "train"]
    warn(launcher)
    ends_well(launcher, *REQUEUED)
    (refused,) = events(launcher, "not_handed_over")
    assert "Job violates accounting/QOS policy" in refused["reason"]


def test_what_follows_by_itself_follows_a_successor_too(
    launcher: Launcher, limit: Callable[[int], None]
) -> None:
    limit(2)
    run(launcher, chain())
    limit(3)
    warn(launcher)
    ends_well(launcher, "COMPLETED", "COMPLETED")
    assert not (launcher.newest() / "following.json").exists()


def test_where_dependents_cannot_be_moved_the_successor_is_taken_back(launcher: Launcher) -> None:
    run(launcher, {**chain(), "beside": sh("echo beside >> ran", "train")})
    refuse = "echo 'slurm_update error: Access/permission denied' >&2; exit 1"
    second = f'mkdir {launcher.folder}/first && exec "$real" "$@"; touch {launcher.folder}/no'
    back = f'case "$*" in *:{job(launcher)}) exec "$real" "$@";; esac'
    launcher.wrap("scontrol", f"{UPDATES}; {back}; {second}; {refuse}")
    warn(launcher)
    launcher.wait_for_states(last="succeeded", beside="succeeded")
    assert (launcher.folder / "no").exists(), "one was moved, and one was not"
    assert sorted(launcher.ran()) == ["behind", "beside", "last", "train", "train"]
    assert "Access/permission denied" in events(launcher, "not_handed_over")[0]["reason"]
    launcher.expect_accounts(
        train=REQUEUED, behind=["COMPLETED"], last=["COMPLETED"], beside=["COMPLETED"]
    )


def test_a_step_whose_end_was_asked_for_gets_no_successor(launcher: Launcher) -> None:
    run(launcher, chain())
    launcher.wrap("scancel", "echo 'scancel: error: Socket timed out' >&2; exit 1")
    launcher("cancel", launcher.newest().name, code=1)
    warn(launcher)
    launcher.slurm.wait_for(lambda: events(launcher, "interrupted"))
    assert launcher.queued() == ["behind", "last", "train"]
    launcher.unwrap()
    launcher("cancel", launcher.newest().name)
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    assert len([line for line in tries(launcher) if "continues" in line]) == 0
    assert launcher.states() == dict.fromkeys(("train", "behind", "last"), "cancelled")
    assert launcher.ran() == ["train"]


def test_a_job_that_asks_after_cancel_or_resume_had_the_lock_gets_no_successor(
    launcher: Launcher,
) -> None:
    run(launcher, chain())
    step, token = launcher.newest() / "steps" / "train", tries(launcher)[-1]["token"]

    def refused(name: str) -> str:
        launcher.environment.update(SLURM_JOB_ID=job(launcher), SLURM_JOB_NAME=name)
        return launcher("relay", str(step), code=1)

    assert "not the one on record as the newest" in refused("train.an-older-job")
    StepDir(step).add_submission(token, cancel_requested=True)
    assert "the end of this job was asked for" in refused(token)
    assert launcher.queued() == ["behind", "last", "train"]
    assert not [line for line in tries(launcher) if "continues" in line]


def test_a_cancel_ends_the_successor_that_is_on_its_way_too(launcher: Launcher) -> None:
    """The old job holds the lock while it moves what waits for it; then `cancel` finds both."""
    run(launcher, chain(starts=3))
    launcher.wrap("scontrol", f'{UPDATES}; {UNTIL_GO.replace("go", "moved")}; exec "$real" "$@"')
    warn(launcher)
    launcher.slurm.wait_for(lambda: launcher.queued().count("train") == 2)
    name = launcher.newest().name
    assert launcher.status()["train"]["state"] == "running"
    assert "is being submitted or cancelled by process" in launcher("cancel", name, code=2)
    launcher.touch("moved")
    launcher.slurm.wait_for(lambda: len([line for line in tries(launcher) if "job" in line]) == 2)
    launcher("cancel", name)
    launcher.slurm.wait_for(lambda: launcher.queued() == [])
    launcher.wait_for_states(train="cancelled", behind="cancelled", last="cancelled")
    assert "behind" not in launcher.ran()


def test_all_ranks_go_on_in_the_successor(launcher: Launcher) -> None:
    resources = {"time": "5m", "nodes": 2, "memory_gb": 0.25}
    step = chain(starts=4, resources=resources)
    launcher("run", launcher.write(step))
    launcher.slurm.wait_for(lambda: launcher.ran().count("train") == 2)
    warn(launcher)
    ends_well(launcher, "COMPLETED", "COMPLETED")
    assert launcher.ran().count("train") == 4


def test_training_meets_its_time_limit_five_times_and_loses_nothing(
    launcher: Launcher, speech: Path
) -> None:
    """Whoever looks sees one step that waits or runs; each training step is taken once."""
    write_manifest(launcher.folder / "eight.jsonl", scan(speech / "train")[:8])
    model = {"hidden": 32, "layers": 1, "attention_heads": 2, "lact_heads": 1, "mlp": 64}
    training = {"max_steps": 24, "batch_seconds": 20, "valid_every": 24, "log_every": 1}
    settings = {"train": "eight.jsonl", "dev": "eight.jsonl", "preset": "plain", "model": model}
    train = {"kind": "train", "settings": {**settings, "training": training}}
    limits = [{"fault": "time_limit", "at_step": at, "rank": None} for at in (3, 7, 11, 15, 19)]
    train |= {"resources": {"time": "10m", "cpus": 1, "memory_gb": 2}, "faults": limits}
    launcher("run", launcher.write({**chain(), "train": train}))
    seen = set()
    while (states := launcher.states())["last"] != "succeeded":
        seen |= {*states.values()}
        assert seen <= GOOD, states
    assert len(events(launcher, "handed_over")) == 5
    metrics = (launcher.newest() / "steps" / "train" / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, metrics) if "learning_rate" in line]
    assert steps == [*range(1, 25)]
    assert launcher.ran() == ["behind", "last"]
    launcher.expect_accounts(train=["COMPLETED"] * 6, behind=["COMPLETED"], last=["COMPLETED"])
    made = json.loads(launcher("ledger", "--json"))["steps"][0]
    assert (made["starts"], len(made["recoveries"])) == (6, 5)


def greedy(enough: int, memory_gb: float) -> dict[str, Any]:
    """A program whose worker is killed like one that ran out of memory, with less than so many MB.

    The private cluster does not keep jobs to their memory: what slurmd would say, the step says.
    """
    said = "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0."
    died = f"echo '{said}' >&2; kill -KILL $PPID"
    script = (
        f"echo $SLURM_MEM_PER_NODE >> ran; test $SLURM_MEM_PER_NODE -ge {enough} || {{ {died}; }}"
    )
    step = sh("", resources={"time": "5m", "memory_gb": memory_gb})
    step["settings"] = {"argv": ["bash", "-c", script]}
    return {"train": step, "behind": sh("echo behind >> ran", "train")}


def test_a_step_that_ran_out_of_memory_goes_on_in_a_job_with_more(launcher: Launcher) -> None:
    launcher("run", launcher.write(greedy(enough=400, memory_gb=0.25)))
    launcher.wait_for_states(behind="succeeded")
    assert launcher.ran() == ["256", "512", "behind"]
    launcher.expect_accounts(train=["COMPLETED"] * 2, behind=["COMPLETED"])
    (remedy,) = events(launcher, "remedy")
    assert remedy["cause"] == "out_of_memory_host" and remedy["reason"]
    assert remedy["changes"] == {"resources.memory_gb": [0.25, 0.5]}
    train = launcher.status(code=0)["train"]
    assert train["remedies"] == 1
    assert train["result"]["remedies"] == ["resources.memory_gb: 0.25 -> 0.5"]
    launcher("resume", "--redo", "train", "--wait")
    assert launcher.ran()[3:] == ["256", "512", "behind"], "what is done anew begins as it was"


def test_where_no_node_has_more_memory_the_step_fails_and_says_so(launcher: Launcher) -> None:
    launcher("run", launcher.write(greedy(enough=99_999, memory_gb=15)))
    launcher.wait_for_states(train="failed", behind="cancelled")
    assert launcher.ran() == ["15360", "16000"]
    assert launcher.status(code=1)["train"]["cause"] == "out_of_memory_host"
    log = launcher("logs", f"{launcher.newest().name}/train", "--lines", "1000")
    assert "does not get more memory: no node of its partition has more than 15.625 GB" in log


def test_memory_that_a_remedy_has_raised_stays_so_after_resume(launcher: Launcher) -> None:
    steps = greedy(enough=400, memory_gb=0.25)
    steps["train"]["settings"]["argv"][2] += "; test -e mended"
    launcher("run", launcher.write(steps))
    launcher.wait_for_states(train="failed")
    launcher.touch("mended")
    launcher("resume", "--wait")
    assert launcher.ran() == ["256", "512", "512", "behind"]
