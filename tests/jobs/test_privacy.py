"""Who may read a run, and what is said where none can be made."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import snapshot
from jobs.errors import UserError
from jobs.store import RunStore
from tests.conftest import REPOSITORY
from tests.jobs.launcher import Launcher

SECRET = "hunter2"
TEXT = f"""\
steps:
  a:
    kind: command
    settings: {{argv: [sh, -c, "echo $TOKEN > heard"], environment: {{TOKEN: {SECRET}}}}}
"""
CLUSTER = f"environment: {{TOKEN: {SECRET}}}\n"


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def modes(run: Path) -> dict[str, str]:
    """The modes of a run, of its folders on the way and of every file that holds the secret."""
    holding = [
        path for path in run.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    return {path.name: oct(path.stat().st_mode & 0o777) for path in (run, *holding)}


def test_a_run_is_its_owners_alone(launch: Launcher) -> None:
    run = launch.run(launch.write(TEXT), "--cluster", "local", "--wait")
    found = modes(run)
    assert found.pop(run.name) == "0o700"
    assert found == dict.fromkeys(("job.json", "run.json", "pipeline.yaml"), "0o600")
    assert (launch.folder / "heard").read_text() == f"{SECRET}\n"  # what steps write has their mode
    assert (launch.folder / "heard").stat().st_mode & 0o777 == 0o666 & ~umask()


def test_scripts_that_hold_an_environment_are_their_owners_alone(launch: Launcher) -> None:
    launch.write(CLUSTER, "site.yaml")
    launch("render", launch.write(TEXT), "--cluster", "./site.yaml", "--out", "out")
    found = modes(launch.folder / "out")
    assert found.pop("out") == "0o700"
    assert found == dict.fromkeys(("a.sbatch", "job.json", "run.json", "pipeline.yaml"), "0o600")
    assert (launch.folder / "out" / "submit_all.sh").stat().st_mode & 0o777 == 0o700


def umask() -> int:
    """The umask of this process."""
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_disk_that_does_not_take_a_run_is_a_sentence_and_leaves_nothing(
    launch: Launcher,
) -> None:
    """A limit on the size of files, as a quota is one: copying the code meets it."""
    command = [sys.executable, REPOSITORY / "launch.py", "run", launch.write(TEXT)]
    command += ["--cluster", "local"]
    limited = f"ulimit -f 8; exec {shlex.join(map(str, command))}"
    done = subprocess.run(
        ["bash", "-c", limited],
        cwd=launch.folder,
        env=launch.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "cannot be created: " in done.stderr and "File too large" in done.stderr
    assert "TRAINYARD_RUNS" in done.stderr
    assert not (launch.folder / "runs").exists()


@pytest.mark.parametrize("where", ["/sys/runs", "/proc/runs", "file/runs", "link"])
def test_a_place_that_takes_no_folder_is_a_sentence(launch: Launcher, where: str) -> None:
    (launch.folder / "file").touch()
    (launch.folder / "link").symlink_to("nowhere/at/all")
    launch.environment = {**launch.environment, "TRAINYARD_RUNS": where}
    file = launch.write(TEXT)
    run = launch("run", file, "--cluster", "local")
    rendered = launch("render", file, "--cluster", "slurm", "--out", f"{where}/out")
    for done in (run, rendered):
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        assert where in done.stderr and "TRAINYARD_RUNS" in done.stderr


@pytest.fixture
def foreign(launch: Launcher) -> Iterator[tuple[Path, Path]]:
    """A folder of runs with one of ours, and one that this process may not look into."""
    root = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    launch.environment = {**launch.environment, "TRAINYARD_RUNS": str(root)}
    runs = [launch.run(launch.write(TEXT), "--cluster", "local", "--wait") for _ in range(2)]
    root.chmod(0o755)
    runs[0].chmod(0o755)
    (runs[0] / "run.json").chmod(0o644)
    runs[1].chmod(0o700 if os.geteuid() == 0 else 0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield runs[0], runs[1]
    os.seteuid(user)
    runs[1].chmod(0o700)
    shutil.rmtree(root)


def test_a_run_of_another_user_is_passed_over_or_named(foreign: tuple[Path, Path]) -> None:
    open_, closed = foreign
    assert [run.path for run in RunStore(open_.parent).runs()] == [open_]
    with pytest.raises(UserError, match="cannot be read: it belongs to another user"):
        RunStore(open_.parent).find(str(closed))
    with pytest.raises(UserError, match="no run begins with"):
        RunStore(open_.parent).find(closed.name)
    with pytest.raises(UserError, match="no run begins with"):
        RunStore(open_.parent).find("x" * 300)


def test_looking_at_the_commit_writes_nothing_into_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`git diff` refreshes the index: killed meanwhile, it left a lock that stopped each commit."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path)]
    ours = tmp_path / "jobs" / "snapshot.py"  # by which git knows that the code is this checkout's
    ours.parent.mkdir()
    ours.write_text("as it was\n")
    for words in (["init", "-q"], ["add", "jobs"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    os.utime(ours, (1, 1))  # the index no longer knows that it is the same
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    monkeypatch.setattr(snapshot, "ROOT", tmp_path)
    found = snapshot.provenance(tmp_path / "dirty.diff")
    assert found["commit"] and found["dirty"] is False
    assert index.read_bytes() == before
