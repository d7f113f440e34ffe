"""Blocks compiled and computed again: the numbers are the same, and one graph does for all."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import read_manifest
from lact_asr.distributed import fsdp, processes
from lact_asr.model import blocks, lact_layer
from lact_asr.model.recognizer import Recognizer
from lact_asr.model.window_attention import attend
from lact_asr.training.objective import CTCObjective
from lact_asr.training.train_step import ObjectiveModule
from lact_asr.utils.errors import DataError
from tests.distill.tiny_models import tiny_baseline, tiny_teacher
from tests.lact_asr.tiny_runs import VOCABULARY, manifest, run, tiny, tones
from tests.ranks import in_ranks

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RANDOM = {"layers": 2, "dropout": 0.2, "layer_drop": 0.3, "attention_dropout": 0.1}
# utterances, samples of the longest: 25, 38, 40 and 49 tokens; blocks of 4 divide the third
WAVES = ((3, 16_000), (2, 24_000), (2, 25_600), (4, 31_000))


@pytest.fixture
def compiler() -> Iterator[Any]:
    """PyTorch's counters, from nothing, and its settings as they were behind the test."""
    from torch._dynamo.utils import counters  # 1.1 s, in every worker that collects this file

    config, names = torch._dynamo.config, ("optimize_ddp", "suppress_errors", "recompile_limit")
    kept = {name: getattr(config, name) for name in names}
    torch._dynamo.reset()
    counters.clear()
    yield counters
    for name, value in kept.items():
        setattr(config, name, value)
    torch._inductor.config.layout_optimization = True


def gradient(model: nn.Module, count: int, samples: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of noise, and the gradient of a sum over them."""
    torch.manual_seed(samples)
    waves = 0.1 * torch.randn(count, samples)
    lengths = torch.linspace(samples / 2, samples, count).long()
    model.zero_grad()
    said = model(waves, lengths).log_probs
    (said * torch.linspace(-1, 1, said.shape[-1])).sum().backward()
    flat = [fsdp.full(each.grad).flatten() for each in model.parameters()]
    return said.detach(), torch.cat(flat)


def test_compiled_blocks_are_one_graph_for_any_length_with_the_same_gradient(
    compiler: Any,
) -> None:
    """Six windows or twelve are one graph, without a break."""
    model, plain = (tiny(layers=2, window=8) for _ in range(2))
    blocks.compile_blocks(model, strict=True, backend="aot_eager")
    for count, samples in WAVES:
        said, found = gradient(model, count, samples)
        expected_said, expected = gradient(plain, count, samples)
        torch.testing.assert_close(said, expected_said)
        assert (found - expected).norm() < 1e-5 * expected.norm()
    assert compiler["stats"]["unique_graphs"] == 1
    assert not compiler["graph_break"]
    assert set(model.state_dict()) == set(plain.state_dict())


def test_what_does_not_train_runs_as_it_did(compiler: Any) -> None:
    model = tiny().eval()
    expected = model(torch.ones(1, 9_000), torch.tensor([9_000])).log_probs
    blocks.compile_blocks(model, strict=True, backend="aot_eager")
    found = model(torch.ones(1, 9_000), torch.tensor([9_000]))
    assert torch.equal(found.log_probs, expected) and found.fast is not None
    assert not compiler["stats"]
    assert not torch._inductor.config.layout_optimization, "with it a convolution is not compiled"


@pytest.mark.parametrize(
    ("wanted", "device", "changes", "expected"),
    [
        (None, GPU, {}, True),
        (None, CPU, {}, False),
        (None, GPU, {"schedule": "update_then_apply", "chunk": 8}, False),
        (True, GPU, {"schedule": "update_then_apply", "chunk": 8}, True),
        (True, CPU, {}, True),
        (False, GPU, {}, False),
    ],
)
def test_blocks_are_compiled_on_gpus_where_one_graph_does(
    wanted: bool | None, device: torch.device, changes: dict, expected: bool
) -> None:
    assert blocks.should_compile(wanted, tiny(**changes), device) == expected


def test_a_model_without_blocks_is_not_compiled_and_cannot_be_recomputed() -> None:
    assert not blocks.should_compile(None, tiny_baseline(), GPU)
    with pytest.raises(DataError, match="Baseline has none: write activation_checkpointing: false"):
        blocks.recompute_blocks(tiny_baseline())


def test_flex_attention_is_used_in_training_alone_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bool] = []
    spy = lambda q, k, v, layout, dropout: (
        seen.append(bool(layout.flex)) or attend(q, k, v, layout, dropout)
    )
    monkeypatch.setattr(lact_layer, "attend", spy)
    model, wave = tiny(), (torch.ones(1, 3_000), torch.tensor([3_000]))
    with torch.no_grad():
        model(*wave)
        blocks.use_flex_attention(model, compiled=True)
        expected = model.eval()(*wave).log_probs
        found = model.train()(*wave).log_probs
    assert seen == [False, False, True]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("make", "compiled", "said"),
    [
        (tiny_teacher, True, "a teacher model has no windows"),
        (tiny, False, r"needs compiled blocks \(compile: true, or a GPU\)"),
        (lambda: tiny(attention_dropout=0.1), True, r"\(attention_dropout: 0\)"),
    ],
)
def test_flex_attention_that_cannot_be_is_refused(
    make: Callable[[], Any], compiled: bool, said: str
) -> None:
    with pytest.raises(DataError, match=f"{said}: or write flex_attention: false"):
        blocks.use_flex_attention(make(), compiled)


def test_a_run_on_a_cpu_refuses_flex_attention(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="flex_attention: it needs compiled blocks"):
        run(tmp_path, tones(tmp_path, 4), max_steps=1, flex_attention=True)


def counted(model: Recognizer) -> list[int]:
    """A list that grows with each call of a block's MLP."""
    calls: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny(**RANDOM),
        lambda: tiny(schedule="update_then_apply", chunk=8, momentum=True, orthogonalize="fixed"),
        lambda: tiny_teacher(blocks=2, mlp=144, dropout=0.1),
    ],
    ids=["with everything random", "in chunks", "the teacher"],
)
def test_blocks_computed_again_have_the_same_gradient_to_the_last_bit(
    make: Callable[[], nn.Module],
) -> None:
    model, plain = make(), make()
    blocks.recompute_blocks(model)
    said, found = gradient(model, 3, 16_000)
    expected_said, expected = gradient(plain, 3, 16_000)
    assert torch.equal(said, expected_said) and torch.equal(found, expected)
    assert expected.count_nonzero() > len(expected) / 2


