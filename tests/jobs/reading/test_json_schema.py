"""What `kinds` and `schema` say: types in words, and the values that are in force."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from jobs import kinds
from jobs.errors import UserError
from jobs.reading.json_schema import describe, json_schema
from jobs.reading.pipeline_file import read_pipeline
from tests.jobs.launcher import Launcher


def shown(name: str, preset: str = "") -> dict[str, dict[str, Any]]:
    """The settings of a kind, by name."""
    return {row["name"]: row for row in describe(name, preset)["settings"]}


@pytest.mark.parametrize("name", kinds.NAMES)
def test_types_are_words_and_no_code(name: str) -> None:
    for part in ("settings", "result"):
        for row in describe(name)[part]:
            assert re.fullmatch(r"[a-z][\w .,()-]*", row["type"]), row
            assert "anything" not in row["type"], row
            assert not re.search(r"lambda|Annotated|<|metadata|\bstr\b|NoneType", str(row)), row


def test_a_type_says_what_a_file_may_say() -> None:
    assert shown("command")["argv"]["type"] == "list of text or number"
    assert shown("command")["environment"]["type"] == "mapping to text or number"
    assert shown("command")["folder"]["type"] == "path or null"
    train = shown("train")
    assert train["training.precision"]["type"] == "one of auto, fp32, bf16"
    assert train["training.optim.betas"]["type"] == "list (number, number)"
    assert train["training.augment.speeds"]["type"] == "list of number"
    assert train["stage"]["type"] == "true or false"
    assert train["stage"]["default"] == "false"


PRESETS = [
    (name, preset)
    for name in kinds.NAMES
    if "preset" in kinds.load(name).Settings.model_fields
    for preset in kinds.load(name).Settings.model_fields["preset"].annotation.__args__
]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_what_is_shown_is_what_a_step_gets(tmp_path: Path, name: str, preset: str) -> None:
    settings = {"train": "t", "dev": "d", "preset": preset}
    if name == "distill":
        settings["teacher"] = "t"
    (tmp_path / "p.yaml").write_text(
        json.dumps({"steps": {"a": {"kind": name, "settings": settings}}})
    )
    got = read_pipeline(tmp_path / "p.yaml").steps[0].settings["training"]
    rows = shown(name, preset)
    for place, row in rows.items():
        if place.startswith("training."):
            value: Any = got
            for part in place.split(".")[1:]:
                value = value[part]
            written = row["default"].removesuffix(f" (preset {preset})")
            assert json.dumps(value).strip('"') == (written or "null"), place


def test_the_default_preset_is_in_force_and_another_can_be_asked_for(tmp_path: Path) -> None:
    launch = Launcher(tmp_path)
    assert shown("train")["training.precision"]["default"] == "auto (preset modern)"
    assert shown("train")["training.optim.method"]["default"] == "muon (preset modern)"
    assert shown("train", "plain")["training.precision"]["default"] == "fp32"
    assert shown("teacher")["training.stopping.patience"]["default"] == "20 (preset recommended)"
    assert '"norm": "batch"' in shown("teacher", "standard")["model"]["default"]
    assert "100000 (preset original)" in launch("kinds", "train", "--preset", "original").stdout
    wrong = launch("kinds", "train", "--preset", "modren")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "no preset 'modren' of train: did you mean 'modern'?\n",
    )
    with pytest.raises(UserError, match="command has no presets: leave it out"):
        describe("command", "modern")


def test_an_editor_takes_a_reference_for_a_number_and_not_its_escape() -> None:
    step = {"kind": "command", "settings": {"argv": ["$${HOME}", "${a.b}"], "folder": "$${x}"}}
    jsonschema.validate({"steps": {"a": step}}, json_schema())
    for value, fine in (("${a.steps}", True), ("$${a.steps}", False), ("x", False)):
        settings = {"checkpoint": "c", "manifest": "m", "num_samples": value}
        step = {"kind": "evaluate", "settings": settings}
        errors = list(
            jsonschema.Draft202012Validator(json_schema()).iter_errors({"steps": {"a": step}})
        )
        assert (not errors) is fine, value
