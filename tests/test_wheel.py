"""What `pip install` gives: the command `trainyard`, whole, in a folder that knows no checkout."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from jobs.snapshot import PARTS
from tests.conftest import REPOSITORY
from tests.jobs.launcher import ASCII
from tests.slurm.cluster import PATIENCE

STEP = "steps: {a: {kind: command, settings: {argv: [PYTHON, -c, PROGRAM]}}}"
WHERE = "import jobs.worker; print(jobs.worker.__file__)"


def pip(python: str | Path, *words: object) -> None:
    """pip without a network, and without a look at what else is installed."""
    command = [python, "-m", "pip", *words[:1], "--quiet", "--no-deps", "--no-index", *words[1:]]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_source(target: Path) -> Path:
    """What a wheel is built from, without what an earlier build has left."""
    for part in ("pyproject.toml", "README.md", "LICENSE", "trainyard", *PARTS):
        if (REPOSITORY / part).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / part, target / part, ignore=unwanted)
        else:
            target.mkdir(exist_ok=True)
            shutil.copy2(REPOSITORY / part, target / part)
    return target


class Environment:
    """A virtual environment that sees the packages we depend on, and not the checkout."""

    def __init__(self, path: Path) -> None:
        venv.create(path, symlinks=True)
        self.python = path / "bin" / "python"
        self.command = path / "bin" / "trainyard"
        (self.packages,) = path.glob("lib/python*/site-packages")
        outer = [entry for entry in sys.path if Path(entry).name == "site-packages"]
        (self.packages / "dependencies.pth").write_text("\n".join(outer))

    def __call__(self, program: Path, *words: object, folder: Path, code: int = 0) -> str:
        """What a program prints when called in `folder`."""
        hidden = ("TRAINYARD", "PYTHONPATH", "GIT_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        done = subprocess.run(
            list(map(str, [program, *words])),
            cwd=folder,
            env={**kept, **ASCII, "PYTHON": str(self.python)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        return said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_source(folder / "source")
    pip(sys.executable, "wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """The wheel in an environment where others have packages of the same names."""
    environment = Environment(tmp_path_factory.mktemp("installed"))
    for name in ("jobs", "distill", "lact_asr", "launch"):
        (environment.packages / f"{name}.py").write_text("raise ImportError('somebody else')")
    pip(environment.python, "install", "--ignore-installed", wheel)
    return environment


def files(folder: Path) -> set[str]:
    """The files below a folder, compiled ones left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if path.suffix != ".pyc"}


def test_a_wheel_is_one_folder_that_holds_every_file_of_ours(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"trainyard"}
    inside = {name.removeprefix("trainyard/") for name in names if name.startswith("trainyard/")}
    parts = [REPOSITORY / part for part in PARTS if (REPOSITORY / part).is_dir()]
    ours = {f"{part.name}/{file}" for part in parts for file in files(part)}
    assert inside == ours | {"__init__.py", "launch.py"}


def test_the_command_needs_no_checkout_and_calls_itself_by_its_name(
    installed: Environment, tmp_path: Path
) -> None:
    said = installed(installed.command, "--help", folder=tmp_path)
    assert said.startswith("usage: trainyard ") and "launch.py" not in said
    assert "\ntrainyard kinds NAME:" in installed(installed.command, "kinds", folder=tmp_path)
    said = installed(installed.command, "check", "demo", "--cluster", "local", folder=tmp_path)
    assert said == "demo: 7 steps, no mistakes\n"
    said = installed(installed.command, "status", folder=tmp_path, code=2)
    assert "start one with `trainyard run demo`" in said
    assert list(tmp_path.iterdir()) == []


def test_an_installed_trainyard_runs_a_whole_step_from_a_copy_of_itself(
    installed: Environment, wheel: Path, tmp_path: Path
) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "commit", "--allow-empty", "-m", "x"]
    subprocess.run(["git", "init", "-q", installed.packages.parents[2]], check=True)
    subprocess.run([*git, "-q"], cwd=installed.packages, check=True)  # a repository, but not ours
    step = STEP.replace("PYTHON", str(installed.python)).replace("PROGRAM", json.dumps(WHERE))
    home = tmp_path / "größe"
    home.mkdir()
    (home / "one.yaml").write_text(step)
    words = ("run", "one.yaml", "--cluster", "local", "--wait")
    said = installed(installed.command, *words, folder=home)
    run = Path(said.splitlines()[0])
    assert json.loads((run / "steps" / "a" / "result.json").read_text())
    ours = installed.packages / "trainyard"
    assert files(run / "code") | {"__init__.py"} == files(ours)
    told = installed(installed.command, "logs", f"{run}/a", folder=tmp_path)
    assert str(run / "code" / "jobs" / "worker.py") in told
    info = json.loads((run / "run.json").read_text())
    assert info["commit"] is None and not info["dirty"]
    assert info["versions"]["trainyard"] == wheel.name.split("-")[1]


def test_the_templates_come_along_and_run(installed: Environment, tmp_path: Path) -> None:
    script = installed.packages / "trainyard" / "slurm_templates" / "train_improved_full.sh"
    said = installed(script, "--dry-run", "--cluster", "local", folder=tmp_path)
    assert said.startswith("librispeech_improved on local: nothing is submitted")
    installed(installed.command, "render", "demo", "--out", "scripts", folder=tmp_path)
    assert "program=trainyard" in (tmp_path / "scripts" / "submit_all.sh").read_text()


def test_an_editable_install_has_the_command_and_no_import_hook(tmp_path: Path) -> None:
    """The hook of setuptools' other modes cost 10 ms at every start of Python."""
    environment = Environment(tmp_path / "environment")
    source = copy_source(tmp_path / "source")
    words = ["--no-build-isolation", "--ignore-installed", "--editable", source]
    pip(environment.python, "install", *words)
    (path,) = environment.packages.glob("*trainyard*.pth")
    assert path.read_text().strip() == str(source)
    said = environment(environment.command, "check", "demo", folder=tmp_path)
    assert said == "demo: 7 steps, no mistakes\n"
