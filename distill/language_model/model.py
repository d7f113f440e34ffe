"""Language models over transcripts, and what one learns from another.

Distributions over all symbols are the large thing here: they are made for a chunk of places at a
time and made again for the backward pass, so that they never exist for a whole batch.

Perplexity is exp of the mean negative log-likelihood of a symbol of held-out text, ends included,
at temperature 1. The original recipe took exp of the whole weighted loss, and had 13,360 for a 9.5.

Shapes: B texts, L places, N places that count, D width, V symbols.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.config.distillation import DistillConfig
from distill.config.hints import HintConfig
from distill.config.language_model import LanguageModelConfig, LMDistillConfig
from distill.language_model.across import Across, Stretches
from distill.language_model.batch import PAD, TextBatch
from distill.losses import functions as losses
from distill.losses import layer_map, schedules
from distill.losses.balancing import SCALES_RATE, Balancer
from distill.losses.hints import Hints
from distill.losses.looks import Looks, balance_line, curriculum_line
from distill.models.attention import Block, rotary
from lact_asr.model.interface import CTCOutput, Model
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.loss import Loss, Outcome, Part
from lact_asr.training.objective import Objective

HINTS = ("feature", "attention", "layerwise")


@dataclass
class Inside:
    """What a model shows of its inside, where it is asked to."""

    attends: bool  # whether it is to say what its last block attends to
    hidden: list[Tensor] = field(default_factory=list)  # [B,L,D] behind each block
    attention: Tensor | None = None  # [B,H,L,L] logarithm

    def as_output(self, states: Tensor) -> CTCOutput:
        """As losses on hidden states want it; they look at no distribution."""
        lengths = torch.full((len(states),), states.shape[1], device=states.device)
        return CTCOutput(states, lengths, self.hidden, self.attention)


class LanguageModel(Model):
    """The next symbol from all before it."""

    family = "language_model"
    attends = True
    config: LanguageModelConfig

    def __init__(self, config: LanguageModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary_size, config.hidden)
        self.blocks = nn.ModuleList(
            Block(config.hidden, config.heads, config.mlp, True, config.dropout)
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.hidden)
        self.head = nn.Linear(config.hidden, vocabulary_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor, inside: Inside | None = None) -> Tensor:
        """Symbols [B,L] to states [B,L,D]; padding behind a text has no effect on it.

        `inside` is filled with what it asks for.
        """
        size = inputs.shape[1]
        seen = torch.ones(size, size, device=inputs.device).bool().tril()[None]  # [1,L,L]
        turn = rotary(size, self.config.hidden // self.config.heads, inputs.device)
        x = self.embedding(inputs)
        for block in self.blocks:
            before, x = x, block(x, seen, turn)
            if inside:
                inside.hidden.append(x)
        if inside and inside.attends:
            last = cast(Block, self.blocks[-1])
            inside.attention = last.log_attention(before, seen.expand(len(x), -1, -1), turn)
        return self.norm(x)

    def read_out(self, states: Tensor) -> Tensor:
        """Log-probabilities [N,V] float32 of the symbols after these states [N,D]."""
        with torch.autocast(states.device.type, enabled=False):
            return self.head(states.float()).log_softmax(-1)


def language_model(config: dict[str, Any], vocabulary_size: int) -> LanguageModel:
    """A fresh model from what a checkpoint stored."""
    return LanguageModel(LanguageModelConfig.model_validate(config), vocabulary_size)


LM_FAMILIES: dict[str, Callable[[dict[str, Any], int], LanguageModel]] = {
    LanguageModel.family: language_model
}


class LMObjective(Objective[TextBatch, LanguageModel]):
    """The texts' loss; with a teacher (1 - alpha) of it, KD, and losses on hidden states.

    All are sums over the symbols of texts. Maps and learned scales are kept beside the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        chunk: int,
        teacher: LanguageModel | None = None,
        config: LMDistillConfig | None = None,
        log_every: int = 1,
        across: Across | None = None,
    ) -> None:
        """`across` cuts texts into what both can judge, where a teacher has other symbols."""
        self.model, self.across = model, across
        self.trainable: nn.Module = model
        self.chunk, self.config = chunk, config or LMDistillConfig()
        self.teacher = teacher.eval().requires_grad_(False) if teacher else None
        self.progress, self.looks = 0.0, Looks(log_every)
        self.hints = self._hints(teacher) if teacher else None
        names = ["kd", *self.hints.names] if self.hints else []
        self.balancer = Balancer(names, self.config.balance)
        self.maps = nn.ModuleDict(self.hints.modules if self.hints else {})
        if self.config.balance != "static" and names:
            self.maps["balancer"] = self.balancer
        if self.maps:
            self.trainable = nn.ModuleDict({"student": model, **self.maps})

    def _hints(self, teacher: LanguageModel) -> Hints:
        """The losses on hidden states: the places of a text are the frames of both."""
        shared = self.config.model_dump(include=set(HintConfig.model_fields))
        here, there = ([each.config.hidden] * each.config.blocks for each in (self.model, teacher))
        pairs = layer_map.uniform(len(here), len(there))
        if self.config.layer_map != "uniform":
            pairs = layer_map.check(self.config.layer_map, len(here), len(there))
        return Hints(DistillConfig(**shared), here, there, (), pairs, ratio=1.0, rate=1.0)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The student at the given rate, maps and learned scales faster."""
        groups = [{"params": list(self.model.parameters()), "lr": learning_rate}]
        for name, module in self.maps.items():
            factor = SCALES_RATE if name == "balancer" else self.config.projector_rate
            if parameters := list(module.parameters()):
                groups.append({"params": parameters, "lr": learning_rate * factor})
        return groups

    def weights(self, progress: float) -> dict[str, float]:
        """What each component is multiplied by before it is balanced."""
        if self.teacher is None:
            return {"lm": 1.0}
        return {"lm": 1 - self.config.alpha, **schedules.weights(self.config, progress)}

    def __call__(self, batch: TextBatch, progress: float) -> Loss:
        """Sums over the places that count; parts raw and weighted."""
        self.progress, there = progress, batch.targets != PAD
        weights = self.weights(progress)
        active = {name for name, weight in weights.items() if weight}
        if self.across:
            raw, expected = self._beside(self.across(batch), batch)
            return self._total(raw, weights, expected, there.sum(), active)
        inside = Inside("attention" in active) if active & {*HINTS} else None
        states, told, taught = self.model(batch.inputs, inside), None, None
        if self.teacher is not None:
            taught = inside and Inside(inside.attends)
            with torch.no_grad():
                told = self.teacher.to(batch.inputs.device)(batch.inputs, taught)
        places = [each for each in (states, batch.targets, told) if each is not None]
        raw, expected = self._chunked(*map(batch.counted, places))
        if inside and taught and told is not None:
            mine, theirs = inside.as_output(states), taught.as_output(told)
            shown, unlearned = self._inside(mine, theirs, there, active)
            raw, expected = raw | shown, expected | unlearned
        return self._total(raw, weights, expected, there.sum(), active)

    def _inside(
        self, student: CTCOutput, teacher: CTCOutput, there: Tensor, active: set[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses on hidden states, and what is expected of them before they are learned."""
        assert self.hints is not None
        over_places: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda part: {
            name: losses.masked_sum(each, there) for name, each in part.items()
        }
        with torch.autocast(there.device.type, enabled=False):
            found, _ = self.hints(student, teacher, there, lambda: there.sum(), active)
            if not self.looks.measured:
                return over_places(found), {}
            expected = self.hints.unlearned(found, student, teacher, there)
            return over_places(found), over_places(expected)

    def _total(
        self,
        raw: dict[str, Tensor],
        weights: dict[str, float],
        expected: dict[str, Tensor],
        symbols: Tensor,
        active: set[str],
    ) -> Loss:
        taught = {name: value for name, value in raw.items() if name != "lm"}
        weighted = {"lm": weights["lm"] * raw["lm"], **self.balancer(taught, weights, symbols)}
        idle = [0 * each.sum() for each in self.hints.idle(active)] if self.hints else []
        total = torch.stack([*weighted.values(), *idle]).sum()
        if self.looks.measured:
            expected["lm"] = symbols * math.log(self.model.head.out_features)
        parts = {**raw, **{f"{name}_weighted": value for name, value in weighted.items()}}
        shown = {n: Part(value.detach(), expected.get(n)) for n, value in parts.items()}
        return Loss(total, symbols, shown)

    def end_step(self, step: int, outcome: Outcome, logger: TrainingLogger) -> None:
        """Remember what a step came to; say now and then, in the original words, how it is
        weighed.
        """
        told = self.looks.after(step)
        if not outcome.taken:
            return
        parts = {name: part.value for name, part in outcome.parts.items()}
        self.balancer.observe(parts["lm"], parts)
        if not told:
            return
        names, weights = self.balancer.names, self.weights(self.progress)
        raw, weighted = parts["lm"], parts["lm_weighted"]
        logger.say(f"[LM] Raw: {raw:.4f}, Weight: {weights['lm']:.3f}, Weighted: {weighted:.4f}")
        if len(names) > 1:
            logger.say(curriculum_line(step, self.progress, weights, names))
        if "balancer" in self.maps:
            logger.say(balance_line(self.balancer.factors().tolist(), names))

    def _beside(
        self, stretches: Stretches, batch: TextBatch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Components, and what is expected of them, beside a teacher with other symbols."""
        assert self.teacher is not None
        mine = self._scores(self.model, batch)
        with torch.no_grad():
            theirs = self._scores(self.teacher.to(batch.inputs.device), stretches.batch)
        taught = stretches.likelihoods(theirs, stretches.theirs)

        def divergence(scores: Tensor) -> Tensor:
            found = stretches.likelihoods(scores, stretches.mine)
            return losses.likelihood_kd(found, taught, self.config.temperature).sum()

        even = torch.full_like(mine, -math.log(self.model.head.out_features)).detach()
        expected = {"kd": divergence(even)} if self.looks.measured else {}
        return {"lm": -mine.sum(), "kd": divergence(mine)}, expected

    def _scores(self, model: LanguageModel, batch: TextBatch) -> Tensor:
        """Log-probabilities [N] of the symbols of texts, a chunk of places at a time."""
        rows = map(batch.counted, (model(batch.inputs), batch.targets))
        pieces = zip(*(row.split(self.chunk) for row in rows), strict=True)
        score: Callable[[Tensor, Tensor], Tensor] = lambda states, targets: model.read_out(
            states
        ).gather(-1, targets[:, None])[:, 0]
        return torch.cat([checkpoint(score, *piece, use_reentrant=False) for piece in pieces])

    def _chunked(self, *rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Components by name, and what is expected of the divergence before it is learned, from
        the states of all places that count, their targets, and the teacher's states.
        """
        pieces = zip(*(row.split(self.chunk) for row in rows), strict=True)
        measured = self.looks.measured
        sums = [checkpoint(self._sums, measured, *piece, use_reentrant=False) for piece in pieces]
        lm, *rest = torch.stack(sums).sum(0)
        if not rest:
            return {"lm": lm}, {}
        expected = {"kd": rest[1].detach()} if measured else {}
        return {"lm": lm, "kd": rest[0]}, expected

    def _sums(
        self, measured: bool, states: Tensor, targets: Tensor, told: Tensor | None = None
    ) -> Tensor:
        """Negative log-likelihood, divergence, and if measured that of a uniform student, over a
        chunk.
        """
        log_probs = self.model.read_out(states)
        likelihood = -log_probs.gather(-1, targets[:, None]).sum()
        if told is None or self.teacher is None:
            return likelihood[None]
        kept = losses.top_k(self.teacher.read_out(told), self.config.top_k, self.config.temperature)
        divergence = losses.top_k_kd(log_probs, kept, self.config.temperature).sum()
        if not measured:
            return torch.stack([likelihood, divergence])
        even = torch.full_like(log_probs, -math.log(log_probs.shape[-1])).detach()
        unlearned = losses.top_k_kd(even, kept, self.config.temperature).sum()
        return torch.stack([likelihood, divergence, unlearned])


@torch.no_grad()
def likelihood(
    model: LanguageModel, batches: Iterable[TextBatch], device: torch.device, chunk: int = 1024
) -> tuple[float, int]:
    """Negative log-likelihood of texts in nats and their symbols, ends included."""
    objective, training = LMObjective(model, chunk), model.training
    total, symbols = torch.zeros((), dtype=torch.float64, device=device), 0
    model.eval()
    for batch in batches:
        total += objective(batch.to(device), 0.0).total
        symbols += batch.amount
    model.train(training)
    return float(total), symbols


def perplexity(nll: float, symbols: float) -> float:
    """exp of the mean; inf where that is too large for a number."""
    mean = nll / symbols
    return math.exp(mean) if mean < 700 else math.inf
