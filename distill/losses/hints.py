"""What a student learns from the teacher's hidden states: the maps between them, and the losses.

    feature      the student's last states, mapped, against the teacher's last ones, or against
                 those that the router chooses
    layerwise    mapped layers against each other, the mean over the pairs
    contrastive  the student's last states, mapped: which frame of the teacher's is this?

Every value is per frame, on the student's grid. Maps stand on the student's side: a map of the
teacher's states would learn to make them easy.

Shapes: B batch, S student frames, T teacher frames, D width, E experts.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from distill.config.distillation import DistillConfig
from distill.losses import functions as losses
from distill.losses.layer_map import Pairs
from distill.losses.router import StudentAwareRouter
from distill.losses.time_grid import average
from lact_asr.model.interface import CTCOutput
from lact_asr.utils.errors import DataError

Shown = dict[str, Tensor]  # by name, per frame [B,S]


class Hints:
    """The losses that a configuration asks for; `modules` has what they learn."""

    def __init__(
        self,
        config: DistillConfig,
        widths: Sequence[int],
        teacher_widths: Sequence[int],
        modalities: Sequence[str],
        pairs: Pairs,
        *,
        ratio: float,
        rate: float,
    ) -> None:
        """`rate` in student frames per second, `ratio` of the teacher's to it."""
        self.config, self.ratio, self.pairs = config, ratio, pairs
        self.apart = round(config.contrastive_apart / 1000 * rate)
        self.modules: dict[str, nn.Module] = {}
        self.layers, self.modalities = self._experts(teacher_widths, modalities)
        self.experts = [f"layer{n}" for n in self.layers] + [modalities[m] for m in self.modalities]
        if config.router.kind != "off":
            chosen = [teacher_widths[n - 1] for n in self.layers]
            chosen += [teacher_widths[-1]] * len(self.modalities)
            self.modules["router"] = StudentAwareRouter(widths[-1], chosen, config.router)
        elif config.feature_weight:
            self.modules["projector"] = nn.Linear(widths[-1], teacher_widths[-1])
        if config.layerwise_weight:
            self.modules["layerwise"] = nn.ModuleList(
                nn.Linear(widths[student - 1], teacher_widths[teacher - 1])
                for student, teacher in pairs
            )
        if config.contrastive_weight:
            self.modules["contrastive"] = nn.Linear(widths[-1], teacher_widths[-1])

    def _experts(
        self, teacher_widths: Sequence[int], modalities: Sequence[str]
    ) -> tuple[list[int], list[int]]:
        """Layers (from 1) and modalities (from 0) that the router chooses from."""
        router, depth = self.config.router, len(teacher_widths)
        if router.kind == "off":
            return [], []
        if router.experts != "layers" and not modalities:
            raise DataError(
                f"router.experts: {router.experts} needs a live teacher of the family `teacher`: "
                "others have no modalities, and a cache keeps none; write layers"
            )
        count = min(router.layers, depth)
        layers = sorted({depth - depth * n // count for n in range(count)})
        layers = [] if router.experts == "modalities" else layers
        found = [] if router.experts == "layers" else list(range(len(modalities)))
        if len(layers) + len(found) < 2:
            raise DataError(
                f"the router has nothing to choose from: the teacher gives {depth} layer of hidden "
                "states; write router.kind: off"
            )
        return layers, found

    @property
    def names(self) -> list[str]:
        """The losses there are, without the router's own."""
        config = self.config
        weights = {
            "feature": config.feature_weight,
            "attention": config.attention_weight,
            "layerwise": config.layerwise_weight,
            "contrastive": config.contrastive_weight,
        }
        return [name for name, weight in weights.items() if weight]

    def idle(self, active: Container[str]) -> list[Tensor]:
        """Parameters of the losses that are not active."""
        owners = {"router": "feature", "projector": "feature"}
        modules = [m for name, m in self.modules.items() if owners.get(name, name) not in active]
        return [parameter for module in modules for parameter in module.parameters()]

    def __call__(
        self,
        student: CTCOutput,
        teacher: CTCOutput,
        mask: Tensor,
        task: Callable[[], Tensor],
        active: Container[str],
    ) -> tuple[Shown, Shown]:
        """The active losses per frame, and the use of the router's experts per frame and expert.

        `task()` is the CTC loss, for the one that wants to know where it pulls.
        """
        frames, config = mask.shape[1], self.config
        onto: Callable[[Tensor], Tensor] = lambda x: average(
            x.float(), teacher.lengths, frames, self.ratio
        )
        found: Shown = {}
        use: Shown = {}
        if "router" in self.modules and "feature" in active:
            found, use = self._routed_losses(student, teacher, onto, task)
        elif "feature" in active:
            projected = self.modules["projector"](student.hidden[-1].float())
            distance = losses.FEATURE[config.feature]
            found["feature"] = distance(projected, onto(teacher.hidden[-1]))
        if "attention" in active:
            found["attention"] = self._attention(student, teacher, mask)
        if "layerwise" in active:
            found["layerwise"] = self._layerwise(student, teacher, onto)
        if "contrastive" in active:
            projected = self.modules["contrastive"](student.hidden[-1].float())
            found["contrastive"] = losses.contrastive(
                projected,
                onto(teacher.hidden[-1]),
                mask,
                self.apart,
                config.contrastive_temperature,
            )
        return found, use

    @torch.no_grad()
    def unlearned(
        self, found: Shown, student: CTCOutput, teacher: CTCOutput, mask: Tensor
    ) -> Shown:
        """What the losses `found` are expected to be before anything is learned: those of states
        that have nothing to do with each other, and of even attention.
        """
        expected: Shown = {}
        apart = losses.UNRELATED.get(self.config.feature)
        for name in ("feature", "layerwise"):
            if name in found and apart and self.config.router.kind != "original":
                expected[name] = torch.full_like(found[name], apart)
        if "attention" in found:
            paid = _given(student.attention, "attention")
            even = paid.clamp(min=0.0)  # 0 where it looks, else -inf
            even = even.masked_fill(~paid.isfinite(), -torch.inf).log_softmax(-1)
            expected["attention"] = self._attention(replace(student, attention=even), teacher, mask)
        if "contrastive" in found:
            expected["contrastive"] = losses.candidates(mask, self.apart).sum(-1).float().log()
        return expected

    def _attention(self, student: CTCOutput, teacher: CTCOutput, mask: Tensor) -> Tensor:
        """[B,S]; frames are the same on both sides."""
        frames = mask.shape[1]
        mine = _given(student.attention, "attention")
        theirs = _given(teacher.attention, "attention")[:, :, :frames, :frames]
        if self.config.attention == "original":
            return losses.original_attention(mine, theirs, mask, self.config.temperature)
        return losses.attention(mine, theirs, mask)

    def _layerwise(
        self, student: CTCOutput, teacher: CTCOutput, onto: Callable[[Tensor], Tensor]
    ) -> Tensor:
        distance = losses.FEATURE[self.config.feature]
        aligned = {there: onto(teacher.hidden[there - 1]) for _, there in self.pairs}
        maps = cast(nn.ModuleList, self.modules["layerwise"])
        each = [
            distance(project(student.hidden[here - 1].float()), aligned[there])
            for project, (here, there) in zip(maps, self.pairs, strict=True)
        ]
        return torch.stack(each).mean(0)

    def _routed_losses(
        self,
        student: CTCOutput,
        teacher: CTCOutput,
        onto: Callable[[Tensor], Tensor],
        task: Callable[[], Tensor],
    ) -> tuple[Shown, Shown]:
        states = student.hidden[-1].float()
        experts = [onto(teacher.hidden[n - 1]) for n in self.layers]
        there = [torch.ones(states.shape[:2], device=states.device)] * len(experts)
        for index in self.modalities:
            experts.append(onto(_given(teacher.modalities, "modalities")[:, :, index]))
            weights = _given(teacher.modality_weights, "modality_weights")
            counted = (weights[..., index, None] > 0).float()
            there.append(onto(counted)[..., 0])
        pull = None
        if self.config.router.kind == "recommended":
            (pull,) = torch.autograd.grad(task(), student.hidden[-1], retain_graph=True)
            pull = pull.float()
        paid = self.modules["router"](states, experts, torch.stack(there, -1) > 0, pull)
        use = {}
        for index, name in enumerate(self.experts):
            use[f"share_{name}"] = paid["shares"][..., index]
            use[f"first_{name}"] = paid["firsts"][..., index]
        return {"feature": paid["feature"], "router": paid["router"]}, use


def _given(part: Tensor | None, name: str) -> Tensor:
    """A part of an output that not every model gives, or gives only where it is asked for."""
    if part is None:
        raise ValueError(f"the output has no {name}, which a loss on it needs")
    return part
