"""What `check` says of the recipe in force: each setting's source, what a preset became, sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.reading.effective import facts, overridden, values
from jobs.reading.pipeline_file import overlaid, read_pipeline
from lact_asr.config.memory import activation_bytes
from lact_asr.config.model import SIZES
from lact_asr.data.manifest import write_manifest
from lact_asr.model.recognizer import Recognizer
from tests.jobs.launcher import Launcher
from tests.lact_asr.tiny_runs import tones

FILE = """
steps:
  train:
    kind: train
    settings:
      train: {train}
      dev: {train}
      size: tiny
      preset: original
      model: {{dropout: 0.2}}
      training: {{epochs: 4, batch_utterances: 2, optim: {{warmup_steps: 5}}}}
    resources: {{time: 1h, nodes: 2}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "m" / "tones.jsonl", tones(tmp_path, 12))
    path = tmp_path / "p.yaml"
    path.write_text(FILE.format(train=tmp_path / "m" / "tones.jsonl"))
    return path


def test_each_setting_in_force_has_its_source(file: Path) -> None:
    override = ["train.training.seed=7"]
    (step,) = read_pipeline(file, override).steps
    found = {
        name: (value, source) for name, value, source in values(step, overlaid(file, override))
    }
    assert found["training.epochs"] == (4.0, "p.yaml:11")
    assert found["training.batch_utterances"] == (2, "p.yaml:11")
    assert found["training.accumulate"] == (2, "preset original")
    assert found["training.optim.decay"] == ("constant", "preset original")
    assert found["training.optim.clip_norm"] == (1.0, "default")
    assert found["training.seed"] == (7, "--set train.training.seed=7")
    assert found["model.dropout"] == (0.2, "p.yaml:10")
    assert found["model.hidden"] == (144, "size tiny")
    assert not {"training.max_steps", "training.batch_seconds"} & found.keys()


def test_check_says_which_of_a_presets_values_the_file_replaces(file: Path, tmp_path: Path) -> None:
    launch = Launcher(tmp_path)
    done = launch("check", str(file))
    assert done.returncode == 0
    assert "p.yaml:5: train changes preset original: " in done.stderr
    changed = done.stderr.partition("original: ")[2]
    assert "training.batch_utterances 12 -> 2" in changed
    assert "training.max_steps 100000 -> null" in changed
    assert "training.optim.warmup_steps 2000 -> 5" in changed
    assert "learning_rate" not in changed
    assert "epochs" not in changed


def test_a_preset_that_stands_is_not_spoken_of(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    settings = "{train: t, dev: t, training: {seed: 3}}"
    path.write_text(f"steps: {{a: {{kind: train, settings: {settings}}}}}")
    assert overridden(read_pipeline(path), overlaid(path, ())) == []


def test_size_memory_and_length_are_told_as_far_as_they_can_be_known(file: Path) -> None:
    (step,) = read_pipeline(file).steps
    size, memory, length = facts(step)
    parameters = sum(p.numel() for p in Recognizer(SIZES["tiny"], 29).parameters())
    assert size == f"model: {parameters / 1e6:.3g} M parameters with 29 symbols"
    assert "reckoned, not measured" in memory
    assert length.startswith("12 utterances, ")
    # 12 utterances, 2 in a batch, 2 processes, 2 batches a step
    assert "1.5 steps an epoch on 2 processes; 4 epochs, 6 steps" in length

    absent = step.model_copy(update={"settings": {**step.settings, "train": "${corpus.train}"}})
    assert list(facts(absent))[-1] == "steps an epoch, hours: known when ${corpus.train} is there"


def test_effective_prints_the_recipe_of_every_step_that_trains(tmp_path: Path) -> None:
    done = Launcher(tmp_path)("check", "demo", "--effective")
    assert done.returncode == 0, done.stderr
    for step in ("teacher (teacher)", "train (train)", "distill (distill)"):
        assert f"\n{step}\n  " in f"\n{done.stdout}"
    assert "overfit (overfit)" not in done.stdout


@pytest.mark.parametrize("seconds", [4.0, 9.0])
def test_the_memory_reckoned_is_what_autograd_keeps(seconds: float) -> None:
    config = SIZES["tiny"]
    model, kept = Recognizer(config, 29).train(), dict[int, int]()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    waves = torch.from_numpy(np.random.default_rng(0).normal(size=(1, int(seconds * 16_000))))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(waves.float(), torch.tensor([waves.shape[1]]))
    reckoned = activation_bytes(config, seconds, half=False)
    assert 0.7 < reckoned / sum(kept.values()) < 1.4
