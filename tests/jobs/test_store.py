"""Runs on disk: what is written is found again, whole, by the name a person types."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from jobs.errors import UserError
from jobs.step_folder import StepDir
from jobs.store import Run, RunStore, user


def make_run(root: Path, name: str) -> Run:
    run = RunStore(root).create(name)
    steps = [{"name": "train", "kind": "command", "needs": []}]
    cluster = {"name": "local", "backend": "local"}
    facts = {"pipeline": "p", "user": "me", "cwd": "/", "created": 1.0, "cluster": cluster}
    run.write_info({**facts, "steps": steps})
    return run


def test_a_run_is_found_by_folder_name_unique_prefix_or_as_the_newest(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    make_run(tmp_path, "demo-1")
    second = make_run(tmp_path, "real-2")
    assert store.find("demo").name == "demo-1"
    assert store.find("real-2").name == "real-2"
    assert store.find(str(second.path)).name == "real-2"
    os.utime(tmp_path / "demo-1" / "run.json", (1, 1))
    assert store.find(None).name == "real-2"


def test_runs_are_kept_in_the_home_of_whoever_writes_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for given, root in [
        ("", tmp_path / "runs"),
        ("~/r", Path("/home/me/r")),
        ("r", tmp_path / "r"),
    ]:
        monkeypatch.setenv("TRAINYARD_RUNS", given)
        assert RunStore().root == root
    monkeypatch.setenv("TRAINYARD_RUNS", "~nobody-at-all/r")
    with pytest.raises(UserError, match="TRAINYARD_RUNS is '~nobody-at-all/r': nobody knows"):
        RunStore()


def test_a_prefix_of_two_runs_or_of_none_is_refused_with_their_names(tmp_path: Path) -> None:
    make_run(tmp_path, "demo-1")
    make_run(tmp_path, "demo-2")
    with pytest.raises(UserError, match="several runs begin with 'demo': demo-1, demo-2"):
        RunStore(tmp_path).find("demo")
    with pytest.raises(UserError, match="no run begins with 'x': the newest are demo-1, demo-2"):
        RunStore(tmp_path).find("x")


def test_a_step_is_found_behind_its_run_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, "demo-1")
    run, step = RunStore(tmp_path).find_step("demo/train")
    assert step is not None and (run.name, step.name) == ("demo-1", "train")
    with pytest.raises(UserError, match="no step 'x': its steps are train"):
        RunStore(tmp_path).find_step("demo/x")


def test_a_submission_is_an_intent_that_gets_an_id_and_perhaps_an_end_or_a_refusal(
    tmp_path: Path,
) -> None:
    step = StepDir(tmp_path)
    step.add_submission("t1")
    assert step.latest() is not None and step.latest().job == ""
    step.add_submission("t1", job="7")
    step.add_submission("t2")
    step.add_submission("t2", job="8")
    step.add_submission("t2", cancel_requested=True)
    assert step.latest().cancel_requested > 0 and not step.latest().ended
    step.add_submission("t2", ended=True)
    step.add_submission("t3")
    step.add_submission("t3", refused="Invalid partition")
    first, second, third = step.submissions()
    assert (first.job, first.cancel_requested, first.ended) == ("7", 0.0, False)
    assert (second.job, second.ended) == ("8", True)
    assert (third.job, third.refused) == ("", "Invalid partition")


def test_a_line_cut_by_a_crash_hides_only_itself(tmp_path: Path) -> None:
    step = StepDir(tmp_path)
    step.add_metrics({"step": 1, "loss": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in step.metrics()] == [1]


def test_progress_is_the_newest_value_of_each_metric(tmp_path: Path) -> None:
    step = StepDir(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, "pad": "x" * 50}) + "\n" for n in range(5000))
    )
    step.add_metrics({"wer": 0.25})
    assert step.progress()["step"] == 4999
    assert step.progress()["wer"] == 0.25


def test_the_first_failure_of_a_job_stays_and_that_of_a_later_job_replaces_it(
    tmp_path: Path,
) -> None:
    step = StepDir(tmp_path)
    step.write_failure({"job": "1", "rank": 3, "cause": "data", "message": "x"})
    step.write_failure({"job": "1", "rank": 0, "cause": "error", "message": "connection lost"})
    assert step.failure()["rank"] == 3
    step.write_failure({"job": "2", "rank": 0, "cause": "error", "message": "y"})
    assert step.failure()["job"] == "2"


def test_a_job_that_goes_on_for_another_takes_its_place_when_its_id_is_on_record(
    tmp_path: Path,
) -> None:
    step = StepDir(tmp_path)
    step.add_submission("t1")
    step.add_submission("t1", job="7")
    step.add_submission("t2", continues="t1")
    assert [each.token for each in step.submissions()] == ["t2", "t1"]
    assert step.continued("7") == {"7"}
    step.add_submission("t2", job="8")
    step.add_submission("t3", continues="t2")
    step.add_submission("t3", refused="no room")
    step.add_submission("t4", continues="t2")
    step.add_submission("t4", job="9")
    assert [each.token for each in step.submissions()] == ["t3", "t1", "t2", "t4"]
    assert step.continued("9") == {"9", "8", "7"} and step.continued("8") == {"8", "7"}


def _append(path: Path, who: int) -> None:
    for number in range(200):
        StepDir(path).add_event("x", {"who": who, "number": number, "pad": "y" * 300})


def test_lines_of_two_writers_do_not_mix(tmp_path: Path) -> None:
    writers = [multiprocessing.Process(target=_append, args=(tmp_path, n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(StepDir(tmp_path).events()) == 400


def test_who_works_on_a_run_keeps_others_out_who_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, "demo-1")
    run.write_info({**run.info(), "user": user()})
    me = f"process {os.getpid()} on {os.uname().nodename}"
    with run.lock():
        assert run.busy() == me
        said = f"demo-1 is being submitted or cancelled by {me}: wait for it"
        with pytest.raises(UserError, match=said), run.lock():
            pass
    assert run.busy() == ""


def test_a_lock_that_cannot_be_taken_is_a_sentence_and_another_users_is_not_tried(
    tmp_path: Path,
) -> None:
    """In a shared folder the lock of another user's run cannot even be opened."""
    run = make_run(tmp_path, "demo-1")
    run.write_info({**run.info(), "user": user()})
    (run.path / "lock").mkdir()  # not even root can write into it
    with pytest.raises(UserError, match="lock cannot be written: Is a directory"), run.lock():
        pass
    run.write_info({**run.info(), "user": "somebody"})
    with pytest.raises(UserError, match="belongs to somebody, and you are "), run.lock():
        pass
