"""Unknown keys: the place of what was meant."""

from pathlib import Path

import pytest

from jobs import kinds
from jobs.errors import SpecError
from jobs.pipeline import Resources
from jobs.reading.keys import OTHERS, places
from jobs.reading.pipeline_file import read_pipeline

TRAIN = "steps:\n  a:\n    kind: {kind}\n    settings: {{train: x, dev: y{settings}}}\n{more}"


def said(tmp_path: Path, settings: str = "", more: str = "", kind: str = "train") -> str:
    """What is said of the one unknown key of a step."""
    path = tmp_path / "p.yaml"
    path.write_text(TRAIN.format(kind=kind, settings=settings, more=more))
    with pytest.raises(SpecError) as caught:
        read_pipeline(path)
    (mistake,) = caught.value.mistakes
    return mistake[mistake.index("unknown key") :]


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("learning_rate", "training.optim.learning_rate"),
        ("lr", "training.optim.learning_rate"),
        ("weight_decay", "training.optim.weight_decay"),
        ("warmup_steps", "training.optim.warmup_steps"),
        ("max_grad_norm", "training.optim.clip_norm"),
        ("gradient_accumulation_steps", "training.accumulate"),
        ("batch_size", "training.batch_utterances"),
        ("logging_steps", "training.log_every"),
        ("eval_steps", "training.valid_every"),
        ("save_steps", "training.checkpoint_every"),
        ("num_epochs", "training.epochs"),
        ("epochs", "training.epochs"),
        ("max_steps", "training.max_steps"),
        ("fp16", "training.precision"),
        ("seed", "training.seed"),
        ("optim", "training.optim"),
        ("audio_encoder_dropout", "model.dropout"),
        ("hidden", "model.hidden"),
    ],
)
def test_a_setting_in_the_wrong_block_or_words_gets_its_place(
    tmp_path: Path, key: str, place: str
) -> None:
    assert said(tmp_path, f", {key}: 1").startswith(f"unknown key {key!r}: write {place}: ...")
    if not place.startswith(f"training.{key}"):
        inside = said(tmp_path, f", training: {{{key}: 1}}")
        assert inside.startswith(f"unknown key {key!r}: write {place}: ...")


def test_a_setting_one_block_too_far_in_is_told_where_it_belongs(tmp_path: Path) -> None:
    words = said(tmp_path, ", training: {size: tiny}")
    assert words.startswith("unknown key 'size': beside training, not in it, write size: ... (")


def test_what_a_setting_means_is_said_with_its_place(tmp_path: Path) -> None:
    assert "In place of batch_seconds: utterances of a micro-batch on one process" in said(
        tmp_path, ", batch_size: 8"
    )


def test_a_name_that_two_settings_have_is_answered_with_both(tmp_path: Path) -> None:
    text = said(tmp_path, ", decay: 1")
    assert "write training.average.decay: ..." in text
    assert " or write training.optim.decay: ..." in text


def test_the_place_is_that_of_the_kind(tmp_path: Path) -> None:
    assert "write training.batch_tokens: ..." in said(
        tmp_path, ", batch_size: 8", kind="language_model"
    )
    assert "write distill.temperature: ..." in said(
        tmp_path, ", teacher: t, temperature: 2", kind="distill"
    )


def test_keys_of_another_block_of_the_step_get_their_place(tmp_path: Path) -> None:
    assert "'gpus': write resources.gpus: ... (GPUs per node" in said(tmp_path, ", gpus: 2")
    assert "'mem': write resources.memory_gb: ..." in said(tmp_path, more="    mem: 3\n")
    assert "'time': write resources.time: ..." in said(tmp_path, more="    time: 3h\n")
    assert "'size': write settings.size: ..." in said(tmp_path, more="    size: base\n")
    assert "write settings.training.max_steps: ..." in said(
        tmp_path, more="    resources: {max_steps: 5}\n"
    )
    assert "'cpus_per_task': write cpus: ..." in said(
        tmp_path, more="    resources: {cpus_per_task: 5}\n"
    )


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (", trian: 1", "did you mean 'train'?"),
        (", lerning_rate: 1", "did you mean 'training.optim.learning_rate'?"),
        (", training: {max_step: 5}", "did you mean 'max_steps'?"),
        (", qqqqq: 1", "valid are family, size"),
    ],
)
def test_a_typo_is_still_answered_with_the_nearest_name(
    tmp_path: Path, settings: str, hint: str
) -> None:
    assert hint in said(tmp_path, settings)


EVERY = {name for kind in kinds.NAMES for name in places(kinds.load(kind).Settings)}


@pytest.mark.parametrize("end", OTHERS)
def test_every_place_of_the_table_is_one_of_ours(end: str) -> None:
    assert any(f".{name}".endswith(f".{end}") for name in {*EVERY, *places(Resources)})
    assert OTHERS[end].split()
