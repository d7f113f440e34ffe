"""Planted faults in real models, each named where it is; sound models pass."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import write_manifest
from lact_asr.diagnosis.diagnose import WAVES, diagnose, table
from lact_asr.model.window_attention import attend
from lact_asr.utils.files import read_json
from tests.distill.tiny_models import tiny_baseline, tiny_teacher
from tests.jobs.launcher import Launcher
from tests.lact_asr.tiny_runs import VOCABULARY, save_untrained, tiny, tones


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    utterances = tones(tmp_path_factory.mktemp("tones"), 3)
    return Reader(whole_corpus(utterances, VOCABULARY))[[0, 1, 2]]


@pytest.mark.parametrize("model", [lambda: tiny(layers=2), tiny_teacher, tiny_baseline])
def test_a_sound_model_is_healthy_and_every_working_module_has_its_ranges(
    model: Callable[[], nn.Module], batch: Batch
) -> None:
    model = model()
    diagnosis = diagnose(model, batch)
    assert diagnosis.healthy, diagnosis.first
    assert 1 < diagnosis.loss < 20
    names = {name for name, module in model.named_modules() if list(module.children()) == []}
    seen = {row.module: row for row in diagnosis.rows}
    lists = {n for n, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))}
    assert names - lists <= set(seen)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)) and name in seen:
            row = seen[name].numbers()
            for part in ("activations", "gradients", "weights", "weight_gradients"):
                assert row[part]["min"] <= row[part]["max"]
                assert 0 <= row[part]["rms"] < 100
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_ranges_are_those_of_the_values(batch: Batch) -> None:
    model = tiny()
    kept: list[Tensor] = []
    handle = model.head.register_forward_hook(lambda *call: kept.append(call[2].detach()))
    rows = {row.module: row.numbers() for row in diagnose(model, batch).rows}
    handle.remove()
    range_ = rows["head"]["activations"]
    assert range_["min"] == pytest.approx(float(kept[0].min()))
    assert range_["max"] == pytest.approx(float(kept[0].max()))
    assert range_["rms"] == pytest.approx(float(kept[0].square().mean().sqrt()), rel=1e-5)
    assert (range_["values"], range_["not_finite"]) == (kept[0].numel(), 0)
    assert rows["head"]["weights"]["values"] == sum(p.numel() for p in model.head.parameters())


def test_a_nan_weight_is_named_and_not_what_it_spoils(batch: Batch) -> None:
    model = tiny(layers=3)
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[3, 5] = math.nan
    first = diagnose(model, batch).first
    assert (first.module, first.where) == ("blocks.1.mlp.down", "forward")
    assert "its weight not finite" in first.why


def test_a_broken_fast_weight_belongs_to_its_mix(batch: Batch) -> None:
    model = tiny(layers=2)
    with torch.no_grad():
        model.blocks[1].mix.w1[0, 0, 0] = math.inf
    first = diagnose(model, batch).first
    assert (first.module, first.where) == ("blocks.1.mix", "forward")


def test_an_exploding_gain_is_named_although_everything_is_finite(batch: Batch) -> None:
    model = tiny(layers=3)
    with torch.no_grad():
        model.blocks[1].mlp_norm.weight.mul_(1e6)
    diagnosis = diagnose(model, batch)
    assert math.isfinite(diagnosis.loss)
    assert (diagnosis.first.module, diagnosis.first.where) == ("blocks.1.mlp_norm", "forward")
    assert diagnose(model, batch, limit=1e12).healthy


def test_a_row_masked_with_minus_infinity_belongs_to_its_attention(batch: Batch) -> None:
    model = tiny_teacher()
    hide = lambda module, arguments: (arguments[0], torch.zeros_like(arguments[1]))
    model.fusion.attention.register_forward_pre_hook(hide)
    first = diagnose(model, batch).first
    assert (first.module, first.where) == ("fusion.attention", "forward")


def test_a_mask_of_minus_infinity_among_the_scores_belongs_to_the_mix(batch: Batch) -> None:
    model = tiny(layers=2)
    mix = model.blocks[1].mix

    def blocked(q: Tensor, k: Tensor, v: Tensor, layout: object) -> Tensor:
        q, k, v = (x.unflatten(-1, (mix.config.attention_heads, -1)) for x in (q, k, v))
        scores = torch.einsum("bqhw,bkhw->bhqk", q, k)
        scores = scores + torch.full_like(scores, -math.inf).triu(0)  # the first row has no key
        return torch.einsum("bhqk,bkhw->bqhw", scores.softmax(-1), v).flatten(2) + 0 * attend(
            q, k, v, layout
        )

    mix._attention = blocked
    first = diagnose(model, batch).first
    assert (first.module, first.where) == ("blocks.1.mix", "forward")


class Root(nn.Module):
    """Sound forward, infinite backward: the slope of a root at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x).sqrt()


