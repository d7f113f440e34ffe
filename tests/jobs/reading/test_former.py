"""Values of settings that have another name now: read, told of once, and no difference to a run."""

from pathlib import Path
from typing import Any

import pytest

from jobs.kinds import distill, train
from jobs.reading.former import with_new_names
from jobs.reading.pipeline_file import read_pipeline
from jobs.scheduling.mend import mending
from jobs.store import RunStore
from tests.jobs.launcher import Launcher

FORMER = """\
steps:
  pupil:
    kind: distill
    settings:
      train: .
      dev: .
      teacher: .
      preset: {preset}
      distill:
        target: {target}
        feature: {name}
        feature_weight: 1.0
        attention: {name}
        curriculum: {name}
        router: {{kind: {name}}}
"""
OLD = FORMER.format(preset="founding", target="projector_notes", name="notes")
NEW = FORMER.format(preset="original", target="original", name="original")
TOLD = """\
{path}:8: steps.pupil.settings.preset: 'founding' is called 'original' now: write preset: original
{path}:10: steps.pupil.settings.distill.target: 'projector_notes' is called 'original' now: \
write target: original
{path}:11: steps.pupil.settings.distill.feature: 'notes' is called 'original' now: \
write feature: original
{path}:13: steps.pupil.settings.distill.attention: 'notes' is called 'original' now: \
write attention: original
{path}:14: steps.pupil.settings.distill.curriculum: 'notes' is called 'original' now: \
write curriculum: original
{path}:15: steps.pupil.settings.distill.router.kind: 'notes' is called 'original' now: \
write kind: original
"""


def settings(text: str, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return read_pipeline(path).step("pupil").settings


def test_a_former_name_is_read_as_the_new_one_and_told_of_at_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = settings(OLD, tmp_path)
    assert capsys.readouterr().err == TOLD.format(path=tmp_path / "p.yaml")
    assert old == settings(NEW, tmp_path)
    assert capsys.readouterr().err == ""


def test_check_tells_of_a_former_name_and_finds_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(OLD)
    said = Launcher(tmp_path)("check", str(file), "--set", "pupil.preset=founding")
    assert said.returncode == 0 and "no mistakes" in said.stdout
    first, *_ = said.stderr.splitlines()
    assert first.startswith("--set pupil.preset=founding: ") and "called 'original'" in first


def test_a_preset_may_be_asked_for_by_its_former_name(tmp_path: Path) -> None:
    said = Launcher(tmp_path)("kinds", "train", "--preset", "founding")
    assert said.returncode == 0 and "100000 (preset original)" in said.stdout


def test_what_a_run_of_before_has_on_disk_is_read() -> None:
    """The worker reads job.json, which has the names of the day it was written."""
    given = {"train": "x", "dev": "y", "teacher": "z", "distill": {"curriculum": "notes"}}
    assert distill.Settings.model_validate(given).distill.curriculum == "original"
    assert with_new_names(distill.Settings, given)["distill"] == {"curriculum": "original"}
    given = {"train": "x", "dev": "y", "preset": "founding"}
    assert train.Settings.model_validate(given).training.max_steps == 100_000


def test_a_new_name_alone_is_no_difference_to_a_run(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(NEW)
    pipeline = read_pipeline(tmp_path / "p.yaml")
    step = pipeline.step("pupil").model_dump(mode="json")
    step["settings"]["distill"]["curriculum"] = "notes"
    step["settings"]["preset"] = "founding"
    run = RunStore(tmp_path / "runs").create("r")
    facts = {"pipeline": "p", "user": "u", "cwd": "/", "created": 1.0, "steps": [step]}
    run.write_info({**facts, "cluster": {"name": "local", "backend": "local"}})
    assert mending(run, pipeline, []).lines == []
