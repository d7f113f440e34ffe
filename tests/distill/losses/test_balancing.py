"""Balancing: the running means are used, learned scales settle, the task is left alone."""

import pytest
import torch

from distill.losses.balancing import BOUND, Balancer

NAMES = ["kd", "feature"]
WEIGHTS = {"kd": 0.7, "feature": 0.1}


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def balanced(balancer: Balancer, **values: float) -> dict[str, float]:
    found = balancer(losses(**values), WEIGHTS, torch.tensor(1.0))
    return {name: float(value.detach()) for name, value in found.items()}


def test_static_weights_are_only_multiplied():
    found = balanced(Balancer(NAMES, "static"), kd=10.0, feature=200.0)
    assert found == pytest.approx({"kd": 7.0, "feature": 20.0})


def test_running_means_bring_every_loss_to_the_size_of_the_task():
    balancer = Balancer(NAMES, "ema")
    assert balanced(balancer, kd=10.0, feature=200.0) == pytest.approx({"kd": 7.0, "feature": 20.0})
    balancer.observe(2.0, {"kd": 10.0, "feature": 200.0})
    found = balanced(balancer, kd=10.0, feature=200.0)
    assert found == pytest.approx({"kd": 0.7 * 2, "feature": 0.1 * 2}, rel=1e-4)
    for _ in range(2000):
        balancer.observe(1.0, {"kd": 4.0, "feature": 0.5})
    assert balancer.factors().tolist() == pytest.approx([0.25, 2.0], rel=1e-3)


def test_the_means_are_unbiased_from_the_first_step_and_remember_a_hundred():
    balancer = Balancer(["kd"], "ema")
    balancer.observe(3.0, {"kd": 6.0})
    assert balancer.factors().item() == pytest.approx(0.5)
    balancer.observe(3.0, {"kd": 600.0})
    mean = (0.99 * 6 + 600) / 1.99
    assert balancer.factors().item() == pytest.approx(3 / mean, rel=1e-4)


def test_a_loss_that_sets_in_later_is_brought_to_the_size_of_the_task_at_once():
    balancer = Balancer(NAMES, "ema")
    for _ in range(50):
        assert set(balanced(balancer, kd=4.0)) == {"kd"}
        balancer.observe(2.0, {"kd": 4.0})
    balancer.observe(2.0, {"kd": 4.0, "feature": 8.0})
    assert balancer.factors().tolist() == pytest.approx([0.5, 0.25], rel=1e-4)
    balancer.observe(2.0, {"kd": 4.0})
    assert balancer.factors()[0].item() == pytest.approx(0.5, rel=1e-4)
    scaled = balanced(Balancer(NAMES, "uncertainty"), feature=2.0)
    assert scaled == pytest.approx({"feature": 0.1 * 2.0 / 2})


def test_a_loss_that_vanishes_is_not_blown_up_without_end():
    balancer = Balancer(["kd"], "ema")
    balancer.observe(3.0, {"kd": 0.0})
    assert balancer.factors().item() == BOUND
    other = Balancer(["kd"], "ema")
    other.observe(1e-9, {"kd": 1.0})
    assert other.factors().item() == pytest.approx(1 / BOUND)


def test_what_a_balancer_knows_survives_in_its_state():
    balancer = Balancer(NAMES, "ema")
    balancer.observe(2.0, {"kd": 10.0, "feature": 200.0})
    again = Balancer(NAMES, "ema")
    again.load_state_dict(balancer.state_dict())
    assert torch.equal(again.factors(), balancer.factors())
    assert Balancer(NAMES, "static").state_dict() == {}


def test_learned_scales_find_the_size_of_each_loss_at_ten_times_the_rate_only():
    """The optimum is exp(-s) L = 1: every loss then counts one half of itself over itself."""

    def after(rate: float) -> list[float]:
        balancer = Balancer(NAMES, "uncertainty")
        optimizer = torch.optim.Adam(balancer.parameters(), rate)
        for _ in range(600):
            optimizer.zero_grad()
            even = {"kd": 1.0, "feature": 1.0}
            total = balancer(losses(kd=9.0, feature=0.25), even, torch.tensor(1.0))
            sum(total.values()).backward()
            optimizer.step()
        return (2 * balancer.factors() * torch.tensor([9.0, 0.25])).tolist()

    assert after(1e-2) == pytest.approx([1.0, 1.0], rel=0.15)
    assert after(1e-3)[0] > 3


def test_learned_scales_are_sums_over_labels_like_every_loss():
    balancer = Balancer(NAMES, "uncertainty")
    with torch.no_grad():
        balancer.scales.copy_(torch.tensor([1.0, -1.0]))
    parts = [losses(kd=3.0, feature=4.0), losses(kd=1.0, feature=2.0)]
    whole = balancer(losses(kd=4.0, feature=6.0), WEIGHTS, torch.tensor(5.0))
    cut = [
        balancer(each, WEIGHTS, torch.tensor(n)) for each, n in zip(parts, (2.0, 3.0), strict=True)
    ]
    for name in NAMES:
        parts = [float(each[name].detach()) for each in (whole, *cut)]
        assert parts[0] == pytest.approx(parts[1] + parts[2])
