"""The small parts that the distillation tests share: a few utterances, tiny models."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from distill.config.models import named_size
from distill.models.baseline import Baseline
from distill.models.registry import FAMILIES
from distill.models.teacher import Teacher
from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import Utterance
from lact_asr.decoding.greedy import greedy
from lact_asr.model.interface import CTCModel
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.loss import Loss, Part
from lact_asr.training.objective import CTCObjective

VOCABULARY = Vocabulary.characters()


@cache
def utterances(speech: Path) -> tuple[Utterance, ...]:
    """The eight shortest utterances, the shortest first."""
    return tuple(sorted(scan(speech / "train"), key=lambda each: each.duration)[:8])


@cache
def batch(speech: Path, count: int) -> Batch:
    """The first `count` of them as one batch."""
    corpus = whole_corpus(utterances(speech)[:count], VOCABULARY)
    return Reader(corpus)[list(range(count))]


def part(whole: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch as a batch of their own, without the padding they do not need."""
    lengths = whole.wave_lengths[rows]
    targets = whole.targets.split(whole.target_lengths.tolist())
    return Batch(
        [whole.ids[row] for row in rows],
        [whole.texts[row] for row in rows],
        whole.waves[rows, : int(lengths.max())],
        lengths,
        torch.cat([targets[row] for row in rows]),
        whole.target_lengths[rows],
    )


def tiny_teacher(seed: int = 0, **changes: Any) -> Teacher:
    """The tiny teacher without dropout, with weights by seed."""
    torch.manual_seed(seed)
    steady = {"dropout": 0.0, "modality_dropout": 0.0}
    config = named_size("teacher", "tiny", {**steady, **changes})
    return FAMILIES["teacher"](config.model_dump(), len(VOCABULARY))


def tiny_baseline(seed: int = 0, **changes: Any) -> Baseline:
    """The tiny baseline without dropout, with weights by seed."""
    torch.manual_seed(seed)
    config = named_size("baseline", "tiny", {"dropout": 0.0, **changes})
    return FAMILIES["baseline"](config.model_dump(), len(VOCABULARY))


def per_label(loss: Loss) -> dict[str, Part[float]]:
    """The parts of a loss as a log has them."""
    mean = lambda value: None if value is None else float(value / loss.weight)
    return {name: Part(mean(part.value), mean(part.expected)) for name, part in loss.parts.items()}


def shares_of(parts: dict[str, Part[float]]) -> dict[str, float]:
    """Each part as a share of what is expected of it, however little that is."""
    return {name: part.value / part.expected for name, part in parts.items() if part.expected}


def memorize(model: torch.nn.Module, spoken: Batch, steps: int, rate: float = 2e-3) -> list[str]:
    """Plain CTC on one batch for so many steps, then what the model hears in it."""
    objective = CTCObjective(model)
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20)
        loss = objective(spoken, step / steps)
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return heard(model, spoken)


@torch.no_grad()
def heard(model: torch.nn.Module, spoken: Batch) -> list[str]:
    """Greedy transcripts in evaluation mode."""
    output = model.eval()(spoken.waves, spoken.wave_lengths)
    return greedy(output.log_probs, output.lengths, VOCABULARY)


def assert_same_alone(model: CTCModel, whole: Batch, junk: float) -> None:
    """Each utterance of a batch reads as it does alone, whatever lies behind it in the batch."""
    waves = torch.nn.functional.pad(whole.waves, (0, 5000))
    for row, length in enumerate(whole.wave_lengths.tolist()):
        waves[row, length:] = junk
    together = model(waves, whole.wave_lengths)
    for row in range(len(whole)):
        single = part(whole, [row])
        alone = model(single.waves, single.wave_lengths)
        frames = int(alone.lengths[0])
        assert together.lengths[row] == frames == alone.log_probs.shape[1]
        drift = together.log_probs[row, :frames] - alone.log_probs[0]
        assert drift.abs().max() < 1e-5
