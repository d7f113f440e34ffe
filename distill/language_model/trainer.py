"""Training of language models: texts as a `Material` of the one loop, measured by perplexity."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from distill.config.language_model import LMTrainingConfig
from distill.language_model.batch import TextBatch
from distill.language_model.model import (
    LanguageModel,
    LMObjective,
    likelihood,
    perplexity,
)
from distill.language_model.texts import TextFeed, Texts
from lact_asr.data.batch_plan import Position
from lact_asr.distributed import processes
from lact_asr.distributed.fsdp import run_dummy_forwards
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.material import Material, Measure, Terms, Worst
from lact_asr.training.memory_probe import worst
from lact_asr.training.trainer import FitResult, Launcher, learn

TERMS = Terms("texts", "symbols", "batch_tokens", "symbols_per_second", "symbols/s")


class TextMaterial(Material):
    """Texts to learn from and to measure on."""

    terms = TERMS
    nothing_learned = (np.inf,)
    tokens_per_amount = 1.0

    def __init__(
        self,
        model: LanguageModel,
        train: Sequence[str],
        dev: Sequence[str],
        vocabulary: Vocabulary,
        config: LMTrainingConfig,
        world: processes.World,
        device: torch.device,
    ) -> None:
        """DataError where no text of one of the two can be written with the vocabulary."""
        self.model, self.config, self.world, self.device = model, config, world, device
        self.train, self.dev = (
            Texts(part, vocabulary, config.batch_tokens) for part in (train, dev)
        )
        parts = {"train": self.train, "dev": self.dev}
        self.left_out = {
            f"{name}: not of the vocabulary": part.foreign
            for name, part in parts.items()
            if part.foreign
        }
        count, symbols = len(self.train.texts), self.train.lengths.sum()
        self.summary = f"{count} texts ({symbols:,} symbols), validating on {len(self.dev.texts)}"
        self.budget = config.batch_tokens

    def fingerprint(self) -> int:
        """A number that changes when texts come, go or change."""
        return self.train.fingerprint

    def feed(self, start: Position) -> TextFeed:
        """The batches of this rank from a place on."""
        return TextFeed(self.train, self.config.seed, self.world, start)

    def batches_per_epoch(self) -> int:
        """Batches of an epoch for every rank."""
        return -(-len(self.train.plan) // self.world.world_size)

    def prepared(self, batch: TextBatch) -> TextBatch:
        """The batch on the device."""
        return batch.to(self.device)

    def worst(self) -> Iterator[Worst]:
        """The worst batches; every epoch has the same ones."""
        for rows in worst(self.train.lengths, self.train.plan):
            batch = self.prepared(self.train.batch(rows))
            yield Worst(len(rows), float(self.train.lengths[rows].max()), batch)

    def measure(self) -> Measure:
        """Perplexity of the dev texts."""
        return held_out(self.model, self.dev, self.world, self.device)


def fit_texts(
    objective: LMObjective,
    train: Sequence[str],
    dev: Sequence[str],
    vocabulary: Vocabulary,
    config: LMTrainingConfig,
    directory: Path,
    launcher: Launcher,
    device: torch.device | None = None,
) -> FitResult:
    """`lact_asr.training.trainer.fit` for texts: what is best is so by perplexity."""
    world = processes.start()
    device = device or world.device()
    texts = TextMaterial(objective.model, train, dev, vocabulary, config, world, device)
    return learn(objective, texts, vocabulary, config, directory, launcher, world, device)


def held_out(
    model: LanguageModel, texts: Texts, world: processes.World, device: torch.device
) -> Measure:
    """How well a model does on texts, over all ranks; leaves it as it was, training or not."""
    share = texts.share(world)
    found = likelihood(model.to(device), share, device)
    nothing = torch.zeros(1, 1, dtype=torch.int64, device=device)
    run_dummy_forwards(model, -(-len(texts.plan) // world.world_size) - len(share), nothing)
    nll, symbols = world.all_sum(torch.tensor(found, dtype=torch.float64, device=device)).tolist()
    loss, value = nll / symbols, perplexity(nll, symbols)
    line = f"Perplexity {value:.3f} | {loss:.4f} nats a symbol"
    return Measure(loss, (value,), {"perplexity": value}, line)
