"""The published operators and layers, number by number: oracle/lact in the shared folder."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from lact_asr.config.model import named_size
from lact_asr.model import ttt
from lact_asr.model.fast_weights import Weights, fast_mlp, newton_schulz
from lact_asr.model.lact_layer import LaCTLayer
from lact_asr.model.window_attention import Layout
from tests.conftest import SHARED
from tests.lact_asr.model.reference import distance
from tests.lact_asr.model.test_ttt import NAMES, run

ORACLE = SHARED / "oracle" / "lact"
OP_CASES = [
    "s01_causal_sgd",
    "s02_causal_muon_wide",
    "s03_causal_muon_momentum",
    "s04_prenorm_momentum",
    "s05_single_short_chunk",
    "s06_set_sgd",
    "s07_set_muon_fixedcoef",
    "s08_chunk_inclusive_muon",
    "s10_padded_set_muon",
]


def oracle(case: str) -> tuple[dict, dict[str, Tensor]]:
    """Hyper-parameters and arrays of a published case."""
    if not ORACLE.exists():
        pytest.skip("needs oracle/lact in the folder 'shared' beside the checkout")
    arrays = np.load(ORACLE / f"{case}.npz")
    meta = json.loads((ORACLE / f"{case}.json").read_text())
    return meta, {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def oracle_options(meta: dict, arrays: dict[str, Tensor]) -> dict:
    """The operator's options for a published case."""
    orthogonalize = None
    if meta["muon"]:
        stages = meta["newton_schulz"]
        orthogonalize = "fixed" if stages[0] == stages[1] else "five_stage"
    return {
        "schedule": meta["schedule"],
        "chunk_size": meta["chunk_size"],
        "orthogonalize": orthogonalize,
        "momentum": meta["use_momentum"],
        "prenorm": meta.get("norm_style") == "prenorm",
        "lengths": arrays.get("lengths"),
    }


@pytest.mark.parametrize("case", OP_CASES)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_a_published_case_comes_out_forward_and_backward(case, kind):
    meta, arrays = oracle(case)
    given_names = [name for name in (*NAMES, "momentum") if name in arrays]
    ours = {name: arrays[name].to(kind).requires_grad_() for name in given_names}
    output, state = run(ours, **oracle_options(meta, arrays))
    exact = kind == torch.float64
    plain = 1e-10 if exact else 1e-6
    assert distance(output, arrays["out"]) < (
        plain if not meta["muon"] else (1e-9 if exact else 1e-4)
    )
    if "updates_run" in meta:
        assert state.updates_run == meta["updates_run"]
    for i in range(3):
        if f"w{i}_last" in arrays:
            assert distance(state.weights[i], arrays[f"w{i}_last"]) < 1e-4
    if "probe" not in arrays:
        return
    (output * arrays["probe"]).sum().backward()
    # The expected gradients are stored in float32, so float64 cannot come closer than 1e-7.
    bound = 1e-7 if exact else (3e-4 if meta["muon"] else 3e-6)
    for name in given_names:
        assert distance(ours[name].grad, arrays[f"grad_{name}"]) < bound, name


@pytest.mark.parametrize("case", OP_CASES)
def test_a_published_case_comes_out_with_bfloat16_tokens(case):
    meta, arrays = oracle(case)
    half = {name: arrays[name].bfloat16() if name in "qkv" else arrays[name] for name in arrays}
    output, state = run(half, **oracle_options(meta, arrays))
    bound = 2e-2
    if meta["muon"]:
        bound = max(5e-2, 2 * meta.get("relerr_with_bf16_newton_schulz", 0))
    assert output.dtype == torch.bfloat16
    assert {w.dtype for w in state.weights} == {torch.float32}
    assert distance(output, arrays["out"]) < bound


@pytest.mark.parametrize("case", [c for c in OP_CASES if c != "s05_single_short_chunk"])
def test_leaving_the_updates_out_would_be_noticed(case):
    _, arrays = oracle(case)
    static = fast_mlp(Weights(arrays["w0"], arrays["w1"], arrays["w2"]), arrays["q"])
    if "lengths" in arrays:
        static = static * (arrays["out"] != 0)
    assert distance(static, arrays["out"]) > 0.05


