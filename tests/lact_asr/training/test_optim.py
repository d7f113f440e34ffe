"""Learning rates by step, and which parameters decay."""

import pytest
import torch
from torch import nn

from distill.config.language_model import LanguageModelConfig
from distill.language_model.model import LanguageModel, LMObjective
from distill.losses.projector import LogitProjector
from lact_asr.config.training import OptimConfig
from lact_asr.training import optim
from lact_asr.training.objective import CTCObjective
from tests.lact_asr.tiny_runs import tiny


def factors(decay: str) -> list[float]:
    config = OptimConfig(warmup_steps=4, decay=decay)
    return [optim.rate_factor(config, step, 20) for step in range(20)]


def test_every_schedule_rises_linearly_to_its_peak():
    for decay in ("cosine", "noam", "hold", "constant"):
        assert factors(decay)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, factors(decay)[4]])
        assert max(factors(decay)) == 1.0


def test_cosine_ends_near_zero_noam_falls_with_the_root_and_constant_stays():
    assert factors("cosine")[12] == pytest.approx(0.5)
    assert 0 < factors("cosine")[19] < 0.01
    assert factors("noam")[15] == pytest.approx(0.5)  # 4 x the warm-up
    assert factors("constant")[19] == 1.0


def test_without_a_warm_up_the_first_step_has_the_peak():
    assert optim.rate_factor(OptimConfig(warmup_steps=0), 0, 10) == 1.0


def test_matrices_decay_and_biases_and_norms_do_not():
    model = tiny()
    optimizer = optim.build(CTCObjective(model), OptimConfig(weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim >= 2 else 0.0)


def test_an_objective_may_give_its_parts_their_own_rates():
    class Two(CTCObjective):
        def parameter_groups(self, learning_rate: float) -> list[dict]:
            head = set(self.model.head.parameters())
            rest = [p for p in self.model.parameters() if p not in head]
            return [
                {"params": rest, "lr": learning_rate},
                {"params": head, "lr": 5 * learning_rate},
            ]

    objective = Two(tiny())
    optimizer = optim.build(objective, OptimConfig(learning_rate=2e-3))
    optim.set_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(objective.model.head.weight)] == pytest.approx(5e-3)
    assert rates[id(objective.model.norm.weight)] == pytest.approx(1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_hold_stays_at_the_peak_and_falls_in_a_line_to_zero():
    config = OptimConfig(warmup_steps=4, decay="hold", hold=0.5)
    found = [optim.rate_factor(config, step, 20) for step in range(21)]
    assert found[3:11] == [1.0] * 8
    assert found[11:] == pytest.approx([0.1 * left for left in range(9, -1, -1)])
    late = OptimConfig(warmup_steps=16, decay="hold", hold=0.5)
    assert optim.rate_factor(late, 18, 20) == pytest.approx(0.5)


def muon(model, **changes) -> torch.optim.AdamW:
    config = {"method": "muon", "learning_rate": 0.01, "weight_decay": 0.1} | changes
    return optim.build(CTCObjective(model), OptimConfig(**config))


def test_muon_moves_matrices_by_an_orthogonal_step_and_the_rest_as_adamw_does():
    model, plain = tiny(), tiny()
    torch.manual_seed(1)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        if one.ndim == 2:  # singular values 1 to 3: far from those that are left as they are
            u, s, v = torch.linalg.svd(one.grad, full_matrices=False)
            one.grad = u * torch.linspace(1, 3, len(s)) @ v
        other.grad = one.grad.clone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: value.grad.double() for name, value in model.named_parameters()}
    muon(model).step()
    muon(plain, method="adamw").step()
    theirs = plain.state_dict()
    moved = {name for name, now in model.state_dict().items() if not torch.equal(now, theirs[name])}
    maps = {"mix.qkv.weight", "mix.o_proj.weight", "mlp.gate_up.weight", "mlp.down.weight"}
    assert moved == {f"blocks.0.{name}" for name in maps}
    for name in moved:
        now, was = model.state_dict()[name].double(), before[name].double()
        step = (now - (1 - 0.01 * 0.1) * was) / (-0.01 * 0.2 * max(was.shape) ** 0.5)
        u, _, v = torch.linalg.svd(gradients[name], full_matrices=False)
        assert torch.allclose(step, u @ v, atol=0.05)
        assert step.square().mean().sqrt() * max(was.shape) ** 0.5 == pytest.approx(1, rel=0.05)


