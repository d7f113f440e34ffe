"""The code a run uses: a copy of our packages, the commit, and what differs from it.

Queued jobs import this copy, so that later edits and updates do not touch them. Compiled files
travel along: sources keep their times, so that 50 jobs do not compile the same modules 50 times.
"""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jobs.errors import UserError

ROOT = Path(__file__).resolve().parent.parent  # a checkout, site-packages/trainyard or a snapshot
PARTS = ("jobs", "lact_asr", "distill", "slurm_templates", "launch.py")
# Or `git diff` writes the index anew (2.39, --no-optional-locks or not), and may die meanwhile; and
# git would not look into a checkout that is another member's of the group, whose code runs anyway.
_LOOKING = ("-c", "diff.autoRefreshIndex=false", "-c", "safe.directory=*")
_VERSIONS = ("trainyard", "torch", "torchaudio", "submitit")


def copy_code(target: Path) -> None:
    """Copy our code to `target`, which appears whole or not at all; UserError where it cannot."""
    temporary = target.with_name(f".{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        # no links to the checkout: an editor that writes in place would change the copy
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, temporary / part, ignore=_no_code)
            else:
                shutil.copy2(ROOT / part, temporary / part)
    except OSError as error:
        advice = "make room there, or name another folder (TRAINYARD_RUNS, or --out of render)"
        raise UserError(f"{target} cannot be created: {_first(error)}: {advice}") from None
    temporary.rename(target)


def _no_code(folder: str, names: list[str]) -> list[str]:
    """What is neither a file nor a folder, as Emacs marks a file with changes that are not saved by
    a link to nowhere beside it; and what another Python is compiling, which is gone in a moment.
    """
    paths = {name: Path(folder, name) for name in names}
    return [
        name
        for name, path in paths.items()
        if ".pyc." in name or not (path.is_dir() or path.is_file())
    ]


def _first(error: OSError) -> str:
    """What went wrong first: a copied folder tells all at once."""
    several = isinstance(error, shutil.Error) and isinstance(error.args[0], list)
    return str(error.args[0][0][-1] if several else error)


def entry(module: str) -> list[str]:
    """Arguments of Python that run `main()` of a module of ours, from the snapshot, in UTF-8.

    `python -m` would look into the working folder first: the checkout in which launch.py was
    called, with whatever has been edited since. PYTHONPATH names the snapshot.
    """
    path = "import sys; sys.path[:] = filter(None, sys.path)"
    return ["-X", "utf8", "-c", f"{path}; from {module} import main; main()"]


def provenance(dirty: Path) -> dict[str, Any]:
    """Commit and versions; what differs from the commit in our code is written to the file `dirty`.

    There is no commit where git does not know this very file: a wheel in a virtual environment
    lies in whatever repository that environment was made in.
    """
    commit = _commit()
    if difference := _difference() if commit else "":
        dirty.write_text(difference)
    return {
        "commit": commit,
        "dirty": bool(difference),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _VERSIONS},
    }


def installed() -> str:
    """The commit and the versions in a line, without importing any of them."""
    ours, *others = _VERSIONS
    said = [f"{ours} {_version(ours) or 'of a checkout'}"]
    if commit := _commit():
        said[0] += f" (commit {commit[:12]}{', changed' if _difference() else ''})"
    said += [f"{name} {_version(name) or 'not installed'}" for name in others]
    return ", ".join([*said, f"Python {platform.python_version()}", platform.platform()])


def _commit() -> str | None:
    commit, _, known = _git("rev-parse", "HEAD", "HEAD:./jobs/snapshot.py").partition("\n")
    return commit if known else None


def _difference() -> str:
    """What has been changed in our code since the commit, and the names of what is new in it."""
    new = _git("ls-files", "--others", "--exclude-standard", "--", *PARTS).splitlines()
    named = [f"# new, not in git: {name}\n" for name in new if "__pycache__" not in name]
    return _git("diff", "HEAD", "--", *PARTS) + "".join(named)


def _version(name: str) -> str | None:
    """Version of an installed package; a checkout of ours need not be installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """Output of a git command, which only looks; empty without a checkout or without git."""
    try:
        done = subprocess.run(
            ["git", *_LOOKING, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
