"""Pipeline files: what is right is understood, what is wrong is said, all of it, with its line."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import SpecError
from jobs.reading.pipeline_file import read_pipeline
from jobs.reading.references import escape_references, fill_references, has_unclosed, references
from jobs.reading.yaml12 import parse
from tests.jobs.launcher import Launcher

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

NO_HOME = """\
steps:
  a:
    kind: download
    settings:
      source: table
      folder: ~nobody-at-all/corpus
      train: [a.csv]
      dev: [b.csv]
      test: [c.csv]
      root: ~nobody-at-all/data
  b: {kind: adopt, settings: {folder: ~nobody-at-all/model}}
"""

NO_NUMBERS = """\
steps:
  a:
    kind: train
    settings:
      train: t.jsonl
      dev: d.jsonl
      training: {batch_seconds: .inf, optim: {learning_rate: .nan}}
    resources: {memory_gb: .inf}
  b:
    kind: train
    settings:
      train: t.jsonl
      dev: d.jsonl
      model: {layers: true, hidden: 96.0, mlp: "288"}
  c:
    kind: language_model
    settings: {train: t.txt, dev: d.txt, model: {blocks: true}}
"""

NO_BRACES = """\
steps:
  data: {kind: command, settings: {argv: [make]}}
  use:
    kind: evaluate
    needs: [data]
    settings:
      checkpoint: $data.model
      manifest: $(data.list)
  fine:
    kind: command
    needs: [data]
    settings: {argv: [echo, $other.x, "$data", "of $data.model", "$data.model is"]}
"""

NO_SUCH_SUBSET = """\
steps:
  data:
    kind: download
    settings: {source: librispeech, train: [dev-clean, dev-other], holdout_speakers: 2}
  counted:
    kind: download
    needs: [data]
    settings: {source: folder, folder: "${data.train}", train: [a], dev: [b], test: [c]}
  use:
    kind: command
    needs: [data, counted]
    settings:
      argv:
        - ${data.manifests.dev-claen}
        - ${data.manifests.dev-clean+dev-other-without-2x2-speakers-tset}
        - ${data.manifests.dev-clean+dev-other-without-2x2-speakers-test}
        - ${data.manifests.dev-clean} ${counted.manifests.anything}
"""

# name of the file -> what is in it, and (line, words) of each mistake that must be reported
BROKEN: dict[str, tuple[str | bytes, list[tuple[int, str]]]] = {
    "empty": ("", [(1, "write a mapping here (name: ..., description: ..., steps: ...)")]),
    "no_numbers": (
        NO_NUMBERS,
        [
            (7, "batch_seconds: write a number that has an end, not .inf or .nan"),
            (7, "optim.learning_rate: write a number that has an end"),
            (8, "steps.a.resources.memory_gb: write a number that has an end"),
            (14, "steps.b.settings.model.hidden: write a valid integer, not 96.0"),
            (14, "steps.b.settings.model.layers: write a valid integer, not True"),
            (14, "steps.b.settings.model.mlp: write a valid integer, not '288'"),
            (17, "steps.c.settings: model: blocks: write a valid integer"),
        ],
    ),
    "no_braces": (
        NO_BRACES,
        [
            (7, "steps.use.settings.checkpoint: write a result in braces: ${data.model}"),
            (8, "steps.use.settings.manifest: write a result in braces: ${data.list}"),
        ],
    ),
    "no_such_subset": (
        NO_SUCH_SUBSET,
        [
            (14, "${data.manifests.dev-claen}: no 'dev-claen': did you mean 'dev-clean'?"),
            (15, "-speakers-tset': did you mean 'dev-clean+dev-other-without-2x2-speakers-test'?"),
        ],
    ),
    "homes_of_nobody": (
        NO_HOME,
        [
            (6, "nobody knows the home of ~nobody-at-all: write a path that begins with /"),
            (10, "steps.a.settings.root: nobody knows the home of ~nobody-at-all"),
            (11, "steps.b.settings.folder: nobody knows the home of ~nobody-at-all"),
        ],
    ),
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


LISTS = """\
steps:
  a:
    kind: command
    settings: {argv: [one, two, three], environment: {A: "1"}}
    resources: {time: 1h}
