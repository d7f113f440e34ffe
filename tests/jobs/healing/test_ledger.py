"""The ledger of runs: made by hand, damaged, of an older version, and one killed for real."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.healing.ledger import make
from jobs.healing.spans import SPENT, Allocation
from jobs.healing.statement import lines as told
from jobs.healing.stays import Accounts
from jobs.store import Run, RunStore, user
from tests.jobs.healing.test_spans import EVENTS, LINES
from tests.jobs.test_status import DAMAGED, WRONG

STAYS = [
    Allocation("7", 100.0, 128.0, "NODE_FAIL", 3.0),
    Allocation("7", 138.0, 168.0, "COMPLETED"),
]
USED = {"peak_memory_gb": 2.0, "cpu_seconds": 39.0}
FILES: dict[str, list[dict[str, Any]]] = {
    "submissions.jsonl": [{"time": 50.0, "token": "train.t1"}],
    "events.jsonl": [*EVENTS[:-1], {**EVENTS[-1], **USED}],
    "metrics.jsonl": LINES,
    "job.json": [
        {
            "resources": {"time": "12h", "nodes": 2, "gpus": 4, "cpus": 8, "memory_gb": 64.0},
            "settings": {"training": {"checkpoint_every": 500}},
        }
    ],
    "result.json": [{"steps": 20}],
}
FILES["submissions.jsonl"] += [{"time": 51.0, "token": "train.t1", "job": "7"}]
FILES["events.jsonl"][1] = {**FILES["events.jsonl"][1], "write_seconds": 2.5}


def write(run: Run, step: str, **files: Any) -> None:
    for name, lines in ({**FILES, **files}).items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.step(step).path / name).write_text(text)


def make_run(root: Path, backend: str = "slurm") -> Run:
    """A run of a corpus that was ready at 90, and a training behind it, on eight GPUs."""
    run = RunStore(root).create("demo-1")
    run.write_info(
        {
            "pipeline": "demo",
            "cluster": {"name": "site", "backend": backend, "warning_seconds": 120},
            "created": 1.0,
            "user": user(),
            "cwd": str(root),
            "steps": [
                {"name": "corpus", "kind": "download", "needs": []},
                {"name": "train", "kind": "train", "needs": ["corpus"]},
            ],
        }
    )
    for name in run.names():
        run.step(name).write_job({})
    first = [
        {"time": 60.0, "event": "started", "host": "n1", "job": "6", "restart": 0},
        {"time": 90.0, "event": "finished", "job": "6"},
    ]
    submitted = [{"time": 50.0, "token": "corpus.t1", "job": "6"}]
    job = [{"resources": {"time": "1h", "gpus": 0, "nodes": 1}}]
    tale = {"submissions.jsonl": submitted, "events.jsonl": first, "metrics.jsonl": []}
    write(run, "corpus", **tale, **{"job.json": job})
    write(run, "train")
    return run


def test_a_run_in_numbers_that_were_counted_by_hand(tmp_path: Path) -> None:
    """What `test_spans` has counted, in two allocations of eight GPUs, behind a corpus."""
    made = make(make_run(tmp_path), Accounts(STAYS), 999.0)
    corpus, train = made["steps"]
    assert corpus["queued"] == 10.0 and corpus["seconds"]["useful"] == corpus["allocated"] == 30.0
    assert train["queued"] == (100 - 90) + (138 - 128)
    assert train["allocated"] == 28 + 30
    assert train["seconds"] == {
        "starting": 20.0,
        "useful": 20.5,
        "replayed": 5.0,
        "stalled": 1.5,
        "validating": 5.0,
        "saving": 3.0,
        "idle": 3.0,
        "unknown": 0.0,
    }
    assert train["ettr"] == pytest.approx(20.5 / 58, abs=1e-4)
    assert train["gpu_hours"]["useful"] == pytest.approx(20.5 * 8 / 3600, abs=1e-6)
    assert train["recoveries"] == [
        {"faults": ["killed"], "step": 15, "seconds": 30.0, "away": 10.0, "replayed": 5}
    ]
    assert (train["starts"], train["steps_replayed"]) == (2, 5)
    assert made["total"]["allocated"] == 88 and made["total"]["seconds"]["useful"] == 50.5
    assert made["total"]["ettr"] == pytest.approx(50.5 / 88, abs=1e-4)
    assert made["slurm_calls"] == {"sbatch": 2, "scontrol requeue": 0, "scancel": 0}


def test_of_a_short_start_nobody_knows_how_many_cores_it_kept_busy(tmp_path: Path) -> None:
    """`echo` took 0.03 s after 0.2 s of Python: that is no reason to ask for seven cores."""
    for seconds, known in ((4.9, False), (5.0, True)):
        run = make_run(tmp_path / str(seconds))
        events = [
            {"time": 60.0, "event": "started", "host": "n1", "job": "6", "restart": 0},
            {"time": 60.0 + seconds, "event": "finished", "job": "6", **USED},
        ]
        write(run, "corpus", **{"events.jsonl": events})
        corpus = make(run, Accounts(STAYS), 999.0)["steps"][0]
        assert ("resources.cpus" in [each["setting"] for each in corpus["advice"]]) == known


def test_what_to_write_next_time_is_reckoned_from_what_was_seen(tmp_path: Path) -> None:
    made = make(make_run(tmp_path), Accounts(STAYS), 999.0)
    advice = {each["setting"]: each for each in made["steps"][1]["advice"]}
    assert advice["resources.time"]["write"] == "5m"
    assert advice["resources.time"]["used"] == "58s in 2 stays"
    memory = advice["resources.memory_gb"]  # Slurm saw 3 GB in one of four processes of a node
    assert (memory["asked"], memory["used"], memory["write"]) == ("64", "12", "16")
    assert advice["resources.cpus"]["used"] == "1.5"  # 39 s of processor in 26 s
    assert advice["resources.cpus"]["write"] == "2"
    measured = made["steps"][1]["measured"]
    assert measured == {
        "seconds_per_step": pytest.approx(23.5 / 25),
        "longest_step": 1.0,
        "longest_validation": 3.0,
        "standstill": 3.0,  # of one checkpoint event
        "longest_save": 2.5,
        "restart": 10.0,
        "between_faults": 58.0,
    }
    # sqrt(2 x 3 x (58 + 10)) - 3 = 17.2 s of 0.94 s
    assert advice["settings.training.checkpoint_every"]["write"] == "18"
    assert made["cluster_advice"]["write"] == "20"  # 1.3 x (1 + 3 + 2.5) + 5, up to tens
    text = "\n".join(told(made))
    written = "resources: {time: 5m, memory_gb: 16, cpus: 2}  # 58s in 2 stays of 12h, 12 of 64,"
    assert written in text
    assert "settings: {training: {checkpoint_every: 18}}  # was 500; a fault every 58s" in text
    assert "warning_seconds: 20" in text and "(it was 120)" in text
    assert "GPU-hours: 0.13 allocated" in text


def test_lines_for_people_say_what_data_says(tmp_path: Path) -> None:
    text = [*told(make(make_run(tmp_path), Accounts(STAYS), 999.0))]
    assert text[0] == "demo-1 on site"
    heading, corpus, train, total = (line.split() for line in text[1:5])
    assert heading == ["step", "queued", "allocated", *SPENT[:-1], "ETTR"]
    assert corpus[:3] == ["corpus", "10s", "30s"] and corpus[-2:] == ["100.0", "%"]
    assert train[1:-2] == ["20s", "58s", "20s", "20s", "5.0s", "1.5s", "5.0s", "3.0s", "3.0s"]
    assert total[:2] == ["in", "all"] and total[-2:] == ["57.4", "%"]
    assert (
        "train: killed after step 15: 30s until the next new step, 10s of it without nodes; "
        "steps computed again: 5"
    ) in text
    calls = "calls of Slurm on record: 2 sbatch, 0 scontrol requeue, 0 scancel"
    assert any(line.startswith(calls) for line in text)


def test_without_accounts_the_files_tell_and_the_ledger_says_so(tmp_path: Path) -> None:
    made = make(make_run(tmp_path), Accounts(trouble="Slurm's accounts: disabled"), 999.0)
    assert made["steps"][1]["allocated"] == (127 - 103) + (166 - 140)
    assert made["notes"] == ["Slurm's accounts: disabled"]
    assert [*told(made)][-1] == "Slurm's accounts: disabled"


def test_a_run_of_an_older_version_is_told_as_far_as_it_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    old = [{"time": t, "step": s, "seconds_per_step": 1.0} for t, s in ((115.0, 5), (122.0, 10))]
    told_then = [EVENTS[0], {"time": 127.0, "event": "finished", "job": "7"}]
    write(run, "train", **{"metrics.jsonl": old, "events.jsonl": told_then})
    train = make(run, Accounts([Allocation("7", 100.0, 127.0)]), 999.0)["steps"][1]
    assert train["seconds"]["useful"] == 15.0 and train["seconds"]["unknown"] == 2.0
    assert "an older version trained here" in train["notes"][0]


def test_a_step_begun_anew_keeps_the_books_of_what_it_had_done(tmp_path: Path) -> None:
    """After `resume --redo` the new steps are no repetition: their weights begin anew too."""
    run = make_run(tmp_path)
    earlier = run.step("train").path / "earlier.1"
    earlier.mkdir()
    for name, kept in (("events.jsonl", EVENTS[:2]), ("metrics.jsonl", LINES[:3])):
        (run.step("train").path / name).rename(earlier / name)
        (earlier / name).write_text("".join(json.dumps(line) + "\n" for line in kept))
    write(run, "train", **{"events.jsonl": EVENTS[2:], "metrics.jsonl": LINES[3:]})
    train = make(run, Accounts(STAYS), 999.0)["steps"][1]
    assert (train["starts"], train["steps_replayed"]) == (2, 0)
    assert train["seconds"]["useful"] == 20.5 + 5 and train["recoveries"] == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("data", DAMAGED, ids=lambda data: repr(data[:12]))
def test_a_damaged_file_hides_no_other_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes
) -> None:
    run = make_run(tmp_path, "local")
    (run.step("train").path / name).write_bytes(data)
    assert main(["ledger", str(run.path)]) == 0
    said = capsys.readouterr().out
    assert "corpus" in said and "30s" in said
    assert main(["ledger", str(run.path), "--json"]) == 0
    corpus = json.loads(capsys.readouterr().out)["steps"][0]
    assert corpus["seconds"]["useful"] == 30.0


@pytest.mark.parametrize("name", FILES)
def test_a_value_of_the_wrong_type_hides_no_other_step(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    for number, line in enumerate(FILES[name]):
        for key in line:
            for value in WRONG:
                changed = json.dumps({**line, key: "?"}).replace('"?"', value)
                text = [json.dumps(each) for each in FILES[name]]
                (run.step("train").path / name).write_text(
                    "\n".join([*text[:number], changed, *text[number + 1 :]])
                )
                made = make(run, Accounts(STAYS), 999.0)
                assert made["steps"][0]["seconds"]["useful"] == 30.0
                assert "\x1b" not in "\n".join(told(made))
                json.dumps(made, allow_nan=False)


def test_a_run_that_is_not_there_is_the_user_s_to_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINYARD_RUNS", str(tmp_path))
    assert main(["ledger", "nothing"]) == 2
    assert "no runs in" in capsys.readouterr().err
