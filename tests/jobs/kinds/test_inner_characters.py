"""Steps whose inner blocks write characters: alone, taught, and the gate before them."""

from pathlib import Path
from typing import Any

import pytest

from lact_asr.training import checkpoint
from tests.jobs.kinds.test_kinds import SMALL, run, told
from tests.lact_asr.tiny_runs import manifests

CHARACTERS = {"intermediate": [1], "intermediate_symbols": "characters"}
SHORT = {"max_steps": 3, "batch_seconds": 14, "valid_every": 3, "checkpoint_every": 3}
BPE = {"vocabulary": "bpe", "vocabulary_size": 35}


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Path]:
    return manifests(tmp_path, 6, 2)


def test_a_recognizer_and_its_student_learn_characters_and_write_pieces(
    tmp_path: Path, corpus: dict[str, Path]
) -> None:
    given: dict[str, Any] = {
        **corpus, "preset": "plain", "model": {**SMALL, "layers": 2}, "training": SHORT,
        "ctc": CHARACTERS,
    }  # fmt: skip
    recognizer = run("train", told(tmp_path / "recognizer")[0], **given, **BPE)
    job, metrics, _ = told(tmp_path / "student")
    student = run("distill", job, **given, teacher=recognizer.checkpoint)
    for folder in (recognizer.checkpoint, student.checkpoint):
        assert checkpoint.read_config(folder)["vocabulary"]["kind"] == "bpe"
        assert not [n for n in checkpoint.load(folder / checkpoint.WEIGHTS) if "spelling" in n]
    assert {"ctc", "intermediate", "kd"} <= metrics[0].keys()
    last = checkpoint.latest(tmp_path / "student" / "checkpoints")
    assert last
    saved = checkpoint.load(last / "trainer.pt")
    spelling = saved["beside"]["spelling.head.weight"]
    assert spelling.shape == (29, 32), "characters by the width of the model"
    rates = {group["peak"] for group in saved["optimizer"]["param_groups"]}
    assert len(rates) == 1, "the student's, not the faster one of projectors"


def test_the_gate_of_such_a_step_passes(tmp_path: Path, corpus: dict[str, Path]) -> None:
    model = {**SMALL, "layers": 2}
    gate = {"manifest": corpus["train"], "model": model, "ctc": CHARACTERS, "utterances": 3}
    job, metrics, _ = told(tmp_path / "gate")
    result = run("overfit", job, **gate, **BPE, learning_rate=1e-2, warmup_steps=5)
    assert result.verdict.startswith("PASSED")
    assert metrics
