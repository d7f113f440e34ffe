"""What runs otherwise on a GPU, beside the same on the CPU: kernels, bfloat16, Muon, CTC, resume.

    pytest tests/gpu

Each test has a body for both devices: on the CPU it shows that the body holds, on a machine with an
NVIDIA GPU the same words are said of the GPU. What a device computes in float32 is compared with
what the CPU computes; convolutions in TF32, with ten bits of a mantissa, are switched off for that.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from jobs.job import Job
from jobs.kinds import evaluate
from lact_asr.config.model import named_size
from lact_asr.config.training import CTCConfig
from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import read_manifest, write_manifest
from lact_asr.decoding.metrics import score
from lact_asr.decoding.transcribe import transcribe
from lact_asr.distributed import fsdp
from lact_asr.model import blocks
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.forward import autocast
from lact_asr.model.masks import length_mask
from lact_asr.model.window_attention import Layout, attend
from lact_asr.training import checkpoint
from lact_asr.training.objective import CTCObjective
from lact_asr.utils.files import read_json
from tests.distill.tiny_models import tiny_teacher
from tests.lact_asr.tiny_runs import (
    VOCABULARY,
    manifest,
    run,
    save_untrained,
    tiny,
    tones,
)
from tests.ranks import in_ranks

CPU = torch.device("cpu")
SCHEDULES = {
    "set": {},
    "set in narrow windows": {"window": 8},
    "causal": {
        **{"schedule": "apply_then_update", "chunk": 16, "window": 16},
        **{"momentum": True, "prenorm": True},
    },
    "chunk-inclusive": {"schedule": "update_then_apply", "chunk": 16, "window": 16},
    "off": {"schedule": "off"},
}


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """One device after the other; what looks for a GPU finds none while it is the CPU's turn."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here, or not asked for: pytest tests/gpu on a machine with one")
    if request.param == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that a test starts
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(request.param)


def heard(folder: Path, count: int = 4) -> Batch:
    """Utterances of different lengths as one batch."""
    return Reader(whole_corpus(tones(folder, count), VOCABULARY))[list(range(count))]


def gradient(
    model: nn.Module, batch: Batch, device: torch.device, precision: str = "fp32"
) -> tuple[float, Tensor]:
    """The CTC loss of a batch on a device, and its gradient as one vector on the CPU."""
    objective = CTCObjective(model.to(device))
    with autocast(device, precision):
        loss = objective(batch.to(device), 0.0)
    loss.total.backward()
    parts = [fsdp.full(parameter.grad).float().flatten() for parameter in model.parameters()]
    return float(loss.total.detach()), torch.cat(parts).cpu()


