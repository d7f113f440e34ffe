"""The ledger of real jobs: what they waited and held is what Slurm's accounts say."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.slurm.accounts import allocations
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, sh

REAL = 'exec "$real" "$@"'
DISABLED = 'echo "Slurm accounting storage is disabled" >&2; exit 1'
HUNGRY = "python3 -c 'import time; x = bytearray(300 * 2**20); time.sleep(4)'"


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    (tmp_path / "site.yaml").write_text("extra: {nodelist: n4}")
    return Launcher(tmp_path, slurm)


def ledger(launcher: Launcher) -> dict[str, Any]:
    """`ledger --json`, with its steps by name."""
    made: dict[str, Any] = json.loads(launcher("ledger", "--json"))
    return {**made, "steps": {step["step"]: step for step in made["steps"]}}


def accounts(launcher: Launcher) -> dict[str, list[float]]:
    """Submission, begin and end of the job of each step, seconds since 1970."""
    asked = ["-S", "now-1hour", "-o", "JobName,Submit,Start,End,WorkDir"]
    found = {}
    said = launcher.slurm.run("sacct", "-n", "-P", "-X", *asked).splitlines()
    for line in [line for line in said if line.count("|") >= 4]:  # some names have two lines
        name, *moments, cwd = line.rsplit("|", 4)
        if Path(cwd) == launcher.folder:
            times = [datetime.fromisoformat(moment).timestamp() for moment in moments]
            found[name.split(".")[0]] = times
    return found


def test_queued_seconds_and_memory_are_what_the_accounts_of_slurm_say(launcher: Launcher) -> None:
    others = ["--nodelist=n4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 600"]
    other = launcher.slurm.run("sbatch", "--parsable", *others).strip()
    launcher.slurm.wait_for(lambda: launcher.slurm.state(other) == "RUNNING")
    steps = {"one": sh(HUNGRY, resources={"time": "5m", "memory_gb": 1}), "two": sh("", "one")}
    launcher("run", launcher.write(steps), "--cluster", "site.yaml")
    launcher.wait_for_states(one="queued")
    time.sleep(5)
    waiting = ledger(launcher)["steps"]
    assert waiting["one"]["queued"] >= 5 and waiting["one"]["allocated"] == 0
    assert waiting["two"]["queued"] == 0, "it could not run: its need has not ended"
    launcher.slurm.run("scancel", other)
    launcher.wait_for_states(two="succeeded")
    launcher.expect_once("one", "two")

    for program in ("sacct", "squeue", "scontrol"):
        launcher.wrap(program, REAL)
    made = ledger(launcher)
    one, two = made["steps"]["one"], made["steps"]["two"]
    calls = {
        path.name: len(path.read_text().split())
        for path in (launcher.folder / "bin").glob("*.calls")
    }
    assert calls == {"sacct.calls": 1}
    slurms = accounts(launcher)
    (submitted, began, ended), (_, next_began, next_ended) = slurms["one"], slurms["two"]
    # Slurm's are whole seconds, and its clock begins when sbatch has reached it
    assert one["queued"] == pytest.approx(began - submitted, abs=3) and one["queued"] > 3
    assert two["queued"] == pytest.approx(next_began - ended, abs=1.5)
    assert one["allocated"] == pytest.approx(ended - began, abs=1.5)
    assert two["allocated"] == pytest.approx(next_ended - next_began, abs=1.5)
    assert sum(one["seconds"].values()) == pytest.approx(one["allocated"], abs=0.01)
    assert one["seconds"]["useful"] >= 4
    assert made["slurm_calls"] == {"sbatch": 2, "scontrol requeue": 0, "scancel": 0}
    memory = next(each for each in one["advice"] if each["setting"] == "resources.memory_gb")
    assert 0.29 < float(memory["used"]) < 0.5 and memory["write"] == "0.5"


def test_the_memory_of_a_job_that_could_not_say_it_is_in_the_accounts(launcher: Launcher) -> None:
    fed = {"one": sh(f"{HUNGRY}; touch fed; {UNTIL_GO}", resources={"time": "5m", "memory_gb": 1})}
    launcher("run", launcher.write(fed), "--cluster", "site.yaml")
    launcher.slurm.wait_for((launcher.folder / "fed").exists)
    status = launcher.status()["one"]
    launcher.slurm.run("scancel", "-s", "KILL", "--full", status["job"])
    launcher.wait_for_states(one="cancelled")
    step = launcher.newest() / "steps" / "one"
    token = json.loads((step / "submissions.jsonl").read_text().splitlines()[0])["token"]

    def measured() -> bool:
        found, trouble = allocations({token: status["job"]})
        assert trouble == ""
        return bool(found and found[0].end and (found[0].memory_gb or 0) > 0.29)

    launcher.slurm.wait_for(measured)
    one = ledger(launcher)["steps"]["one"]
    assert one["seconds"]["useful"] == 0 and one["allocated"] > 3


def test_where_slurm_keeps_no_accounts_the_ledger_says_so(launcher: Launcher) -> None:
    launcher("run", launcher.write({"one": sh("sleep 2")}), "--cluster", "site.yaml")
    launcher.wait_for_states(one="succeeded")
    launcher.wrap("sacct", DISABLED)
    made = ledger(launcher)
    assert made["steps"]["one"]["seconds"]["useful"] >= 2
    said = "Slurm's accounts: sacct failed: Slurm accounting storage is disabled"
    assert made["notes"] == [said]
    assert said in launcher("ledger").splitlines()
