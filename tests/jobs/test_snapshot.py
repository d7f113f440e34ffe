"""The code that a run keeps, where it came from, and runs whose folders have moved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.snapshot import PARTS
from tests.conftest import REPOSITORY
from tests.jobs.launcher import Launcher

ONE_STEP = "steps: {a: {kind: command, settings: {argv: [sh, -c, 'pwd > where; test -e go']}}}"
PROVENANCE = (
    "import json, sys\n"
    "from pathlib import Path\n"
    "from jobs.snapshot import provenance\n"
    "print(json.dumps(provenance(Path('dirty.diff'))))\n"
)


def git(folder: Path, *words: str) -> str:
    """A git command in a folder, by somebody."""
    who = ["-c", "user.name=x", "-c", "user.email=x"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Our code without git, in a folder of somebody's repository."""
    code = tmp_path / "repository" / "code"
    for part in PARTS:
        if (REPOSITORY / part).is_dir():
            shutil.copytree(REPOSITORY / part, code / part)
        else:
            shutil.copy2(REPOSITORY / part, code / part)
    git(code.parent, "init", "-q")
    git(code.parent, "commit", "-q", "--allow-empty", "-m", "theirs")
    return code


def provenance(code: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROVENANCE], cwd=code, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_commit_is_recorded_where_git_knows_the_code_and_nowhere_else(copied: Path) -> None:
    """A virtual environment often lies in a repository that is not ours."""
    (copied.parent / "theirs.txt").touch()
    assert '"commit": null, "dirty": false' in provenance(copied)
    git(copied.parent, "add", ".")
    git(copied.parent, "commit", "-q", "-m", "ours")
    commit = git(copied.parent, "rev-parse", "HEAD").strip()
    assert f'"commit": "{commit}", "dirty": false' in provenance(copied)
    with (copied / "launch.py").open("a") as file:
        file.write("# edited\n")
    assert f'"commit": "{commit}", "dirty": true' in provenance(copied)
    assert "+# edited" in (copied / "dirty.diff").read_text()
    git(copied.parent, "commit", "-qam", "edited")
    (copied / "beside.txt").touch()  # no code of ours
    (copied / "jobs" / "__pycache__").mkdir(exist_ok=True)
    (copied / "jobs" / "__pycache__" / "new.cpython-311.pyc").touch()
    assert '"dirty": false' in provenance(copied)
    (copied / "jobs" / "kinds" / "new.py").touch()
    assert '"dirty": true' in provenance(copied)
    assert (copied / "dirty.diff").read_text() == "# new, not in git: jobs/kinds/new.py\n"


def test_what_an_editor_keeps_beside_a_file_is_no_kind_pipeline_or_cluster(
    copied: Path, tmp_path: Path
) -> None:
    for place in ("jobs/kinds/.#train.py", "jobs/pipelines/.#demo.yaml"):
        (copied / place).symlink_to("me@host.123:456")
    (copied / "slurm_templates/clusters/.#mine.yaml").symlink_to("me@host.123:456")
    launch = Launcher(tmp_path, code=copied)
    said = [launch("kinds"), launch("schema"), launch("check", "demoo")]
    said += [launch("check", "demo", "--cluster", "elsewhere")]
    assert [each.returncode for each in said] == [0, 0, 2, 2]
    assert not any(".#" in each.stdout + each.stderr for each in said)
    assert said[-1].stderr.startswith("no cluster 'elsewhere': valid are example, h200, local, ")


def test_code_that_is_taken_later_has_its_own_commit_on_record(
    copied: Path, tmp_path: Path
) -> None:
    git(copied.parent, "add", ".")
    git(copied.parent, "commit", "-q", "-m", "ours")
    (here := tmp_path / "here").mkdir()
    launch = Launcher(here, code=copied)
    run = launch.run(launch.write(ONE_STEP), "--cluster", "local", "--wait")
    with (copied / "launch.py").open("a") as file:
        file.write("# edited\n")
    git(copied.parent, "commit", "-qam", "edited")
    with (copied / "launch.py").open("a") as file:
        file.write("# again\n")
    launch("resume", run, "--fresh-code", "--wait")
    info = json.loads((run / "run.json").read_text())
    commits = git(copied.parent, "rev-parse", "HEAD", "HEAD~").split()
    assert [info["commit"], info["earlier_code"][0]["commit"]] == commits
    assert [info["dirty"], info["earlier_code"][0]["dirty"]] == [True, False]
    assert "+# again" in (run / "dirty.2.diff").read_text()


def test_the_commit_of_a_checkout_that_somebody_else_owns_is_recorded(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(copied.parent, "add", ".")
    git(copied.parent, "commit", "-q", "-m", "ours")
    commit = git(copied.parent, "rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = subprocess.run(["git", "status"], cwd=copied, capture_output=True, text=True)
    assert "dubious ownership" in refused.stderr
    assert f'"commit": "{commit}", "dirty": false' in provenance(copied)


def test_what_an_editor_keeps_beside_a_file_stops_no_run(copied: Path, tmp_path: Path) -> None:
    """Emacs marks what is not saved yet by a link to nowhere."""
    (copied / "jobs" / ".#cli.py").symlink_to("me@host.123:456")
    os.mkfifo(copied / "jobs" / "pipe")
    (copied / "jobs" / "gate.cpython-311.pyc.140213").touch()  # Python renames it when it is whole
    copy = "import pathlib, sys; from jobs.snapshot import copy_code; "
    copy += "copy_code(pathlib.Path(sys.argv[1]))"
    words = [sys.executable, "-c", copy, str(tmp_path / "copy")]
    subprocess.run(words, cwd=copied, check=True, timeout=60)
    names = lambda folder: {str(path.relative_to(folder)) for path in folder.rglob("*.py*")}
    left = {"jobs/.#cli.py", "jobs/gate.cpython-311.pyc.140213"}
    assert names(tmp_path / "copy") == names(copied) - left


def test_a_run_is_resumed_from_another_folder_and_its_steps_run_where_it_was_started(
    tmp_path: Path,
) -> None:
    launch, elsewhere = Launcher(tmp_path / "here"), Launcher(tmp_path / "there")
    for launcher in (launch, elsewhere):
        launcher.folder.mkdir()
    run = launch.run(launch.write(ONE_STEP), "--cluster", "local", "--wait")
    (launch.folder / "go").touch()
    assert elsewhere("resume", run, "--wait").returncode == 0
    assert list(elsewhere.folder.iterdir()) == []
    assert (launch.folder / "where").read_text() == f"{launch.folder}\n"


def test_a_run_whose_launch_folder_was_moved_is_resumed_once_a_link_is_left_there(
    tmp_path: Path,
) -> None:
    launch = Launcher(tmp_path / "old")
    launch.folder.mkdir()
    run = launch.run(launch.write(ONE_STEP), "--cluster", "local", "--wait")
    moved = Launcher(launch.folder.rename(tmp_path / "new"))
    (moved.folder / "go").touch()
    done = moved("resume", "--wait")
    assert done.returncode == 2
    assert f"{run.name} was started in {tmp_path / 'old'}" in done.stderr
    assert "ln -s NEW" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "old").symlink_to(moved.folder)
    assert moved("resume", "--wait").returncode == 0
    assert moved.status()["a"]["state"] == "succeeded"