def away(found: Tensor, expected: Tensor) -> float:
    """The distance of two vectors, relative to the second."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("changes", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_loss_and_gradient_in_float32_are_the_cpus(
    tmp_path: Path, device: torch.device, changes: dict
) -> None:
    batch = heard(tmp_path)
    loss, found = gradient(tiny(layers=2, **changes), batch, device)
    expected_loss, expected = gradient(tiny(layers=2, **changes), batch, CPU)
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    assert away(found, expected) < 5e-3


def test_in_bfloat16_the_gradient_points_the_same_way_and_stays_float32(
    tmp_path: Path, device: torch.device
) -> None:
    batch, model = heard(tmp_path), tiny(layers=2)
    loss, found = gradient(model, batch, device, "bf16")
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    expected_loss, expected = gradient(tiny(layers=2), batch, CPU)
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert 1e-4 < away(found, expected) < 0.2, "rounded, and not much more"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [10, 100], ids=["one block", "many blocks"])
def test_attention_in_windows_is_the_cpus(device: torch.device, size: int, causal: bool) -> None:
    schedule = {"schedule": "apply_then_update", "chunk": 8} if causal else {}
    config = named_size("tiny", {"window": 8, **schedule})
    torch.manual_seed(0)
    width = config.hidden // config.attention_heads
    shape = (2, size, config.attention_heads, width)
    values, lengths = [torch.randn(shape) for _ in range(3)], torch.tensor([size, size - 3])
    results = {}
    for place in (CPU, device):
        q, k, v = (x.to(place, copy=True).requires_grad_() for x in values)
        layout = Layout.of(config, q.flatten(2), lengths.to(place))
        out = attend(q, k, v, layout)
        out.square().sum().backward()
        results[place] = [x.detach().cpu() for x in (out, q.grad, k.grad, v.grad)]
    for found, expected in zip(results[device], results[CPU], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flex", [False, True], ids=["blocks", "FlexAttention"])
def test_compiled_blocks_have_the_gradient_of_the_cpu(
    tmp_path: Path, device: torch.device, flex: bool
) -> None:
    """Inductor on a GPU; on the CPU, where that takes minutes, the graph, as it was traced."""
    if flex and device.type == "cpu":
        pytest.skip("FlexAttention has no backward pass on CPUs (torch 2.11)")
    batch, model = heard(tmp_path), tiny(layers=2, window=8, conv_kernel=5).to(device)
    backend = "inductor" if device.type == "cuda" else "eager"
    blocks.compile_blocks(model, strict=True, backend=backend)
    if flex:
        blocks.use_flex_attention(model, compiled=True)
    loss, found = gradient(model, batch, device)
    expected_loss, expected = gradient(tiny(layers=2, window=8, conv_kernel=5), batch, CPU)
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    assert away(found, expected) < 5e-3


def test_the_teacher_says_what_it_says_on_the_cpu(tmp_path: Path, device: torch.device) -> None:
    batch, model = heard(tmp_path, 2), tiny_teacher(blocks=2).eval()
    with torch.no_grad():
        expected = model(batch.waves, batch.wave_lengths)
        model.to(device)
        found = model(batch.waves.to(device), batch.wave_lengths.to(device))
    assert found.log_probs.device.type == device.type
    assert found.lengths.tolist() == expected.lengths.tolist()
    inside = length_mask(expected.lengths, expected.log_probs.shape[1])
    drift = (found.log_probs.cpu() - expected.log_probs)[inside].abs().mean()
    assert drift < 0.02  # the pitch of a frame may jump by an octave


def test_ctc_losses_are_the_cpus_and_a_text_too_long_for_its_audio_teaches_nothing(
    tmp_path: Path, device: torch.device
) -> None:
    batch = heard(tmp_path)
    torch.manual_seed(0)
    lengths = batch.target_lengths * 3
    lengths[1] = batch.target_lengths[1] - 1  # infeasible
    scores = torch.randn(4, int(lengths.max()), len(VOCABULARY))
    results = {}
    for place in (CPU, device):
        given = scores.to(place, copy=True).requires_grad_()
        there = batch.to(place)
        losses = ctc_losses(given.log_softmax(-1), lengths.to(place), there)
        losses.sum().backward()
        results[place] = losses.detach().cpu(), given.grad.cpu()
    losses, found = results[device]
    assert losses[1] == 0 and not found[1].any() and found[0].any()
    torch.testing.assert_close(losses, results[CPU][0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found, results[CPU][1], atol=1e-4, rtol=1e-3)


LEARNING = {"max_steps": 8, "batch_seconds": 6.0, "valid_every": 8, "workers": 0, "probe": True}


@pytest.mark.parametrize("method", ["adamw", "muon"])
@pytest.mark.parametrize("symbols", ["output", "characters"])
def test_a_model_learns_on_the_device_with_its_memory_probed_first(
    tmp_path: Path, device: torch.device, method: str, symbols: str
) -> None:
    model, optim = tiny(layers=2), {"method": method}
    ctc = CTCConfig(intermediate=(1,), intermediate_symbols=symbols)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = {**LEARNING, "optim": optim, "precision": "bf16"}
    objective = CTCObjective(model, ctc, VOCABULARY)
    result, recorded = run(tmp_path, tones(tmp_path, 8), objective, device=device, **given)
    assert (result.step, result.steps_skipped) == (8, 0)
    losses = recorded.losses()
    assert losses[8] < 0.9 * losses[1]
    learned = list(objective.trainable.parameters())
    assert {parameter.device.type for parameter in learned} == {device.type}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    still = [n for n, value in model.state_dict().items() if torch.equal(value.cpu(), before[n])]
    assert still == []
    (probed,) = recorded.named("probed")
    assert bool(probed["peak_bytes"]) == (device.type == "cuda")
    assert ("gpu_memory_gb" in recorded.metrics[0]) == (device.type == "cuda")
    saved = checkpoint.load(result.checkpoint / checkpoint.WEIGHTS)
    assert {value.device.type for value in saved.values()} == {"cpu"}


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, device: torch.device, method: str
) -> None:
    """On a GPU sums of CTC's gradients have no fixed order: the losses are near, not the same."""
    train = tones(tmp_path, 8)
    given = {**LEARNING, "optim": {"method": method}, "precision": "fp32"}
    fresh = lambda seed: CTCObjective(tiny(seed, layers=2))
    _, whole = run(tmp_path / "whole", train, fresh(0), device=device, **given)
    _, before = run(tmp_path / "cut", train, fresh(0), device=device, stop_at=4, **given)
    rest, after = run(tmp_path / "cut", train, fresh(1), device=device, **given)
    assert rest.step == 8 and sorted(after.losses()) == [5, 6, 7, 8]
    assert before.losses() | after.losses() == pytest.approx(whole.losses(), rel=0.02)


