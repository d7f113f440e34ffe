"""References in texts: `${step.field}` is a field of another step's result.

`$${` is the text `${` itself, for programs that have such names of their own: `$${HOME}`.
"""

import re
from collections.abc import Callable
from typing import Any

PATTERN = r"(^|[^$])\$\{[a-z0-9_]+\.[\w.-]+\}"  # in a text that holds one, for editors
_PART = re.compile(r"\$\$\{|\$\{([^}]*)\}")
_BARE = re.compile(r"\$\(?([a-z0-9_]+\.[\w.-]+)\)?")


def references(text: str) -> list[str]:
    """What stands in the braces of each reference."""
    return [part[1] for part in _PART.finditer(text) if part[1] is not None]


def without_braces(text: str) -> str:
    """What a text refers to if it is a reference that lacks its braces, `$step.field`; else ""."""
    found = _BARE.fullmatch(text)
    return found[1] if found else ""


def has_unclosed(text: str) -> bool:
    """Whether a `${` has no end."""
    return "${" in _PART.sub(" ", text)


def fill_references(text: str, value_of: Callable[[str], Any]) -> Any:
    """`text` with the values of its references; a lone reference is its value, of any type."""
    whole = _PART.fullmatch(text)
    if whole and whole[1] is not None:
        return value_of(whole[1])
    return _PART.sub(lambda part: "${" if part[1] is None else str(value_of(part[1])), text)


def escape_references(text: str) -> str:
    """What has to be written for a text to stay as it is."""
    return text.replace("${", "$${")
