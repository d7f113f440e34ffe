"""Recognizers of other scripts: trained on speech, gated, and compared in their own normal form."""

import json
from pathlib import Path

import pytest

from lact_asr.training import checkpoint
from tests.jobs.kinds.test_kinds import SMALL, run, told
from tests.lact_asr.spoken import SAID, speak

SHORT = {"max_steps": 3, "valid_every": 3, "batch_utterances": 3, "samples": 1}


@pytest.mark.parametrize("language", SAID)
def test_a_recognizer_of_another_script_is_trained_and_evaluated(
    tmp_path: Path, language: str
) -> None:
    manifest, form = speak(tmp_path, language), SAID[language].form
    given = {"text": form.model_dump(), "preset": "plain", "model": SMALL, "training": SHORT}
    trained = run("train", told(tmp_path / "t")[0], train=manifest, dev=manifest, **given)
    assert trained.steps == 3
    stored = checkpoint.read_config(trained.checkpoint)["vocabulary"]
    assert stored["form"] == form.model_dump()
    again = told(tmp_path / "e")[0]
    found = run("evaluate", again, checkpoint=trained.checkpoint, manifest=manifest)
    assert found.utterances == len(SAID[language].texts) and found.cer is not None
    lines = [json.loads(line) for line in found.hypotheses.read_text().splitlines()]
    spaces = any(" " in line["reference"] for line in lines)
    assert spaces is (form.spaces == "keep")
    assert not any(mark in line["reference"] for line in lines for mark in "!.,؟。、")


def test_ten_utterances_of_another_script_are_learned_by_heart(tmp_path: Path) -> None:
    manifest = speak(tmp_path, "japanese")
    result = run(
        "overfit",
        told(tmp_path)[0],
        manifest=manifest,
        utterances=5,
        model={**SMALL, "hidden": 64, "mlp": 128},
        text=SAID["japanese"].form.model_dump(),
        learning_rate=1e-2,
        warmup_steps=5,
        blind_control=False,
    )
    assert result.verdict.startswith("PASSED") and result.cer == 0
