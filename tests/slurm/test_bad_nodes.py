"""A node that has failed twice gets no new step of ours; the failures are real ones."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, sh

WHERE = "echo $SLURMD_NODENAME >> where"


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Iterator[Launcher]:
    yield Launcher(tmp_path, slurm)
    for i in range(1, slurm.nodes + 1):
        with contextlib.suppress(RuntimeError):  # it is up
            slurm.run("scontrol", "update", f"nodename=n{i}", "state=resume")


def where(launcher: Launcher) -> list[str]:
    """The nodes on which steps have started."""
    file = launcher.folder / "where"
    return file.read_text().split() if file.exists() else []


def fail(launcher: Launcher, node: str) -> None:
    launcher.slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    launcher.slurm.wait_for(lambda: launcher.states()["one"] == "queued")
    with contextlib.suppress(RuntimeError):  # it has come back by itself
        launcher.slurm.run("scontrol", "update", f"nodename={node}", "state=resume")


def on_record(launcher: Launcher) -> list[tuple[str, str]]:
    file = launcher.folder / "runs" / "nodes.jsonl"
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return [(line["node"], line["cause"]) for line in lines]


def test_a_node_that_fails_twice_under_a_step_is_on_record_and_gets_no_new_one(
    launcher: Launcher,
) -> None:
    """Slurm puts the job back into the queue, under its id, and may start it there again.

    This site has its accounts write "Today 12:00" and the like.
    """
    (launcher.folder / "site.yaml").write_text("setup: [export SLURM_TIME_FORMAT=relative]\n")
    for times in (1, 2):
        steps = {"one": sh(f"{WHERE}; test -e go{times} || {{ touch go{times}; sleep 600; }}")}
        said = launcher("run", launcher.write(steps), "--cluster", "./site.yaml")
        assert "nodes left out" not in said, "once is not often"
        launcher.slurm.wait_for((launcher.folder / f"go{times}").exists)
        fail(launcher, where(launcher)[-1])
        launcher.wait_for_states(one="succeeded")
        assert on_record(launcher) == [("n1", "node_failed")] * times
    (launcher.folder / "where").unlink()
    said = launcher("run", launcher.write({"one": sh(f"{WHERE}; {UNTIL_GO}")}))
    told = "nodes left out, which have failed within 7 days: n1 (2 times)"
    assert told in said and told in launcher("status")
    launcher.slurm.wait_for(lambda: where(launcher))
    launcher.touch("go")
    launcher.wait_for_states(one="succeeded")
    assert where(launcher) == ["n2"]


def test_of_several_nodes_the_one_that_is_down_has_failed(launcher: Launcher) -> None:
    wide = {"time": "5m", "memory_gb": 0.25, "nodes": 2}
    script = f"{WHERE}; test -e go || {{ touch begun; {UNTIL_GO}; sleep 600; }}"
    launcher("run", launcher.write({"one": sh(script, resources=wide)}))
    launcher.slurm.wait_for(lambda: len(where(launcher)) == 2)
    pid = launcher.slurm.directory / "run" / "slurmd.n2.pid"
    daemon = psutil.Process(int(pid.read_text()))
    daemon.suspend()  # else it would say at once that it is well
    try:
        launcher.slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
        launcher.touch("go")
        launcher.wait_for_states(one="succeeded")
    finally:
        daemon.resume()
    assert on_record(launcher) == [("n2", "node_failed")]


def record(launcher: Launcher, *nodes: str) -> None:
    """Two failures of each node, on the Slurm of the newest run."""
    scheduler = json.loads((launcher.newest() / "run.json").read_text())["scheduler"]
    with (launcher.folder / "runs" / "nodes.jsonl").open("a") as file:
        for i, node in enumerate(2 * nodes):
            facts = {"node": node, "job": str(i), "cause": "node_failed", "scheduler": scheduler}
            file.write(
                json.dumps({"time": (launcher.newest()).stat().st_mtime + i, **facts}) + "\n"
            )


def test_nodes_on_record_are_left_out_beside_those_that_the_cluster_leaves_out(
    launcher: Launcher,
) -> None:
    (launcher.folder / "site.yaml").write_text("extra: {exclude: n2}\n")
    site = ("--cluster", "./site.yaml", "--wait")
    launcher("run", launcher.write({"one": sh(WHERE)}), *site)
    record(launcher, "n1")
    launcher("run", launcher.write({"one": sh(WHERE)}), *site)
    assert where(launcher) == ["n1", "n3"]


def test_where_nothing_else_is_left_a_step_goes_to_them_all_the_same(launcher: Launcher) -> None:
    launcher("run", launcher.write({"one": sh(WHERE)}), "--wait")
    record(launcher, "n1", "n2", "n3", "n4")
    launcher("run", launcher.write({"one": sh(WHERE)}), "--wait")
    assert len(where(launcher)) == 2
