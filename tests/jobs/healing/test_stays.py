"""When a step held nodes and when it waited: from Slurm's accounts, or from its own files."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.slurm.accounts import read
from jobs.healing.history import Facts
from jobs.healing.spans import Allocation, Start
from jobs.healing.stays import Accounts, Stay, find, has_left, waits
from jobs.step_folder import StepDir, Submission


def start(time: float, last: float, job: str = "7", **changes: Any) -> Start:
    return Start(job, 0, time, 0, (), last, "finished", {})._replace(**changes)


def facts(*history: Start, result: bool = False, job: str = "7") -> Facts:
    tries = [Submission("t.1", 10.0, job)]
    return Facts("t", "train", (), tries, [list(history)], result, {}, [], [])


def times(found: list[Stay]) -> list[tuple[float, float | None]]:
    return [(stay.allocation.begin, stay.allocation.end) for stay in found]


def test_a_step_without_needs_waits_from_its_submission(tmp_path: Path) -> None:
    tries = [Submission("t.1", 10.0, "7")]
    assert waits(tries, [Allocation("7", 25.0, 90.0)], 0.0, 999.0, True) == 15.0


def test_a_step_waits_only_once_the_steps_before_it_have_ended() -> None:
    tries = [Submission("t.1", 10.0, "7")]
    assert waits(tries, [Allocation("7", 25.0, 90.0)], 20.0, 999.0, True) == 5.0
    assert waits(tries, [], math.inf, 999.0, False) == 0.0
    assert waits(tries, [], 20.0, 100.0, False) == 80.0


def test_a_requeued_job_waits_again_and_the_time_until_a_resume_is_nobody_s() -> None:
    tries = [Submission("t.1", 10.0, "7"), Submission("t.2", 500.0, "8")]
    stays = [Allocation("7", 12.0, 100.0), Allocation("7", 221.0, 300.0), Allocation("8", 503.0)]
    assert waits(tries, stays, 0.0, 999.0, False) == 2.0 + 121.0 + 3.0
    assert waits(tries[:1], stays[:2], 0.0, 310.0, False) == 2.0 + 121.0 + 10.0
    assert waits(tries[:1], stays[:2], 0.0, 310.0, True) == 2.0 + 121.0


def test_a_successor_waits_from_the_end_of_the_job_that_it_goes_on_for() -> None:
    tries = [Submission("t.1", 10.0, "7"), Submission("t.2", 95.0, "8", continues="t.1")]
    stays = [Allocation("7", 12.0, 100.0), Allocation("8", 101.0)]
    assert waits(tries, stays, 0.0, 999.0, False) == 2.0 + 1.0


def test_a_job_that_was_cancelled_or_refused_waits_no_longer() -> None:
    cancelled = Submission("t.1", 10.0, "7", cancel_requested=40.0)
    assert waits([cancelled], [], 0.0, 999.0, False) == 30.0
    refused = Submission("t.1", 10.0, refused="no such partition")
    assert waits([refused], [], 0.0, 999.0, False) == 0.0


def test_a_start_belongs_to_the_stay_of_its_job_that_it_was_in(tmp_path: Path) -> None:
    """Slurm's clock may be ahead of a worker's by a second, and its times are whole seconds."""
    stays = [
        Allocation("7", 100.0, 200.0),
        Allocation("7", 321.0, 400.0),
        Allocation("9", 0.0, 1.0),
    ]
    first, second = start(103.0, 200.4), start(320.5, 399.0)
    found = find(StepDir(tmp_path), facts(first, second), Accounts(stays))
    assert times(found) == [(100.0, 200.4), (320.5, 400.0)]
    assert [[each for each, _ in stay.held] for stay in found] == [[first], [second]]


def test_without_accounts_a_stay_is_what_the_workers_tell_of(tmp_path: Path) -> None:
    """Two starts that Slurm restarted as often are one stay, another restart is another one."""
    again, requeued = start(110.0, 120.0), start(300.0, 310.0, restart=1)
    history = start(100.0, 105.0, end="failed"), again, requeued
    assert times(find(StepDir(tmp_path), facts(*history), Accounts())) == [
        (100.0, 120.0),
        (300.0, 310.0),
    ]
    old = [each._replace(restart=None) for each in history]
    assert len(find(StepDir(tmp_path), facts(*old), Accounts())) == 3


def test_a_killed_start_lasted_until_its_log_fell_silent(tmp_path: Path) -> None:
    step = StepDir(tmp_path)
    step.logs.mkdir()
    for file, moment in zip(step.logs_of("7"), (130.0, 140.0), strict=True):
        file.touch()
        os.utime(file, (moment, moment))
    killed = start(100.0, 105.0, end="")
    assert times(find(step, facts(killed), Accounts())) == [(100.0, 140.0)]
    assert times(find(step, facts(killed), Accounts(living={"7"}))) == [(100.0, None)]
    ended = start(100.0, 105.0)
    assert times(find(step, facts(ended), Accounts())) == [(100.0, 105.0)]


INTERRUPTED = {"end": "interrupted", "facts": {"signal": "SIGUSR2"}}


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        ("REQUEUED", INTERRUPTED, False),
        ("PREEMPTED", {"end": ""}, False),
        ("NODE_FAIL", {"end": ""}, False),
        ("FAILED", {"end": "failed"}, True),
        ("", INTERRUPTED, False),
        ("", {"end": "interrupted", "facts": {"signal": "SIGTERM"}}, True),
        ("", {"end": ""}, True),
    ],
)
def test_a_job_is_back_in_the_queue_after_some_ends_only(
    state: str, changes: dict[str, Any], expected: bool
) -> None:
    each = start(100.0, 105.0, **changes)
    stay = Stay(Allocation("7", 100.0, 105.0, state), [(each, 0)])
    assert has_left(facts(each), [stay], None) is expected
    assert has_left(facts(each, result=True), [stay], None)
    assert not has_left(facts(), [], None)
    assert has_left(facts(each), [stay], set()) and not has_left(facts(each), [stay], {"7"})


SACCT = """\
17|REQUEUED|2026-11-21T10:00:00|2026-11-21T10:01:00||train.ab
17.batch|CANCELLED|2026-11-21T10:00:00|2026-11-21T10:01:01|2048K|batch
17.0|FAILED|2026-11-21T10:00:01|2026-11-21T10:01:01|1048576K|python
17|COMPLETED|2026-11-21T10:03:00|2026-11-21T10:04:00||train.ab
17.0|COMPLETED|2026-11-21T10:03:00|2026-11-21T10:04:00|0.5G|a|b
18|RUNNING|2026-11-21T10:05:00|Unknown||train.cd
18|PENDING|Unknown|Unknown||train.cd
19|CANCELLED by 1000|2026-11-21T10:05:00|2026-11-21T10:05:00||somebody.elses
20|COMPLETED|None|Unknown
"""


def test_sacct_tells_each_stay_of_a_job_apart_with_its_memory() -> None:
    known = {"17": "train.ab", "18": "train.cd", "19": "train.ef"}
    one, two, three = read(SACCT.splitlines(), known)
    assert (one.job, one.state, one.memory_gb) == ("17", "REQUEUED", 1.0)
    assert (two.job, two.state, two.memory_gb) == ("17", "COMPLETED", 0.5)
    assert two.begin - one.begin == 180.0 and two.end is not None and two.end - two.begin == 60.0
    assert (three.job, three.state, three.end, three.memory_gb) == ("18", "RUNNING", None, None)
