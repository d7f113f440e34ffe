"""YAML 1.2 values with the line of each, on PyYAML's parser.

PyYAML resolves plain scalars by YAML 1.1 (`12:00:00` is 43200, `3e-4` text, `no` false). Here they
follow the 1.2 core schema: `3e-4` is a number and `no` is text. Only data comes out: tags, and keys
that are not text, are mistakes.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import SpecError
from jobs.reading.paths import Place

_LIMIT = 100_000  # values in a file: aliases of aliases grow exponentially
DEEPEST = 50  # values inside values; ours are 6 deep, and Python counts calls up to 1,000
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # escapes can make them; no file system takes them
_DIGITS = 3000  # Python writes integers of up to 4,300 decimal ones
_TOO_DEEP = f"nested too deeply: at most {DEEPEST} values inside each other"
_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its YAML 1.1 rules for plain scalars."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("float", rf"{_FLOAT}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)


@dataclass
class Document:
    """The value of a file, and where each part of it stands."""

    value: Any = None
    places: dict[Place, str] = field(default_factory=dict)  # -> "file:line"
    mistakes: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)  # what is no mistake and should be said
    text: str = ""  # as the file had it; a pipe says it only once

    def where(self, place: Place) -> str:
        """`file:line` of a value; of the nearest thing around it where it is not in the file."""
        while place not in self.places:
            place = place[:-1]
        return self.places[place]

    def mistake(self, place: Place, message: str) -> None:
        """Record a mistake at a place."""
        self.mistakes.append(self._at(place, message))

    def notice(self, place: Place, message: str) -> None:
        """Record what is to be said of a place, which is no mistake."""
        self.notices.append(self._at(place, message))

    def _at(self, place: Place, message: str) -> str:
        dotted = ".".join(str(part) for part in place)
        return f"{self.where(place)}: {dotted + ': ' if dotted else ''}{message}"


def parse(text: str, name: str) -> Document:
    """The document in `text`; what is wrong with it stands in its `mistakes`."""
    document = Document(places={(): f"{name}:1"}, text=text)
    try:
        node = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        document.mistakes.append(f"{name}:{line + 1}: {_explain(error, text, line)}")
        return document
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        character = f"U+{error.character:04X}"
        document.mistakes.append(f"{name}:{line + 1}: not YAML text: {character} is not allowed")
        return document
    except RecursionError:
        document.mistakes.append(f"{name}:1: {_TOO_DEEP}")
        return document
    if node is not None:
        document.value = _value(node, (), document, name, ())
    return document


def _explain(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    lines = text.splitlines()
    if line < len(lines) and "\t" in lines[line][: len(lines[line]) - len(lines[line].lstrip())]:
        return "indented with a tab: YAML indents with spaces, so write spaces"
    return f"not valid YAML: {error.problem}{f' ({error.context})' if error.context else ''}"


def _value(
    node: yaml.Node, place: Place, document: Document, name: str, above: tuple[int, ...]
) -> Any:
    document.places[place] = f"{name}:{node.start_mark.line + 1}"
    if id(node) in above:
        document.mistake(place, "an alias to something that it is part of: write the value out")
        return None
    if len(place) > DEEPEST:
        document.mistakes.append(f"{document.places[place]}: {_TOO_DEEP}")
        return None
    if len(document.places) > _LIMIT:
        raise SpecError([f"{name}: more than {_LIMIT} values: write fewer, without nested aliases"])
    above = (*above, id(node))
    if not isinstance(node, yaml.ScalarNode) and node.tag not in (_TAG + "map", _TAG + "seq"):
        document.mistake(place, f"the tag {node.tag!r} is not data: leave it out")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, document, name, above)
    if isinstance(node, yaml.SequenceNode):
        return [
            _value(child, (*place, index), document, name, above)
            for index, child in enumerate(node.value)
        ]
    return _scalar(node, place, document)


def _mapping(
    node: yaml.MappingNode, place: Place, document: Document, name: str, above: tuple[int, ...]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        line = f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            document.mistakes.append(f"{line}: a key must be text")
        elif _NO_TEXT.search(key):
            document.mistakes.append(f"{line}: {_no_text(key)}")
        elif key in values:
            document.mistake(place, f"{key!r} is written twice (again at {line}): keep one")
        else:
            inner: Place = (*place, key)
            values[key] = _value(value_node, inner, document, name, above)
            document.places[inner] = line
    return values


def _scalar(node: yaml.Node, place: Place, document: Document) -> Any:
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind == "str":
        if _NO_TEXT.search(text):
            document.mistake(place, _no_text(text))
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        if len(text) > _DIGITS:
            document.mistake(place, f"a number of {len(text)} digits: write it shorter")
            return None
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
    document.mistake(place, f"the tag {node.tag!r} is not data: leave it out")
    return None


def _no_text(text: str) -> str:
    character = _NO_TEXT.findall(text)[0]
    return f"U+{ord(character):04X} is not allowed in a text"


def read(path: Path) -> Document:
    """The document in a file (SpecError where it cannot be read as text)."""
    try:
        return parse(path.read_bytes().decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise SpecError([f"{path}:1: not a text file (byte {error.start} is not UTF-8)"]) from None
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}"]) from None