def test_muon_carries_momentum_that_survives_saving():
    whole, half, rest = tiny(), tiny(), tiny(seed=1)
    weight = "blocks.0.mix.qkv.weight"  # Muon's

    def step(model, optimizer, number) -> None:
        torch.manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    first, second = muon(whole), muon(half)
    for number in range(4):
        step(whole, first, number)
    for number in range(2):
        step(half, second, number)
    third = muon(rest)
    third.load_state_dict(second.state_dict())
    rest.load_state_dict(half.state_dict())
    for number in range(2, 4):
        step(rest, third, number)
    assert torch.equal(rest.get_parameter(weight), whole.get_parameter(weight))
    fresh = muon(half)
    for number in range(2, 4):
        step(half, fresh, number)
    apart = half.get_parameter(weight) - whole.get_parameter(weight)
    assert apart.abs().max() > 1e-4


def test_muon_adds_its_momentum_to_the_gradient_and_decays_what_it_moves():
    model = tiny()
    weight, optimizer = model.get_parameter("blocks.0.mix.qkv.weight"), muon(model)
    torch.manual_seed(0)
    gradients = []
    for _ in range(2):
        u, s, v = torch.linalg.svd(torch.randn_like(weight), full_matrices=False)
        gradients.append(u * torch.linspace(1, 2, len(s)) @ v)
        before = weight.detach().clone()
        weight.grad = gradients[-1].clone()
        optimizer.step()
    first, second = gradients
    u, _, v = torch.linalg.svd(second + 0.95 * (0.95 * first + second), full_matrices=False)
    update = 0.2 * max(weight.shape) ** 0.5 * (u @ v)
    expected = (before * (1 - 0.01 * 0.1) - 0.01 * update - before).flatten()
    moved = (weight.detach() - before).flatten()
    assert torch.cosine_similarity(moved, expected, dim=0) > 0.98
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    fresh = muon(model)
    fresh.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.01 * 0.1))


def test_rates_hold_at_the_edges():
    for decay in ("noam", "cosine", "hold", "constant"):
        assert optim.rate_factor(OptimConfig(warmup_steps=0, decay=decay), 0, 10) == 1.0
    late = {
        decay: OptimConfig(warmup_steps=9, decay=decay, hold=0.0) for decay in ("hold", "cosine")
    }
    assert optim.rate_factor(late["hold"], 9, 10) == 1.0, "one step is left to fall in"
    assert optim.rate_factor(late["cosine"], 10, 10) == pytest.approx(0.0)
    assert optim.rate_factor(OptimConfig(warmup_steps=4), 36, 20) == pytest.approx(0.0)


def muons(objective, **changes) -> set[str]:
    """Names of what Muon moves."""
    config = OptimConfig(**{"method": "muon"} | changes)
    groups = optim.build(objective, config).param_groups
    moved = {id(p) for group in groups if group["muon"] for p in group["params"]}
    return {name for name, p in objective.trainable.named_parameters() if id(p) in moved}


MAPS = {"mix.qkv", "mix.o_proj", "mlp.gate_up", "mlp.down", "conv.gate_up", "conv.down"}


@pytest.mark.parametrize("lact_heads", [1, 16])  # 3 or 48 step sizes a token
def test_what_is_muons_goes_by_role_and_not_by_the_models_size(lact_heads):
    model = tiny(hidden=64, lact_heads=lact_heads, conv_kernel=3)
    assert muons(CTCObjective(model)) == {f"blocks.0.{name}.weight" for name in MAPS}
    assert muons(CTCObjective(model), method="adamw") == set()


def test_neither_embedding_nor_output_nor_a_projector_is_muons():
    texts = LanguageModel(LanguageModelConfig(hidden=64, heads=2, blocks=1, mlp=64), 40)
    assert all(name.startswith("blocks.0.") for name in muons(LMObjective(texts, 8)))
    assert len(muons(LMObjective(texts, 8))) == 4
    objective = CTCObjective(tiny())
    alone = {f"model.{name}" for name in muons(objective)}
    objective.trainable = nn.ModuleDict(
        {"model": objective.model, "projector": LogitProjector(64, 40)}
    )
    assert muons(objective) == alone


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_gains_and_first_fast_weights_decay_only_if_they_are_asked_to(method):
    model = tiny(conv_kernel=3)

    def decayed(**changes) -> set[str]:
        optimizer = muon(model, method=method, **changes)
        found = [p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]]
        return {n for n, p in model.named_parameters() if any(p is each for each in found)}

    gains = {"qk_scale", "qk_offset", "w0", "w1", "w2"}
    assert decayed() - decayed(decay_gains=False) == {f"blocks.0.mix.{name}" for name in gains}
    assert "blocks.0.conv.depthwise.weight" in decayed(decay_gains=False)
    assert "encoder.convolutions.1.weight" in decayed(decay_gains=False)
