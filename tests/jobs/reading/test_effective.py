"""What `check` says of the recipe in force: each setting's source, what a preset became, sizes."""

import re
from pathlib import Path

import pytest
import torch

from jobs.reading.effective import facts, overridden, values
from jobs.reading.pipeline_file import overlaid, read_pipeline
from lact_asr.config.memory import Heard, activation_bytes, weight_bytes
from lact_asr.config.model import SIZES, ModelConfig
from lact_asr.config.training import AverageConfig, CTCConfig, OptimConfig, TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.data.manifest import write_manifest
from lact_asr.model import window_attention
from lact_asr.model.recognizer import Recognizer
from lact_asr.training import optim
from lact_asr.training.objective import CTCObjective
from tests.jobs.launcher import Launcher
from tests.lact_asr.tiny_runs import tones

SHAPE = ModelConfig(
    hidden=96, layers=3, attention_heads=4, lact_heads=2, mlp=288, conv_layers=2, window=32
)
CHUNKED = {"schedule": "update_then_apply", "chunk": 40}
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


def test_the_memory_told_is_less_where_blocks_are_computed_again(file: Path) -> None:
    (step,) = read_pipeline(file).steps
    told = []
    for again in (False, True):
        training = {**step.settings["training"], "activation_checkpointing": again}
        given = step.model_copy(update={"settings": {**step.settings, "training": training}})
        memory = [*facts(given)][1]
        found = re.search(r"a micro-batch of \S+ s (\S+);", memory)
        assert found, memory
        told.append(float(found[1]))
    assert told[1] < 0.5 * told[0]


def test_effective_prints_the_recipe_of_every_step_that_trains(tmp_path: Path) -> None:
    done = Launcher(tmp_path)("check", "demo", "--effective")
    assert done.returncode == 0, done.stderr
    for step in ("teacher (teacher)", "train (train)", "distill (distill)"):
        assert f"\n{step}\n  " in f"\n{done.stdout}"
    assert "overfit (overfit)" not in done.stdout


def clips(seconds: float, count: int, symbols: int) -> Batch:
    """Noise with as many labels as read speech has."""
    samples, labels = int(seconds * 16_000), int(seconds * 14)
    names, each = [str(number) for number in range(count)], torch.full((count,), labels)
    waves, lengths = torch.randn(count, samples) * 0.1, torch.full((count,), samples)
    return Batch(names, names, waves, lengths, torch.randint(1, symbols, (count * labels,)), each)


