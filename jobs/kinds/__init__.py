"""The kinds of steps: one module here is one kind.

A kind has a docstring (its first line is what `kinds` prints), `RESOURCES` (what a step
of it asks for unless the file says otherwise), `Settings`, `Result` and `run(settings, job) ->
Result`. One that takes much disk outside of its run has `space(settings)`, too; one whose settings
must fit those of another step has `misfits(settings, referred)`: the places and words of what does
not, beside the settings of the steps that its own name. One that reads files of the user's may look
at them before anything is submitted: `wrong_files(settings)` has the places and words of what is
wrong with those that are there. One whose results hold values by name, and whose settings tell
which, has `keys(settings)`. Nothing heavy is imported before `run`.
"""

import importlib
from pathlib import Path
from types import ModuleType

# Emacs leaves a .#train.py beside a train.py whose changes are not saved yet.
NAMES = tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!._]*.py")))


def load(name: str) -> ModuleType:
    """The module of a kind (one of NAMES)."""
    return importlib.import_module(f"{__name__}.{name}")
