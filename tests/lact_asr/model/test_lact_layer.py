"""The LaCT layer against the naive reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.config.model import ModelConfig, named_size
from lact_asr.model.lact_layer import LaCTLayer
from lact_asr.model.window_attention import Layout, attend
from tests.lact_asr.model import reference
from tests.lact_asr.model.reference import distance

SMALL = {"hidden": 24, "layers": 2, "attention_heads": 4, "lact_heads": 2, "mlp": 40}
CAUSAL = {"schedule": "apply_then_update", "chunk": 4, "window": 8}
VARIANTS = {
    "set": {},
    "set in narrow windows": {"window": 4},
    "set, orthogonalized": {"orthogonalize": "five_stage", "fast_width": 1.5},
    "causal": {**CAUSAL, "momentum": True, "prenorm": True},
    # Twice the head width in tokens: from fewer, Newton-Schulz blows rounding up 500 times.
    "causal, orthogonalized": {
        **{"schedule": "apply_then_update", "chunk": 12, "window": 12, "lact_heads": 4},
        **{"momentum": True, "orthogonalize": "fixed"},
    },
    "chunk-inclusive": {"schedule": "update_then_apply", "chunk": 4, "window": 6},
    "off": {"schedule": "off", "qk_norm": False},
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def small_config(changes: dict) -> ModelConfig:
    """A tiny configuration whose updates are large enough to be seen."""
    return named_size("tiny", {**SMALL, "base_step": 0.3, "dropout": 0.0, **changes})


def awake(module: torch.nn.Module, seed: int = 0) -> None:
    """Move every parameter off its resting value: no gain of 1, no branch near 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


@variants
def test_the_mix_layer_equals_the_naive_reference(changes):
    config = small_config(changes)
    mix = LaCTLayer(config).double()
    awake(mix)
    lengths = torch.tensor([14, 9])
    x = torch.randn(2, 14, 24, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    parameters = {n: p.detach().clone().requires_grad_() for n, p in mix.named_parameters()}
    found, _ = mix(x, Layout.of(config, x, lengths))
    expected = [reference.mix(y[b, :n], parameters, config) for b, n in enumerate(lengths)]
    for b, n in enumerate(lengths):
        assert distance(found[b, :n], expected[b]) < 1e-9
    probe = torch.randn(14, 24, dtype=torch.float64)
    sum((found[b, :n] * probe[:n]).sum() for b, n in enumerate(lengths)).backward()
    sum((row * probe[: len(row)]).sum() for row in expected).backward()
    assert distance(x.grad, y.grad) < 1e-8
    for name, parameter in mix.named_parameters():
        assert distance(parameter.grad, parameters[name].grad) < 1e-7, name


@pytest.mark.parametrize("size", [1, 8, 9, 14, 20, 27])
@pytest.mark.parametrize("changes", [{"window": 6}, {**CAUSAL, "window": 5}, {"window": 1}])
def test_attention_in_blocks_equals_attention_in_a_loop(changes, size):
    config = small_config(changes)
    q, k, v = torch.randn(3, 1, size, 4, 6, dtype=torch.float64)
    layout = Layout.of(config, q.flatten(2), torch.tensor([size]))
    rows = lambda x: x[0].flatten(1)
    expected = reference.attention(rows(q), rows(k), rows(v), 4, config.window, config.causal)
    assert distance(attend(q, k, v, layout)[0], expected) < 1e-12


def test_attention_of_bfloat16_on_a_cpu_is_in_float32():
    """PyTorch's kernel for bfloat16 rounds its weights, and is slow on the way back."""
    config = small_config({"window": 6})
    q, k, v = torch.randn(3, 2, 20, 4, 6).bfloat16()
    layout = Layout.of(config, q.flatten(2), torch.tensor([20, 13]))
    found = attend(q, k, v, layout)
    assert found.dtype == torch.float32
    assert torch.equal(found, attend(q.float(), k.float(), v.float(), layout))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("changes", [{"window": 6}, {**CAUSAL, "window": 5}, {"window": 300}])
def test_flex_attention_looks_at_what_the_blocks_look_at(changes):
    """Here in plain PyTorch, which has no backward pass of it for the CPU; tests/gpu have that."""
    config, lengths = small_config(changes), torch.tensor([140, 131, 1])
    q, k, v = torch.randn(3, 3, 140, 4, 6, dtype=torch.float64)
    layouts = [make(config, q.flatten(2), lengths) for make in (Layout.of, Layout.for_flex)]
    plain, flex = (attend(q, k, v, layout) for layout in layouts)
    assert distance(flex, plain) < 1e-12
    assert layouts[1].flex is not None and layouts[1].lengths is lengths


@given(
    cuts=st.lists(st.integers(1, 24), max_size=6, unique=True),
    changes=st.sampled_from(
        [{}, {"momentum": True}, {"prenorm": True}, {"window": 9, "chunk": 9}, {"qk_norm": False}]
    ),
)
def test_a_stream_of_tokens_in_any_pieces_equals_one_shot(cuts, changes):
    config = small_config({**CAUSAL, **changes})
    mix = LaCTLayer(config).double()
    awake(mix)
    x = torch.randn(2, 25, 24, dtype=torch.float64)
    whole, state = mix(x, Layout.of(config, x, torch.tensor([25, 25])))
    past, pieces = None, []
    for piece in x.tensor_split(sorted(cuts), 1):
        y, past = mix.stream(piece, past)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-10, rtol=1e-10)
    assert torch.equal(past.fast.updates, state.updates) and state.updates.min() > 0


def test_what_a_stream_remembers_does_not_grow():
    mix, past, sizes = LaCTLayer(small_config(CAUSAL)), None, []
    for _ in range(12):
        _, past = mix.stream(torch.randn(1, 5, 24), past)
        held = [past.keys, past.values, *past.fast.weights, *past.fast.pending[:5]]
        sizes.append(sum(tensor.numel() for tensor in held))
    assert past.place == 60 and len(set(sizes[1:])) == 1


def test_a_layer_that_looks_ahead_is_no_stream():
    with pytest.raises(ValueError, match="schedule set looks ahead: a stream needs"):
        LaCTLayer(small_config({})).stream(torch.randn(1, 5, 24))
