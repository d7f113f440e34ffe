"""Pipeline files with something changed: they are read, or every mistake is told, and nothing else.

    python -m bench.mutated_pipelines [--count 100000] [--seed 0]

A shipped pipeline file gets one to four changes: a character, a word or a line lost, doubled, moved
or put in the place of another, an indentation, a value of another type, a file cut off. Then it is
read as `check` does. Anything but a pipeline or a list of mistakes, each with the file's name, is
wrong; so is a file that reading has made. Each exception is printed with the text that raised it.
"""

import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench.harness import RESULTS, argument_parser
from bench.machine import machine
from jobs.errors import SpecError
from jobs.reading.pipeline_file import read_pipeline
from lact_asr.utils.files import write_json

SHIPPED = Path(__file__).resolve().parents[1] / "jobs" / "pipelines"
VALUES = [
    "",
    "null",
    "true",
    "-1",
    "1e400",
    ".nan",
    "0x1F",
    "[]",
    "{}",
    "[[1]]",
    "${a.b}",
    "${",
    "*x",
]
VALUES += [
    "&x 1",
    "!!python/object:os.system ls",
    "'",
    '"',
    "2020-01-01",
    "12:30:00",
    "~",
    "- a",
    "\t",
]
VALUES += [  # of paths, texts and numbers
    "~nobody-at-all/x",
    "/dev/null",
    "/dev/null/x",
    "..",
    "a/" * 3000,
    "x" * 300,
    '"a\\0b"',
    '"\\ud800"',
    '"\\u202e"',
    '""',
    "-0.0",
    "1e-400",
    "9" * 5000,
    "1_000",
    "[~]",
    "{1: 2}",
    "{? [1] : 2}",
]
Change = Callable[[random.Random, list[str]], None]  # of the lines, in place


def _lose(rng: random.Random, lines: list[str]) -> None:
    del lines[rng.randrange(len(lines))]


def _double(rng: random.Random, lines: list[str]) -> None:
    place = rng.randrange(len(lines))
    lines.insert(place, lines[place])


def _move(rng: random.Random, lines: list[str]) -> None:
    line = lines.pop(rng.randrange(len(lines)))
    lines.insert(rng.randrange(len(lines) + 1), line)


def _indent(rng: random.Random, lines: list[str]) -> None:
    place = rng.randrange(len(lines))
    lines[place] = " " * rng.randrange(12) + lines[place].lstrip()


def _value(rng: random.Random, lines: list[str]) -> None:
    place = rng.randrange(len(lines))
    lines[place] = f"{lines[place].partition(':')[0]}: {rng.choice(VALUES)}"


def _key(rng: random.Random, lines: list[str]) -> None:
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    _, colon, rest = lines[one].partition(":")
    lines[one] = lines[other].partition(":")[0] + colon + rest


def _character(rng: random.Random, lines: list[str]) -> None:
    place = rng.randrange(len(lines))
    at = rng.randrange(len(lines[place]) + 1)
    new = rng.choice(
        ["", ":", "-", "#", "{", "}", "[", "$", "'", '"', "\x00", "é", "\u2028", "7", "%"]
    )
    lines[place] = lines[place][:at] + new + lines[place][at + 1 :]


def _cut(rng: random.Random, lines: list[str]) -> None:
    del lines[rng.randrange(len(lines)) :]


CHANGES: tuple[Change, ...] = (_lose, _double, _move, _indent, _value, _key, _character, _cut)


def changed(rng: random.Random, text: str) -> str:
    """The text with one to four changes."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 4)):
        if lines:
            rng.choice(CHANGES)(rng, lines)
    return "\n".join(lines) + "\n"


def outcome(file: Path, text: str) -> str:
    """What reading a text came to: `read`, `refused`, or what is wrong with it."""
    file.write_text(text)
    try:
        read_pipeline(file, folder=file.parent)
    except SpecError as error:
        told = all(file.name in mistake for mistake in error.mistakes) and error.mistakes
        return "refused" if told else f"a mistake without its place: {error}"
    except Exception:
        return traceback.format_exc()
    return "read"


def trials(count: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """How many of `count` texts came to what, and the files that reading has made."""
    rng, found = random.Random(seed), Counter[str]()
    texts = [path.read_text() for path in sorted(SHIPPED.glob("*.yaml"))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "changed.yaml"
        for _ in range(count):
            text = changed(rng, rng.choice(texts))
            came = outcome(file, text)
            if came not in ("read", "refused"):
                print(f"{came}\n--- of\n{text}", file=sys.stderr)
                came = "wrong"
            found[came] += 1
        return dict(found), [path.name for path in Path(folder).iterdir() if path != file]


def main() -> None:
    """Read them all; exit status 1 where one was neither read nor refused."""
    parser = argument_parser("mutated_pipelines", __doc__, tiny="few; nothing written")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    count, began = 50 if given.tiny else given.count, time.monotonic()
    found, made = trials(count, given.seed)
    facts = {"count": count, "seed": given.seed, **found, "made": made}
    print(json.dumps(facts, indent=1))
    if not given.tiny:
        about = {"ran_on": machine(), "seconds": round(time.monotonic() - began)}
        write_json(RESULTS / "mutated_pipelines.json", facts | about)
    sys.exit(bool(found.get("wrong") or made))


if __name__ == "__main__":
    main()
