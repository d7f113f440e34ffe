"""Pipeline files: what is right is understood, what is wrong is said, all of it, with its line."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import SpecError
from jobs.reading import read_pipeline
from jobs.yaml12 import parse
from tests.jobs.launching import Launcher

PRINTABLE = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=20)

GOOD = """\
description: two programs
steps:
  first:
    kind: command
    settings: {argv: [echo, 3e-4, "no"]}
  second:
    kind: command
    needs: [first]
    settings:
      argv: [echo, "${first.seconds}", "--x=${first.words.count}"]
      folder: here
    resources: {time: 1d12h, cpus: 2}
    gate: {seconds: "<= 5"}
"""

COMMAND = "steps:\n  a:\n    kind: command\n    settings: {argv: [x]}\n"

# name of the file -> what is in it, and (line, words) of each mistake that must be reported
BROKEN: dict[str, tuple[str | bytes, list[tuple[int, str]]]] = {
    "empty": ("", [(1, "write a mapping here (name: ..., description: ..., steps: ...)")]),
    "only_a_comment": ("# nothing\n", [(1, "write a mapping here")]),
    "a_list": ("- a\n- b\n", [(1, "write a mapping here")]),
    "binary": (b"\xff\xfe\x00steps", [(1, "not a text file")]),
    "control_character": (COMMAND.replace("[x]", "[\x07]"), [(4, "U+0007 is not allowed")]),
    "tabs": ("steps:\n\ta:\n    kind: command\n", [(2, "indented with a tab")]),
    "not_yaml": ("steps:\n  a: {kind: command\n", [(3, "not valid YAML")]),
    "unknown_kind": (COMMAND.replace("command", "comand"), [(3, "did you mean 'command'?")]),
    "unknown_key": (
        COMMAND + "    need: [b]\n",
        [(5, "unknown key 'need': did you mean 'needs'?")],
    ),
    "unknown_setting": (
        COMMAND.replace("{argv: [x]}", "{argv: [x], enviroment: {}}"),
        [(4, "unknown key 'enviroment': did you mean 'environment'?")],
    ),
    "wrong_type": (COMMAND + "    resources: {cpus: many}\n", [(5, 'valid integer, not "many"')]),
    "boolean_for_a_number": (COMMAND + "    resources: {cpus: true}\n", [(5, "valid integer")]),
    "out_of_bounds": (
        COMMAND + "    resources: {cpus: 0}\n",
        [(5, "write a number greater than or equal to 1, not 0")],
    ),
    "time_without_unit": (COMMAND + "    resources: {time: 30}\n", [(5, "30m, 12h, 2d")]),
    "time_by_the_clock": (COMMAND + "    resources: {time: 12:00:00}\n", [(5, "'12:00:00'")]),
    "missing_setting": ("steps:\n  a:\n    kind: command\n", [(2, "missing: write argv: ...")]),
    "missing_need": (COMMAND + "    needs: [b]\n", [(5, "no step 'b'")]),
    "cycle": (
        COMMAND + "    needs: [b]\n  b:\n    kind: command\n    needs: [a]\n"
        "    settings: {argv: [x]}\n",
        [(5, "circle: a -> b -> a")],
    ),
    "need_of_itself": (COMMAND + "    needs: [a]\n", [(5, "circle: a -> a")]),
    "reference_to_no_step": (
        COMMAND.replace("[x]", '["${corpus.train}"]'),
        [(4, "no step 'corpus'")],
    ),
    "reference_without_need": (
        COMMAND + '  b:\n    kind: command\n    settings: {argv: ["${a.seconds}"]}\n',
        [(7, "b does not need a: write needs: [a]")],
    ),
    "reference_that_is_none": (
        COMMAND.replace("[x]", '["${a"]'),
        [(4, "write a reference as ${step.field}")],
    ),
    "gate_that_is_none": (COMMAND + "    gate: {seconds: small}\n", [(5, 'such as "<= 0.1"')]),
    "bad_name": (COMMAND.replace("a:", "A-1:", 1), [(2, "lower-case letters")]),
    "written_twice": (COMMAND + "  a:\n    kind: command\n", [(2, "'a' is written twice")]),
    "alias_of_itself": ("steps: &a\n  a: *a\n", [(1, "an alias to something")]),
    "tag_that_is_code": (COMMAND.replace("[x]", "!!python/object [x]"), [(4, "is not data")]),
    "two_mistakes": (
        COMMAND + "    resources: {time: 5, cpus: x}\n  b:\n    kind: nothing\n",
        [(5, "30m, 12h, 2d"), (5, "valid integer"), (7, "no kind 'nothing'")],
    ),
}


def read(tmp_path: Path, text: str, *overrides: str):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return read_pipeline(path, overrides)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_answered_with_every_line_that_is_wrong(tmp_path: Path, name: str) -> None:
    content, mistakes = BROKEN[name]
    path = tmp_path / f"{name}.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError) as caught:
        read_pipeline(path)
    said = caught.value.mistakes
    assert len(said) >= len(mistakes)
    for line, words in mistakes:
        found = [text for text in said if text.startswith(f"{path}:{line}:") and words in text]
        assert found, (line, words, said)


def test_the_command_answers_a_broken_file_with_exit_2_and_creates_nothing(tmp_path: Path) -> None:
    launch = Launcher(tmp_path)
    for name, (content, _) in BROKEN.items():
        path = tmp_path / f"{name}.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.rglob("*"))
    for name in ("two_mistakes", "binary", "cycle", "empty"):
        done = launch("run", f"{name}.yaml", "--cluster", "local")
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert re.search(rf"{name}\.yaml:\d+: ", done.stderr)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_good_file_becomes_steps_in_dependency_order(tmp_path: Path) -> None:
    pipeline = read(tmp_path, GOOD)
    first, second = pipeline.steps
    assert (first.name, second.name, second.needs) == ("first", "second", ("first",))
    assert first.settings["argv"] == ["echo", "0.0003", "no"]
    assert second.settings["argv"][1] == "${first.seconds}"  # filled in when the step starts
    assert second.settings["folder"] == str(Path.cwd() / "here")
    assert second.resources.time == 36 * 60
    assert second.resources.model_dump(mode="json")["time"] == "1d12h"


def test_a_step_written_before_what_it_needs_comes_after_it(tmp_path: Path) -> None:
    text = COMMAND + "    needs: [b]\n  b:\n    kind: command\n    settings: {argv: [x]}\n"
    assert [step.name for step in read(tmp_path, text).steps] == ["b", "a"]


def test_values_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = COMMAND.replace("[x]", "[3e-4, no, on, 010, 0x10, 1_000, 12:30:00, true]")
    with pytest.raises(SpecError, match=r"argv\.7: write a valid string, not true"):
        read(tmp_path, text)
    argv = read(tmp_path, text.replace(", true", "")).steps[0].settings["argv"]
    assert argv == ["0.0003", "no", "on", "10", "16", "1_000", "12:30:00"]


def test_set_overrides_settings_and_resources(tmp_path: Path) -> None:
    pipeline = read(
        tmp_path, COMMAND, "a.argv=[echo, hi]", "a.resources.time=2h", "a.environment.X=1"
    )
    step = pipeline.steps[0]
    assert step.settings["argv"] == ["echo", "hi"]
    assert step.settings["environment"] == {"X": "1"}
    assert step.resources.time == 120


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("a.argvs=[x]", "--set a.argvs=[x]: steps.a.settings.argvs: unknown key"),
        ("b.argv=[x]", "no step 'b'"),
        ("a", "write step.setting=value"),
        ("a.resources.time=3", "--set a.resources.time=3: steps.a.resources.time: write a time"),
    ],
)
def test_a_wrong_override_is_named_as_given(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, COMMAND, override)
    assert words in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_a_file_holds_it_is_read_or_refused(content: bytes) -> None:
    path = Path("/dev/shm") / "trainyard-property.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read_pipeline(path)
    assert all(str(path) in line for line in caught.value.mistakes)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | PRINTABLE)
def test_a_value_written_as_json_is_read_as_that_value(value: object) -> None:
    document = parse(f"key: {json.dumps(value, ensure_ascii=False)}", "x")
    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)