def test_blocks_are_computed_twice_in_training_and_once_elsewhere() -> None:
    model = tiny(layers=2)
    calls = counted(model)
    blocks.recompute_blocks(model)
    gradient(model, 2, 9_000)
    assert len(calls) == 2 * 2
    model.eval()(torch.ones(1, 9_000), torch.tensor([9_000]))
    assert len(calls) == 2 * 2 + 2


def test_a_run_with_activation_checkpointing_comes_to_the_same_weights(tmp_path: Path) -> None:
    train = tones(tmp_path, 6)
    objectives = [CTCObjective(tiny(**RANDOM)) for _ in range(2)]
    calls = [counted(objective.model) for objective in objectives]
    for number, objective in enumerate(objectives):
        given = {"max_steps": 3, "activation_checkpointing": bool(number)}
        run(tmp_path / str(number), train, objective, **given)
    one, other = (objective.model.state_dict() for objective in objectives)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert len(calls[1]) > 1.5 * len(calls[0])


def test_products_of_matrices_are_rounded_on_gpus_where_that_is_asked_for(tmp_path: Path) -> None:
    train, kept = tones(tmp_path, 4), torch.backends.cuda.matmul.allow_tf32
    try:
        for wanted in (True, False):
            given = {"max_steps": 1, "tf32": wanted}
            run(tmp_path / str(wanted), train, CTCObjective(tiny()), **given)
            assert torch.backends.cuda.matmul.allow_tf32 == wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32 = kept
    run(tmp_path / "default", train, CTCObjective(tiny()), max_steps=1)
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("wanted", [True, None])
def test_a_run_that_compiles_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Any, wanted: bool | None
) -> None:
    asked: list[dict] = []
    monkeypatch.setattr(torch, "compile", lambda call, **how: asked.append(how) or call)
    given = {"max_steps": 1, "compile": wanted}
    _, recorded = run(tmp_path, tones(tmp_path, 4), CTCObjective(tiny(layers=2)), **given)
    assert recorded.named("compiling") == ([{"blocks": 2}] if wanted else [])
    assert asked == ([{"dynamic": True, "backend": "inductor"}] * 2 if wanted else [])


def broken(graph: Any, inputs: Any) -> Any:
    """A compiler that cannot."""
    raise NotImplementedError("no kernel of that")


@pytest.mark.parametrize("compiled", [True, False])
def test_a_run_whose_compiler_gives_up_says_so_once_and_trains_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Any, compiled: bool
) -> None:
    make, train, given = torch.compile, tones(tmp_path, 4), {"max_steps": 3, "log_every": 1}
    monkeypatch.setattr(torch, "compile", lambda call, **_: make(call, backend=broken))
    monkeypatch.setattr(blocks, "should_compile", lambda *about: compiled)  # as on a GPU
    _, recorded = run(tmp_path / "this", train, CTCObjective(tiny(layers=2)), **given)
    monkeypatch.undo()
    _, plain = run(tmp_path / "plain", train, CTCObjective(tiny(layers=2)), **given)
    assert recorded.losses() == plain.losses()
    told = recorded.named("not_compiled")
    assert [each["step"] for each in told] == ([1] if compiled else [])
    assert all(each["functions"] > 0 for each in told)


def rank_gradient(folder: Path, sharded: bool) -> None:
    """One rank's gradient of a model over several, its blocks compiled and computed again."""
    world = processes.start()
    reader = Reader(whole_corpus(read_manifest(folder / "tones.jsonl"), VOCABULARY))
    model = tiny()
    blocks.compile_blocks(model, strict=True, backend="eager")
    blocks.recompute_blocks(model)
    if sharded:
        fsdp.shard(model, model, model.blocks, attends=True)
    module = world.wrap(ObjectiveModule(CTCObjective(model)))
    first = 2 * world.rank
    module(reader[[first, first + 1]], 0.0).total.backward()
    found = [fsdp.full(each.grad).flatten() for each in model.parameters()]
    if world.main:
        torch.save(torch.cat(found), folder / "found.pt")


def split_over_ranks(folder: Path) -> None:
    rank_gradient(folder, sharded=True)


def copied_to_ranks(folder: Path) -> None:
    rank_gradient(folder, sharded=False)


@pytest.mark.parametrize("work", [split_over_ranks, copied_to_ranks])
def test_on_two_ranks_compiled_and_computed_again_the_gradient_is_the_same(
    tmp_path: Path, work: Callable[[Path], None]
) -> None:
    manifest(tmp_path)
    reader = Reader(whole_corpus(read_manifest(tmp_path / "tones.jsonl"), VOCABULARY))
    model = tiny()
    CTCObjective(model)(reader[[0, 1, 2, 3]], 0.0).total.backward()
    expected = torch.cat([each.grad.flatten() for each in model.parameters()]) / 2
    assert in_ranks(work, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    found = torch.load(tmp_path / "found.pt")
    assert (found - expected).norm() < 1e-5 * expected.norm()
