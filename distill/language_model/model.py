"""Language models over transcripts, and what one learns from another.

A text is read symbol by symbol, with id 0, which no text contains, before its first and after its
last. Distributions over all symbols are the large thing here: they are made for a chunk of places
at a time and made again for the backward pass, so that they never exist for a whole batch.

Perplexity is exp of the mean negative log-likelihood of a symbol of held-out text, ends included,
at temperature 1. The original recipe took exp of the whole weighted loss, and had 13,360 for a 9.5.

Shapes: B texts, L places, N places that count, D width, V symbols.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.config.language_model import LanguageModelConfig, LMDistillConfig
from distill.losses import functions as losses
from distill.losses.schedules import kd_weight
from distill.models.attention import Block, rotary
from lact_asr.model.interface import Model
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.loss import Loss, Outcome, Part
from lact_asr.training.objective import Objective

LOOK = 100  # steps between lines about the weights
BOUNDARY = 0  # begins and ends a text
PAD = -100  # a place that does not count


@dataclass
class TextBatch:
    """Texts padded to the longest."""

    ids: list[str]  # the texts' beginnings, for messages
    inputs: Tensor  # [B,L] int64
    targets: Tensor  # [B,L] int64: the next symbol, PAD past the end
    amount: int  # symbols that count
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # none; as a batch of audio has

    def rows(self, kept: Sequence[int]) -> "TextBatch":
        """Some of the texts, without the padding that only the others need."""
        rows = list(kept)
        counted = self.targets[rows] != PAD
        size = int(counted.sum(1).max())
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            inputs=self.inputs[rows, :size],
            targets=self.targets[rows, :size],
            amount=int(counted.sum()),
        )

    def not_finite(self) -> list[int]:
        """None: symbols are whole numbers."""
        return []

    def to(self, device: torch.device | str) -> "TextBatch":
        """The batch on a device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def text_batch(texts: Sequence[Sequence[int]], names: Sequence[str]) -> TextBatch:
    """Encoded texts as one batch."""
    size = max(map(len, texts)) + 1
    inputs = torch.zeros(len(texts), size, dtype=torch.int64)
    targets = torch.full((len(texts), size), PAD)
    for row, text in enumerate(texts):
        inputs[row, 1 : len(text) + 1] = torch.tensor(text, dtype=torch.int64)
        targets[row, : len(text) + 1] = torch.tensor([*text, BOUNDARY])
    return TextBatch(list(names), inputs, targets, sum(map(len, texts)) + len(texts))


class LanguageModel(Model):
    """The next symbol from all before it."""

    family = "language_model"
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

    def forward(self, inputs: Tensor) -> Tensor:
        """Symbols [B,L] to states [B,L,D]; padding behind a text has no effect on it."""
        size = inputs.shape[1]
        seen = torch.ones(size, size, device=inputs.device).bool().tril()[None]  # [1,L,L]
        turn = rotary(size, self.config.hidden // self.config.heads, inputs.device)
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x, seen, turn)
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
    """The texts' loss, and with a teacher (1 - alpha) of it plus KD, per symbol."""

    def __init__(
        self,
        model: LanguageModel,
        chunk: int,
        teacher: LanguageModel | None = None,
        config: LMDistillConfig | None = None,
    ) -> None:
        self.model = self.trainable = model
        self.chunk, self.config = chunk, config or LMDistillConfig()
        self.teacher = teacher.eval().requires_grad_(False) if teacher else None
        self.progress = 0.0

    def weights(self, progress: float) -> dict[str, float]:
        """What each component is multiplied by."""
        if self.teacher is None:
            return {"lm": 1.0}
        return {"lm": 1 - self.config.alpha, "kd": kd_weight(progress, self.config)}

    def __call__(self, batch: TextBatch, progress: float) -> Loss:
        """Sums over the places that count; parts raw and weighted."""
        self.progress, there = progress, batch.targets != PAD
        states, told = self.model(batch.inputs)[there], None  # [N,D]
        if self.teacher is not None:
            with torch.no_grad():
                told = self.teacher.to(batch.inputs.device)(batch.inputs)[there]
        raw, expected = self._chunked(states, batch.targets[there], told)
        weighted = {name: weight * raw[name] for name, weight in self.weights(progress).items()}
        total = torch.stack(list(weighted.values())).sum()
        expected["lm"] = there.sum() * math.log(self.model.head.out_features)
        parts = {**raw, **{f"{name}_weighted": value for name, value in weighted.items()}}
        shown = {n: Part(value.detach(), expected.get(n)) for n, value in parts.items()}
        return Loss(total, there.sum(), shown)

    def end_step(self, step: int, outcome: Outcome, logger: TrainingLogger) -> None:
        """Say now and then, in the original words, how the texts' loss is weighed."""
        if outcome.taken and (step % LOOK == 0 or step <= 5):
            raw, weighted = outcome.parts["lm"].value, outcome.parts["lm_weighted"].value
            weight = self.weights(self.progress)["lm"]
            logger.say(f"[LM] Raw: {raw:.4f}, Weight: {weight:.3f}, Weighted: {weighted:.4f}")

    def _chunked(
        self, states: Tensor, targets: Tensor, told: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Components by name, and what is expected of the divergence before it is learned."""
        rows = (states, targets) if told is None else (states, targets, told)
        pieces = zip(*(row.split(self.chunk) for row in rows), strict=True)
        sums = [checkpoint(self._sums, *piece, use_reentrant=False) for piece in pieces]
        lm, *rest = torch.stack(sums).sum(0)
        if not rest:
            return {"lm": lm}, {}
        kd, unlearned = rest
        return {"lm": lm, "kd": kd}, {"kd": unlearned.detach()}

    def _sums(self, states: Tensor, targets: Tensor, told: Tensor | None = None) -> Tensor:
        """Negative log-likelihood, divergence, and that of a uniform student, over a chunk."""
        log_probs = self.model.read_out(states)
        likelihood = -log_probs.gather(-1, targets[:, None]).sum()
        if told is None or self.teacher is None:
            return likelihood[None]
        kept = losses.top_k(self.teacher.read_out(told), self.config.top_k, self.config.temperature)
        divergence = losses.top_k_kd(log_probs, kept, self.config.temperature)
        even = torch.full_like(log_probs, -math.log(log_probs.shape[-1])).detach()
        unlearned = losses.top_k_kd(even, kept, self.config.temperature)
        return torch.stack([likelihood, divergence.sum(), unlearned.sum()])


@torch.no_grad()
def likelihood(
    model: LanguageModel, batches: Iterable[TextBatch], device: torch.device, chunk: int = 1024
) -> tuple[float, int]:
    """Negative log-likelihood of texts in nats and their symbols, ends included."""
    objective, training = LMObjective(model, chunk), model.training
    total, symbols = 0.0, 0
    model.eval()
    for batch in batches:
        loss = objective(batch.to(device), 0.0)
        total, symbols = total + float(loss.total), symbols + int(loss.weight)
    model.train(training)
    return total, symbols


def perplexity(nll: float, symbols: float) -> float:
    """exp of the mean; inf where that is too large for a number."""
    mean = nll / symbols
    return math.exp(mean) if mean < 700 else math.inf