def kept_for_backward(objective: CTCObjective, batch: Batch, half: bool) -> int:
    """Bytes that autograd keeps of a loss, beside the model's own weights in any type."""
    model = objective.model
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    shapes = {each.shape for each in model.parameters() if each.ndim > 1}
    shapes |= {each.mT.shape for each in model.parameters() if each.ndim > 1}
    kept, alive = {}, []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        cast = tensor.dtype == torch.bfloat16 and tensor.shape in shapes
        if storage.data_ptr() not in own and not cast:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # or its place would be taken by another, and that one not counted
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        objective(batch, 0.0)
    return sum(kept.values())


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("changes", "ctc"),
    [
        ({}, {}),
        ({"conv_kernel": 15}, {}),
        ({"conv_kernel": 15, "dropout": 0.0}, {"intermediate": [1, 2]}),
        ({}, {"consistency": 0.2}),
        ({"lact_heads": 1, "fast_width": 2.0, "qk_norm": False}, {}),
        ({"schedule": "off"}, {}),
        ({**CHUNKED, "momentum": True, "orthogonalize": "fixed"}, {}),
        ({"subsampling": 2, "conv_layers": 3}, {"consistency": 0.2, "intermediate": [2]}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("seconds", "count"), [(1.5, 3), (6.0, 1)])
def test_the_memory_reckoned_is_what_autograd_keeps(
    changes: dict,
    ctc: dict,
    seconds: float,
    count: int,
    half: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reckoned for a GPU, whose attention takes what autocast gives it."""
    monkeypatch.setattr(window_attention, "as_kernels_want", lambda x: x)
    config, taught = SHAPE.model_copy(update=changes), CTCConfig.model_validate(ctc)
    objective = CTCObjective(Recognizer(config, 100).train(), taught)
    kept = kept_for_backward(objective, clips(seconds, count, 100), half)
    heard = Heard(taught.views * count * seconds, seconds, 100)
    assert activation_bytes(config, taught, heard, half) == pytest.approx(kept, rel=0.1)


def test_blocks_that_are_computed_again_keep_their_inputs_and_one_of_them_the_rest() -> None:
    heard = Heard(960.0, 16.0, 500)
    one, two, three = (
        [
            activation_bytes(
                SHAPE.model_copy(update={"layers": n}), CTCConfig(), heard, True, again
            )
            for again in (False, True)
        ]
        for n in (1, 2, 3)
    )
    inputs = 960 * 25 * SHAPE.hidden * 2  # of 25 tokens a second, in bfloat16
    assert one[1] == pytest.approx(one[0] + inputs)
    assert two[1] - one[1] == three[1] - two[1] == pytest.approx(inputs)


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_the_memory_reckoned_of_weights_is_what_a_step_leaves_beside_them(method: str) -> None:
    training = TrainingConfig(optim=OptimConfig(method=method))
    objective = CTCObjective(Recognizer(SHAPE, 100))
    optimizer = optim.build(objective, training.optim)
    for parameter in objective.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    kept = sum(parameter.nbytes for parameter in objective.model.parameters())
    beside = kept  # the gradients; Muon drops its own in the step
    optimizer.step()
    beside += sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim
    )
    reckoned = sum(
        parameter.numel() * weight_bytes(training, group["muon"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    scalars = sum(each.nbytes for each in objective.model.parameters() if not each.ndim)
    assert reckoned == pytest.approx(kept + beside, abs=2 * scalars)


def test_a_running_mean_and_bfloat16_take_their_share_of_memory() -> None:
    plain = TrainingConfig()
    averaged = TrainingConfig(average=AverageConfig(decay=0.9), precision="auto")
    assert weight_bytes(averaged, True) - weight_bytes(plain, True) == 4 + 2


def told(file: Path, *changes: str) -> tuple[float, float]:
    """GiB of weights, gradients and optimizer that `check` tells, and seconds of a micro-batch."""
    (step,) = read_pipeline(file, [f"train.{change}" for change in changes]).steps
    memory = list(facts(step))[1]
    return tuple(float(each) for each in re.findall(r"optimizer (\S+), .* of (\S+) s", memory)[0])


def test_check_reckons_with_the_optimizer_and_with_all_that_is_heard(file: Path) -> None:
    weights, seconds = told(file)
    assert told(file, "training.optim.method=muon")[0] < weights
    assert seconds == 2 * 20.0
    views = ["ctc.consistency=0.2", "training.augment.time_masks=2"]
    assert told(file, *views)[1] == 2 * 20.0, "one utterance, heard twice"
    assert told(file, *views, "training.batch_utterances=1")[1] == 2 * 20.0
    assert told(file, "training.batch_utterances=null", "training.batch_seconds=8")[1] == 20.0
    slower = "batch_utterances: 2, augment: {speeds: [0.8, 1.0]}"
    file.write_text(file.read_text().replace("batch_utterances: 2", slower))
    assert told(file)[1] == 2 * 25.0


@pytest.mark.parametrize(("sharded", "shares"), [("true", 4), ("node", 2)])
def test_a_process_has_its_share_of_a_split_model_and_what_is_gathered(
    file: Path, sharded: str, shares: int
) -> None:
    large = ("size=large", "resources.gpus=2")  # on two nodes
    with torch.device("meta"):  # all that is outside the blocks, and two of them
        gathered = Recognizer(SIZES["large"].model_copy(update={"layers": 2}), 29)
    weights_and_gradients = 2 * sum(each.nbytes for each in gathered.parameters())
    reckoned = told(file, *large)[0] / shares + weights_and_gradients / 2**30
    assert told(file, *large, f"training.sharded={sharded}")[0] == pytest.approx(reckoned, rel=0.05)


def test_one_process_has_all_of_a_model_that_could_be_split(file: Path) -> None:
    alone = told(file, "resources.nodes=1")
    assert told(file, "resources.nodes=1", "training.sharded=true") == alone