def split_alone(folder: Path) -> None:
    """One rank with a split model: its gradient, what it holds put together, and the norm."""
    device = torch.device(read_json(folder / "device.json"))
    kind = "nccl" if device.type == "cuda" else "gloo"
    meeting = f"file://{folder / 'meeting'}"
    torch.backends.cudnn.allow_tf32 = False
    torch.distributed.init_process_group(kind, init_method=meeting, rank=0, world_size=1)
    batch = Reader(whole_corpus(read_manifest(folder / "tones.jsonl"), VOCABULARY))[[0, 1, 2]]
    model = tiny(layers=2).to(device)
    fsdp.shard(model, model, model.blocks)
    assert fsdp.split(model)
    loss, found = gradient(model, batch, device)
    norm = float(fsdp.norm([parameter.grad for parameter in model.parameters()]))
    torch.save((loss, found, norm, fsdp.whole(model.state_dict())), folder / "found.pt")


def test_a_model_split_over_one_process_has_the_gradient_of_a_whole_one(
    tmp_path: Path, device: torch.device
) -> None:
    manifest(tmp_path)
    (tmp_path / "device.json").write_text(f'"{device.type}"')
    assert in_ranks(split_alone, tmp_path, 1) == [0], (tmp_path / "rank0.log").read_text()
    loss, found, norm, weights = torch.load(tmp_path / "found.pt")
    batch = Reader(whole_corpus(read_manifest(tmp_path / "tones.jsonl"), VOCABULARY))[[0, 1, 2]]
    expected_loss, expected = gradient(tiny(layers=2), batch, CPU)
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    assert away(found, expected) < 5e-3
    assert norm == pytest.approx(float(found.norm()), rel=1e-4)
    for name, value in tiny(layers=2).state_dict().items():
        assert weights[name].device.type == "cpu" and torch.equal(weights[name], value), name


def talkative() -> nn.Module:
    """An untrained model says nothing but blanks."""
    model = tiny(layers=2)
    torch.nn.init.normal_(model.head.weight)
    return model


def test_transcripts_are_the_cpus(tmp_path: Path, device: torch.device) -> None:
    utterances = tones(tmp_path, 7)
    texts = {}
    for place in (CPU, device):
        done = transcribe(talkative(), VOCABULARY, utterances, 8.0, place)
        texts[place] = [each.text for each in done.hypotheses]
    assert all(texts[CPU])
    assert score(texts[CPU], texts[device]).cer < 0.05  # two symbols may be equally likely


def test_infer_finds_the_device_by_itself(tmp_path: Path, device: torch.device) -> None:
    """`evaluate` is the kind behind it; in bfloat16 and in float32 it hears nearly the same."""
    save_untrained(tmp_path / "model", talkative())
    utterances = tones(tmp_path, 4)
    expected = [
        each.text for each in transcribe(talkative(), VOCABULARY, utterances, device=CPU).hypotheses
    ]
    said = [replace(each, text=text) for each, text in zip(utterances, expected, strict=True)]
    write_manifest(tmp_path / "dev.jsonl", said)
    nothing = lambda *about, **facts: None
    for precision, limit in {"fp32": 0.05, "bf16": 0.2}.items():
        given = evaluate.Settings(
            checkpoint=tmp_path / "model", manifest=tmp_path / "dev.jsonl", precision=precision
        )
        (tmp_path / precision).mkdir()
        job = Job(tmp_path / precision, 0, 1, 0, nothing, nothing, lambda: False)
        result = evaluate.run(given, job)
        assert result.cer is not None and result.cer < limit
        assert result.utterances == 4 and result.hypotheses.exists()