@pytest.mark.parametrize("coefficients", ["five_stage", "fixed"])
@pytest.mark.parametrize("shape", ["square", "wide", "tall", "tiny"])
def test_newton_schulz_gives_the_published_matrices(shape, coefficients):
    meta, arrays = oracle("s09_newton_schulz")
    expected = arrays[f"{shape}_{coefficients}"]

    def worst(kind: torch.dtype) -> float:
        found = newton_schulz(arrays[shape].to(kind), coefficients)
        assert found.dtype == kind
        return float((found.double() - expected).abs().max())

    assert worst(torch.float64) < 1e-12
    assert worst(torch.float32) < max(1e-5, 5 * meta[f"float32_maxabs_{coefficients}"][shape])
    assert worst(torch.bfloat16) < 2 * meta[f"bf16_maxabs_{coefficients}"][shape]
    half = arrays[shape].bfloat16()  # its stages run in float32 all the same
    assert torch.equal(
        newton_schulz(half, coefficients), newton_schulz(half.float(), coefficients).bfloat16()
    )
    triples = newton_schulz(arrays[shape], meta[coefficients])
    assert torch.equal(triples, newton_schulz(arrays[shape], coefficients))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_the_published_causal_layer_comes_out_of_ours(kind):
    meta, arrays = oracle("s11_layer_causal")
    config = named_size(
        "tiny",
        {
            "hidden": meta["hidden_size"],
            "attention_heads": meta["num_attn_heads"],
            "lact_heads": meta["num_lact_heads"],
            "window": meta["window_size"],
            "schedule": "apply_then_update",
            "chunk": meta["chunk_size"],
            "base_step": meta["base_lr"],
            "qk_norm": False,
            "momentum": True,
            "orthogonalize": "five_stage",
        },
    )
    mix = LaCTLayer(config).to(kind)
    renamed = {name.replace(".0.", "."): x for name, x in arrays.items()}
    mix.load_state_dict({n[6:]: x for n, x in renamed.items() if n.startswith("param.")})
    x = arrays["x"].to(kind).requires_grad_()
    found, fast = mix(x, Layout.of(config, x, torch.tensor([21, 21])))
    exact = kind == torch.float64
    assert distance(found, arrays["out"]) < (1e-9 if exact else 1e-4)
    assert set(fast.updates.tolist()) == {meta["updates_run"]}
    (found * arrays["probe"]).sum().backward()
    bound = 1e-6 if exact else 3e-4  # expected gradients are stored in float32
    assert distance(x.grad, arrays["grad_x"]) < bound
    for name, parameter in mix.named_parameters():
        if name != "qkv.weight":  # the published case has no gradient for it
            assert distance(parameter.grad, renamed[f"grad.{name}"]) < bound, name


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_the_published_set_layer_comes_out_of_our_operator(kind):
    meta, arrays = oracle("s12_layer_set_muon")
    p = {name[6:]: x.to(kind) for name, x in arrays.items() if name.startswith("param.")}
    x, heads = arrays["x"].to(kind), meta["num_lact_heads"]

    def rows(y: Tensor) -> Tensor:
        return y.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)

    q, k, v = (rows(y) for y in torch.nn.functional.silu(x @ p["to_qkv.weight"].T).chunk(3, -1))
    q, k = (y / (y.norm(dim=-1, keepdim=True) + 1e-5) for y in (q, k))
    start = torch.tensor(meta["base_lr"], dtype=torch.float64).expm1().log().to(kind)
    steps = torch.nn.functional.softplus(x @ p["lr_proj.weight"].T + start)
    y, _ = ttt.test_time_training(
        *(p[name].repeat(len(x), 1, 1) for name in ("w0", "w1", "w2")),
        *(q, k, v),
        *rows(steps).split(1, -1),
        schedule="set",
        orthogonalize="five_stage",
    )
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p["o_norm.weight"]
    y = y.unflatten(0, (len(x), heads)).transpose(1, 2).flatten(2)
    exact = kind == torch.float64
    assert distance(y @ p["o_proj.weight"].T, arrays["out"]) < (1e-9 if exact else 1e-4)