"""


def test_set_replaces_one_value_of_a_list_and_a_list_that_was_set_before(tmp_path: Path) -> None:
    assert read(tmp_path, LISTS, "a.argv.0=x").steps[0].settings["argv"] == ["x", "two", "three"]
    step = read(tmp_path, LISTS, "a.settings.argv=[p, q]", "a.argv.1=x").steps[0]
    assert step.settings["argv"] == ["p", "x"]
    with pytest.raises(SpecError) as caught:
        read(tmp_path, LISTS, "a.argv=[p, true]")  # not the line of the file's own argv.1
    assert caught.value.mistakes == [
        "--set a.argv=[p, true]: steps.a.settings.argv.1: write a valid string, not true"
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("a.argv.3=x", "steps.a.settings.argv is a list of 3: write a number from 0 to 2 instead"),
        ("a.argv.-1=x", "instead of '-1', or the whole list: [a, b]"),
        ("a.argv.last=x", "instead of 'last', or the whole list"),
        ("a.argv.99999999999999999999=x", "is a list of 3"),
        ("a.argv.0.deeper=x", 'argv.0 is "one", which has nothing inside: write'),
        ("a.needs.0=x", "steps.a.settings"),
        ("a.resources.time.hours=2", 'steps.a.resources.time is "1h", which has nothing inside'),
        ("a.kind.x=2", 'steps.a.kind is "command", which has nothing inside'),
        ("a..argv=2", "write step.setting=value"),
        ("a.argv.=2", "write step.setting=value"),
        ("a." + "x." * 5000 + "y=1", "too many dots"),
        ("a.argv=" + "[" * 5000, "nested too deeply"),
        ("a.argv=[", "not valid YAML"),
    ],
)
def test_an_override_that_leads_nowhere_is_a_sentence(
    tmp_path: Path, override: str, words: str
) -> None:
    text = (
        LISTS.replace("kind: command", "kind: command\n    needs: []")
        if "needs" in override
        else LISTS
    )
    words = words if "needs" not in override else "steps.a.needs is a list of 0: write the whole"
    with pytest.raises(SpecError) as caught:
        read(tmp_path, text, override)
    (said,) = caught.value.mistakes
    assert said.startswith(f"--set {override}") and words in said


@pytest.mark.parametrize("text", ["steps: 5", "steps: [a]", "- a", "5", "", "steps: {a: 5}"])
def test_an_override_of_a_file_without_such_a_step_is_a_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"--set a\.argv\.0=x: (no step 'a'|steps\.a is 5)"):
        read(tmp_path, text, "a.argv.0=x")


KEYS = st.sampled_from(
    ["a", "b", "argv", "settings", "resources", "time", "needs", "gate", "kind", "0", "-1", "x", ""]
)


@given(
    st.lists(KEYS, min_size=1, max_size=5),
    st.sampled_from(["x", "1", "[a, b]", "{argv: [x]}", "", "{", "null", "command", "2h"]),
)
def test_whatever_is_set_is_read_or_refused(keys: list[str], value: str) -> None:
    path = Path("/dev/shm") / "trainyard-set.yaml"
    path.write_text(GOOD.replace("first", "a").replace("second", "b"))
    override = f"{'.'.join(keys)}={value}"
    try:
        read_pipeline(path, [override])
    except SpecError as error:
        assert all(line.startswith(("--set ", str(path))) for line in error.mistakes)


ESCAPED = """\
steps:
  a:
    kind: command
    settings: {argv: [sh, -c, 'echo $${HOME} $HOME $$ "$$${X}"'], folder: "$${X}"}
  b:
    kind: command
    needs: [a]
    settings: {argv: ["$${a.seconds}", "$${a.seconds}=${a.seconds}"]}
    resources: {time: 1h}
