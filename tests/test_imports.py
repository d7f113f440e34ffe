"""Imports go downwards: between the packages, between their folders, and never in a circle.

Every import counts, those inside functions and under TYPE_CHECKING too, and modules that are
started by name. FLOORS is the order, README repeats it.
"""

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# What a folder holds, from the top floor down; what shares a floor does not import each other. The
# files of a folder that is not named here may import each other, as long as no circle comes of it.
FLOORS = {
    "": "trainyard, launch -> jobs -> distill -> lact_asr",
    "jobs": "cli -> commands -> rehearse -> status -> logs, render -> one_step, scheduling -> "
    "backends -> worker -> healing -> cluster, fence -> reading, store -> kinds, snapshot -> "
    "folders -> causes, errors, gate, job, output, pipeline, printing, program, step_folder",
    "jobs.backends": "slurm -> local -> base",
    "distill": "objective, pseudo_labels -> cache -> language_model, teachers -> losses, models -> "
    "config",
    "lact_asr": "diagnosis -> training -> decoding -> model -> data -> distributed -> text -> "
    "config -> utils",
}
STARTERS = ("import_module", "__import__", "entry")  # what they are called with is a module's name


def dotted(path: Path) -> str:
    """The name of a module; that of its folder for an `__init__.py`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def product(root: Path) -> dict[str, Path]:
    """Every module that is not a test or a benchmark."""
    tops = [top.strip(",") for top in FLOORS[""].split() if top != "->"]
    files = [path for top in tops for path in (root / top).rglob("*.py")]
    files += [path for path in root.glob("*.py") if path.stem in tops]
    return {dotted(path.relative_to(root)): path for path in files}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a file imports, from modules or their names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = node.args[0]
            if called in STARTERS and isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def arrows(root: Path) -> list[tuple[str, str, str]]:
    """(importing module, imported module, file:line) of everything inside the product."""
    modules = product(root)
    found = []
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for line, target in imported(ast.parse(path.read_text()), package):
            # a name of a module, or a module: whichever there is
            source = target if target in modules else target.rpartition(".")[0]
            if source in modules and source != name:
                found.append((name, source, f"{path.relative_to(root)}:{line}"))
    return found


def within(folder: str, module: str) -> str | None:
    """What of a folder a module lies in: a file or a folder; None if it lies elsewhere."""
    if not folder:
        return module.partition(".")[0]
    if not module.startswith(f"{folder}."):
        return None
    return module[len(folder) + 1 :].partition(".")[0]


def between(
    folder: str, everything: Iterable[tuple[str, str, str]]
) -> Iterator[tuple[str, str, str]]:
    """The imports from one thing in a folder to another."""
    for importing, source, place in everything:
        one, other = within(folder, importing), within(folder, source)
        if one and other and one != other:
            yield one, other, place


def floors(text: str) -> dict[str, int]:
    """The floor of each name, the ground is 0."""
    rows = reversed(text.split("->"))
    return {name.strip(): floor for floor, row in enumerate(rows) for name in row.split(",")}


def upward(root: Path) -> list[str]:
    """Imports that do not run downwards, in words; what has no floor, a test of its own names."""
    everything, found = arrows(root), []
    for folder, text in FLOORS.items():
        floor = floors(text)
        found += [
            f"{place}: {one} imports {other}, which is not below it in {folder or 'the repository'}"
            for one, other, place in between(folder, everything)
            if floor.get(other, -1) >= floor.get(one, len(floor))
        ]
    return found


def circles(root: Path) -> list[str]:
    """One circle of each folder whose files or folders import each other in one."""
    everything, found = arrows(root), []
    for folder in {"", *(name.rpartition(".")[0] for name in product(root))}:
        sorter: TopologicalSorter[str] = TopologicalSorter()
        for one, other, _ in between(folder, everything):
            sorter.add(one, other)
        try:
            sorter.prepare()
        except CycleError as error:
            found.append(f"{folder or 'the repository'}: {' -> '.join(error.args[1])}")
    return found


@pytest.mark.parametrize("folder", FLOORS)
def test_all_that_a_folder_holds_has_its_floor(folder):
    there = {within(folder, name) for name in product(REPOSITORY)} - {None}
    assert there == floors(FLOORS[folder]).keys(), "FLOORS and the files differ"


def test_imports_run_downwards_only():
    assert len(arrows(REPOSITORY)) > 500
    assert upward(REPOSITORY) == []


def test_no_files_or_folders_import_each_other_in_a_circle():
    assert circles(REPOSITORY) == []


def test_the_readme_tells_the_same_order():
    text = " ".join((REPOSITORY / "README.md").read_text().split())
    for folder, order in FLOORS.items():
        assert f"{folder}: {order}" in text if folder else order in text


UPWARD = [
    ("lact_asr/utils/files.py", "import jobs.cli", "lact_asr imports jobs"),
    ("lact_asr/utils/locks.py", "from jobs import cli", "lact_asr imports jobs"),
    ("lact_asr/data/audio.py", "from ..model import masks", "data imports model"),
    ("lact_asr/data/video.py", "def f():\n    import lact_asr.model.masks", "data imports model"),
    ("distill/config/kd.py", "if 0:\n    from distill.teachers import Live", "config imports"),
    ("jobs/kinds/train.py", "from jobs.reading import paths", "kinds imports reading"),
    ("jobs/errors.py", "entry('jobs.cli')", "errors imports cli"),
    ("jobs/errors.py", "from jobs.job import Job", "errors imports job"),
]


def test_every_way_to_import_upwards_is_found(tmp_path):
    for path in product(REPOSITORY).values():
        copy = tmp_path / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    for file, code, _ in UPWARD:
        with (tmp_path / file).open("a") as planted:
            planted.write(f"\n{code}\n")
    said = upward(tmp_path)
    for file, code, what in UPWARD:
        assert [each for each in said if each.startswith(file) and what in each], code
    assert len(said) == len(UPWARD)


def test_a_circle_inside_a_folder_is_found(tmp_path):
    for name, other in (("one", "two"), ("two", "three"), ("three", "one")):
        (tmp_path / "jobs").mkdir(exist_ok=True)
        (tmp_path / "jobs" / f"{name}.py").write_text(f"def f():\n    from jobs.{other} import f\n")
    assert len(circles(tmp_path)) == 1
