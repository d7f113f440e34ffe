"""The router: what is chosen, what it costs, how the original way collapses and ours does not."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from distill.config.router import RouterConfig
from distill.losses.router import StudentAwareRouter, evenness

EXPERTS = ["easy", "useful", "hard", "noise"]
HERE = torch.ones(4, 32, 4).bool()


def router(kind: str = "recommended", **changes: object) -> StudentAwareRouter:
    torch.manual_seed(0)
    return StudentAwareRouter(16, [12] * 4, RouterConfig(kind=kind, **changes))


def world() -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """Inputs [B,S,16], what the task wants to know of them [B,S,4], and four experts: one that
    a line predicts and the task does not need, one that knows the answer but for some noise, one
    hard to predict, one of noise.
    """
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    task, easy, hard, useful = draw(16, 4) / 4, draw(2, 12), draw(16, 12) / 4, draw(4, 12)
    while True:
        x = draw(4, 32, 16)
        y = x @ task
        knows = y @ useful + draw(4, 32, 12)
        yield x, y, [x[..., :2] @ easy, knows, torch.sin(4 * x @ hard), draw(4, 32, 12)]


def learn(routed: StudentAwareRouter, steps: int, regress: bool = False) -> dict[str, Tensor]:
    """Student and router trained together; what the last step showed.

    `regress` trains the shares by the losses they weigh.
    """
    body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    head, rate, shown = nn.Linear(16, 4), 2e-3, {}
    student = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(
        [
            {"params": student, "lr": rate},
            {"params": routed.gate.parameters(), "lr": 2 * rate},
            {"params": routed.maps.parameters(), "lr": 5 * rate},
        ]
    )
    for _, (x, y, experts) in zip(range(steps), world(), strict=False):
        states = body(x)
        task = (head(states) - y).square().mean(-1).sum()
        (pull,) = torch.autograd.grad(task, states, retain_graph=True)
        shown = routed(states, experts, HERE, pull)
        cost = shown["feature"] + shown["router"]
        if regress:
            normed = [nn.functional.layer_norm(e, (12,)) for e in experts]
            scores = routed.gate(nn.functional.layer_norm(states.detach(), (16,)), normed)
            cost = (routed.shares(scores, HERE) * routed._each(states, normed)).sum(-1)
        optimizer.zero_grad()
        ((task + cost.sum()) / 128).backward()
        optimizer.step()
        routed.observe(shown["firsts"].mean((0, 1)).tolist())
    if routed.config.kind == "original":
        shown["target"] = target(routed, experts, shown["shares"])
    return {name: value.detach() for name, value in shown.items()}


def target(routed: StudentAwareRouter, experts: list[Tensor], shares: Tensor) -> Tensor:
    """What the original student is to predict."""
    normed = [nn.functional.layer_norm(e, (12,)) for e in experts]
    mapped = torch.stack([m(e) for m, e in zip(routed.maps[:4], normed, strict=True)], -1)
    return (mapped * shares[..., None, :]).sum(-1)


def test_shares_trained_by_the_losses_they_weigh_all_go_to_the_easiest_expert():
    config = {"floor": 0.0, "top_k": 4, "balance": 0.01}
    shares = learn(router(**config), 400, regress=True)["shares"].mean((0, 1))
    assert shares[EXPERTS.index("easy")] > 0.9


def test_the_original_target_learns_to_be_a_constant():
    before = learn(router("original"), 1)
    after = learn(router("original"), 400)
    assert float(before["feature"].mean()) > 0.1
    assert float(after["feature"].mean()) < 1e-3
    spread = [float(each["target"].std((0, 1)).mean()) for each in (before, after)]
    assert spread[1] < 0.05 * spread[0]


def test_ours_learns_from_the_expert_that_helps_and_looks_at_the_others_too():
    routed = router()
    shown = learn(routed, 400)
    shares, firsts = (shown[name].mean((0, 1)) for name in ("shares", "firsts"))
    assert int(shares.argmax()) == int(firsts.argmax()) == EXPERTS.index("useful")
    assert shares.min() >= 0.05 / 4 - 1e-6
    assert evenness(shares.tolist()) > 0.5
    assert 0.2 < float(shown["feature"].mean()) < 1.5


def test_the_balance_loss_is_one_for_even_use_and_the_number_of_experts_for_one_alone():
    routed = router(balance=1.0, z_loss=0.0)
    states, experts = torch.randn(4, 32, 16), [torch.randn(4, 32, 12)] * 4
    assert float(routed(states, experts, HERE, None)["router"].detach().mean()) == pytest.approx(1)
    with torch.no_grad():
        for part in (routed.gate.query, *routed.gate.keys):
            part.weight.zero_()
            part.bias.fill_(0.0)
        routed.gate.query.bias.fill_(10.0)
        routed.gate.keys[2].bias.fill_(10.0)
    for _ in range(200):
        routed.observe([0.0, 0.0, 1.0, 0.0])
    assert float(routed(states, experts, HERE, None)["router"].detach().mean()) == pytest.approx(
        4.0
    )


def test_what_is_absent_gets_no_share_and_no_gradient_is_broken_by_it():
    routed, there = router(), HERE.clone()
    there[..., 1] = False
    there[0, 5:] = False  # padding: nothing is there at all
    states = torch.randn(4, 32, 16, requires_grad=True)
    experts = [torch.randn(4, 32, 12) for _ in range(4)]
    shown = routed(states, experts, there, torch.randn(4, 32, 16))
    assert shown["shares"][1:, :, 1].eq(0).all()
    assert shown["shares"][1:].sum(-1).sub(1).abs().max() < 1e-6
    (shown["feature"][there.any(-1)].sum() + shown["router"][there.any(-1)].sum()).backward()
    assert states.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in routed.parameters())


def test_the_best_experts_and_the_floor_share_a_frame():
    routed = router(top_k=2, floor=0.2)
    scores = torch.tensor([[[3.0, 1.0, 3.0, 0.0]]])
    shares = routed.shares(scores, torch.ones(1, 1, 4).bool())[0, 0]
    assert shares.tolist() == pytest.approx([0.45, 0.05, 0.45, 0.05])


def test_the_router_gives_the_student_no_gradient_and_the_student_gives_none_to_the_router():
    routed = router()
    states = torch.randn(4, 32, 16, requires_grad=True)
    shown = routed(states, [torch.randn(4, 32, 12)] * 4, HERE, torch.randn(4, 32, 16))
    shown["router"].sum().backward(retain_graph=True)
    assert states.grad is None and routed.maps[0].weight.grad is None
    routed.zero_grad()
    shown["feature"].sum().backward()
    assert states.grad is not None and states.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in routed.gate.parameters())


def test_a_collapse_is_reported_when_it_has_lasted_three_looks():
    routed, fine = router(), [0.25] * 4
    one = [0.97, 0.01, 0.01, 0.01]
    assert [bool(routed.warn_of_collapse(one, one)) for _ in range(4)] == [False, False, True, True]
    assert not routed.warn_of_collapse(fine, fine)
    assert [bool(routed.warn_of_collapse(fine, one)) for _ in range(3)] == [False, False, True]
    assert not routed.warn_of_collapse(fine, fine)
    assert [bool(routed.warn_of_collapse(one, fine)) for _ in range(3)] == [False, False, True]
    assert "97%" in routed.warn_of_collapse(one, one)
    assert evenness(fine) == pytest.approx(1.0) and evenness([1.0, 0.0]) == 0
