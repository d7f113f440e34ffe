"""README and docs: every pipeline in them is read, every command parsed, every path is there."""

import re
import shlex
from pathlib import Path

import pytest

from jobs import kinds
from jobs.cli import parser
from jobs.healing.heal import PAGE
from jobs.reading.pipeline_file import read_pipeline
from tests.conftest import REPOSITORY
from tests.docs_from_code import when_things_go_wrong
from tests.jobs.test_cli import COMMANDS

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
CALL = re.compile(r"(?:\$ )?(?:python launch\.py|launch\.py|trainyard) (\S[^#]*)")
FILES = re.compile(
    r"\b(?:jobs|slurm_templates|lact_asr|distill|bench|docs|tests|trainyard)/[\w./*-]+"
)
TO_BE_MADE = ("slurm_templates/clusters/mine.yaml", "bench/results/NAME.json")

# What the reader puts in the place of these words.
INSTEAD = {"FILE": "demo", "DIR": "out", "RUN": "r", "PRESET": "plain", "NAME": "train"}


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [text for kind, text in FENCE.findall(page.read_text()) if kind in languages]


def calls() -> list[str]:
    """Every complete call of our command on any page: lines of blocks, and spans in a sentence."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        spans = [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]
        lines = [line for block in blocks(page, "", "bash") for line in block.splitlines()]
        found |= {call[1].strip() for line in [*lines, *spans] if (call := CALL.match(line))}
        found |= {span for span in spans if span.split()[0] in COMMANDS and " " in span}
    return sorted(found)


def paths() -> list[str]:
    """Every path inside the repository that a page names."""
    text = "\n".join(page.read_text() for page in PAGES)
    return sorted({path.rstrip(".,:") for path in FILES.findall(text)} - set(TO_BE_MADE))


def test_there_are_pages_with_pipelines_calls_and_paths() -> None:
    """Otherwise the tests below would test nothing."""
    assert {"README.md", "glossary.md", "origin.md"} <= {page.name for page in PAGES}
    assert len([b for page in PAGES for b in blocks(page, "yaml")]) >= 1
    assert len(calls()) >= 15 and len(paths()) >= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_pipeline_on_a_page_has_no_mistakes(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        file = tmp_path / "p.yaml"
        file.write_text(text)
        assert read_pipeline(file).steps


@pytest.mark.parametrize("call", calls())
def test_every_call_is_one_that_the_command_line_knows(call: str) -> None:
    words = [INSTEAD.get(word, word) for word in shlex.split(call)]
    try:
        given = parser().parse_args(words)
    except SystemExit as ended:  # as --version does, and a mistake with 2
        assert ended.code == 0
        return
    if given.command == "kinds" and given.name:
        assert given.name in kinds.NAMES


@pytest.mark.parametrize("path", paths())
def test_every_path_on_a_page_is_there(path: str) -> None:
    assert list(REPOSITORY.glob(path)), f"{path} does not exist"


def test_every_kind_and_every_shipped_pipeline_stands_in_the_readme() -> None:
    readme = PAGES[0].read_text()
    assert [name for name in kinds.NAMES if f"| `{name}` |" not in readme] == []
    shipped = [file.name for file in (REPOSITORY / "jobs" / "pipelines").glob("*.yaml")]
    assert [name for name in shipped if f"`{name}`" not in readme] == []


def test_every_target_of_make_on_a_page_is_one() -> None:
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    text = "\n".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"`make (\w+)`", text)) <= set(targets)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            path = page.parent / link.partition("#")[0]
            assert link.startswith("https://") or path.exists(), (page.name, link)


def test_the_output_in_the_readme_is_of_the_pipeline_above_it() -> None:
    readme = PAGES[0]
    (pipeline,) = (text for text in blocks(readme, "yaml") if "# first.yaml" in text)
    (output,) = (text for text in blocks(readme, "") if "$ trainyard run first.yaml" in text)
    steps = re.findall(r"^  (\w+):$", pipeline, re.MULTILINE)
    assert re.findall(r"^  (\w+): job", output, re.MULTILINE) == steps
    assert re.findall(r"^(\w+) .* succeeded ", output, re.MULTILINE) == steps


def test_the_page_of_causes_is_what_the_code_says() -> None:
    """Otherwise: python -m tests.docs_from_code."""
    assert (REPOSITORY / PAGE).read_text() == when_things_go_wrong()