"""


def test_a_reference_in_the_place_of_a_number_is_read_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    steps = read(
        tmp_path,
        "steps:\n  first: {kind: command, settings: {argv: [true]}}\n"
        "  second:\n    kind: train\n    needs: [first]\n    settings: {train: a, dev: b, "
        "training: {max_steps: '${first.count}'}}\n".replace("[true]", "['true']"),
    )
    assert steps.step("second").settings["training"]["max_steps"] == "${first.count}"
    assert not recwarn.list


def test_two_dollars_before_a_brace_are_text_and_not_a_reference(tmp_path: Path) -> None:
    first, second = read(tmp_path, ESCAPED).steps
    assert first.settings["argv"][2] == 'echo $${HOME} $HOME $$ "$$${X}"'  # as written: job.json
    assert second.settings["argv"] == ["$${a.seconds}", "$${a.seconds}=${a.seconds}"]


def test_an_escaped_brace_is_a_text_and_excuses_no_mistake(tmp_path: Path) -> None:
    text = COMMAND + "  b:\n    kind: train\n    settings: {train: x, dev: y, stage: '$${a.b}'}\n"
    with pytest.raises(SpecError, match=r'valid boolean, not "\$\{a\.b\}"'):
        read(tmp_path, text)
    with pytest.raises(SpecError, match=r"'characters' or 'bpe', not \"\$\{a\.b\}\""):
        read(tmp_path, text.replace("stage", "vocabulary"))
    with pytest.raises(SpecError, match=r"and \$\$\{ for the text \$\{ itself"):
        read(tmp_path, COMMAND.replace("[x]", '["${HOME"]'))
    with pytest.raises(SpecError, match=r"write a reference as"):
        read(tmp_path, GOOD.replace("${first.seconds}", "${first.seconds} ${first"))


def test_a_folder_whose_name_looks_like_a_reference_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "${a.b}"
    odd.mkdir()
    monkeypatch.chdir(odd)
    text = COMMAND.replace("[x]", "[x], folder: here")
    folder = read(tmp_path, text).steps[0].settings["folder"]
    assert fill_references(folder, lambda _: pytest.fail("a reference")) == str(odd / "here")


@given(st.text(st.sampled_from("${}a.")) | st.text())
def test_an_escaped_text_comes_back_as_it_was(text: str) -> None:
    assert (
        fill_references(escape_references(text), lambda reference: pytest.fail(reference)) == text
    )
    assert references(escape_references(text)) == [] and not has_unclosed(escape_references(text))


@given(st.text(st.sampled_from("${}ab."), max_size=20))
def test_each_reference_is_filled_once_and_what_it_brings_is_not_read_again(text: str) -> None:
    asked: list[str] = []

    def value_of(reference: str) -> str:
        asked.append(reference)
        return "${a.b}"

    fill_references(text, value_of)
    assert asked == references(text)


@pytest.mark.parametrize("name", ["a\n", "a\nb", "\na"])
def test_a_name_with_a_new_line_is_refused(tmp_path: Path, name: str) -> None:
    quoted = json.dumps(name)
    with pytest.raises(SpecError, match="lower-case letters"):
        read(tmp_path, COMMAND.replace("  a:", f"  {quoted}:"))
    with pytest.raises(SpecError, match="name: "):
        read(tmp_path, f"name: {quoted}\n{COMMAND}")
    with pytest.raises(SpecError, match="30m, 12h, 2d"):
        read(tmp_path, COMMAND + '    resources: {time: "1h\\n"}\n')


def test_a_long_file_name_makes_a_name_that_a_folder_can_have(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 240 + ".yaml")
    path.write_text(COMMAND)
    assert read_pipeline(path).name == "x" * 40


@pytest.mark.parametrize("backwards", [False, True])
def test_1200_steps_are_read_in_any_order(tmp_path: Path, backwards: bool) -> None:
    steps = {
        f"s{n}": {
            "kind": "command",
            "needs": [f"s{n - 1}"] if n else [],
            "settings": {"argv": ["echo", f"${{s{n - 1}.seconds}}" if n else "x"]},
        }
        for n in range(1200)
    }
    written = dict(reversed(steps.items())) if backwards else steps
    read_steps = read(tmp_path, json.dumps({"steps": written})).steps
    assert [step.name for step in read_steps] == list(steps)


def test_every_circle_is_named_once(tmp_path: Path) -> None:
    needs = {"a": ["b", "a"], "b": ["c"], "c": ["a", "d"], "d": ["c", "e", "e"], "e": []}
    step = {"kind": "command", "settings": {"argv": ["x"]}}
    text = json.dumps({"steps": {name: {**step, "needs": list_} for name, list_ in needs.items()}})
    with pytest.raises(SpecError) as caught:
        read(tmp_path, text)
    circles = [line[line.index("circle: ") + 8 : line.index(";")] for line in caught.value.mistakes]
    assert sorted(circles) == ["a -> a", "a -> b -> c -> a", "c -> d -> c"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "steps: " + "[" * 300 + "]" * 300,
        "steps: " + "{a: " * 60 + "}" * 60,
        "\n".join(f"{'  ' * n}a:" for n in range(600)),
        "- " * 5000,
        "a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40,
    ],
)
def test_values_nested_too_deeply_are_a_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"p\.yaml:\d+: nested too deeply: at most 50 values"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('"\\0"', "U+0000 is not allowed in a text"),
        ('"a\\ud800b"', "U+D800 is not allowed in a text"),
        ("1" * 5000, "a number of 5000 digits"),
        ("0x" + "f" * 4000, "a number of 4002 digits"),
    ],
)
def test_what_no_program_could_be_told_is_a_sentence(
    tmp_path: Path, value: str, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, COMMAND.replace("[x]", f"[{value}]"))
    assert caught.value.mistakes == [
        f"{tmp_path}/p.yaml:4: steps.a.settings.argv.0: {words}"
        + (": write it shorter" if "digits" in words else "")
    ]


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["${a.seconds}", "$${", "${", "1h", "== true", "command", "train"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "kind",
                    "settings",
                    "resources",
                    "needs",
                    "gate",
                    "argv",
                    "time",
                    "cpus",
                    "a",
                    "b",
                    "training",
                    "optim",
                    "model",
                    "seconds",
                    "environment",
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def test_lists_of_numbers_are_read_inside_a_block_that_is_looked_at_first(tmp_path: Path) -> None:
    training = {"augment": {"speeds": [0.9, 1.0]}, "optim": {"betas": [0.9, 0.95]}}
    step = {"kind": "train", "settings": {"train": "t", "dev": "d", "training": training}}
    (tmp_path / "p.yaml").write_text(json.dumps({"steps": {"a": step}}))
    got = read_pipeline(tmp_path / "p.yaml").steps[0].settings["training"]
    assert got["augment"]["speeds"] == (0.9, 1.0)
    assert got["optim"]["betas"] == (0.9, 0.95)


@given(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["command", "train", "download", "teacher"])},
        optional={"settings": VALUES, "resources": VALUES, "needs": VALUES, "gate": VALUES},
    )
)
def test_whatever_stands_in_a_step_is_read_or_refused(step: dict) -> None:
    path = Path("/dev/shm") / "trainyard-step.yaml"
    other = {"kind": "command", "settings": {"argv": ["x"]}}
    path.write_text(json.dumps({"steps": {"a": other, "b": step}}), "utf-8", "surrogatepass")
    try:
        read_pipeline(path)
    except SpecError as error:
        assert all(line.startswith(str(path)) for line in error.mistakes)


def test_a_subset_that_is_not_in_its_folder_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as a mistake: compute nodes may see another folder of that name."""
    for name in ("train.csv", "dev.csv", "clips", ".hidden"):
        (tmp_path / "few" / name).mkdir(parents=True)
    for number in range(50):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
    text = """\
steps:
  sound: {kind: download, settings: {source: table, folder: few, audio_folder: clips,
    train: [train.csv], dev: [dev.csv], test: [dev.csv]}}
  wrong: {kind: download, settings: {source: table, folder: few, audio_folder: clip,
    train: [train.csv, x.tsv], dev: [dev.tsv], test: [dev.csv]}}
  large: {kind: download, settings: {source: folder, folder: many, train: [50], dev: ["1"],
    test: ["2"]}}
  absent: {kind: download, settings: {source: folder, folder: gone, train: [a], dev: [b],
    test: [c]}}
  later: {kind: download, needs: [sound], settings: {source: folder, folder: many, train: [x],
    holdout_speakers: 1}}
"""
    (tmp_path / "p.yaml").write_text(text.replace("[50]", '["50"]'))
    read_pipeline(tmp_path / "p.yaml", folder=tmp_path)
    where, few = f"{tmp_path}/p.yaml", tmp_path / "few"
    assert capsys.readouterr().err.splitlines() == [
        f"{where}:5: steps.wrong.settings.train: {few} has no 'x.tsv' here: valid are clips, "
        "dev.csv, train.csv",
        f"{where}:5: steps.wrong.settings.dev: {few} has no 'dev.tsv' here: did you mean "
        "'dev.csv'?",
        f"{where}:4: steps.wrong.settings.audio_folder: {few} has no 'clip' here: did you mean "
        "'clips'?",
        f"{where}:6: steps.large.settings.train: {tmp_path}/many has no '50' here",
        f"{where}:8: steps.absent.settings.folder: {tmp_path}/gone does not exist here, and absent "
        "needs no step that could make it",
    ]


