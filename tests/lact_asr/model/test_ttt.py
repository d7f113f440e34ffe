"""The fast weights: against a naive reference, and the laws of their schedules."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lact_asr.model import ttt
from lact_asr.model.fast_weights import newton_schulz
from tests.lact_asr.model import reference
from tests.lact_asr.model.reference import distance

NAMES = ("w0", "w1", "w2", "q", "k", "v", "lr0", "lr1", "lr2")
SCHEDULES = ("set", "update_then_apply", "apply_then_update")


def inputs(
    rows: int = 4,
    tokens: int = 11,
    width: int = 5,
    inner: int = 7,
    seed: int = 0,
    values: int | None = None,
) -> dict[str, Tensor]:
    """Random arrays in float64 whose updates change the answer by tens of percent; `values` is the
    width of v where it is not that of q and k.
    """
    values = values or width
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    arrays = {"w0": normal(rows, inner, width), "w1": normal(rows, values, inner)}
    arrays |= {"w2": normal(rows, inner, width)}
    arrays |= {name: normal(rows, tokens, width) for name in ("q", "k")}
    arrays["v"] = normal(rows, tokens, values)
    for name in ("lr0", "lr1", "lr2", "momentum"):
        arrays[name] = torch.rand(rows, tokens, 1, generator=g, dtype=torch.float64) * 0.5 + 0.05
    return arrays


def run(arrays: dict[str, Tensor], **options):
    """The operator on named arrays; `momentum` only where the options ask for it."""
    gate = arrays["momentum"] if options.pop("momentum", False) else None
    return ttt.test_time_training(*(arrays[name] for name in NAMES), momentum=gate, **options)


def reference_run(
    arrays: dict[str, Tensor],
    schedule: str,
    chunk_size: int,
    lengths: list[int],
    momentum: bool = False,
    **options,
) -> tuple[Tensor, list[reference.Row]]:
    """Row by row, each cut to its own length."""
    outputs, rows = torch.zeros_like(arrays["v"]), []
    for n in range(len(outputs)):
        size = lengths[n * len(lengths) // len(outputs)]
        steps = [arrays[name][n, :size, 0] for name in ("lr0", "lr1", "lr2")]
        output, row = reference.one_row(
            [arrays[name][n] for name in ("w0", "w1", "w2")],
            *(arrays[name][n, :size] for name in ("q", "k", "v")),
            steps,
            schedule=schedule,
            chunk=chunk_size,
            gate=arrays["momentum"][n, :size, 0] if momentum else None,
            **options,
        )
        outputs = torch.cat((outputs[:n], torch.zeros_like(outputs[:1]), outputs[n + 1 :]))
        outputs[n, :size] = output
        rows.append(row)
    return outputs, rows


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("orthogonalize", "momentum", "prenorm"),
    [(None, False, False), (None, True, True), ("five_stage", True, False), ("fixed", False, True)],
)
@pytest.mark.parametrize("values", [5, 3, 9], ids="values of width {}".format)
def test_outputs_states_and_gradients_equal_the_naive_reference(
    schedule, orthogonalize, momentum, prenorm, values
):
    lengths = [11, 6]  # with chunks of 4: two full and a ragged one, and one full and a ragged one
    options = {
        "schedule": schedule,
        "chunk_size": 4,
        "orthogonalize": orthogonalize,
        "momentum": momentum,
        "prenorm": prenorm,
    }
    ours = {name: x.requires_grad_() for name, x in inputs(values=values).items()}
    theirs = {name: x.requires_grad_() for name, x in inputs(values=values).items()}
    output, state = run(ours, **options, lengths=torch.tensor(lengths))
    expected, rows = reference_run(theirs, lengths=lengths, **options)
    assert distance(output, expected) < 1e-11
    assert state.updates.tolist() == [row.updates for row in rows]
    for i, weight in enumerate(state.weights):
        assert distance(weight, torch.stack([row.weights[i] for row in rows])) < 1e-11
    probe = torch.randn(
        output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    (output * probe).sum().backward()
    (expected * probe).sum().backward()
    for name in (*NAMES, "momentum") if momentum else NAMES:
        assert distance(ours[name].grad, theirs[name].grad) < 1e-9, name


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 3, 6), (1, 6, 3)])
def test_newton_schulz_differentiates_exactly_and_keeps_only_its_input(shape):
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([reference.orthogonal(m, reference.STAGES["fixed"]) for m in matrices])
    assert distance(newton_schulz(matrices, "fixed"), expected) < 1e-13
    matrices.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        newton_schulz(matrices, "five_stage")
    assert [x.shape for x in kept] == [matrices.shape]
    assert torch.autograd.gradcheck(lambda x: newton_schulz(x, "five_stage"), matrices)


def test_newton_schulz_of_zero_is_zero_with_a_finite_gradient():
    zero = torch.zeros(1, 3, 5, requires_grad=True)
    found = newton_schulz(zero, "five_stage")
    found.sum().backward()
    assert not found.any()
    assert zero.grad.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES),
    lengths=st.lists(st.integers(0, 9), min_size=2, max_size=2),
    chunk=st.integers(1, 10),
    orthogonalize=st.sampled_from([None, "fixed"]),
)
def test_a_padded_batch_equals_separate_runs(schedule, lengths, chunk, orthogonalize):
    arrays = inputs(rows=4, tokens=9)
    options = {"schedule": schedule, "chunk_size": chunk, "orthogonalize": orthogonalize}
    output, state = run(arrays, **options, momentum=True, lengths=torch.tensor(lengths))
    for n, size in enumerate(np.repeat(lengths, 2)):
        alone = {
            name: x[n : n + 1] if name.startswith("w") else x[n : n + 1, :size]
            for name, x in arrays.items()
        }
        expected, end = run(alone, **options, momentum=True)
        assert torch.allclose(output[n, :size], expected[0], atol=1e-9)
        assert not output[n, size:].any()
        assert state.updates[n] == end.updates[0]
        for ours, theirs in zip(state.weights, end.weights, strict=True):
            assert torch.allclose(ours[n], theirs[0], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 13), max_size=4),
    chunk=st.integers(1, 15),
    prenorm=st.booleans(),
    orthogonalize=st.sampled_from([None, "fixed"]),
)
def test_a_stream_in_any_pieces_equals_one_shot(cuts, chunk, prenorm, orthogonalize):
    arrays = inputs(rows=2, tokens=13)
    options = {"schedule": "apply_then_update", "chunk_size": chunk, "momentum": True}
    options |= {"prenorm": prenorm, "orthogonalize": orthogonalize}
    expected, end = run(arrays, **options)
    outputs, state = [], None
    borders = [0, *sorted(cuts), 13]
    for start, stop in pairwise(borders):
        piece = {n: x if n.startswith("w") else x[:, start:stop] for n, x in arrays.items()}
        output, state = run(piece, **options, state=state)
        outputs.append(output)
    assert torch.allclose(torch.cat(outputs, 1), expected, atol=1e-9)
    assert torch.equal(state.updates, end.updates)
    assert torch.equal(state.waiting, end.waiting)


def test_streams_of_a_batch_may_advance_at_their_own_pace():
    arrays = inputs(rows=2, tokens=12)
    options = {"schedule": "apply_then_update", "chunk_size": 3, "momentum": True}
    expected, _ = run(arrays, **options)
    at, state = [0, 0], None
    for taken in ([5, 0], [1, 4], [0, 0], [4, 8], [2, 0]):
        piece = {n: x for n, x in arrays.items() if n.startswith("w")}
        for name in arrays.keys() - piece.keys():
            rows = [x[a : a + 8] for x, a in zip(arrays[name], at, strict=True)]
            piece[name] = torch.nn.utils.rnn.pad_sequence([*rows, arrays[name][0, :8]], True)[:2]
        output, state = run(piece, **options, lengths=torch.tensor(taken), state=state)
        for n, size in enumerate(taken):
            assert torch.allclose(output[n, :size], expected[n, at[n] : at[n] + size], atol=1e-10)
            at[n] += size
    assert at == [12, 12]
    assert state.updates.tolist() == [3, 3]


def test_update_then_apply_streams_in_whole_chunks_and_says_so_otherwise():
    arrays = inputs(tokens=10)
    options = {"schedule": "update_then_apply", "chunk_size": 4}
    expected, _ = run(arrays, **options)
    first = {n: x if n.startswith("w") else x[:, :8] for n, x in arrays.items()}
    rest = {n: x if n.startswith("w") else x[:, 8:] for n, x in arrays.items()}
    early, state = run(first, **options)
    late, state = run(rest, **options, state=state)
    assert torch.allclose(torch.cat((early, late), 1), expected, atol=1e-12)
    with pytest.raises(ValueError, match="multiples of 4"):
        run(rest, **options, state=state)


@pytest.mark.parametrize(("chunk", "seen_first"), [(4, 4), (3, 3)])
def test_the_causal_schedule_never_looks_at_its_own_chunk_or_later(chunk, seen_first):
    arrays = inputs(tokens=9)
    before, _ = run(arrays, schedule="apply_then_update", chunk_size=chunk)
    changed = {**arrays, "v": arrays["v"].clone()}
    changed["v"][:, 0] += 1
    after, _ = run(changed, schedule="apply_then_update", chunk_size=chunk)
    differs = (before != after).any(-1).any(0)
    assert differs.tolist() == [False] * seen_first + [True] * (9 - seen_first)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_chunk_is_a_set(schedule):
    arrays = inputs(tokens=8)
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7])  # shuffles the first chunk of 4
    shuffled = {n: x if n.startswith("w") else x[:, order] for n, x in arrays.items()}
    output, _ = run(arrays, schedule=schedule, chunk_size=4)
    again, _ = run(shuffled, schedule=schedule, chunk_size=4)
    assert torch.allclose(again, output[:, order], atol=1e-12)


def test_an_utterance_without_tokens_leaves_no_trace_in_state_or_gradients():
    arrays = {name: x.float().requires_grad_() for name, x in inputs(rows=2).items()}
    output, state = run(
        arrays,
        schedule="set",
        orthogonalize="five_stage",
        momentum=True,
        lengths=torch.tensor([0, 11]),
    )
    assert state.updates.tolist() == [0, 1]
    assert torch.equal(state.weights.w0[0], arrays["w0"][0])
    output.sum().backward()
    for name, x in arrays.items():
        assert not x.grad[0].any(), name
        assert x.grad[1].isfinite().all(), name


def test_rows_keep_the_norms_they_started_with():
    for schedule, prenorm in product(SCHEDULES, (False, True)):
        arrays = inputs()
        _, state = run(arrays, schedule=schedule, chunk_size=3, prenorm=prenorm)
        for weight, name in zip(state.weights, ("w0", "w1", "w2"), strict=True):
            assert torch.allclose(weight.norm(dim=-1), arrays[name].norm(dim=-1), rtol=1e-4)
            assert distance(weight, arrays[name]) > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "sets"}, "no schedule 'sets': write set, update_then_apply"),
        ({"schedule": "apply_then_update"}, "needs a chunk_size"),
        ({"schedule": "set", "lengths": torch.tensor([3, 3, 3])}, "4 rows do not share out over 3"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        run(inputs(), **options)


def test_a_step_size_of_the_wrong_shape_is_named():
    arrays = inputs()
    arrays["lr1"] = arrays["lr1"].squeeze(-1)
    with pytest.raises(ValueError, match=r"lr1 has shape \(4, 11\), not \(4, 11, 1\)"):
        run(arrays, schedule="set")


def test_keys_of_another_width_than_queries_are_named_and_values_may_have_it():
    arrays = inputs()
    arrays["k"] = arrays["k"][..., :4]
    with pytest.raises(ValueError, match=r"k has shape \(4, 11, 4\), not \(4, 11, 5\)"):
        run(arrays, schedule="set")
    nothing = {**inputs(values=9), **inputs(tokens=0, values=9)}
    output, _ = run(nothing, schedule="set")
    assert output.shape == (4, 0, 9)


def test_a_stream_refuses_to_change_its_rules():
    arrays = inputs()
    _, state = run(arrays, schedule="apply_then_update", chunk_size=3)
    with pytest.raises(ValueError, match="continues none"):
        run(arrays, schedule="set", state=state)
    with pytest.raises(ValueError, match="began with chunk_size 3"):
        run(arrays, schedule="apply_then_update", chunk_size=4, state=state)
    with pytest.raises(ValueError, match="momentum from its first token"):
        run(arrays, schedule="apply_then_update", chunk_size=3, momentum=True, state=state)
