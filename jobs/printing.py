"""How the command line draws what it has to say beside tables of status: kinds, JSON, plain lines.

rich is imported only where something is drawn with it: `status --json` must stay cheap.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and cursor movements of a terminal


def one_line(text: str, longest: int) -> str:
    """`text` as one line that is safe on a terminal: no control characters, cut at `longest`."""
    plain = "".join(c if c.isprintable() else " " for c in _ESCAPES.sub("", text))
    words = " ".join(plain.split())
    return words if len(words) <= longest else words[: longest - 3].rstrip() + "..."


def duration(seconds: float) -> str:
    """`12s`, `3m05s`, `2h07m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if whole < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def print_kind(kind: Mapping[str, Any]) -> None:
    """A kind in full: what it does, its settings, what it finds, what it asks for."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(kind["about"] + "\n", markup=False, highlight=False)
    for part in ("settings", "result"):
        drawn = Table(title=part, title_justify="left")
        for column in ("name", "type", "default", "about"):
            drawn.add_column(column, overflow="fold")
        for row in kind[part]:
            drawn.add_row(*(Text(row[key]) for key in ("name", "type", "default", "about")))
        console.print(drawn)
    wants = " ".join(f"{name}={value}" for name, value in kind["resources"].items())
    console.print(f"resources, unless the step says otherwise: {wants}", highlight=False)
    heals = " ".join(f"{cause}={often}" for cause, often in kind["remedies"].items())
    console.print(f"remedies, unless the step says otherwise: {heals}", highlight=False)


def print_recipe(title: str, values: Iterable[tuple[str, Any, str]], facts: Iterable[str]) -> None:
    """A step of training: every setting in force with its source, then what it comes to."""
    print(title)
    for name, value, source in values:
        said = value if isinstance(value, str) else json.dumps(value, default=str)
        print(f"  {name}: {one_line(said, 60)}  ({source})")
    for fact in facts:
        print(f"  {fact}")
    print()


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    print(json.dumps(value, indent=1, default=str))
