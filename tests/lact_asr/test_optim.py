"""Learning rates by step, and which parameters decay."""

import pytest
import torch

from lact_asr import optim
from lact_asr.config import OptimConfig
from lact_asr.objective import CTCObjective
from tests.lact_asr.small import tiny


def factors(decay: str) -> list[float]:
    config = OptimConfig(warmup_steps=4, decay=decay)
    return [optim.rate_factor(config, step, 20) for step in range(20)]


def test_every_schedule_rises_linearly_to_its_peak():
    for decay in ("cosine", "noam", "constant"):
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