def test_a_table_whose_first_line_does_not_fit_is_a_mistake(tmp_path: Path) -> None:
    """Before anything waits in a queue; of a table that another step may write anew it is none."""
    for name, first in (
        ("a.csv", "path,sentence"),
        ("b.json", '{"audio_filepath": "a.wav", "text": "x", "duration": 1}'),
        ("c.tsv", "audio\ttext\toffset"),
        ("d.jsonl", '[{"audio": "a.wav"}]'),
        ("good.csv", "audio;text\na.wav;so, ja"),
        ("two.csv", 'audio,text,"a name\nin two lines"'),
        ("empty.csv", ""),
    ):
        (tmp_path / name).write_text(f"{first}\n")
    given = ("train: [a.csv, good.csv, two.csv, empty.csv]", "dev: [b.json, none.csv]")
    tables = ", ".join([*given, "test: [c.tsv, d.jsonl, " + "x" * 300 + ".csv]"])
    text = f"""\
steps:
  before: {{kind: command, settings: {{argv: [touch, a.csv]}}}}
  later: {{kind: download, needs: [before], settings: {{source: table, folder: ., {tables}}}}}
  now: {{kind: download, settings: {{source: table, folder: ., {tables}}}}}
"""
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        read_pipeline(tmp_path / "p.yaml", folder=tmp_path)
    where = f"{tmp_path}/p.yaml:4: steps.now.settings.columns: {tmp_path}"
    assert caught.value.mistakes == [
        f"{where}/a.csv: no column 'audio', 'text'; the columns are path, sentence: write columns: "
        "{audio: path, text: sentence}",
        f"{where}/b.json: no column 'audio'; the columns are audio_filepath, text, duration: write "
        "columns: {audio: audio_filepath}",
        f"{where}/c.tsv: the column 'offset' says where utterances begin, and none where they end: "
        "write columns: {end: ...} or {duration: ...} with its name",
        f"{where}/d.jsonl: a JSON array: write an object a line, as jq -c '.[]' does",
    ]


def test_what_no_step_can_make_in_time_and_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as a mistake: it may lie where only the compute nodes see it."""
    (tmp_path / "here.jsonl").touch()
    text = """\
steps:
  corpus: {kind: download, settings: {source: synthetic, root: made}}
  first: {kind: train, settings: {train: here.jsonl, dev: dev.jsonl}}
  heard:
    kind: evaluate
    settings:
      checkpoint: LONG
      audio: [a.flac, here.jsonl]
  later: {kind: train, needs: [corpus], settings: {train: made/x.jsonl, dev: "${corpus.dev}"}}
"""
    (tmp_path / "p.yaml").write_text(text.replace("LONG", "x" * 300))
    read_pipeline(tmp_path / "p.yaml", folder=tmp_path)
    where = f"{tmp_path}/p.yaml"
    absent = lambda line, setting, path, step: (
        f"{where}:{line}: steps.{step}.settings.{setting}: {tmp_path}/{path} does not exist here, "
        f"and {step} needs no step that could make it"
    )
    assert capsys.readouterr().err.splitlines() == [
        absent(3, "dev", "dev.jsonl", "first"),
        absent(7, "checkpoint", "x" * 300, "heard"),
        absent(8, "audio.0", "a.flac", "heard"),
    ]
