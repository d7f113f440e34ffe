"""The router against its formula, written out for one frame after the other."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.config.router import RouterConfig
from distill.losses.router import StudentAwareRouter, evenness

STATE, EXPERTS = 6, (5, 4, 7)


def normed(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()


def shares_of(scores: Tensor, there: list[int], config: RouterConfig) -> Tensor:
    """The softmax over the best that are there, and the floor for each that is there."""
    best = sorted(there, key=lambda i: -float(scores[i]))[: config.top_k]
    total = sum(math.exp(float(scores[i])) for i in best)
    return torch.tensor(
        [
            ((1 - config.floor) * math.exp(float(scores[i])) / total if i in best else 0.0)
            + (config.floor / len(there) if i in there else 0.0)
            for i in range(len(scores))
        ]
    )


def one_frame(
    routed: StudentAwareRouter, state: Tensor, experts: list[Tensor], there: list[int], task: Tensor
) -> dict[str, Tensor]:
    """What a frame costs the student and the router."""
    config, count = routed.config, len(experts)
    state = state.clone().requires_grad_()
    experts = [normed(each) for each in experts]
    query = routed.gate.query(normed(state.detach()))
    scores = torch.stack(
        [
            routed.gate.keys[i](experts[i]) @ query / 8 if i in there else torch.tensor(-torch.inf)
            for i in range(count)
        ]
    )
    shares, spoken = shares_of(scores.detach(), there, config), torch.tensor(0.0)
    if config.kind == "recommended":
        each = [(normed(routed.maps[i](state)) - experts[i]).square().mean() for i in range(count)]
        feature = sum(share * cost for share, cost in zip(shares, each, strict=True))
        pulls = [torch.autograd.grad(cost, state, retain_graph=True)[0] for cost in each]
        likeness = [torch.cosine_similarity(pull, task, dim=0) / 0.1 for pull in pulls]
        target = torch.stack([likeness[i] for i in there]).softmax(0)
        found = torch.stack([scores[i] for i in there]).log_softmax(0)
        spoken = (target * (target.log() - found)).sum()
    else:
        mix = sum(shares[i] * routed.maps[i](experts[i]) for i in range(count))
        feature = (routed.maps[count](state) - mix).square().mean()
    even = scores.softmax(0)
    balance = count * sum(routed.first[i] * even[i] for i in range(count))
    square = scores.logsumexp(0) ** 2
    return {
        "feature": feature.detach(),
        "router": (spoken + config.balance * balance + config.z_loss * square).detach(),
        "shares": shares,
        "firsts": F.one_hot(scores.argmax(), count).float(),
    }


@pytest.mark.parametrize("kind", ["recommended", "original"])
def test_every_frame_costs_what_the_formula_says(kind):
    torch.manual_seed(0)
    config = RouterConfig(kind=kind, top_k=2, floor=0.1, balance=0.3, z_loss=0.2)
    routed = StudentAwareRouter(STATE, EXPERTS, config)
    with torch.no_grad():
        routed.first.copy_(torch.tensor([0.5, 0.3, 0.2]))
        routed.gate.query.weight.mul_(4)
    states = torch.randn(2, 4, STATE, requires_grad=True)
    experts = [3 * torch.randn(2, 4, width) + 1 for width in EXPERTS]
    there, task = torch.ones(2, 4, 3).bool(), torch.randn(2, 4, STATE)
    there[0, 1, 2] = there[1, 0, 0] = there[1, 2, 0] = there[1, 2, 1] = False
    found = routed(states, experts, there, task)
    for row in range(2):
        for frame in range(4):
            expected = one_frame(
                routed,
                states.detach()[row, frame],
                [each[row, frame] for each in experts],
                there[row, frame].nonzero().flatten().tolist(),
                task[row, frame],
            )
            for name, value in expected.items():
                cost = found[name][row, frame].detach()
                torch.testing.assert_close(cost, value, rtol=1e-4, atol=1e-5)
    assert len(found["firsts"].argmax(-1).unique()) > 1


def test_without_a_task_nothing_is_taught_to_the_router():
    torch.manual_seed(0)
    routed = StudentAwareRouter(STATE, EXPERTS[:1], RouterConfig(balance=0.0, z_loss=0.0))
    states, expert = torch.randn(1, 2, STATE, requires_grad=True), [torch.randn(1, 2, EXPERTS[0])]
    there = torch.ones(1, 2, 1).bool()
    assert not routed(states, expert, there, None)["router"].any()


def test_how_often_experts_come_first_is_remembered_over_ten_steps_or_so():
    routed = StudentAwareRouter(STATE, EXPERTS, RouterConfig())
    routed.observe([1.0, 0.0, 0.0])
    assert routed.first.tolist() == pytest.approx([0.9 / 3 + 0.1, 0.3, 0.3])
    assert routed.strained.dtype == torch.int64


def test_an_expert_that_is_never_there_has_its_place_among_the_firsts():
    torch.manual_seed(0)
    routed = StudentAwareRouter(STATE, EXPERTS, RouterConfig())
    there = torch.tensor([True, True, False]).expand(1, 2, 3)
    experts = [torch.randn(1, 2, width) for width in EXPERTS]
    found = routed(torch.randn(1, 2, STATE, requires_grad=True), experts, there, None)
    assert found["firsts"].shape == (1, 2, 3) and not found["firsts"][..., 2].any()


def test_evenness_is_of_shares_whatever_they_add_up_to():
    assert evenness([3.0, 3.0, 0.0]) == pytest.approx(math.log(2) / math.log(3))
    assert evenness([5.0, 5.0]) == pytest.approx(1.0)