def test_a_gradient_that_breaks_is_found_going_backward(batch: Batch) -> None:
    model = tiny(layers=3)
    model.blocks[1].mlp_norm = nn.Sequential(model.blocks[1].mlp_norm, Root())
    first = diagnose(model, batch).first
    assert (first.module, first.where) == ("blocks.1.mlp_norm.1", "backward")


class Steep(torch.autograd.Function):
    """The identity with a slope of 1e9."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 1e9


def test_a_gradient_that_explodes_between_modules_belongs_to_what_holds_them(batch: Batch) -> None:
    model = tiny(layers=2)
    mlp = model.blocks[0].mlp

    def forward(x: Tensor) -> Tensor:
        gate, up = Steep.apply(mlp.gate_up(x)).chunk(2, -1)
        return mlp.down(torch.nn.functional.silu(gate) * up)

    mlp.forward = forward
    first = diagnose(model, batch).first
    assert (first.module, first.where) == ("blocks.0.mlp", "backward")


def test_broken_audio_is_named_before_any_module(batch: Batch) -> None:
    model = tiny()
    broken = Batch(**{**vars(batch), "waves": batch.waves.clone()})
    broken.waves[1, 7] = math.nan
    assert diagnose(model, broken).first.module == WAVES
    with torch.no_grad():
        model.head.bias[0] = -math.inf
    assert diagnose(model, batch).first.module == "head"


def test_a_broken_buffer_that_training_does_not_read_is_found_among_the_weights(
    batch: Batch,
) -> None:
    model = tiny_baseline(norm="batch")
    name = next(name for name in model.state_dict() if "running" in name or "variance" in name)
    model.state_dict()[name].fill_(math.nan)
    first = diagnose(model, batch).first
    assert first is not None
    assert first.module == name.rpartition(".")[0]


def test_the_table_has_a_line_for_every_module(batch: Batch) -> None:
    diagnosis = diagnose(tiny(), batch)
    lines = table(diagnosis).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [row.module for row in diagnosis.rows]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A tiny model, its checkpoint not yet written, and a manifest."""
    write_manifest(tmp_path / "tones.jsonl", tones(tmp_path, 4))
    return tiny(layers=2), tmp_path


def save(model: nn.Module, folder: Path) -> None:
    save_untrained(folder / "checkpoints" / "best", model)


def test_the_command_diagnoses_a_checkpoint(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    launch = Launcher(folder)
    asked = ["diagnose", "--checkpoint-dir", ".", "--cluster", "local"]
    save(model, folder)
    done = launch(*asked, "--manifest", "tones.jsonl", "--utterances", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    result = launch.status()["diagnose"]["result"]
    assert (result["verdict"], result["healthy"], result["utterances"]) == ("healthy", True, 2)

    with torch.no_grad():
        model.blocks[1].mix.qkv.weight[0, 0] = math.nan
    save(model, folder)
    done = launch(*asked, next(folder.glob("*.wav")))
    assert done.returncode == 0, done.stdout + done.stderr
    result = launch.status()["diagnose"]["result"]
    assert (result["healthy"], result["first"]) == (False, "blocks.1.mix.qkv")
    assert "blocks.1.mix.qkv" in done.stdout
    report = read_json(Path(result["report"]))
    assert report["first"]["where"] == "forward"
    assert json.dumps(report, allow_nan=False)
    assert "Verdict: blocks.1.mix.qkv" in done.stdout  # what the step said, printed at the end
