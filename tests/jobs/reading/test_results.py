"""What `check` says of gates that every result would pass, or none."""

import re
from pathlib import Path

import pytest

from jobs.errors import SpecError
from jobs.reading.pipeline_file import read_pipeline

FILE = """\
steps:
  corpus:
    kind: download
    settings: {source: mini_librispeech, train: [train-clean-5], dev: [dev-clean-2],
      test: [dev-clean-2]}
  overfit: {kind: overfit, needs: [corpus], settings: {manifest: "${corpus.train}"}}
  train:
    kind: train
    needs: [corpus, overfit]
    settings: {train: "${corpus.train}", dev: "${corpus.dev}"}
  evaluate:
    kind: evaluate
    needs: [corpus, train]
    settings: {checkpoint: "${train.checkpoint}", manifest: "${corpus.test}"}
  diagnose:
    kind: diagnose
    needs: [corpus, train]
    settings: {checkpoint: "${train.checkpoint}", manifest: "${corpus.test}"}
  own: {kind: command, settings: {argv: [echo]}}
"""

MISTAKES = {
    ("train", "wer", "<= 15"): "wer is a fraction, and 15 is 1500%: write 0.15 for 15 %",
    ("evaluate", "cer", "< 1.9"): "cer is a fraction, and 1.9 is 190%: write 0.019 for 1.9 %",
    ("overfit", "blind_wer", ">= 50"): "blind_wer is a fraction",
    ("train", "wer", "< 0"): "no result is < 0: wer is 0 or more",
    ("train", "loss", "> -1"): "every result is > -1: loss is 0 or more",
    ("train", "steps", "== 0.5"): "no result is == 0.5: steps is a whole number, 0 or more",
    ("corpus", "utterances", "!= 1.5"): "every result is != 1.5: utterances is a whole number",
    ("corpus", "hours", "> inf"): "no result is > inf",
    ("overfit", "verdict", "== PASED"): "no result is == PASED: verdict is one of PASSED, ",
    ("overfit", "verdict", "!= FAILED"): "every result is != FAILED: verdict is one of ",
    ("evaluate", "wer", "== PASSED"): "wer is a number, and '== PASSED' is about a text",
}
GATES = [
    ("train", "wer", "<= 1"), ("train", "wer", "== 0"), ("train", "wer", "> 0"),
    ("train", "loss", "< inf"), ("train", "loss", "<= 3.5"), ("train", "steps", "> 99.5"),
    ("evaluate", "wer", ">= 0"),  # of texts that are known: null misses it
    ("evaluate", "cer", "<= ${train.cer}"), ("evaluate", "words", "!= 0"),
    ("overfit", "verdict", "!= MARGINAL"), ("diagnose", "healthy", "== true"),
    ("diagnose", "first", "== blocks.0"), ("own", "seconds", "< 0"), ("own", "rate", "<= 15"),
]  # fmt: skip


def gated(folder: Path, step: str, key: str, condition: str) -> Path:
    """The file with one gate."""
    place = re.compile(rf"^  {step}:(?: \{{|\n    )", re.M)
    gate = f'gate: {{{key}: "{condition}"}}'
    text = place.sub(
        lambda found: found[0] + gate + (", " if found[0].endswith("{") else "\n    "), FILE
    )
    (folder / "p.yaml").write_text(text)
    return folder / "p.yaml"


@pytest.mark.parametrize(("gate", "said"), MISTAKES.items(), ids=map(" ".join, MISTAKES))
def test_a_gate_that_every_result_or_none_would_pass_is_a_mistake(
    tmp_path: Path, gate: tuple[str, str, str], said: str
) -> None:
    with pytest.raises(SpecError) as caught:
        read_pipeline(gated(tmp_path, *gate), folder=tmp_path)
    (mistake,) = caught.value.mistakes
    assert f"steps.{gate[0]}.gate.{gate[1]}: {said}" in mistake


@pytest.mark.parametrize("gate", GATES, ids=map(" ".join, GATES))
def test_a_gate_that_results_may_pass_or_miss_is_none(
    tmp_path: Path, gate: tuple[str, str, str]
) -> None:
    step, key, condition = gate
    read = read_pipeline(gated(tmp_path, *gate), folder=tmp_path)
    assert read.step(step).gate == {key: condition}
