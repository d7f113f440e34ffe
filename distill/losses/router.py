"""A router that chooses, frame by frame, which of the teacher's states a student learns from.

Experts are layers of the teacher, or its modalities. A query made of the student's states meets a
key made of each expert's; the best two get a share, every expert at least a little (the floor).

`recommended`: the student predicts every expert through a map of its own and is charged by the
shares; nothing learnable stands on the teacher's side. The shares learn from what helps the task:
their target is, per frame, how far the gradient of an expert's loss points where that of the task
does. `original`: experts are mapped and mixed, the mix is the target, and its loss trains maps and
shares alike. The target then learns to be easy: after 400 steps of a toy it was a constant, the
loss 0.000, and nothing was taught. Shares trained by the losses they weigh, without maps, give all
to the expert that is easiest to predict.

The balance loss multiplies mean shares by the running frequency with which an expert came first,
E sum f P: 1 if all are used alike, E if one is. The frequency comes from the steps before, summed
over ranks, so that the loss is a plain sum over frames. The router sees student and teacher without
giving them gradients.

Shapes: B batch, S student frames, E experts, D width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config.router import RouterConfig
from lact_asr.distributed.device import made

WIDTH = 64  # of queries and keys
MEMORY = 0.9  # of the running frequencies, per step
SHARPNESS = 0.1  # the smaller, the more the best direction takes of the router's target
ALARM = 3  # checks in a row of a router that has collapsed:
HIGHEST, LOWEST = 0.9, 0.3  # one expert first in more of the frames, or shares less even


class Gate(nn.Module):
    """Student states [B,S,D] and experts to scores [B,S,E]."""

    def __init__(self, student_width: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.query = nn.Linear(student_width, WIDTH)
        self.keys = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)

    def forward(self, student: Tensor, experts: Sequence[Tensor]) -> Tensor:
        """Scores of experts already normalized."""
        keys = torch.stack([key(e) for key, e in zip(self.keys, experts, strict=True)], dim=-2)
        return (keys @ self.query(student)[..., None])[..., 0] / WIDTH**0.5


class StudentAwareRouter(nn.Module):
    """Scores, shares, and what both cost."""

    first: Tensor  # (E,) how often each expert has come first
    strained: Tensor  # () looks in a row at which something was wrong

    def __init__(self, student_width: int, widths: Sequence[int], config: RouterConfig) -> None:
        super().__init__()
        self.config, self.experts = config, len(widths)
        self.gate = Gate(student_width, widths)
        if config.kind == "original":
            mixed = max(widths)
            self.maps = nn.ModuleList(nn.Linear(width, mixed) for width in widths)
            self.maps.append(nn.Linear(student_width, mixed))
        else:
            self.maps = nn.ModuleList(nn.Linear(student_width, width) for width in widths)
        self.register_buffer("first", torch.full((len(widths),), 1 / len(widths)))
        self.register_buffer("strained", torch.zeros((), dtype=torch.int64))

    def forward(
        self, states: Tensor, experts: Sequence[Tensor], there: Tensor, task: Tensor | None
    ) -> dict[str, Tensor]:
        """Per frame [B,S]: `feature`, what the student pays, and `router`, what the router pays;
        and what is shown, `shares` and `firsts` [B,S,E].

        `states` [B,S,D] of the student, `experts` [B,S,D_e] each, `there` [B,S,E] bool: which
        can be chosen; where none is, it does not matter. `task` [B,S,D], the gradient of the
        task's loss by the states, is what the recommended router learns from.
        """
        there = there | ~there.any(-1, keepdim=True)  # padding: a softmax needs something
        experts = [F.layer_norm(e.detach().float(), e.shape[-1:]) for e in experts]
        scores = self.gate(F.layer_norm(states.detach(), states.shape[-1:]), experts)
        scores = scores.masked_fill(~there, -torch.inf)
        shares = self.shares(scores, there)
        if self.config.kind == "original":
            feature = self._mix_loss(states, experts, shares)
            cost = torch.zeros_like(feature)
        else:
            each = self._each(states, experts)  # [B,S,E]
            feature = (shares.detach() * each).sum(-1)
            cost = self._router_loss(scores, states, each, there, task)
        firsts = F.one_hot(scores.argmax(-1), self.experts).float()
        balance = self.experts * (self.first * scores.softmax(-1)).sum(-1)
        cost = cost + self.config.balance * balance
        cost = cost + self.config.z_loss * scores.logsumexp(-1).square()
        return {"feature": feature, "router": cost, "shares": shares.detach(), "firsts": firsts}

    def shares(self, scores: Tensor, there: Tensor) -> Tensor:
        """[B,S,E]: the softmax over the best `top_k`, and the floor for each that is there."""
        best = scores.topk(min(self.config.top_k, self.experts), dim=-1).indices
        chosen = torch.zeros_like(there).scatter(-1, best, True) & there
        shares = scores.masked_fill(~chosen, -torch.inf).softmax(-1)
        even = there / there.sum(-1, keepdim=True)
        return (1 - self.config.floor) * shares + self.config.floor * even

    def _mix_loss(self, states: Tensor, experts: Sequence[Tensor], shares: Tensor) -> Tensor:
        """The original loss: the student's map against the mix of the experts' maps."""
        *maps, own = self.maps
        mapped = torch.stack([m(e) for m, e in zip(maps, experts, strict=True)], dim=-1)
        mix = (mapped * shares[..., None, :]).sum(-1)  # [B,S,D]
        return (own(states) - mix).square().mean(-1)

    def _each(self, states: Tensor, experts: Sequence[Tensor]) -> Tensor:
        """[B,S,E]: each expert against the student's prediction of it, both layer-normed."""
        costs = []
        for predict, expert in zip(self.maps, experts, strict=True):
            guess = F.layer_norm(predict(states), expert.shape[-1:])
            costs.append((guess - expert).square().mean(-1))
        return torch.stack(costs, dim=-1)

    def _router_loss(
        self, scores: Tensor, states: Tensor, each: Tensor, there: Tensor, task: Tensor | None
    ) -> Tensor:
        """KL from the experts whose loss pulls the student where the task's does, [B,S]."""
        if task is None:
            return torch.zeros_like(each[..., 0])
        pulls = [
            torch.autograd.grad(each[..., index].sum(), states, retain_graph=True)[0]
            for index in range(self.experts)
        ]
        likeness = torch.stack([F.cosine_similarity(p, task, dim=-1) for p in pulls], dim=-1)
        target = (likeness / SHARPNESS).masked_fill(~there, -torch.inf).log_softmax(-1)
        apart = target.masked_fill(~there, 0.0) - scores.log_softmax(-1).masked_fill(~there, 0.0)
        return (target.exp() * apart).sum(-1)

    @torch.no_grad()
    def observe(self, firsts: Sequence[float]) -> None:
        """How often each expert came first in a step, over all ranks."""
        self.first.lerp_(made(firsts, self.first.device).to(self.first), 1 - MEMORY)

    @torch.no_grad()
    def warn_of_collapse(self, firsts: Sequence[float], shares: Sequence[float]) -> str:
        """What has been wrong with the use of the experts for some checks, or nothing."""
        spread = evenness(shares)
        if max(firsts) <= HIGHEST and spread >= LOWEST:
            self.strained.zero_()
            return ""
        self.strained.add_(1)
        if int(self.strained) < ALARM:
            return ""
        return (
            f"the router has collapsed: one expert comes first in {max(firsts):.0%} of the frames, "
            f"evenness of the shares {spread:.2f}; raise distill.router.balance, or leave it out"
        )


def evenness(shares: Sequence[float]) -> float:
    """Entropy of the shares over its largest value: 1 if all are equal, 0 if there is only one."""
    total = sum(shares)
    parts = [share / total for share in shares if share > 0]
    return -sum(part * math.log(part) for part in parts) / math.log(len(shares))
